"""Quick scores: the hold-out metric of a subnet with inherited weights and recalibrated batch norm (EagleEye, Li et
al. 2020, §3.2), without any training.

A score is a function of (architecture, weights, image set, count): every candidate sees the same decoded images in the
same batches, and leaves the network it comes from untouched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from tas.calibration import has_batch_norm, recalibrate
from tas.data import Data, Split, as_data, examples_in, halves
from tas.errors import BadData
from tas.extraction import extract
from tas.objectives import Objective, default_objective
from tas.space import Architecture
from tas.supernet import Supernet
from tas.tracing import Traced
from tas.training import call


@dataclass(frozen=True)
class Score:
    """What an architecture reaches on `images` hold-out images: the objective's metric with recalibrated and with
    inherited (`raw`) batch-norm statistics, and the recalibrated loss. Without batch norm both metrics are the same."""

    architecture: Architecture
    recalibrated: float
    raw: float
    loss: float
    images: int


def search_splits(data: Data, seed: int = 0) -> tuple[Split, Split]:
    """The halves of the training images that train weights, and that train and score architectures. A search and the
    scores of its candidates use the same seed, so that no score image has trained a weight. (TAS fixes seed 111.)"""
    return halves(data.train, torch.Generator().manual_seed(seed))


def score(
    source: Traced | Supernet,
    architectures: Iterable[Mapping[str, int]],
    data: Any,
    *,
    objective: Objective | None = None,
    calibration_images: int = 2560,
    images: int = 2000,
    batch: int = 128,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_score: Callable[[Score], None] | None = None,
) -> list[Score]:
    """Scores of `architectures`, in their order, with the weights of `source`.

    Calibration images come unaugmented from the *weights* half of `data.train`, score images from the *architecture*
    half (`search_splits(data, seed)`). The cumulative average over 20 batches of 128 has the variance of EagleEye's 102
    batches at momentum 0.1; EagleEye scores on 10,000 images, whose standard error at 50 % is 0.5 points against
    1.1 here. `on_score` is told of every score as it comes.
    """
    objective = objective or default_objective()
    weights, architecture_half = search_splits(as_data(data), seed)
    whole = len(weights) >= batch  # the average over batches gives every batch the same weight, whatever its size
    calibration = [inputs for inputs, _ in _decoded(weights, calibration_images, batch, whole, device)]
    held_out = _decoded(architecture_half, images, batch, False, device)
    found = []
    for architecture in architectures:
        network = extract(source, architecture).to(device)
        raw, loss, count = _evaluated(network, held_out, objective)
        recalibrated = raw
        if has_batch_norm(network):
            recalibrate(network, calibration, partial(call, network))
            recalibrated, loss, count = _evaluated(network, held_out, objective)
        found.append(Score(Architecture.of(architecture), recalibrated, raw, loss, count))
        if on_score:
            on_score(found[-1])
    return found


def ranked(scores: Sequence[Score], objective: Objective | None = None) -> list[Score]:
    """Best recalibrated metric first, ties by the lower loss (where few images are right, the metric alone has no
    signal). Scores that are not numbers come last; BadData where there is no other."""
    sign = -1 if (objective or default_objective()).higher_is_better else 1

    def key(candidate: Score) -> tuple[bool, float, bool, float]:
        metric, loss = candidate.recalibrated, candidate.loss
        lost, vague = math.isnan(metric), math.isnan(loss)
        return lost, 0.0 if lost else sign * metric, vague, 0.0 if vague else loss

    if scores and all(math.isnan(candidate.recalibrated) for candidate in scores):
        raise BadData(f"at least one of {len(scores)} candidates needs a score that is a number, all are NaN")
    return sorted(scores, key=key)


def _decoded(split: Split, count: int, batch: int, whole: bool, device: torch.device | str) -> list[tuple[Any, Any]]:
    """At most `count` examples, shuffled the same way every time: the statistics of a batch need many classes in it."""
    return list(split.take(count).batches(batch, torch.Generator().manual_seed(0), drop_last=whole, device=device))


@torch.no_grad()
def _evaluated(network: nn.Module, batches: list[tuple[Any, Any]], objective: Objective) -> tuple[float, float, int]:
    """Mean metric, mean loss and number of examples."""
    network.eval()
    metric, loss, count = 0.0, 0.0, 0
    for inputs, targets in batches:
        outputs, size = call(network, inputs), examples_in(targets)
        metric += float(objective.metric(outputs, targets).double().mean()) * size
        loss += float(objective.loss(outputs, targets)) * size
        count += size
    return metric / count, loss / count, count
