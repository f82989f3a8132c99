"""What a search has to beat at the same budget: uniform widths (strong on small networks) and random ones."""

from __future__ import annotations

import torch
from torch import Tensor

from tas import cost
from tas.sampling import Aim, require_feasible, sample_many
from tas.space import Architecture, Budget, SearchSpace


def uniform(space: SearchSpace, budget: Budget) -> Architecture:
    """The largest uniform width ratio that meets the budget, filled up evenly until no candidate more fits.

    Depths stay full; only where the smallest widths do not fit, they shrink by a uniform ratio as well. Filling up
    makes the baseline fair: it ends as close below the budget as the candidates permit. It raises again and again the
    width that is the smallest part of its size among those that still fit.
    Raises `Infeasible` when nothing meets the budget.
    """
    require_feasible(space, budget)
    widths = torch.tensor([choice.kind == "width" for choice in space.choices], dtype=torch.bool)
    smallest = torch.zeros(len(space.choices), dtype=torch.long)
    deepest = _largest_ratio(space, budget, smallest, ~widths)
    return space.architecture(_filled(space, budget, _largest_ratio(space, budget, deepest, widths), widths).tolist())


def random(
    space: SearchSpace, budget: Budget, generator: torch.Generator, count: int = 1, aim: Aim = "tilt"
) -> list[Architecture]:
    """`count` random architectures in the budget's band, EagleEye's rates (see `sampling.sample_many`)."""
    found = sample_many(space, generator, count, budget, aim=aim)
    return [space.architecture(row) for row in found.tolist()]


def _largest_ratio(space: SearchSpace, budget: Budget, indices: Tensor, movable: Tensor) -> Tensor:
    """`indices` with every movable choice at the candidate nearest to r x size, for the largest r in steps of 0.001
    that fits; `indices` itself where none does."""
    ratios = torch.linspace(0, 1, 1001, dtype=torch.float64)
    at_ratio = indices.expand(len(ratios), -1).clone()
    for column, choice in enumerate(space.choices):
        if movable[column]:
            parts = torch.tensor(choice.candidates, dtype=torch.float64) / choice.size
            at_ratio[:, column] = (parts - ratios[:, None]).abs().argmin(-1)
    fitting = at_ratio[cost.feasible(space, at_ratio, budget)]
    return fitting[-1] if len(fitting) else indices


def _filled(space: SearchSpace, budget: Budget, indices: Tensor, movable: Tensor) -> Tensor:
    """`indices` after raising, one candidate at a time, the relatively narrowest movable choice that still fits."""
    last = torch.tensor([len(choice.candidates) - 1 for choice in space.choices], dtype=torch.long)
    while True:
        raised = indices + torch.eye(len(indices), dtype=torch.long)  # row c: choice c is one candidate larger
        possible = movable & (indices < last)
        possible = possible & cost.feasible(space, raised.minimum(last), budget)
        if not possible.any():
            return indices
        parts = zip(space.choices, indices.tolist(), strict=True)
        ratio = torch.tensor([choice.candidates[index] / choice.size for choice, index in parts], dtype=torch.float64)
        indices = raised[ratio.masked_fill(~possible, 2.0).argmin()]
