"""What a search has to beat at the same budget: uniform widths (strong on small networks), random ones, and those that
a global threshold on the importance of channels leaves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tas import cost
from tas.sampling import Aim, filled, project, require_feasible, sample_many
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
    start = _largest_ratio(space, budget, deepest, widths)

    def part(column: int, index: int) -> float:
        return space.choices[column].candidates[index] / space.choices[column].size

    return space.architecture(filled(space, budget, start, part, widths).tolist())


def random(
    space: SearchSpace, budget: Budget, generator: torch.Generator, count: int = 1, aim: Aim = "tilt"
) -> list[Architecture]:
    """`count` random architectures, EagleEye's rates (see `sampling.sample_many`). As fair as `uniform`: what a draw
    leaves of the budget is filled up, in random order."""
    found = project(space, sample_many(space, generator, count, budget, aim=aim), budget, generator)
    return [space.architecture(row) for row in found.tolist()]


def magnitude(space: SearchSpace, budget: Budget, scores: Mapping[str, Tensor]) -> Architecture:
    """The most important channels of the whole network until the budget is met: one threshold for all widths.

    scores: of the units [size] of every width choice, as `tas.importance.scores` gives them. They are divided by the
    mean of their choice: sums of |w| grow with the size of a filter and the number of layers that write a stream, so
    raw ones would compare layers and not channels. (ShrinkBench's global magnitude, Blalock et al. 2020, for channels;
    Network Slimming's threshold, Liu et al. 2017, is of this form.) A width keeps the units above the threshold, at
    least its smallest candidate, snapped to the next smaller one; the threshold is the lowest that meets the budget,
    then widths are raised by their most important missing unit until nothing more fits. Depths as for `uniform`.
    Raises `Infeasible` when nothing meets the budget.
    """
    require_feasible(space, budget)
    widths = torch.tensor([choice.kind == "width" for choice in space.choices], dtype=torch.bool)
    smallest = torch.zeros(len(space.choices), dtype=torch.long)
    deepest = _largest_ratio(space, budget, smallest, ~widths)
    relative = {name: _relative(score) for name, score in scores.items()}
    thresholds = torch.cat([*relative.values(), torch.zeros(1, dtype=torch.float64)]).unique()
    kept = deepest.expand(len(thresholds), -1).clone()
    for column, choice in enumerate(space.choices):
        if widths[column]:
            counts = (relative[choice.name] >= thresholds[:, None]).sum(-1)
            kept[:, column] = (torch.tensor(choice.candidates) <= counts[:, None]).sum(-1).sub(1).clamp(min=0)
    fitting = kept[cost.feasible(space, kept, budget)]

    def next_unit(column: int, index: int) -> float:
        choice = space.choices[column]
        return -float(relative[choice.name][choice.candidates[index]]) if index + 1 < len(choice.candidates) else 0.0

    start = fitting[0] if len(fitting) else deepest
    return space.architecture(filled(space, budget, start, next_unit, widths).tolist())


def _relative(scores: Tensor) -> Tensor:
    """Falling, with mean 1 (all 0 where they are)."""
    falling = scores.detach().cpu().double().sort(descending=True).values
    return falling / falling.mean().clamp(min=1e-300)


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
