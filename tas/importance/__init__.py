"""In which order to keep the channels of a width: one score a unit, the highest is kept longest.

A criterion is a function of the places where the units of one width choice live in the parameters (`Site`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tas.errors import BadRecipe
from tas.importance.magnitude import Site, bn_scale, l1, l1_first, l2, random

__all__ = ["CRITERIA", "Site", "bn_scale", "l1", "l1_first", "l2", "order", "random", "scores"]

CRITERIA = {"l1": l1, "l1_first": l1_first, "l2": l2, "bn_scale": bn_scale}  # and "random", which needs a generator


def scores(criterion: str, sites: list[Site], generator: torch.Generator | None = None) -> Tensor:
    """Score [n] of each unit by the criterion of that name; BadRecipe for an unknown one."""
    if criterion == "random":
        return random(sites, generator)
    if criterion not in CRITERIA:
        raise BadRecipe(f"importance is one of {[*CRITERIA, 'random']}, got {criterion!r}")
    return CRITERIA[criterion](sites)


def order(criterion: str, sites: list[Site], generator: torch.Generator | None = None) -> Tensor:
    """The units by falling score, equal ones in their old order: int64 [n]."""
    return scores(criterion, sites, generator).argsort(descending=True, stable=True)
