"""Channels sorted by importance: afterwards every architecture keeps the first units of every width."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from tas.errors import BadRecipe
from tas.importance.magnitude import Site, bn_scale, l1, l1_first, l2, random
from tas.reordering import permute
from tas.tracing import Traced

Criterion = Callable[[list[Site]], Tensor]
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
    return _falling(scores(criterion, sites, generator))


def _falling(score: Tensor) -> Tensor:
    return score.argsort(descending=True, stable=True)


def reorder(traced: Traced, importance: str | Criterion = "l1", generator: torch.Generator | None = None) -> Traced:
    """The same function, with the units of every width choice by falling importance (`orders`)."""
    return permute(traced, orders(traced, importance, generator))


def orders(
    traced: Traced, importance: str | Criterion = "l1", generator: torch.Generator | None = None
) -> dict[str, list[int]]:
    """The units of every width choice by falling importance, as `tas.reordering.permute` takes them.

    `importance`: the name of a criterion (`tas.importance.CRITERIA`, or "random", which needs a `generator`), or a
    function of the places of a choice's units that returns one score a unit. Raises `BadRecipe` for an unknown name.
    """
    found = {}
    for name in (name for name in traced.sizes if name not in traced.ordered):
        places = sites(traced, name)
        score = scores(importance, places, generator) if isinstance(importance, str) else importance(places)
        found[name] = _falling(score).tolist()
    return found


def sites(traced: Traced, choice: str) -> list[Site]:
    """Where the units of a width choice live in the parameters, in the order of the forward's definition."""
    first, size = traced.first[choice], traced.sizes[choice]
    found = []
    for name, parameter in traced.network.named_parameters():
        for dim, rows in enumerate(traced.rows.get(name, ())):
            if rows is None:
                continue
            mine = (rows >= first) & (rows < first + size)
            positions = np.flatnonzero(mine.any(1))
            if not len(positions):
                continue
            units = np.where(mine, rows - first, -1).max(1)[positions]
            order = np.argsort(units, kind="stable")
            index = torch.from_numpy(positions[order]).reshape(size, -1).to(parameter.device)
            module = traced.network.get_submodule(name.rpartition(".")[0])
            norm = parameter.dim() == 1 and name.endswith("weight") and not isinstance(module, nn.PReLU)
            made = dim == (1 if getattr(module, "transposed", False) else 0)
            found.append(Site(parameter, dim, index, "norm" if norm else "out" if made else "in"))
    return found
