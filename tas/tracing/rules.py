"""What a user may decide about a search space before it is worked out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import ceil, floor
from typing import Any

from tas.errors import BadRecipe

_PAPER_RATIOS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_ROUNDING = 1e-9  # 0.3 x 10 is 3, whatever floats say


@dataclass(frozen=True)
class Rules:
    """What the user decides about a search space. Names are those that `tas space` lists; a name may be a glob
    (`layer1.*.conv?`), which has to match something.

    `ratios`    of the original's size that are candidates (TAS: 0.3, 0.4 ... 1.0, rounded down); the original's size
                always is.
    `divisor`   widths other than the original's are multiples of this: one number, or a number by glob, of which the
                last that matches counts. Where a width is a product (heads x head size, groups x width inside, a width
                that the code computes from others) and its factors have the same divisor, the product has to be a
                multiple: of the ways to reach that by factors, preferably those that divide the original's sizes, the
                one that leaves the most architectures is taken. Where a factor keeps the original's size, which need
                not be a multiple, the product may not be one either.
    `fix`       choices that stay as they are, depths too.
    `free`      sizes of the network's outputs that are searched although outputs are kept by default, named by the
                choice or a layer that makes them. Students then give narrower outputs: their first units.
    `tie`       groups of globs: the width choices that a group matches, all of one size, have the same size in every
                architecture (the same number of units, not the same units).
    `bound`     (low, high) by glob: whole numbers are units (channels, heads, blocks), others fractions of the
                original's size from 0 to 1. Where high is below the original, the largest candidate is the largest
                allowed one, and the space does not contain the original. The last glob that matches counts.
    `minimum`   the smallest fraction of the original's size that is a candidate, of widths and depths: one number, or a
                number by glob, of which the last that matches counts.
    `protect`   modules (with all inside) of which no parameter changes its shape, and that are never left out.
    `depth`     whether blocks can be left out.

    Raises `BadRecipe` where a value is out of its range, a glob matches nothing, or rules contradict one another.
    """

    ratios: tuple[float, ...] = _PAPER_RATIOS
    divisor: int | Mapping[str, int] = 1
    fix: tuple[str, ...] = ()
    depth: bool = True
    free: tuple[str, ...] = ()
    tie: tuple[tuple[str, ...], ...] = ()
    bound: Mapping[str, tuple[int | float, int | float]] = field(default_factory=dict)
    minimum: float | Mapping[str, float] = 0.0
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, globs in (("fix", self.fix), ("free", self.free), ("protect", self.protect)):
            if isinstance(globs, str):
                raise BadRecipe(f"space.{name} takes a list of names, got {globs!r}")
        if isinstance(self.tie, str) or any(isinstance(group, str) for group in self.tie):
            raise BadRecipe(f"space.tie takes a list of lists of names, got {self.tie!r}")
        self._check_numbers()
        both = sorted(set(self.fix) & set(self.free))
        if both:
            raise BadRecipe(f"space.fix and space.free contradict each other about {both[0]!r}: name it in one of them")

    def _check_numbers(self) -> None:
        for ratio in self.ratios:
            if not 0 < ratio <= 1:
                raise BadRecipe(f"space.ratios lie above 0 and up to 1, got {ratio}")
        for divisor in _values(self.divisor):
            if divisor < 1:
                raise BadRecipe(f"space.divisor is a whole number from 1, got {divisor}")
        for minimum in _values(self.minimum):
            if not 0 <= minimum <= 1:
                raise BadRecipe(f"space.minimum is a fraction of the original from 0 to 1, got {minimum}")
        for glob, pair in self.bound.items():
            _check_bound(glob, pair)

    def fixes(self, name: str) -> bool:
        return matches(name, self.fix)

    def divisor_of(self, name: str) -> int:
        """What the widths of a choice are multiples of."""
        return int(_last(self.divisor, name, 1))

    def range_of(self, name: str, size: int, lowest: int = 1) -> tuple[int, int]:
        """The smallest and the largest candidate that a choice of this size may have, both from `lowest` to `size`."""
        smallest = max(lowest, ceil(size * _last(self.minimum, name, 0.0) - _ROUNDING))
        pair = _last(self.bound, name, None)
        if pair is None:
            return smallest, size
        low, high = _in_units(pair, size)
        if high < lowest:
            raise BadRecipe(f"space.bound leaves {name!r} {high} of {size} units, below {lowest}: raise the upper end")
        low = max(low, lowest)
        if low > size:
            raise BadRecipe(f"space.bound wants at least {low} units of {name!r}, which has {size}")
        high = min(high, size)
        if smallest > high:
            raise BadRecipe(
                f"space.minimum wants at least {smallest} units of {name!r}, space.bound at most {high}: change one"
            )
        return max(low, smallest), high


def matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatchcase(name, glob) for glob in globs)


def inside(module: str, globs: Iterable[str]) -> bool:
    """Whether a module, or one that it lies in, matches."""
    globs, parts = tuple(globs), module.split(".")
    return any(matches(".".join(parts[: n + 1]), globs) for n in range(len(parts)))


def require_match(rule: str, globs: Iterable[str], known: Iterable[str]) -> None:
    """`BadRecipe` with the nearest names where a glob matches none of the known ones."""
    names = list(dict.fromkeys(known))
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            near = difflib.get_close_matches(glob, names, n=3, cutoff=0.4) or names[:3]
            listed = ", ".join(map(repr, near)) or "none"
            raise BadRecipe(f"space.{rule} names {glob!r}, which matches nothing; the nearest names: {listed}")


def _values(given: float | Mapping[str, float]) -> list[float]:
    return [*given.values()] if isinstance(given, Mapping) else [given]


def _last(given: Any, name: str, default: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    found = [value for glob, value in given.items() if fnmatchcase(name, glob)]
    return found[-1] if found else default


def _check_bound(glob: str, pair: tuple[int | float, int | float]) -> None:
    low, high = pair
    if low > high:
        raise BadRecipe(f"space.bound takes (low, high) with low up to high, got {tuple(pair)} for {glob!r}")
    if low < 0 or (not _is_units(pair) and high > 1):
        raise BadRecipe(
            f"space.bound takes whole numbers of units, or fractions of the original from 0 to 1, got {tuple(pair)} "
            f"for {glob!r}"
        )


def _is_units(pair: tuple[int | float, int | float]) -> bool:
    return all(isinstance(end, int) for end in pair)


def _in_units(pair: tuple[int | float, int | float], size: int) -> tuple[int, int]:
    low, high = pair
    if _is_units(pair):
        return int(low), int(high)
    return ceil(low * size - _ROUNDING), floor(high * size + _ROUNDING)
