"""Further candidates from the best ones: small changes that keep to the budget, scored like them.

Random architectures, and those that a search by gradient thinks probable, need not have good ones among them: at tight
budgets nearly all of them lack blocks. What a good one lacks is often a step or two away: evolution by mutation alone
(Real et al. 2019, without ageing), from the best so far and from uniform widths. (Figures: `configs/LOG.md`.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tas.methods.baselines import uniform
from tas.methods.budgets import best_within
from tas.sampling import project
from tas.scoring import Judge, Score, judged
from tas.space import Architecture, Budget, SearchSpace

_PARENTS = 4  # the best so far, any of which the next child may come from
_CHANGES, _STEPS = 3, 2  # at most so many choices of a child, each by so many candidates at most, differ before filling
_TRIES = 100  # for a child that is new: in small spaces all have been seen soon


def evolved(
    judge: Judge,
    budget: Budget,
    scores: Sequence[Score],
    count: int,
    generator: torch.Generator,
    on_score: Callable[[Score], None] | None = None,
) -> list[Score]:
    """`scores` and up to `count` more, best first: of uniform widths, then each of a child of one of the best four
    within the budget.

    A child has one to three choices moved by one or two candidates, and is then brought just below the budget
    (`sampling.project`), so that a block more is paid for with channels elsewhere. Fewer than `count` where the
    neighbourhood holds no more. The same generator and scores give the same children.
    """
    space = judge.source.space
    found = [*scores]
    for number in range(count):
        best = best_within(space, budget, [found], judge.objective)
        parents = [each.architecture for each in best if each.valid][:_PARENTS]
        known = {each.architecture for each in found}
        even = uniform(space, budget) if number == 0 else None
        child = even if even not in (None, *known) else _child(space, budget, parents, known, generator)
        if child is None:
            break
        found.append(judged(judge, child)[0])
        if on_score:
            on_score(found[-1])
    return best_within(space, budget, [found], judge.objective)


def _child(
    space: SearchSpace,
    budget: Budget,
    parents: Sequence[Architecture],
    known: set[Architecture],
    generator: torch.Generator,
) -> Architecture | None:
    """One that is not known; None where none was found, or there is no parent."""
    for _ in range(_TRIES if parents else 0):
        parent = torch.tensor(space.indices(parents[_below(len(parents), generator)]))
        moved = _moved(space, parent, generator)
        child = space.architecture(project(space, moved[None], budget, generator)[0].tolist())
        if child not in known:
            return child
    return None


def _moved(space: SearchSpace, indices: Tensor, generator: torch.Generator) -> Tensor:
    last = torch.tensor([len(choice.candidates) - 1 for choice in space.choices])
    movable = last.nonzero()[:, 0]
    count = 1 + _below(min(_CHANGES, len(movable)), generator)
    columns = movable[torch.randperm(len(movable), generator=generator)[:count]]
    steps = torch.randint(1, _STEPS + 1, (count,), generator=generator)
    signs = 2 * torch.randint(2, (count,), generator=generator) - 1
    moved = indices.clone()
    moved[columns] = (moved[columns] + signs * steps).clamp(min=0).minimum(last[columns])
    return moved


def _below(limit: int, generator: torch.Generator) -> int:
    return int(torch.randint(limit, (1,), generator=generator))
