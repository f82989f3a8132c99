"""The last word of a search: its best candidates are trained shortly, as students are, before one of them is chosen.

A quick score is of a network that was not trained yet, and the best of many is also the luckiest. (Figures:
`configs/LOG.md`.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from torch import nn

from tas.data import Batches, Split
from tas.files import is_number, read_lines, write_lines
from tas.methods.standing import meets
from tas.recipe import Recipe
from tas.scoring import scored_on, search_splits
from tas.space import Architecture, Budget
from tas.stages import Run
from tas.teaching import best_of, briefly, started
from tas.tracing import Traced

CANDIDATES = "candidates.jsonl"
_JUDGED = 10_000  # images at most: a standard error of 0.5 points at 50 %

Row = dict[str, Any]


@dataclass(frozen=True)
class Finals:
    """What all finalists of a search share: the halves of the training images that its `seed` gives, and the order of
    batches."""

    current: Run
    source: Any
    original: nn.Module
    seed: int
    weights: Split
    held_out: Split

    @classmethod
    def of(cls, current: Run, source: Any, original: nn.Module, seed: int) -> Finals:
        weights, held_out = search_splits(current.prepared.data, seed)
        if not isinstance(held_out.source, Batches):  # which would have to be held in memory to be counted
            held_out = scored_on(current.prepared.data, _JUDGED, seed)
        return cls(current, source, original, seed, weights, held_out)

    def reached(self, stage: str, architecture: Mapping[str, int], checkpoint: Path) -> Row:
        """Metric and loss on images of the architecture half, after `choose.epochs` on the weights half with the start
        and the teachers of a student; NaN where the training diverges."""
        epochs = self.current.recipe.choose.epochs
        found = briefly(
            self.current,
            stage,
            architecture,
            self.source,
            self.original,
            self.seed,
            epochs,
            self.weights,
            self.held_out,
            checkpoint=checkpoint,
        )
        facts = {"epochs": epochs, "trained_on": len(self.weights), "judged_on": len(self.held_out)}
        return {"architecture": dict(architecture), **found, **facts}

    def best(self, rows: Sequence[Row]) -> Architecture:
        """Of finalists' rows, best by score first; says so where trainings diverged."""
        objective = self.current.prepared.objective
        lost = sum(not is_number(row[objective.name]) for row in rows)
        if lost:
            what = "so the quick score decided" if lost == len(rows) else "so they are not chosen"
            self.current.warn(
                f"{lost} of {len(rows)} finalists diverged in their short training, {what}: lower distill.lr."
            )
        return Architecture.of(best_of(rows, objective)["architecture"])


def finalists_of(recipe: Recipe, source: Any) -> int:
    """How many a search has at most: none where students start from fresh weights, which tell nothing so early."""
    fresh = not isinstance(source, Traced) or recipe.initialize.weights == "scratch"
    return 0 if fresh or recipe.choose.finalists < 2 else recipe.choose.finalists


def finalists(answer: Architecture, scored: Iterable[Architecture], number: int) -> list[Architecture]:
    """Up to `number`: what a search has found, and the best by score; none where there is no other."""
    some = [*dict.fromkeys([answer, *scored])][:number]
    return some if len(some) > 1 else []


def chosen(
    current: Run, source: Any, original: nn.Module, found: Mapping[str, Architecture]
) -> dict[str, Architecture]:
    """For every budget the best of its finalists after the short training; they are what the search has `found`, and
    the best of the other candidates by quick score. `candidates.jsonl` then says what each `reached`.

    Each is a stage of the run, "finalist 1 of 4": an interruption keeps those that are done, and what is decided is
    decided again in the same way.
    """
    prepared, path = current.prepared, current.folder.path / CANDIDATES
    number = finalists_of(current.recipe, source)
    if not number:
        return dict(found)
    lines = read_lines(path)
    entrants = {}
    for label, budget in prepared.budgets.items():
        entrants[label] = finalists(found[label], islice(_scored(current, budget, lines), number), number)
    everyone = list(dict.fromkeys(each for some in entrants.values() for each in some))
    if not everyone or started(current, source, original) == "scratch":
        return dict(found)
    finals = Finals.of(current, source, original, current.recipe.seed)
    rows: dict[Architecture, Row] = {}
    for place, architecture in enumerate(everyone, 1):
        stage = f"finalist {place} of {len(everyone)}"

        def work(stage: str = stage, architecture: Architecture = architecture) -> Row:
            checkpoint = current.folder.checkpoint(stage)
            row = finals.reached(stage, architecture, checkpoint)
            checkpoint.unlink(missing_ok=True)
            return row

        rows[architecture] = current.staged(stage, work)
    best = {
        label: finals.best([rows[each] for each in some]) if some else found[label] for label, some in entrants.items()
    }
    write_lines(path, [_noted(current, line, rows, best) for line in lines])
    return best


def _scored(current: Run, budget: Budget, lines: Iterable[Mapping[str, Any]]) -> Iterator[Architecture]:
    """All candidates with a score that meet a budget, best first as the lines are."""
    for line in lines:
        architecture = Architecture.of(line["architecture"])
        valid = is_number(line["recalibrated"]) and is_number(line["loss"])
        if valid and meets(current.prepared.space, budget, architecture):
            yield architecture


def _noted(current: Run, line: Row, rows: Mapping[Architecture, Row], best: Mapping[str, Architecture]) -> Row:
    """A line of `candidates.jsonl` with what the candidate reached, where it was trained, and for what it is chosen."""
    architecture = Architecture.of(line["architecture"])
    row, mine = rows.get(architecture), [label for label, each in best.items() if each == architecture]
    reached = None if row is None else row[current.prepared.objective.name]
    chosen_for = {"chosen_for": mine} if "chosen_for" in line else {}
    return {**line, "reached": reached, "chosen": bool(mine), **chosen_for}
