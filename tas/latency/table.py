"""A latency table: measured pieces of a network, and the cost terms of a space that they give.

What a piece takes is a function of its own choices, known at the points of a grid and straight between them (linear in
each choice). Such a function is a sum of terms, for two choices a and b with grid points a_i

    f(a, b) = sum over i of  hat_i(a) x f(a_i, b)

where hat_i is 1 at a_i, 0 at the other points, and f(a_i, .) the curve measured there. So latency is a cost like MACs,
and its expectation is as exact (`tas.cost`).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from tas.cost import by_layer
from tas.errors import BadRecipe
from tas.files import write_json
from tas.latency.pieces import Piece
from tas.latency.target import Target
from tas.space import Architecture, Factor, LayerCost, SearchSpace, Term
from tas.timing import summary
from tas.tracing import Traced
from tas.tracing.leaves import tensors_of

MEASURE = "latency_ms"
REST = "between the layers"  # the layer of what is in no piece
TOO_NOISY = 0.05  # half the distance of the quartiles, as a part of the median: above it, differences say little
Samples = tuple[float, ...]  # milliseconds, one a round


@dataclass(frozen=True)
class Table:
    """What was measured. `entries` names, for every piece, its points' keys in `samples`; pieces that do the same work
    share them. `whole` are networks measured as they are, in the same rounds. `machine` is where."""

    target: Target
    fingerprint: str
    machine: Mapping[str, Any]
    pieces: tuple[Piece, ...]
    entries: tuple[tuple[str, ...], ...]
    samples: Mapping[str, Samples]
    whole: tuple[tuple[Architecture, Samples], ...]

    @property
    def rounds(self) -> int:
        return min((len(samples) for _, samples in self.whole), default=0)

    @property
    def spread(self) -> float:
        """The quartiles' distance from the median, as a part of it: the median over all that was measured."""
        taken = [*self.samples.values(), *(samples for _, samples in self.whole)]
        return statistics.median((s.high - s.low) / 2 / s.median for s in map(summary, taken))

    @property
    def too_noisy(self) -> bool:
        return self.spread > TOO_NOISY

    @cached_property
    def fit(self) -> tuple[float, float]:
        """Offset (ms) and scale with which the sums of pieces come nearest to the whole networks: least squares of the
        relative errors, the offset at least 0. `BadRecipe` where sums say nothing about whole networks."""
        costs = [LayerCost(cost.layer, MEASURE, cost.terms) for cost in self._pieces(1.0)]
        sums = np.array([_total(costs, architecture) for architecture, _ in self.whole])
        taken = np.array([summary(samples).median for _, samples in self.whole])
        offset, scale = fitted(sums, taken)
        if scale <= 0:
            raise BadRecipe(
                f"a latency table needs whole networks that get faster as their layers do; on {self.target} they do "
                "not: measure more rounds, a larger batch, or on a quieter machine"
            )
        return offset, scale

    def costs(self) -> tuple[LayerCost, ...]:
        """Milliseconds of the whole network as terms by layer, and those of what is in no piece."""
        offset, scale = self.fit
        return (*self._pieces(scale), LayerCost(REST, MEASURE, (Term(offset),)))

    def _pieces(self, scale: float) -> list[LayerCost]:
        found = []
        for piece, keys in zip(self.pieces, self.entries, strict=True):
            medians = np.array([summary(self.samples[key]).median for key in keys])
            values = scale * smoothed(medians.reshape([len(sizes) for sizes in piece.grid]))
            found.append(LayerCost(piece.layer, MEASURE, terms_of(piece, values)))
        return found


def with_latency(traced: Traced, table: Table) -> Traced:
    """`traced` with a space whose architectures also cost "latency_ms": for budgets, penalty, sampling and searches.

    `BadRecipe` where the table was measured for another network, space or shape of inputs.
    """
    if table.fingerprint != fingerprint(traced, table.target):
        raise BadRecipe("a latency table is for the network, space and inputs that it was measured with; measure again")
    counted = tuple(cost for cost in traced.space.costs if cost.measure != MEASURE)
    return replace(traced, space=replace(traced.space, costs=(*counted, *table.costs())))


