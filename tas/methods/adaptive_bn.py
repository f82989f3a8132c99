"""EagleEye (Li, Wu, Su & Wang 2020): draw architectures in the budget's band, score each by adaptive batch norm, keep
the best. No weight is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tas.errors import BadRecipe
from tas.methods.result import OnRow, Row, SearchResult
from tas.objectives import Objective, default_objective
from tas.sampling import Aim, sample_many
from tas.scoring import Score, ranked, score
from tas.space import Budget
from tas.supernet import Supernet
from tas.tracing import Traced


@dataclass(frozen=True)
class Settings:
    """How to search. In brackets the value of the paper.

    candidates: architectures drawn and scored (1000). aim: how they are drawn, see `tas.sample_many` ("reject").
    images, calibration_images: see `tas.score` (10,000 and 13,056).
    """

    candidates: int = 100
    aim: Aim = "tilt"
    images: int = 2000
    calibration_images: int = 2560

    def __post_init__(self) -> None:
        for name in ("candidates", "images", "calibration_images"):
            if getattr(self, name) < 1:
                raise BadRecipe(f"search.{name} is at least 1, got {getattr(self, name)}")


def search(
    source: Traced | Supernet,
    data: Any,
    budget: Budget,
    settings: Settings | None = None,
    *,
    objective: Objective | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    on_row: OnRow | None = None,
) -> SearchResult:
    """The best of `settings.candidates` distinct random architectures within the budget, by recalibrated metric.

    `on_row` is told of every scored candidate. A course row holds its step, metric, loss and the best metric so far.
    """
    settings, objective = settings or Settings(), objective or default_objective()
    found = sample_many(
        source.space, torch.Generator().manual_seed(seed), settings.candidates, budget, aim=settings.aim
    )
    distinct = list(dict.fromkeys(source.space.architecture(row) for row in found.tolist()))
    course: list[Row] = []

    def note(scored: Score) -> None:
        course.append(
            {
                "step": len(course) + 1,
                "steps": len(distinct),
                "recalibrated": scored.recalibrated,
                "raw": scored.raw,
                "loss": scored.loss,
            }
        )
        if on_row:
            on_row(course[-1])

    scores = score(
        source,
        distinct,
        data,
        objective=objective,
        calibration_images=settings.calibration_images,
        images=settings.images,
        seed=seed,
        device=device,
        on_score=note,
    )
    best = ranked(scores, objective)
    return SearchResult(best[0].architecture, tuple(best), tuple(course))
