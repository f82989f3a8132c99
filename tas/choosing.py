"""The last word of a search: its best candidates are trained shortly, as students are, before one of them is chosen.

A quick score is of a network that was not trained yet. It ranks networks of one depth, but says little across depths:
what a missing block costs before a training is not what it costs after one. (Figures: `configs/LOG.md`.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from tas.errors import Diverged
from tas.files import is_number, read_lines, write_lines
from tas.methods.budgets import meets
from tas.scoring import scored_on, search_splits
from tas.space import Architecture
from tas.stages import Run
from tas.teaching import best_of, briefly, started
from tas.tracing import Traced
from tas.training import evaluate

CANDIDATES = "candidates.jsonl"
_JUDGED = 10_000  # images at most: a standard error of 0.5 points at 50 %

Row = dict[str, Any]


@dataclass(frozen=True)
class Finals:
    """What all finalists share. seed: of the search, whose halves of the training images they are trained and judged
    on, and of the order of batches."""

    current: Run
    source: Any
    original: nn.Module
    seed: int

    def reached(self, stage: str, architecture: Mapping[str, int], checkpoint: Path | None = None) -> Row:
        """Metric and loss on images of the architecture half, after `choose.epochs` on the weights half with the start
        and the teachers of a student; NaN where the training diverges."""
        current, source = self.current, self.source
        prepared, epochs = current.prepared, current.recipe.choose.epochs
        weights, held_out = search_splits(prepared.data, self.seed)[0], scored_on(prepared.data, _JUDGED, self.seed)
        try:
            student = briefly(
                current, stage, architecture, source, self.original, self.seed, epochs, checkpoint=checkpoint
            )
            found = evaluate(student, held_out, prepared.objective, device=prepared.device)
        except Diverged:
            found = {prepared.objective.name: math.nan, "loss": math.nan}
        facts = {"epochs": epochs, "trained_on": len(weights), "judged_on": len(held_out)}
        return {"architecture": dict(architecture), **found, **facts}


def asked_for(current: Run, source: Any) -> int:
    """How many finalists a search has: none where students start from fresh weights, which tell nothing so early."""
    return current.recipe.choose.finalists if isinstance(source, Traced) else 0


def chosen(
    current: Run, source: Any, original: nn.Module, found: Mapping[str, Architecture]
) -> dict[str, Architecture]:
    """For every budget the best of its finalists, by their metric after the short training, in the place of the best
    by quick score (`found`); a single one is not trained. `candidates.jsonl` then says what each `reached`.

    Each is a stage of the run, "finalist 1 of 4": an interruption keeps those that are done, and what is decided is
    decided again in the same way.
    """
    prepared, path = current.prepared, current.folder.path / CANDIDATES
    number, lines = asked_for(current, source), read_lines(path)
    entrants = {label: _finalists(current, budget, lines)[:number] for label, budget in prepared.budgets.items()}
    everyone = list(dict.fromkeys(each for some in entrants.values() if len(some) > 1 for each in some))
    if not everyone:
        return dict(found)
    started(current, source, original)  # a stage of its own, where it is to be decided
    finals, rows = Finals(current, source, original, current.recipe.seed), {}
    for place, architecture in enumerate(everyone, 1):
        stage = f"finalist {place} of {len(everyone)}"
        checkpoint = current.folder.checkpoint(stage)
        rows[architecture] = current.staged(stage, partial(finals.reached, stage, architecture, checkpoint))
        checkpoint.unlink(missing_ok=True)
    lost = sum(not is_number(row[prepared.objective.name]) for row in rows.values())
    if lost:
        what = "so the quick score decided" if lost == len(rows) else "so they are not chosen"
        current.warn(f"{lost} of {len(rows)} finalists diverged in their short training, {what}: lower distill.lr.")
    best = {label: _best(current, rows, some, found[label]) for label, some in entrants.items()}
    write_lines(path, [_noted(current, line, rows, best) for line in lines])
    return best


def _finalists(current: Run, budget: Any, lines: Iterable[Mapping[str, Any]]) -> list[Architecture]:
    """All with a score that meet a budget, best first as the lines are."""
    scored = [line for line in lines if is_number(line["recalibrated"]) and is_number(line["loss"])]
    everyone = [Architecture.of(line["architecture"]) for line in scored]
    return [each for each in everyone if meets(current.prepared.space, budget, each)]


def _best(
    current: Run, rows: Mapping[Architecture, Row], finalists: Sequence[Architecture], otherwise: Architecture
) -> Architecture:
    mine = [rows[each] for each in finalists if each in rows]
    if not mine:
        return otherwise
    return Architecture.of(best_of(mine, current.prepared.objective)["architecture"])


def _noted(current: Run, line: Row, rows: Mapping[Architecture, Row], best: Mapping[str, Architecture]) -> Row:
    """A line of `candidates.jsonl` with what the candidate reached, where it was trained, and for what it is chosen."""
    architecture = Architecture.of(line["architecture"])
    row, mine = rows.get(architecture), [label for label, each in best.items() if each == architecture]
    reached = None if row is None else row[current.prepared.objective.name]
    chosen_for = {"chosen_for": mine} if "chosen_for" in line else {}
    return {**line, "reached": reached, "chosen": bool(mine), **chosen_for}