def terms_of(piece: Piece, values: np.ndarray) -> tuple[Term, ...]:
    """The function of a piece with `values` at the points of its grid, as terms."""
    if not piece.choices:
        return (Term(float(values), piece.alive),)
    *others, last = piece.choices
    terms = []
    for place in product(*(range(len(sizes)) for sizes in piece.grid[:-1])):
        hats = [_hat(name, sizes, at) for name, sizes, at in zip(others, piece.grid, place, strict=False)]
        points = tuple(zip(piece.grid[-1], map(float, values[place]), strict=True))
        terms.append(Term(1.0, (*hats, Factor(last, "curve", points=points), *piece.alive)))
    return tuple(terms)


def _hat(name: str, sizes: Sequence[int], at: int) -> Factor:
    points = tuple((size, float(index == at)) for index, size in enumerate(sizes))
    return Factor(name, "curve", points=points)


def smoothed(values: np.ndarray) -> np.ndarray:
    """The mean of the smallest rising function above `values` and the largest one below, along every axis.

    A piece that is smaller never costs more then: noise does not send a search after slower layers, the smallest
    architecture is the cheapest, and steps of a staircase stay. Where fewer channels really are slower, both cost the
    same.
    """
    above, below = values.astype(float), values.astype(float)
    for axis in range(values.ndim):
        above = np.maximum.accumulate(above, axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis), axis)
    return (above + below) / 2


def fitted(sums: np.ndarray, taken: np.ndarray) -> tuple[float, float]:
    """Offset >= 0 and scale of taken ~ offset + scale x sums, by least squares of the relative errors."""
    weights = 1 / taken
    columns = np.stack([weights, sums * weights], 1)
    offset, scale = np.linalg.lstsq(columns, np.ones(len(taken)), rcond=None)[0]
    if offset < 0:
        offset, scale = 0.0, float((columns[:, 1] @ np.ones(len(taken))) / (columns[:, 1] @ columns[:, 1]))
    return float(offset), float(scale)


def _total(costs: Sequence[LayerCost], architecture: Mapping[str, int]) -> float:
    return sum(by_layer(SearchSpace((), tuple(costs)), architecture, MEASURE).values())


def fingerprint(traced: Traced, target: Target) -> str:
    """A digest of what a table depends on: the network's shapes, its space, its inputs, the target."""
    network, space = traced.network, traced.space
    leaves = tensors_of((traced.args, dict(traced.kwargs)))
    parts = [
        asdict(target),
        [[choice.name, choice.kind, list(choice.candidates), choice.size] for choice in space.choices],
        [[name, list(tensor.shape)] for name, tensor in network.state_dict().items()],
        [[list(leaf.shape[1:]), str(leaf.dtype)] for leaf in leaves],
        str(network),
    ]
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def write(table: Table, path: Path) -> None:
    """Whole or not at all."""
    pieces = [
        {**asdict(piece), "alive": [[f.choice, f.number] for f in piece.alive], "entries": keys}
        for piece, keys in zip(table.pieces, table.entries, strict=True)
    ]
    value = {
        "target": asdict(table.target),
        "fingerprint": table.fingerprint,
        "machine": dict(table.machine),
        "pieces": pieces,
        "samples": table.samples,
        "whole": [{"architecture": dict(a), "samples": samples} for a, samples in table.whole],
    }
    write_json(path, value)


def read(path: Path) -> Table:
    """`BadRecipe` where the file is no latency table."""
    try:
        value = json.loads(path.read_text())
        pieces = [_piece(each) for each in value["pieces"]]
        return Table(
            Target(**value["target"]),
            value["fingerprint"],
            value["machine"],
            tuple(pieces),
            tuple(tuple(each["entries"]) for each in value["pieces"]),
            {key: tuple(samples) for key, samples in value["samples"].items()},
            tuple((Architecture.of(each["architecture"]), tuple(each["samples"])) for each in value["whole"]),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as problem:
        raise BadRecipe(f"{path} must be a latency table that `tas latency` wrote: {problem!r:.200}") from problem


def _piece(value: Mapping[str, Any]) -> Piece:
    alive = tuple(Factor(name, "above", number) for name, number in value["alive"])
    return Piece(value["layer"], tuple(value["choices"]), tuple(map(tuple, value["grid"])), alive)
