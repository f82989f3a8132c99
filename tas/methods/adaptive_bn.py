"""EagleEye (Li, Wu, Su & Wang 2020): draw architectures in the budget's band, score each by adaptive batch norm, let
the best evolve, keep the best. No weight is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from tas.errors import least, require_rules, switches
from tas.methods.asked import Asked
from tas.methods.evolving import evolved
from tas.methods.result import OnRow, Row, SearchResult
from tas.methods.standing import best_within
from tas.sampling import Aim, project, require_feasible, sample_many
from tas.scoring import CALIBRATION_IMAGES, SCORE_IMAGES, Score, raced
from tas.space import Architecture


@dataclass(frozen=True)
class Settings:
    """How to search. In brackets the value of the paper.

    candidates: architectures drawn and scored (1000). aim: how they are drawn, see `tas.sample_many` ("reject"); what
      a draw leaves of the budget is filled up in random order, but for "reject".
    evolve: further candidates, small changes of the best and of uniform widths that look promising
      (`methods.evolving`; 0).
    images, calibration_images, merge: see `tas.score` (10,000, 13,056 and False).
    rungs, keep: of the race that the candidates run, see `tas.scoring.raced`; 1 rung scores all on all images (1).
    raw: score with inherited statistics too, for the report; takes `images` forwards more a candidate (False).
    """

    candidates: int = 100
    evolve: int = 96
    aim: Aim = "tilt"
    images: int = SCORE_IMAGES
    calibration_images: int = CALIBRATION_IMAGES
    rungs: int = 2
    keep: float = 0.25
    merge: bool = True
    raw: bool = False

    def __post_init__(self) -> None:
        rules = least(self, candidates=1, evolve=0, images=1, calibration_images=1, rungs=1)
        rules |= switches(self, "merge", "raw")
        require_rules(self, {**rules, "keep lies between 0 and 1": 0 < self.keep < 1}, "search.")


def search(asked: Asked[Settings]) -> tuple[SearchResult, ...]:
    """For every budget the best of `settings.candidates` distinct random architectures within it, uniform widths and
    those that evolve from them, by recalibrated metric; from images that are decoded once.

    Each budget has the candidates of a run of its own, and a race of its own. What was scored for another budget and
    meets this one competes too, so that a larger budget never ends with a worse score. `on_row` is told of every score,
    in a race of those of the earlier rungs too. A course row holds its step, metric, loss, number of images, and how
    many scores so far were no numbers.
    """
    settings, space = asked.settings, asked.space
    for budget in asked.budgets:
        require_feasible(space, budget)
    drawn: list[list[Architecture]] = []
    generators = [torch.Generator().manual_seed(asked.seed) for _ in asked.budgets]
    for budget, generator in zip(asked.budgets, generators, strict=True):
        found = sample_many(space, generator, settings.candidates, budget, aim=settings.aim)
        if settings.aim != "reject":
            found = project(space, found, budget, generator)
        drawn.append(list(dict.fromkeys(space.architecture(row) for row in found.tolist())))
    chosen = asked.judge
    course: list[Row] = []
    steps = sum(_scores(settings, len(some)) + settings.evolve for some in drawn)
    note = _noting(course, steps, asked.on_row)
    scores: list[Score] = []
    courses = []
    for some, budget, generator in zip(drawn, asked.budgets, generators, strict=True):
        before = len(course)
        scores += raced(chosen, some, settings.rungs, settings.keep, settings.raw, note)
        scores += evolved(chosen, budget, scores, settings.evolve, generator, settings.raw, note)
        courses.append(tuple(course[before:]))
    ranks = [best_within(space, budget, [scores], asked.objective) for budget in asked.budgets]
    return tuple(SearchResult(best[0].architecture, tuple(best), its) for best, its in zip(ranks, courses, strict=True))


def _scores(settings: Settings, candidates: int) -> int:
    """How many scores a race takes, where none is lost."""
    total, running = 0, candidates
    for _ in range(settings.rungs):
        total, running = total + running, math.ceil(settings.keep * running)
    return total


def _noting(course: list[Row], steps: int, on_row: OnRow | None) -> Callable[[Score], None]:
    lost = 0

    def note(scored: Score) -> None:
        nonlocal lost
        lost += not scored.valid
        row = {"step": len(course) + 1, "steps": steps, "recalibrated": scored.recalibrated, "loss": scored.loss}
        course.append({**row, "raw": scored.raw, "images": scored.images, "lost": lost})
        if on_row:
            on_row(course[-1])

    return note
