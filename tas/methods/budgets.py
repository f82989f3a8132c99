"""Several budgets from one search: its learned distribution tilted to each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tas.methods.learned import candidates_at, table_of
from tas.methods.result import SearchResult
from tas.methods.standing import best_within
from tas.objectives import Objective
from tas.sampling import require_feasible
from tas.scoring import CALIBRATION_IMAGES, SCORE_IMAGES, Judge, Score, judge, raced
from tas.space import Budget
from tas.supernet import Supernet
from tas.tracing import Traced


def at_budgets(
    source: Traced | Supernet,
    data: Any,
    probabilities: Mapping[str, tuple[float, ...]],
    budgets: Sequence[Budget],
    *,
    known: Sequence[Score] = (),
    candidates: int = 12,
    images: int = SCORE_IMAGES,
    calibration_images: int = CALIBRATION_IMAGES,
    merge: bool = False,
    objective: Objective | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[SearchResult, ...]:
    """For every budget the best of `candidates` architectures of the learned distribution, by adaptive batch norm.

    probabilities: `SearchResult.probabilities`. source: whose weights score, such as `SearchResult.supernet`. A budget
    may lie above or below that of the search: see `learned.candidates_at`. An architecture that was scored for one
    budget, or is among the `known` scores (of the same weights and images), competes for every budget that it meets, so
    a larger one never gives a worse score. Raises `Infeasible` for a budget that no architecture meets, before anything
    is scored. images, calibration_images, merge: see `tas.score`.
    """
    for budget in budgets:
        require_feasible(source.space, budget)
    chosen = judge(
        source,
        data,
        objective=objective,
        calibration_images=calibration_images,
        images=images,
        merge=merge,
        seed=seed,
        device=device,
    )
    return tilted_to(chosen, probabilities, budgets, known, candidates, seed)


def tilted_to(
    judge: Judge,
    probabilities: Mapping[str, tuple[float, ...]],
    budgets: Sequence[Budget],
    known: Sequence[Score],
    candidates: int,
    seed: int,
) -> tuple[SearchResult, ...]:
    """`at_budgets`, scored by a judge that is there."""
    space, generator = judge.source.space, torch.Generator().manual_seed(seed)
    table = table_of(space, probabilities)
    found = [candidates_at(space, table, budget, candidates, generator) for budget in budgets]
    scores = [known, *(raced(judge, some) for some in found)]
    return tuple(
        SearchResult(best[0].architecture, tuple(best), probabilities=probabilities)
        for best in (best_within(space, budget, scores, judge.objective) for budget in budgets)
    )
