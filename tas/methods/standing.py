"""How scored architectures stand to each other: within a budget, and along the front of cost and metric."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from tas import cost
from tas.objectives import Objective
from tas.scoring import Score, ranked
from tas.space import Architecture, Budget, SearchSpace


def best_within(
    space: SearchSpace, budget: Budget, scores: Iterable[Sequence[Score]], objective: Objective | None = None
) -> list[Score]:
    """All scores of architectures that meet a budget, as `distinct` gives them."""
    return distinct([s for some in scores for s in some if meets(space, budget, s.architecture)], objective)


def distinct(scores: Iterable[Score], objective: Objective | None = None) -> list[Score]:
    """Best first, each architecture once: with its most images."""
    found: dict[Architecture, Score] = {}
    for score in ranked(list(scores), objective):
        found.setdefault(score.architecture, score)
    return list(found.values())


def front(
    space: SearchSpace, scores: Iterable[Score], measure: str = "macs", objective: Objective | None = None
) -> list[Score]:
    """The Pareto front by ascending cost: the scores that no other one beats at the same cost or below. Compared are
    only those on the most images."""
    best = [score for score in ranked(list(scores), objective) if score.valid]
    rank = {score: place for place, score in enumerate(s for s in best if s.images == best[0].images)}
    found: list[Score] = []
    for score in sorted(rank, key=lambda s: (_cost(space, s.architecture, measure), rank[s])):
        if not found or rank[score] < rank[found[-1]]:
            found.append(score)
    return found


def _cost(space: SearchSpace, architecture: Mapping[str, int], measure: str) -> float:
    return float(cost.count(space, torch.tensor(space.indices(architecture)), measure))


def meets(space: SearchSpace, budget: Budget, architecture: Mapping[str, int]) -> bool:
    """Whether one architecture keeps to every limit."""
    return bool(cost.feasible(space, torch.tensor(space.indices(architecture)), budget))
