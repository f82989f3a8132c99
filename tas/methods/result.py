"""What every search method returns, and architectures read back from files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tas.errors import BadRecipe
from tas.scoring import Score
from tas.space import Architecture

Row = dict[str, Any]  # plain numbers, strings, and mappings of them: one line of search.jsonl
OnRow = Callable[[Row], None]
OnScore = Callable[[int, int], None]  # candidates scored so far at a budget, of how many


@dataclass(frozen=True)
class SearchResult:
    """The architecture found, and the evidence: the scored candidates, best first, and the course of the search.

    `probabilities` (differentiable) are the final ones of each choice, in the order of its candidates; `supernet` is
    the trained one, from which a student may inherit its weights. `hyperparameters` (tuned) are those of the
    trial that came upon the best score, from which the architecture may have evolved.
    """

    architecture: Architecture
    candidates: tuple[Score, ...] = ()
    course: tuple[Row, ...] = ()
    probabilities: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    hyperparameters: Mapping[str, float] = field(default_factory=dict)
    supernet: nn.Module | None = field(default=None, compare=False, repr=False)


def written(score: Score) -> dict[str, Any]:
    """A score as plain values, which `read_score` takes."""
    return {**asdict(score), "architecture": dict(score.architecture)}


def read_score(row: Mapping[str, Any]) -> Score:
    return Score(**{**row, "architecture": Architecture.of(row["architecture"])})


def architectures_in(path: Path) -> list[dict[str, int]]:
    """From a JSON file: one architecture, a list of them, or one a line; lines of candidates.jsonl too."""
    try:
        text = path.read_text()
        try:
            values = json.loads(text)
        except ValueError:
            values = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (OSError, ValueError) as problem:
        raise BadRecipe(f"cannot read architectures from {path}: {problem}") from problem
    listed = values if isinstance(values, list) else [values]
    found = [value.get("architecture", value) if isinstance(value, dict) else value for value in listed]
    for value in found:
        if not isinstance(value, dict) or not all(type(size) is int for size in value.values()):
            raise BadRecipe(f"an architecture in {path} must map names of choices to whole numbers, got {value!r:.80}")
    if not found:
        raise BadRecipe(f"{path} holds no architecture")
    return found


def architecture_in(path: Path) -> dict[str, int]:
    """The one architecture in a JSON file."""
    found = architectures_in(path)
    if len(found) > 1:
        raise BadRecipe(f"--architecture takes a file with one architecture, {path} holds {len(found)}")
    return found[0]
