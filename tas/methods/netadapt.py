"""NetAdapt (Yang et al. 2018, algorithm 1): shrink one choice at a time by a step of a measured resource, train every
proposal shortly, keep the one that loses least accuracy per resource, and so on until the budget is met.

The resource is whatever the budget limits: a latency that was measured (`tas.with_latency`), MACs or parameters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tas import cost
from tas.data import Batches, Split
from tas.errors import BadRecipe, Diverged, Infeasible, least, require_rules
from tas.extraction import extract
from tas.importance import reorder
from tas.methods import checkpoint as checkpoints
from tas.methods.asked import Asked
from tas.methods.result import Row, SearchResult, read_score, written
from tas.methods.standing import meets
from tas.objectives import Objective
from tas.sampling import require_feasible
from tas.scoring import (
    CALIBRATION_IMAGES,
    SCORE_IMAGES,
    Judge,
    Score,
    judged,
    ranked,
    require_sound,
    search_splits,
)
from tas.space import Architecture, Budget, SearchSpace
from tas.supernet import Supernet
from tas.tracing import Traced
from tas.training import TrainingPlan, train

_ACCURACY, _RESOURCE = 1e-6, 1e-5  # added to both sides of the ratio, as the authors' code does


@dataclass(frozen=True)
class Settings:
    """How to search. In brackets the values of the authors' code.

    reduction, decay: iteration i lowers the resource by reduction x decay^i of the original's (0.025 and 0.96).
    steps: of the short training of every proposal (10; 500 for MobileNet); 0 trains nothing.
    batch, lr, momentum, weight_decay: of its SGD (128, 1e-3, 0.9, 1e-4); the rate falls to 0 by a cosine (constant).
    images, calibration_images: of the hold-out score of every proposal, see `tas.score`.
    """

    merge: ClassVar[bool] = False  # scores are of weights that were trained
    reduction: float = 0.025
    decay: float = 0.96
    steps: int = 10
    batch: int = 128
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    images: int = SCORE_IMAGES
    calibration_images: int = CALIBRATION_IMAGES

    def __post_init__(self) -> None:
        rules = {
            "reduction lies above 0 and up to 1": 0 < self.reduction <= 1,
            "decay lies above 0 and up to 1": 0 < self.decay <= 1,
            "lr is above 0": self.lr > 0,
            "momentum lies in [0, 1)": 0 <= self.momentum < 1,
            "weight_decay is at least 0": self.weight_decay >= 0,
            **least(self, steps=0, batch=1, images=1, calibration_images=1),
        }
        require_rules(self, rules, "search.")


@dataclass(frozen=True)
class _Search:
    """What stays the same over all iterations."""

    asked: Asked[Settings]
    judge: Judge
    weights: Split


@dataclass(frozen=True)
class _State:
    """Where a search stands: weights whose first units are the current network, its candidate indices and score."""

    traced: Traced
    indices: Tensor
    score: Score

    def cost(self, measure: str) -> float:
        return float(cost.count(self.traced.space, self.indices, measure))


def search(asked: Asked[Settings]) -> SearchResult:
    """The architecture at which the (first) budget is met first.

    In every iteration each choice, a width or a depth, is lowered as far as the iteration's target asks (to its
    smallest candidate where that does not suffice), alone; of the units of a width those with the largest L2 norm stay,
    ranked again whenever a proposal is taken. The resource is the first limit of the budget that is not met yet. A
    proposal's accuracy is its hold-out score after the short training, with recalibrated batch norm; one whose training
    or score stops being numbers is lost.

    A course row holds the iteration, the choice that was lowered, its sizes before and after, the score, the resource
    and the architecture. The result's candidates are the last iteration's that meet the budget, the chosen one first.
    checkpoint: written after every iteration, resumed from where it is there.

    Raises `Infeasible`, with the smallest reachable cost; BadRecipe for a search network with rules of its own; BadData
    where no proposal of an iteration has a score that is a number.
    """
    source, budget, checkpoint = asked.source, asked.budget, asked.checkpoint
    traced = source.current() if isinstance(source, Supernet) else source
    if not isinstance(traced, Traced):
        raise BadRecipe("search.method netadapt cuts a traced network: leave out network.supernet")
    require_feasible(traced.space, budget)
    search = _Search(asked, asked.at(budget, source=traced).judge, search_splits(asked.data, asked.seed)[0])
    identity = {} if checkpoint is None else asked.identity(method="netadapt", settings=asdict(asked.settings))
    state, course, rivals = _begun(search, traced, checkpoint, identity)
    while (measure := _exceeded(traced.space, state.indices, budget)) is not None:
        state, row, rivals = _iteration(search, state, measure, len(course))
        course.append(row)
        if checkpoint is not None:
            saved = [*course, {"rivals": [written(each) for each in rivals]}]
            checkpoints.save(checkpoint, identity, {"network": state.traced.network}, saved)
        if asked.on_row:
            asked.on_row(row)
    return SearchResult(state.score.architecture, (state.score, *rivals), tuple(course))


def _begun(
    search: _Search, traced: Traced, checkpoint: Path | None, identity: Mapping[str, Any]
) -> tuple[_State, list[Row], list[Score]]:
    """The largest architecture with the given weights, or where the checkpoint stands: state, course, and the other
    proposals of the last iteration that meet the budget."""
    space = traced.space
    if checkpoint is None or not checkpoint.exists():
        largest = torch.tensor([len(choice.candidates) - 1 for choice in space.choices], dtype=torch.long)
        ordered = reorder(traced, "l2")
        whole = _score(search, ordered, space.largest())
        if not whole.valid:
            require_sound(search.judge)
        return _State(ordered, largest, whole), [], []
    network = copy.deepcopy(traced.network)
    *course, last = checkpoints.resume(checkpoint, identity, {"network": network})
    reached = Architecture.of(course[-1]["architecture"])
    score = Score(reached, course[-1]["recalibrated"], None, course[-1]["loss"], course[-1]["images"])
    state = _State(replace(traced, network=network), torch.tensor(space.indices(reached)), score)
    return state, course, [read_score(each) for each in last["rivals"]]


def _exceeded(space: SearchSpace, indices: Tensor, budget: Budget) -> str | None:
    """The first limit that is not met."""
    single = (Budget(((measure, limit),)) for measure, limit in budget.limits)
    over = (one for one in single if not bool(cost.feasible(space, indices, one)))
    return next((one.limits[0][0] for one in over), None)


def _iteration(search: _Search, state: _State, measure: str, number: int) -> tuple[_State, Row, list[Score]]:
    """The next state, its row, and the scores of the other proposals that meet the budget."""
    budget, objective = search.asked.budget, search.asked.objective
    space, settings, limit = state.traced.space, search.asked.settings, dict(budget.limits)[measure]
    whole, before = float(cost.original(space, measure)), state.cost(measure)
    reduction = _reduction(space, measure, settings, number)
    proposals = _lowered(space, state.indices, measure, budget, settings, number)
    if not proposals:
        raise Infeasible(
            f"no single choice lowers {measure} any more at {cost.whole(measure, before):,}, the limit is "
            f"{cost.whole(measure, limit):,}: raise the budget, or use another search"
        )
    best: tuple[float, int, _State] | None = None
    scores = []
    for column, indices in proposals.items():
        new = _tried(search, state.traced, indices, number)
        scores.append(new.score)
        worth = _worth(objective, state.score, new.score, (before - new.cost(measure)) / whole)
        if best is None or worth < best[0]:
            best = worth, column, new
    ranked(scores, objective)  # raises where none is a number
    assert best is not None
    _, column, new = best
    left = _iterations_left(new.cost(measure) - limit, reduction, settings.decay)
    choice = space.choices[column]
    row: Row = {
        "step": number + 1,
        "steps": number + 1 + left,
        "choice": choice.name,
        "from": choice.candidates[int(state.indices[column])],
        "to": choice.candidates[int(new.indices[column])],
        "recalibrated": new.score.recalibrated,
        "loss": new.score.loss,
        "images": new.score.images,
        measure: cost.whole(measure, new.cost(measure)),
        "lost": sum(not score.valid for score in scores),
        "architecture": dict(new.score.architecture),
    }
    rivals = [s for s in scores if s is not new.score and s.valid and meets(space, budget, s.architecture)]
    return replace(new, traced=reorder(new.traced, "l2")), row, ranked(rivals, objective)


def _lowered(
    space: SearchSpace, indices: Tensor, measure: str, budget: Budget, settings: Settings, number: int
) -> dict[int, Tensor]:
    """What the iteration of this number, from 0, proposes."""
    target = float(cost.count(space, indices, measure)) - _reduction(space, measure, settings, number)
    return proposed(space, indices, measure, max(target, dict(budget.limits)[measure]))


def _reduction(space: SearchSpace, measure: str, settings: Settings, number: int) -> float:
    """By how much the iteration of this number, from 0, is to lower the resource."""
    return settings.reduction * settings.decay**number * float(cost.original(space, measure))


def proposed(space: SearchSpace, indices: Tensor, measure: str, target: float) -> dict[int, Tensor]:
    """By column, `indices` with that choice lowered to the largest candidate that brings the cost to `target`, or to
    its smallest where none does. Those that lower nothing are left out."""
    before, found = float(cost.count(space, indices, measure)), {}
    for column in range(len(indices)):
        lower = indices.repeat(int(indices[column]), 1)  # a row a smaller candidate
        lower[:, column] = torch.arange(len(lower))
        costs = cost.count(space, lower, measure)
        fitting = (costs <= target + 1e-9).nonzero().flatten()
        best = int(fitting[-1]) if len(fitting) else 0
        if len(lower) and float(costs[best]) < before:
            found[column] = lower[best]
    return found


def _worth(objective: Objective, before: Score, after: Score, saved: float) -> float:
    """Accuracy lost per part of the resource saved; infinite where the score is no number."""
    if not after.valid:
        return math.inf
    lost = before.recalibrated - after.recalibrated if before.valid else 0.0
    lost = lost if objective.higher_is_better else -lost
    return (lost + _ACCURACY) / (saved + _RESOURCE)


def _score(search: _Search, traced: Traced, architecture: Architecture) -> Score:
    return judged(replace(search.judge, source=traced), architecture)[0]


def _tried(search: _Search, traced: Traced, indices: Tensor, number: int) -> _State:
    """A proposal after its short training; where that diverges, with the old weights and a score that is no number."""
    architecture = traced.space.architecture(indices.tolist())
    try:
        tuned = _tuned(search, traced, architecture, number)
    except Diverged:
        return _State(traced, indices, Score(architecture, math.nan, None, math.nan, search.judge.images))
    return _State(tuned, indices, _score(search, tuned, architecture))


def _tuned(search: _Search, traced: Traced, architecture: Architecture, number: int) -> Traced:
    """The weights after the short training at `architecture`, on other images in every iteration."""
    asked, weights = search.asked, search.weights
    settings, student = asked.settings, extract(traced, architecture)
    if settings.steps:
        generator = torch.Generator().manual_seed(asked.seed + 1_000_003 * (number + 1))
        count = settings.steps * settings.batch
        own = isinstance(weights.source, Batches)
        some = weights.take(count if own else torch.randperm(len(weights), generator=generator)[:count])
        epochs = max(1, round(settings.steps / some.steps(settings.batch, len(some) >= settings.batch)))
        plan = TrainingPlan(epochs, settings.batch, settings.lr, "sgd", settings.momentum, False, settings.weight_decay)
        train(student, some, plan, asked.objective, generator, asked.device)
    return taken_back(traced, architecture, student.cpu())


def taken_back(traced: Traced, architecture: Mapping[str, int], student: nn.Module) -> Traced:
    """`traced` with the student's weights in the place of those that it was cut from. Parameters that it lacks in
    layers that it has become 0, so that no norm ranks them before what was kept."""
    network = copy.deepcopy(traced.network)
    cuts = traced.cuts(traced.keep_mask(architecture))
    theirs = dict(student.named_parameters()) | dict(student.named_buffers())
    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if name not in theirs:
                continue
            if isinstance(tensor, nn.Parameter):
                tensor.zero_()
            cut = cuts.get(name, {})
            kept = [_positions(cut.get(dim, size)) for dim, size in enumerate(tensor.shape)]
            places = torch.meshgrid(*kept, indexing="ij") if kept else ()
            tensor[places] = theirs[name].to(tensor.device)
    return replace(traced, network=network)


def _positions(kept: Tensor | int) -> Tensor:
    return torch.arange(kept) if isinstance(kept, int) else kept


def _iterations_left(excess: float, reduction: float, decay: float) -> int:
    """How many more iterations lower the resource by `excess`; where steps get too small for that, a guess."""
    left = 0
    while excess > 0 and left < 1000:
        reduction *= decay
        excess -= reduction
        left += 1
        if reduction < 1e-3 * excess:
            break
    return left


def proposals(space: SearchSpace, budget: Budget, settings: Settings) -> Tensor:
    """Candidate indices [count, choices] of about what a search proposes: of one that takes any of the proposals of an
    iteration, by chance. How many there are follows from costs and candidates: a single choice often cannot lower the
    resource as far as asked, or only by more."""
    generator = torch.Generator().manual_seed(0)
    indices = torch.tensor([len(choice.candidates) - 1 for choice in space.choices], dtype=torch.long)
    found: list[Tensor] = []
    iteration = 0
    while (measure := _exceeded(space, indices, budget)) is not None:
        some = list(_lowered(space, indices, measure, budget, settings, iteration).values())
        if not some:
            break
        found += some
        indices = some[int(torch.randint(len(some), (), generator=generator))]
        iteration += 1
    return torch.stack(found) if found else indices.new_empty(0, len(indices))
