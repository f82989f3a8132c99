"""The search space as frozen values: choices, what each layer costs in terms of them, architectures, budgets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal


@dataclass(frozen=True)
class Choice:
    """One searchable size: a width (channels, groups, features) or a depth (blocks kept of a run).

    `candidates` ascend; the last one is the original's size, unless a rule bounds the choice below that: then `full`
    is the original's, otherwise 0.
    """

    name: str
    kind: Literal["width", "depth"]
    candidates: tuple[int, ...]
    full: int = 0

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.candidates, self.candidates[1:], strict=False))
        lowest = 0 if self.kind == "depth" else 1
        if not self.candidates or not rising or self.candidates[0] < lowest:
            raise ValueError(f"candidates of {self.name!r} must ascend from at least {lowest}, got {self.candidates}")
        if self.full and self.full <= self.candidates[-1]:
            raise ValueError(f"{self.name!r} has {self.full} units, its candidates reach {self.candidates[-1]}")

    @property
    def size(self) -> int:
        """The original's size."""
        return self.full or self.candidates[-1]


@dataclass(frozen=True)
class Factor:
    """A function of the value v of one choice: v ** number, or whether v > number, == number, <= number (0 or 1), or
    ("curve") the straight lines through `points`, (v, value) by ascending v, level beyond the ends."""

    choice: str
    kind: Literal["power", "above", "equal", "atmost", "curve"]
    number: int = 0
    points: tuple[tuple[int, float], ...] = ()

    def at(self, value: int) -> int | float:
        if self.kind == "curve":
            return _on_curve(self.points, value)
        if self.kind == "power":
            return int(value**self.number)
        if self.kind == "above":
            return int(value > self.number)
        return int(value == self.number if self.kind == "equal" else value <= self.number)


def _on_curve(points: tuple[tuple[int, float], ...], value: int) -> float:
    if value <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in zip(points, points[1:], strict=False):
        if value <= right:
            return low + (high - low) * (value - left) / (right - left)
    return points[-1][1]


@dataclass(frozen=True)
class Term:
    """coefficient x product of factors; each choice appears in at most one factor, so expectations multiply."""

    coefficient: float  # of a count whole, but for a size that follows from data, a mean over a batch
    factors: tuple[Factor, ...] = ()

    def __post_init__(self) -> None:
        names = [factor.choice for factor in self.factors]
        if len(names) != len(set(names)):
            raise ValueError(f"a choice may appear in one factor of a term only, got {names}")


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs, as a sum of terms; `measure` is "macs", "params", or what was measured: "latency_ms"."""

    layer: str
    measure: str
    terms: tuple[Term, ...]


@dataclass(frozen=True)
class Kept:
    """A size that stays as it is, and why. Sizes that go together have the same `stream`, the name of the first of
    them; it has `places` parameter dimensions."""

    name: str
    size: int
    reason: str
    stream: str = field(default="", compare=False)
    places: int = field(default=1, compare=False)


@dataclass(frozen=True)
class Architecture(Mapping[str, int]):
    """One value for every choice, by name; hashable, ordered as the space orders its choices."""

    values_by_name: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, values: Mapping[str, int]) -> Architecture:
        return cls(tuple((name, int(value)) for name, value in values.items()))

    @cached_property
    def _lookup(self) -> dict[str, int]:
        return dict(self.values_by_name)

    def __getitem__(self, name: str) -> int:
        return self._lookup[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._lookup)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def __hash__(self) -> int:
        return hash(self.values_by_name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Architecture) and self.values_by_name == other.values_by_name

    def to_json(self) -> str:
        return json.dumps(self._lookup)

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        return cls.of(json.loads(text))


@dataclass(frozen=True)
class Budget:
    """Absolute upper limits by measure, e.g. {"macs": 22_440_000}; `slack`, a fraction of the *original's* cost, is
    the width of the band below the limit in which the penalty of a search is zero (TAS: 0.05)."""

    limits: tuple[tuple[str, float], ...]
    slack: float = 0.05


@dataclass(frozen=True)
class SearchSpace:
    """All choices of an original, what each layer costs in terms of them, and what was kept fixed and why."""

    choices: tuple[Choice, ...]
    costs: tuple[LayerCost, ...]
    kept: tuple[Kept, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        names = [choice.name for choice in self.choices]
        if len(names) != len(set(names)):
            raise ValueError(f"choices need distinct names, got {names}")

    def __hash__(self) -> int:
        return hash(self.choices)  # the costs are thousands of terms: leave them to ==

    @cached_property
    def position(self) -> dict[str, int]:
        """The index of each choice by name."""
        return {choice.name: index for index, choice in enumerate(self.choices)}

    def architecture(self, indices: Sequence[int]) -> Architecture:
        """From one candidate index a choice, in the order of `choices`."""
        picked = zip(self.choices, indices, strict=True)
        return Architecture(tuple((choice.name, choice.candidates[int(index)]) for choice, index in picked))

    def indices(self, architecture: Mapping[str, int]) -> tuple[int, ...]:
        """The candidate index of every choice; ValueError where the architecture is not of this space."""
        wrong = self._mismatch(architecture)
        if wrong:
            raise ValueError(wrong)
        return tuple(choice.candidates.index(architecture[choice.name]) for choice in self.choices)

    def contains(self, architecture: Mapping[str, int]) -> bool:
        return not self._mismatch(architecture)

    def _mismatch(self, architecture: Mapping[str, int]) -> str:
        missing = [choice.name for choice in self.choices if choice.name not in architecture]
        unknown = [name for name in architecture if name not in self.position]
        if missing or unknown:
            wrong = [f"{word} {names}" for word, names in (("missing", missing), ("unknown", unknown)) if names]
            return f"an architecture names every choice of its space once; {', '.join(wrong)}"
        for choice in self.choices:
            if architecture[choice.name] not in choice.candidates:
                return f"{choice.name!r} takes one of {choice.candidates}, got {architecture[choice.name]!r}"
        return ""

    def largest(self) -> Architecture:
        return self.architecture([len(choice.candidates) - 1 for choice in self.choices])

    def original(self) -> Architecture:
        """The original's sizes: the largest architecture, unless rules bound choices below; then it is not of the
        space."""
        return Architecture(tuple((choice.name, choice.size) for choice in self.choices))

    def smallest(self) -> Architecture:
        return self.architecture([0] * len(self.choices))

    def uniform(self, ratio: float) -> Architecture:
        """Every width at the candidate nearest to `ratio` x its size, all depths full."""

        def pick(choice: Choice) -> int:
            if choice.kind == "depth":
                return choice.candidates[-1]
            return min(choice.candidates, key=lambda size: (abs(size - ratio * choice.size), -size))

        return Architecture(tuple((choice.name, pick(choice)) for choice in self.choices))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for `space.json`: choices, kept sizes and notes (not the cost terms)."""
        return {
            "choices": [
                {"name": c.name, "kind": c.kind, "candidates": list(c.candidates)}
                | ({"original": c.size} if c.size > c.candidates[-1] else {})
                for c in self.choices
            ],
            "kept": [
                {"name": k.name, "size": k.size, "reason": k.reason}
                | ({"stream": k.stream, "places": k.places} if k.stream else {})
                for k in self.kept
            ],
            "notes": list(self.notes),
        }
