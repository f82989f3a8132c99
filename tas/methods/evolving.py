"""Further candidates from the best ones: small changes that keep to the budget, scored like them.

Random architectures, and those that a search by gradient thinks probable, need not have good ones among them: at tight
budgets nearly all of them lack blocks. What a good one lacks is often a step or two away: evolution by mutation alone
(Real et al. 2019, without ageing), from the best so far and from uniform widths. Of many children the one is scored of
which most is expected, by a regression on all scores so far (as BANANAS, White et al. 2021, with its networks does; for
some dozen choices and scores a quadratic polynomial will do). (Figures: `configs/LOG.md`.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tas.methods.baselines import uniform
from tas.methods.standing import distinct, meets
from tas.sampling import project
from tas.scoring import Judge, Score, judged
from tas.space import Architecture, Budget, SearchSpace

_PARENTS = 4  # the best so far, any of which the next child may come from
_CHANGES, _STEPS = 3, 2  # at most so many choices of a child, each by so many candidates at most, differ before filling
_BROOD = 64  # children of which one is scored
_TRIES = 4  # broods for a child that is new: in small spaces all have been seen soon
_RIDGE = 0.01  # against sums of squares of shares from 0 to 1: hardly more than what keeps the equations solvable


def evolved(
    judge: Judge,
    budget: Budget,
    scores: Sequence[Score],
    count: int,
    generator: torch.Generator,
    raw: bool = False,
    on_score: Callable[[Score], None] | None = None,
) -> list[Score]:
    """Up to `count` new scores besides those that are known: of uniform widths, then each of a child of one of the best
    four within the budget, the most promising of 64.

    For a child one to three choices are moved by at most two candidates each; it is then brought just below the budget
    (`sampling.project`), so that a block more is paid for with channels elsewhere. Fewer than `count` where the
    neighbourhood holds no more. The same generator and scores give the same children. raw: see `scoring.raced`.
    """
    space = judge.source.space
    known = {score.architecture for score in scores}
    within = [score for score in scores if score.valid and meets(space, budget, score.architecture)]
    found: list[Score] = []
    while len(found) < count:
        even = None if found else uniform(space, budget)
        best = [score.architecture for score in distinct(within, judge.objective)]
        child = even if even is not None and even not in known else _child(space, budget, best, known, generator)
        if child is None:
            break
        found.append(judged(judge, child, raw=raw)[0])
        known.add(child)
        within += found[-1:] if found[-1].valid else []
        if on_score:
            on_score(found[-1])
    return found


def _child(
    space: SearchSpace,
    budget: Budget,
    best: Sequence[Architecture],
    known: set[Architecture],
    generator: torch.Generator,
) -> Architecture | None:
    """A new child of the first of the `best`, all scored, best first: of a brood the one that a regression on them
    expects most of. None where no new one was found, or there is no parent, or nothing that can be moved."""
    movable = any(len(choice.candidates) > 1 for choice in space.choices)
    rows = torch.tensor([space.indices(each) for each in best])
    for _ in range(_TRIES if best and movable else 0):
        parents = rows[torch.randint(min(_PARENTS, len(best)), (_BROOD,), generator=generator)]
        moved = torch.stack([_moved(space, parent, generator) for parent in parents])
        brood = project(space, moved, budget, generator).tolist()
        new = [each for each in dict.fromkeys(map(space.architecture, brood)) if each not in known]
        if new:
            expected = _expected(space, rows, torch.tensor([space.indices(each) for each in new]))
            return new[int(expected.argmax())]
    return None


def _expected(space: SearchSpace, best: Tensor, new: Tensor) -> Tensor:
    """How early `new` architectures [count, choices] are expected among the `best`, which are in their order: float64
    [count]. Ridge regression on every choice's share of its candidates and the square of it. Places and not metrics,
    so that any metric will do, and the loss counts where metrics are equal."""
    known, asked = _features(space, best), _features(space, new)
    places = torch.linspace(0.5, -0.5, len(best), dtype=torch.float64)
    weights = torch.linalg.solve(known.T @ known + _RIDGE * torch.eye(known.shape[1]).double(), known.T @ places)
    return asked @ weights


def _features(space: SearchSpace, indices: Tensor) -> Tensor:
    last = torch.tensor([len(choice.candidates) - 1 for choice in space.choices]).clamp(min=1)
    shares = indices.double() / last
    return torch.cat([torch.ones(len(shares), 1), shares, shares**2], dim=1)


def _moved(space: SearchSpace, indices: Tensor, generator: torch.Generator) -> Tensor:
    last = torch.tensor([len(choice.candidates) - 1 for choice in space.choices])
    movable = last.nonzero()[:, 0]
    count = 1 + int(torch.randint(min(_CHANGES, len(movable)), (), generator=generator))
    columns = movable[torch.randperm(len(movable), generator=generator)[:count]]
    steps = torch.randint(1, _STEPS + 1, (count,), generator=generator)
    signs = 2 * torch.randint(2, (count,), generator=generator) - 1
    moved = indices.clone()
    moved[columns] = (moved[columns] + signs * steps).clamp(min=0).minimum(last[columns])
    return moved
