"""Sizes as polynomials in the choices, and the equations between them that the code demands.

Code that takes a width in equal parts, or computes a head size as width // heads, needs equal *numbers* of units, not
the same units: which channels a stream keeps is free of which heads a block keeps. Such an equation is met by a
formula: a width becomes the product of choices, or two choices become one.

Shuffles stay tied unit by unit. A stage of ShuffleNet v2 takes a stream in halves, puts c new channels beside the first
half and interleaves the two, over and over: half of the new channels are read by the next block, a quarter by the one
after it, and so on. Equal counts alone would let the student's code, which interleaves and halves by rank, send a
channel to another block than the one that has weights for it, so each of these parts has to keep the same share of its
channels: c in multiples of 2^(blocks - 1), as units tied through the shuffles say it, too (24 channels and 4 blocks of
shufflenet_v2_x0_5: 3 units; 48 and 8: none). Free keep sets on top of that would interleave in another order than the
columns behind are cut in. In between lie roundings of c / 2^k, which no polynomial holds.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import permutations
from math import prod
from typing import TYPE_CHECKING

from tas.space import Factor, Term
from tas.tracing.identity import Array

if TYPE_CHECKING:
    from tas.tracing.units import Units

Powers = tuple[tuple[str, int], ...]
Size = dict[Powers, int]  # a polynomial: {((choice, power), ...): coefficient}
Monomial = tuple[Powers, int]
_FACTORS = 3  # of a product, at most, of which others are made


def equalize(units: Units) -> list[tuple[Array, Array, str]]:
    """Make the sizes equal that the code needs equal (`Findings.counts`). Returns those for which no formula serves."""
    return [(left, right, why) for left, right, why in units.recorder.counts if not _equal(units, left, right)]


def _equal(units: Units, left: Array, right: Array) -> bool:
    """Solve term by term, smaller ones first: each solution changes the formulas of all."""

    def full(term: Monomial) -> int:
        return term[1] * prod(units.full(name) ** power for name, power in term[0])

    while True:
        a, b = units.size(len(left), left), units.size(len(right), right)
        ours = sorted(((p, c) for p, c in a.items() if b.get(p) != c), key=full)
        theirs = sorted(((p, c) for p, c in b.items() if a.get(p) != c), key=full)
        if not ours and not theirs:
            return True
        if [*map(full, ours)] != [*map(full, theirs)] or not _solve(units, ours[0], theirs[0]):
            return False


def _solve(units: Units, left: Monomial, right: Monomial) -> bool:
    """Make two products equal: a lone choice becomes the other product, or choices become multiples of others. 8 groups
    of 6 channels, and 4 heads of size 12: a head is as large as two channels of a group, and there are half as many."""
    (mine, a), (others, b) = left, right
    x, y = Counter(dict(mine)) - Counter(dict(others)), Counter(dict(others)) - Counter(dict(mine))
    for lone, over, product, times in ((y, b, x, a), (x, a, y, b)):
        if list(lone.values()) == [1] and product and times % over == 0:
            units.substitute(next(iter(lone)), times // over, tuple(sorted(product.items())))
            return True
    ours, theirs = (sorted(side.elements(), key=lambda name: (units.full(name), name)) for side in (x, y))
    if not ours or len(ours) != len(theirs) or len(ours) > _FACTORS:
        return False
    for order in permutations(theirs):
        pairs = [sorted(pair, key=units.full) for pair in zip(ours, order, strict=True)]
        if all(units.full(large) % units.full(small) == 0 for small, large in pairs):
            small, large = pairs[0]  # the others follow, now that these cancel
            units.substitute(large, units.full(large) // units.full(small), ((small, 1),))
            return True
    return False


def times(*sizes: Size) -> Size:
    """The product of polynomials."""
    total: Size = {(): 1}
    for size in sizes:
        product: Size = defaultdict(int)
        for left, a in total.items():
            for right, b in size.items():
                powers: dict[str, int] = defaultdict(int)
                for name, power in (*left, *right):
                    powers[name] += power
                product[tuple(sorted(powers.items()))] += a * b
        total = product
    return dict(total)


def terms(size: Size, alive: tuple[Factor, ...] = (), divide: int = 1) -> tuple[Term, ...]:
    """A polynomial as cost terms, counted only while the blocks around the layer are `alive`."""
    return tuple(
        Term(
            coefficient / divide if coefficient % divide else coefficient // divide,  # proposals of a batch may be odd
            tuple(Factor(name, "power", power) for name, power in powers) + alive,
        )
        for powers, coefficient in size.items()
    )
