"""What every search method returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tas.scoring import Score
from tas.space import Architecture

Row = dict[str, Any]  # plain numbers, strings, and mappings of them: one line of search.jsonl
OnRow = Callable[[Row], None]


@dataclass(frozen=True)
class SearchResult:
    """The architecture found, and the evidence: the scored candidates, best first, and the course of the search.

    `probabilities` (differentiable) are the final ones of each choice, in the order of its candidates; `supernet` is
    the trained one, from which a student may inherit its weights.
    """

    architecture: Architecture
    candidates: tuple[Score, ...] = ()
    course: tuple[Row, ...] = ()
    probabilities: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    supernet: nn.Module | None = field(default=None, compare=False, repr=False)
