"""Quick scores: the hold-out metric of a subnet with inherited weights and recalibrated batch norm (EagleEye, Li et
al. 2020, §3.2), without any training.

A score is a function of (architecture, weights, image set, count): every candidate sees the same decoded images in the
same batches, and leaves the network it comes from untouched. The images of a smaller count are the first ones of a
larger count, so a race (successive halving over images) gives the very scores that its counts give without a race.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from tas.calibration import has_batch_norm, recalibrate, restore, statistics
from tas.data import Batches as OwnBatches
from tas.data import Data, Split, as_data, examples_in, halves, map_tensors, nested
from tas.data.tensors import no_numbers, tensors_in
from tas.errors import BadData, BadNetwork, BadRecipe, Caution
from tas.extraction import extract
from tas.merging import MERGE_IMAGES, Merging
from tas.objectives import Objective, default_objective
from tas.space import Architecture
from tas.supernet import Supernet
from tas.tracing import Traced
from tas.training import call
from tas.training.evaluation import class_check, require_finite

Batches = list[tuple[Any, Any]]

# 4,400 images, most of them for the score: 200 subnets of CIFAR ResNet-20 were ordered like on 23,056 others with a
# Kendall of 0.956, with 2,432 + 1,968 of them of 0.943; two sets of 23,056 agree with 0.974 (`configs/LOG.md`).
CALIBRATION_IMAGES = 1280
SCORE_IMAGES = 3120


class BlindWarning(Caution):
    """The held-out images do not show everything that a score should see."""


@dataclass(frozen=True)
class Score:
    """What an architecture reaches on `images` hold-out images: the objective's metric with recalibrated and, where
    asked for, with inherited (`raw`) batch-norm statistics, and the recalibrated loss."""

    architecture: Architecture
    recalibrated: float
    raw: float | None
    loss: float
    images: int

    @property
    def valid(self) -> bool:
        """Whether metric and loss are numbers. (A network whose outputs are NaN has a top-1: that of class 0.)"""
        return math.isfinite(self.recalibrated) and math.isfinite(self.loss)


@dataclass(frozen=True, eq=False)
class Judge:
    """What all candidates are scored with: weights, and decoded batches on the device (inputs for the calibration) of
    the `train` images."""

    source: Traced | Supernet
    objective: Objective
    train: Split
    calibration: list[Any]
    held_out: Batches
    images: int
    device: torch.device | str
    merging: Merging | None = None

    @cached_property
    def check(self) -> Callable[[Any, Any], None]:
        """Of outputs and targets, see `class_check`."""
        return class_check(self.train, self.objective)

    def network(self, architecture: Mapping[str, int]) -> nn.Module:
        """What is scored at an architecture: with inherited weights, or merged ones."""
        merging = self.merging
        return extract(self.source, architecture) if merging is None else merging.student(architecture)


def search_splits(data: Data, seed: int = 0) -> tuple[Split, Split]:
    """The halves of the training images that train weights, and that train and score architectures. A search and the
    scores of its candidates use the same seed, so that no score image has trained a weight. (TAS fixes seed 111.)"""
    return halves(data.train, torch.Generator().manual_seed(seed))


def scored_on(data: Data, images: int, seed: int = 0) -> Split:
    """The images of the architecture half that scores on `images` use."""
    return _beginning(search_splits(data, seed)[1], images)


def unseen(data: Data, images: int, seed: int = 0) -> Split | None:
    """The images of the architecture half that scores on `images` do not use; None where none is left."""
    half = search_splits(data, seed)[1]
    if isinstance(half.source, OwnBatches) or len(half) <= images:
        return None
    return half.take(_order(half)[images:])


def score(
    source: Traced | Supernet,
    architectures: Iterable[Mapping[str, int]] | Mapping[str, int] | Tensor,
    data: Any,
    *,
    objective: Objective | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    images: int = SCORE_IMAGES,
    batch: int = 128,
    rungs: int = 1,
    keep: float = 0.25,
    raw: bool = True,
    merge: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_score: Callable[[Score], None] | None = None,
) -> list[Score]:
    """Scores of `architectures`, in their order, with the weights of `source`; equal ones are scored once.

    architectures: themselves, or a single one, or candidate indices [count, choices] as `tas.sample_many` and the
    `sample` of an `ArchitectureDistribution` give them. ValueError, before any image is decoded, where one is not of
    the space.
    Calibration images come unaugmented from the *weights* half of `data.train`, score images from the *architecture*
    half (`search_splits(data, seed)`); where there are fewer than asked for, `Score.images` says so. EagleEye
    calibrates with 13,056 images, of which momentum 0.1 weighs the last 20 batches of 128 or so, and scores on 10,000,
    whose standard error at 50 % is 0.5 points against 0.9 here.

    merge: score students of a traced network as they start by default, with what the removed channels said merged into
    the layers that read them (`tas.merging`), where EagleEye scores what they inherit. On ResNet-20 at 30 % of the MACs
    that ranked 12 networks of various depths with a Kendall of 0.91 instead of 0.30, for a tenth more time
    (`configs/LOG.md`). The weights of a supernet, made for narrow networks, are never merged (-0.21 instead of 0.79).

    rungs: more than 1 is a race, see `raced`. raw: also score with inherited statistics, which takes `images` forwards
    more. `on_score` is told of every score as it comes, in a race of those of the earlier rungs too.
    """
    if isinstance(architectures, Tensor):
        architectures = [source.space.architecture(row) for row in architectures.tolist()]
    everyone = [architectures] if isinstance(architectures, Mapping) else list(architectures)
    for architecture in everyone:
        if not isinstance(architecture, Mapping):
            kind = type(architecture).__name__
            raise ValueError(
                f"an architecture is a mapping of choices to sizes, got a {kind}: score(source, architectures, data)"
            )
        source.space.indices(architecture)
    chosen = judge(
        source,
        data,
        objective=objective,
        calibration_images=calibration_images,
        images=images,
        batch=batch,
        merge=merge,
        seed=seed,
        device=device,
    )
    return raced(chosen, everyone, rungs, keep, raw, on_score)


def judge(
    source: Traced | Supernet,
    data: Any,
    *,
    objective: Objective | None = None,
    calibration_images: int = CALIBRATION_IMAGES,
    images: int = SCORE_IMAGES,
    batch: int = 128,
    merge: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Judge:
    """Decode the images once, for any number of scores; none for a calibration where `source` has no batch norm.
    merge: see `score`; the images for it are of the weights half. `BlindWarning` where the held-out images lack a
    class."""
    for name, count in (("images", images), ("calibration_images", calibration_images)):
        if count < 1:
            raise BadRecipe(f"{name} is at least 1, got {count}")
    data = as_data(data)
    weights, architecture_half = search_splits(data, seed)
    # The average over batches gives every batch the same weight, whatever its size.
    whole = min(len(weights), calibration_images) >= batch
    adapts = has_batch_norm(source.network if isinstance(source, Traced) else source)
    decoded = _decoded(weights, calibration_images, batch, whole, device) if adapts else []
    calibration = [inputs for inputs, _ in decoded]
    held_out = _decoded(architecture_half, images, batch, False, device)
    count = sum(examples_in(targets) for _, targets in held_out)
    if data.classes is not None and architecture_half.targets is not None:
        missing = set(range(data.classes)) - set(torch.cat([targets for _, targets in held_out]).tolist())
        if missing:
            warnings.warn(
                f"scores are blind to classes without an image among the {count} held out, got none of "
                f"{sorted(missing)[:5]} ({len(missing)} of {data.classes}): score on more images",
                BlindWarning,
                stacklevel=2,
            )
    merging = None
    if merge and isinstance(source, Traced):
        merging = Merging(source, [inputs for inputs, _ in _decoded(weights, MERGE_IMAGES, 64, False, device)])
    objective = objective or default_objective()
    found = Judge(source, objective, data.train, calibration, held_out, count, device, merging)
    _require_numbers(found)
    return found


def _require_numbers(judge: Judge) -> None:
    """BadData or BadNetwork where inputs or weights hold NaN: every score would be none, after many, or nothing merged.
    (A loss may leave out targets that are NaN.)"""
    merged = () if judge.merging is None else judge.merging.batches
    if _holds_none((judge.calibration, [inputs for inputs, _ in judge.held_out], merged)):
        judge.train.require_numbers()
    network = judge.source.network if isinstance(judge.source, Traced) else judge.source
    for name, weight in network.named_parameters():
        if bool(weight.isnan().any()):
            raise BadNetwork(
                f"weights must be finite numbers, {name!r} of {type(network).__name__} holds NaN: take weights from "
                "before its training diverged"
            )


def _holds_none(tree: Any) -> bool:
    return any(bool(no_numbers(tensor).any()) for tensor in tensors_in(tree))


@torch.inference_mode()
def require_sound(judge: Judge) -> None:
    """To be asked where a candidate's score is no number: BadData where targets hold NaN, BadNetwork where the network
    itself, before anything is cut, has outputs that are no numbers."""
    if _holds_none([targets for _, targets in judge.held_out]):
        judge.train.require_numbers()
    whole = extract(judge.source, judge.source.space.largest()).to(judge.device).eval()
    for inputs, _ in judge.held_out:
        require_finite(whole, call(whole, inputs))


def judged(
    judge: Judge,
    architecture: Mapping[str, int],
    part: float = 1.0,
    raw: bool = False,
    known: Mapping[str, Tensor] | None = None,
) -> tuple[Score, dict[str, Tensor]]:
    """The score of one architecture on a `part` (0 to 1) of the calibration and of the score images, and the
    batch-norm statistics behind it. `known`: those that a smaller part gave, to go on from."""
    network = judge.network(architecture).to(judge.device).eval()
    held_out = _first(judge.held_out, math.ceil(part * judge.images))
    adapts = has_batch_norm(network)
    inherited = _evaluated(judge, network, held_out)[0] if raw and adapts else None
    if adapts:
        restore(network, known or {})
        done = max((int(v) for k, v in (known or {}).items() if k.endswith("num_batches_tracked")), default=0)
        wanted = judge.calibration[done : math.ceil(part * len(judge.calibration))]
        recalibrate(network, wanted, partial(call, network), resumed=done > 0)
    metric, loss, count = _evaluated(judge, network, held_out)
    return Score(Architecture.of(architecture), metric, inherited if adapts else metric, loss, count), statistics(
        network
    )


def raced(
    judge: Judge,
    architectures: Iterable[Mapping[str, int]],
    rungs: int = 1,
    keep: float = 0.25,
    raw: bool = False,
    on_score: Callable[[Score], None] | None = None,
) -> list[Score]:
    """Successive halving over images (Karnin, Koren & Somekh 2013): the score of every architecture, in their order,
    each with the count that it reached.

    On the first of `rungs`, all are calibrated and scored on keep^(rungs - 1) of the images; the best `keep` of them
    go on to 1 / keep times as many, and the last rung uses all. The calibration goes on from its earlier batches; the
    images are scored again, since the statistics are others. With 2 rungs and a quarter, a candidate costs 0.44 of a
    full score. Who goes on depends on no order; what is no number never does.
    """
    if rungs < 1 or not 0 < keep < 1:
        raise BadRecipe(f"a race has at least 1 rung and keeps a part between 0 and 1, got {rungs} and {keep}")
    space = judge.source.space
    everyone = [space.architecture(space.indices(each)) for each in architectures]  # choices in the space's order
    found: dict[Architecture, Score] = {}
    known: dict[Architecture, dict[str, Tensor]] = {}
    running = list(dict.fromkeys(everyone))
    for rung in range(rungs):
        part = keep ** (rungs - 1 - rung)
        before, known = known, {}
        for each in running:
            found[each], reached = judged(judge, each, part, raw, before.pop(each, None))
            if len(found) == 1 and not found[each].valid:
                require_sound(judge)
            if rung < rungs - 1:
                known[each] = reached
            if on_score:
                on_score(found[each])
        valid = [found[each] for each in running if found[each].valid]
        running = [s.architecture for s in ranked(valid, judge.objective)[: math.ceil(keep * len(running))]]
    return [found[each] for each in everyone]


def ranked(scores: Sequence[Score], objective: Objective | None = None) -> list[Score]:
    """Scores on most images first (in a race they won over the others), of these the best recalibrated metric first,
    ties by the lower loss (where few images are right, the metric alone has no signal), then by the smaller sizes.
    Scores that are not numbers come last; BadData where there is no other."""
    sign = -1 if (objective or default_objective()).higher_is_better else 1
    if scores and not any(candidate.valid for candidate in scores):
        raise BadData(f"at least one of {len(scores)} candidates needs a score that is a number, all are NaN")

    def key(candidate: Score) -> tuple[Any, ...]:
        if not candidate.valid:
            return (True,)
        sizes = tuple(candidate.architecture.values())
        return False, -candidate.images, sign * candidate.recalibrated, candidate.loss, sizes

    return sorted(scores, key=key)


def _decoded(split: Split, count: int, batch: int, whole: bool, device: torch.device | str) -> Batches:
    return list(_beginning(split, count).batches(batch, drop_last=whole, device=device))


def _beginning(split: Split, count: int) -> Split:
    """The first `count` examples of an order that is the same for every count and mixes the classes evenly: the
    statistics of a batch need many classes in it. (The user's own batches keep their order.)"""
    return split.take(count if isinstance(split.source, OwnBatches) else _order(split)[:count])


def _order(split: Split) -> Tensor:
    return nested(split.targets, len(split), torch.Generator().manual_seed(0))


def _first(batches: Batches, count: int) -> Batches:
    """The first `count` examples, in the same batches but for the last."""
    found: Batches = []
    for inputs, targets in batches:
        if count <= 0:
            break
        size = examples_in(targets)
        found.append((inputs, targets) if size <= count else map_tensors(itemgetter(slice(count)), (inputs, targets)))
        count -= size
    return found


@torch.inference_mode()
def _evaluated(judge: Judge, network: nn.Module, batches: Batches) -> tuple[float, float, int]:
    """Mean metric, mean loss and number of examples; the device is waited for once, at the end (for labels that only
    decoding shows, at every batch)."""
    metrics, losses, count = [], [], 0
    objective = judge.objective
    for inputs, targets in batches:
        outputs, size = call(network, inputs), examples_in(targets)
        judge.check(outputs, targets)
        metrics.append(objective.metric(outputs, targets).double().mean() * size)
        losses.append(objective.loss(outputs, targets).double() * size)
        count += size
    metric, loss = torch.stack([torch.stack(metrics).sum(), torch.stack(losses).sum()]).tolist()
    return metric / count, loss / count, count
