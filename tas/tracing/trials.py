"""The architectures that a proof tries, as masks of kept units."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from tas.tracing.identity import Array
from tas.tracing.traced import Traced

_MASKS = 10  # random architectures at most
_DRAWN = 16  # architectures of which one is taken: with 8 candidates, three then tell 60 choices apart


def first_masks(traced: Traced) -> list[Array]:
    """Three random architectures, of many drawn, and the smallest; more where two choices would always be equally
    large, since a size that the code takes for another then goes unnoticed (of two candidates, three draws miss one in
    eight)."""
    counts, draws = _counts(traced), _draws(traced, 0)
    picked: list[Array] = []
    alike = np.zeros((1, len(counts)))
    while len(picked) < 3 or (len(picked) < _MASKS and _pairs(alike, counts)):
        drawn = list(islice(draws, _DRAWN))
        grown = [np.concatenate([alike, [draw / np.maximum(counts - 1, 1)]]) for draw in drawn]
        best = min(range(_DRAWN), key=lambda number: _pairs(grown[number], counts))
        picked.append(drawn[best])
        alike = grown[best]
    picked.insert(1, np.zeros(len(counts), int))
    return [_mask(traced, indices) for indices in picked]


def more_masks(traced: Traced, seed: int) -> Iterator[Array]:
    """Random architectures without end."""
    return (_mask(traced, indices) for indices in _draws(traced, seed))


def _draws(traced: Traced, seed: int) -> Iterator[Array]:
    """Which candidate of every choice, drawn without end."""
    generator, counts = np.random.default_rng(seed), _counts(traced)
    while True:
        yield generator.integers(counts)


def _counts(traced: Traced) -> Array:
    return np.array([len(c.candidates) for c in traced.space.choices], int)


def _mask(traced: Traced, indices: Array) -> Array:
    return traced.keep_mask(traced.space.architecture(indices.tolist()))


def _pairs(alike: Array, counts: Array) -> int:
    """How many pairs of choices, of those with several candidates, agree in all rows."""
    _, together = np.unique(alike[:, counts > 1], axis=1, return_counts=True)
    return int((together * (together - 1) // 2).sum())
