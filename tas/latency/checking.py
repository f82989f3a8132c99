"""A table against the truth: networks that it has not seen, measured whole."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

import numpy as np
import torch

from tas import cost
from tas.correlation import spearman
from tas.latency.measuring import measured_whole
from tas.latency.table import MEASURE, TOO_NOISY, Table, fitted, with_latency
from tas.sampling import sample_many
from tas.space import Architecture
from tas.timing import Latency, summary
from tas.tracing import Traced


@dataclass(frozen=True)
class Check:
    """What the table says (ms) and what was measured, network by network.

    spearman: of the two orders. error: the median relative error of the table as it is; error_fitted: after one offset
    and one scale that fit these networks best. spread: of the measurements, the median over the networks.
    """

    architectures: tuple[Architecture, ...]
    predicted: tuple[float, ...]
    measured: tuple[Latency, ...]
    spearman: float
    error: float
    error_fitted: float
    spread: float

    @property
    def too_noisy(self) -> bool:
        return self.spread > TOO_NOISY


def check(traced: Traced, table: Table, networks: int = 16, rounds: int = 15, seed: int = 1) -> Check:
    """Measure `networks` random architectures whole, `rounds` times in turns, and compare them with the table.

    None of them is among those that the table was fitted to. ValueError with fewer than 3 networks or 15 rounds.
    """
    if networks < 3 or rounds < 15:
        raise ValueError(f"a check takes at least 3 networks and 15 rounds, got {networks} and {rounds}")
    space = with_latency(traced, table).space
    seen = {architecture for architecture, _ in table.whole}
    drawn = sample_many(space, torch.Generator().manual_seed(seed), 4 * networks)
    fresh = [a for a in dict.fromkeys(space.architecture(row) for row in drawn.tolist()) if a not in seen][:networks]
    if len(fresh) < 3:
        raise ValueError(f"a check takes at least 3 networks, this space has {len(fresh)} that the table has not seen")
    measured = [summary(samples) for samples in measured_whole(traced, table.target, fresh, rounds)]
    return compared(fresh, [cost.of(space, each, MEASURE) for each in fresh], measured)


def compared(architectures: list[Architecture], predicted: list[float], measured: list[Latency]) -> Check:
    """The figures of a check from both sides, in milliseconds."""
    said, truth = np.array(predicted), np.array([each.median for each in measured])
    offset, scale = fitted(said, truth)
    return Check(
        tuple(architectures),
        tuple(predicted),
        tuple(measured),
        float(spearman(torch.from_numpy(said), torch.from_numpy(truth))),
        median(np.abs(said / truth - 1).tolist()),
        median(np.abs((offset + scale * said) / truth - 1).tolist()),
        median((each.high - each.low) / 2 / each.median for each in measured),
    )
