"""Several budgets from one search: a learned distribution tilted to each of them, and the front of what was scored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tas import cost
from tas.methods.result import SearchResult
from tas.objectives import Objective
from tas.sampling import in_band, most_probable, require_feasible, sample_many, spent, tilt
from tas.scoring import Judge, Score, judge, raced, ranked
from tas.space import Architecture, Budget, SearchSpace
from tas.supernet import Supernet
from tas.tracing import Traced

_FLOOR = 1e-6  # probability that every candidate keeps, so that any feasible budget can be reached by tilting
_CONSIDERED = 4096  # most probable architectures of a tilted distribution that are looked through
_DRAWS = 16  # draws a wanted candidate, since the draws of a peaked distribution repeat themselves


def at_budgets(
    source: Traced | Supernet,
    data: Any,
    probabilities: Mapping[str, tuple[float, ...]],
    budgets: Sequence[Budget],
    *,
    known: Sequence[Score] = (),
    candidates: int = 12,
    images: int = 2000,
    calibration_images: int = 2560,
    merge: bool = False,
    objective: Objective | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[SearchResult, ...]:
    """For every budget the best of `candidates` architectures of the learned distribution, by adaptive batch norm.

    probabilities: `SearchResult.probabilities`. source: whose weights score, such as `SearchResult.supernet`. A budget
    may lie above or below that of the search: see `candidates_at`. An architecture that was scored for one budget, or
    is among the `known` scores (of the same weights and images), competes for every budget that it meets, so a larger
    one never gives a worse score. Raises `Infeasible` for a budget that no architecture meets, before anything is
    scored. images, calibration_images, merge: see `tas.score`.
    """
    for budget in budgets:
        require_feasible(source.space, budget)
    chosen = judge(
        source,
        data,
        objective=objective,
        calibration_images=calibration_images,
        images=images,
        merge=merge,
        seed=seed,
        device=device,
    )
    return tilted_to(chosen, probabilities, budgets, known, candidates, seed)


def tilted_to(
    judge: Judge,
    probabilities: Mapping[str, tuple[float, ...]],
    budgets: Sequence[Budget],
    known: Sequence[Score],
    candidates: int,
    seed: int,
) -> tuple[SearchResult, ...]:
    """`at_budgets`, scored by a judge that is there."""
    space, generator = judge.source.space, torch.Generator().manual_seed(seed)
    table = table_of(space, probabilities)
    found = [candidates_at(space, table, budget, candidates, generator) for budget in budgets]
    scores = [known, *(raced(judge, some) for some in found)]
    return tuple(
        SearchResult(best[0].architecture, tuple(best), probabilities=probabilities)
        for best in (best_within(space, budget, scores, judge.objective) for budget in budgets)
    )


def table_of(space: SearchSpace, probabilities: Mapping[str, Sequence[float]]) -> Tensor:
    """Probabilities by name of choice as a table, float64 [choices, widest], 0 in padded columns. ValueError where they
    are not of this space."""
    if foreign := sorted(set(probabilities) - {choice.name for choice in space.choices}):
        raise ValueError(f"probabilities belong to another space: this one has no choice {foreign[0]!r}")
    table = torch.zeros(len(space.choices), max((len(c.candidates) for c in space.choices), default=1)).double()
    for row, choice in zip(table, space.choices, strict=True):
        given = probabilities.get(choice.name, ())
        if len(given) != len(choice.candidates):
            raise ValueError(
                f"probabilities of {choice.name!r} are one a candidate of {choice.candidates}, got {len(given)}: "
                "they belong to another space"
            )
        row[: len(given)] = torch.tensor(given, dtype=torch.float64)
    return table


def candidates_at(
    space: SearchSpace, table: Tensor, budget: Budget, number: int, generator: torch.Generator
) -> list[Architecture]:
    """Up to `number` distinct architectures in the budget's band: half of them the most probable ones of the tilted
    table, most probable first, the others drawn from it.

    Tilting multiplies every probability by exp(-t x marginal expected cost), with t negative for a budget above the
    table's own cost (see `sampling.tilt`). Ranking the table itself would give a budget with room to spare the same
    small architecture as before. Raises `Infeasible`.
    """
    require_feasible(space, budget)
    floored = torch.where(_present(space), table.clamp(min=_FLOOR), 0.0)
    tilted = tilt(space, floored / floored.sum(-1, keepdim=True), budget)
    probable = most_probable(tilted, _CONSIDERED)
    probable = probable[in_band(space, probable, budget)]
    drawn = sample_many(space, generator, _DRAWS * number, budget, tilted)
    pool = torch.cat([probable[: -(-number // 2)], drawn, probable])
    return spent(space, tilted, budget, pool, number)


def best_within(
    space: SearchSpace, budget: Budget, scores: Iterable[Sequence[Score]], objective: Objective | None = None
) -> list[Score]:
    """All scores of architectures that meet a budget, as `distinct` gives them."""
    return distinct([s for some in scores for s in some if meets(space, budget, s.architecture)], objective)


def distinct(scores: Iterable[Score], objective: Objective | None = None) -> list[Score]:
    """Best first, each architecture once: with its most images."""
    found: dict[Architecture, Score] = {}
    for score in ranked(list(scores), objective):
        found.setdefault(score.architecture, score)
    return list(found.values())


def front(
    space: SearchSpace, scores: Iterable[Score], measure: str = "macs", objective: Objective | None = None
) -> list[Score]:
    """The Pareto front by ascending cost: the scores that no other one beats at the same cost or below. Compared are
    only those on the most images."""
    best = [score for score in ranked(list(scores), objective) if score.valid]
    rank = {score: place for place, score in enumerate(s for s in best if s.images == best[0].images)}
    found: list[Score] = []
    for score in sorted(rank, key=lambda s: (_cost(space, s.architecture, measure), rank[s])):
        if not found or rank[score] < rank[found[-1]]:
            found.append(score)
    return found


def _cost(space: SearchSpace, architecture: Mapping[str, int], measure: str) -> float:
    return float(cost.count(space, torch.tensor(space.indices(architecture)), measure))


def meets(space: SearchSpace, budget: Budget, architecture: Mapping[str, int]) -> bool:
    """Whether one architecture keeps to every limit."""
    return bool(cost.feasible(space, torch.tensor(space.indices(architecture)), budget))


def _present(space: SearchSpace) -> Tensor:
    """Which columns of a table are candidates and not padding: bool [choices, widest]."""
    sizes = torch.tensor([len(choice.candidates) for choice in space.choices])
    return torch.arange(int(sizes.max()) if len(sizes) else 1) < sizes[:, None]
