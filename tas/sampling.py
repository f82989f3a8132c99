"""Feasible architectures, vectorised: costs are closed forms, so a draw is tested in microseconds and never built.

Everything works on a *table* [choices, widest]: the probability of each candidate of each choice, 0 in padded columns.
`rates` is EagleEye's table (Li et al. 2020, §3.1), `ArchitectureDistribution.probabilities()` a learned one. Drawing
from a table and keeping what fits wastes nearly all draws when the budget is far from the table's mean cost (ResNet-50
at 75 %: 377 of 378), so `tilt` first moves the mean into the budget's band, changing the table no more than that needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tas import cost
from tas.errors import Infeasible
from tas.space import Architecture, Budget, Choice, SearchSpace

Aim = Literal["tilt", "project", "reject"]

_BATCH = 8192  # draws tested at once
_ROUNDS = 64  # batches before giving up on a table
_BARREN = 8  # batches in a row without any architecture of the band before giving up earlier: it is almost empty
_BISECTIONS = 30
_RELINEARISATIONS = 4  # of the cost while tilting; it is a product of choices, not a sum


def sample(space: SearchSpace, generator: torch.Generator, budget: Budget | None = None) -> Architecture:
    """One architecture, in the budget's band where there is one. Raises as `sample_many`."""
    return space.architecture(sample_many(space, generator, 1, budget)[0].tolist())


def sample_many(
    space: SearchSpace,
    generator: torch.Generator,
    count: int,
    budget: Budget | None = None,
    table: Tensor | None = None,
    aim: Aim = "tilt",
) -> Tensor:
    """Independent draws as candidate indices [count, choices] on the CPU; all of them meet the budget.

    They also lie in its band (see `in_band`) as far as the space has architectures there.
    `table` is where they are drawn from, `rates(space)` by default. `aim` is what happens under a budget:
    "reject" keeps the draws of `table` that lie in the band (EagleEye), "tilt" the draws of the tilted table, which is
    close to the same conditional distribution and wastes few, "project" moves each draw to the budget by random single
    steps. What rejecting cannot find in half a million draws (or 65,000 in a row without any), tilting finds; what
    tilting cannot find is projected.

    Raises `Infeasible`, with the smallest reachable cost, when no architecture meets the budget.
    """
    table = (rates(space) if table is None else table.detach().cpu()).double()
    if budget is None or not space.choices:
        return draws(table, generator, count)
    require_feasible(space, budget)
    found = torch.zeros(0, len(space.choices), dtype=torch.long)
    if aim == "reject":
        found = _rejected(space, table, generator, count, budget)
    if len(found) < count and aim != "project":
        tilted = tilt(space, table, budget)
        found = torch.cat([found, _rejected(space, tilted, generator, count - len(found), budget)])
    if len(found) < count:
        found = torch.cat([found, project(space, draws(table, generator, count - len(found)), budget, generator)])
    return found


def draws(table: Tensor, generator: torch.Generator, count: int) -> Tensor:
    """Independent draws from a table -> candidate indices [count, choices]."""
    steps = (table / table.sum(-1, keepdim=True)).cumsum(-1).contiguous()
    # Rounding must not lead into a column of probability 0.
    last = (table > 0).long().cumsum(-1).argmax(-1, keepdim=True)
    uniform = torch.rand(table.shape[0], count, generator=generator, dtype=table.dtype)
    return torch.searchsorted(steps, uniform, right=True).minimum(last).T.contiguous()


def rates(space: SearchSpace, low: float = 0.0, high: float | None = None) -> Tensor:
    """EagleEye's strategy as a table: a width of size C loses floor(r C) channels with r uniform in [low, high],
    snapped to the nearest candidate; depths, which EagleEye does not have, are uniform over their candidates.

    `high` is by default as far as the candidates of each width go (EagleEye: 0.4, 0.7 and 0.8 for ResNet-50 at 75, 50
    and 25 %). Returns float64 [choices, widest].
    """
    table = torch.zeros(len(space.choices), max((len(c.candidates) for c in space.choices), default=1)).double()
    for row, choice in zip(table, space.choices, strict=True):
        row[: len(choice.candidates)] = _rates_of(choice, low, high)
    return table


def _rates_of(choice: Choice, low: float, high: float | None) -> Tensor:
    candidates = torch.tensor(choice.candidates)
    if choice.kind == "depth" or len(candidates) == 1:
        return torch.full((len(candidates),), 1 / len(candidates), dtype=torch.float64)
    high = 1 - choice.candidates[0] / choice.size if high is None else high
    if not 0 <= low < high <= 1:
        raise ValueError(f"rates need 0 <= low < high <= 1, got {low} and {high}")
    removed = torch.arange(choice.size + 1, dtype=torch.float64)
    overlap = (removed + 1).clamp(max=high * choice.size) - removed.clamp(min=low * choice.size)
    nearest = (choice.size - removed[:, None] - candidates).abs().argmin(-1)
    mass = torch.zeros(len(candidates), dtype=torch.float64).index_add(0, nearest, overlap.clamp(min=0))
    return mass / mass.sum()


def require_feasible(space: SearchSpace, budget: Budget) -> None:
    """Raise `Infeasible` when even the smallest architecture does not meet the budget."""
    smallest = torch.zeros(len(space.choices), dtype=torch.long)
    if not bool(cost.feasible(space, smallest, budget)):
        reach = {m: cost.whole(m, float(cost.count(space, smallest, m))) for m, _ in budget.limits}
        raise Infeasible(
            f"no architecture meets {dict(budget.limits)}; the smallest reachable cost is {reach}: "
            "raise the budget, or let more sizes be searched"
        )


def in_band(space: SearchSpace, indices: Tensor, budget: Budget) -> Tensor:
    """Whether architectures [..., choices] meet every limit and come within slack x original of at least one of them:
    bool [...]. (Of several limits usually only one binds, so all bands at once could be empty.)"""
    near = torch.zeros(indices.shape[:-1], dtype=torch.bool, device=indices.device)
    for measure, limit in budget.limits:
        near |= cost.count(space, indices, measure) >= limit - budget.slack * cost.original(space, measure)
    return near & cost.feasible(space, indices, budget)


def _rejected(space: SearchSpace, table: Tensor, generator: torch.Generator, count: int, budget: Budget) -> Tensor:
    """Up to `count` draws from `table` that lie in the band."""
    kept: list[Tensor] = []
    missing, barren = count, 0
    for _ in range(_ROUNDS):
        batch = draws(table, generator, _BATCH)
        kept.append(batch[in_band(space, batch, budget)])
        missing, barren = missing - len(kept[-1]), 0 if len(kept[-1]) else barren + 1
        if missing <= 0 or barren == _BARREN:
            break
    return torch.cat(kept)[:count]


def tilt(space: SearchSpace, table: Tensor, budget: Budget, below: float = 0.5) -> Tensor:
    """The table whose expected cost lies `below` x slack x original under the limit that binds, all else as before.

    p'(k) is proportional to p(k) exp(-t G(k)), with G(k) the expected cost given candidate k: what is closest to p in
    Kullback-Leibler divergence at that mean where costs add up, hence what independent draws conditioned on the
    cost look like. t is negative where the budget leaves room. Candidates of probability 0 stay at 0.
    """
    aims = {m: limit - below * budget.slack * cost.original(space, m) for m, limit in budget.limits}
    targets = {m: max(aims[m], 1e-3 * limit) for m, limit in budget.limits}

    def load(
        p: Tensor,
    ) -> Tensor:  # about 1 when the binding measure is on target; a smooth maximum, exact for one measure
        ratios = torch.stack([cost.expected(space, p, measure) / target for measure, target in targets.items()])
        return ratios if len(ratios) == 1 else ratios.pow(16).sum().pow(1 / 16)

    prior = table.detach().double().log()
    tilted = prior.exp()
    for _ in range(_RELINEARISATIONS):
        point = tilted.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(load(point).sum(), point)
        gradient = gradient - gradient.mean(-1, keepdim=True)
        direction = gradient / gradient.abs().max().clamp(min=1e-12)
        low, high = -1e4, 1e4
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            tilted = (prior - middle * direction).softmax(-1)
            low, high = (middle, high) if bool(load(tilted) > 1) else (low, middle)
    return tilted


def project(space: SearchSpace, indices: Tensor, budget: Budget, generator: torch.Generator) -> Tensor:
    """Move architectures [count, choices] to just below the budget by single steps in random order: down while they
    exceed it, then up wherever that still fits. The budget must be feasible (`require_feasible`)."""
    indices = indices.clone()
    while len(over := (~cost.feasible(space, indices, budget)).nonzero()[:, 0]):
        movable = (indices[over] > 0).double()
        step = torch.multinomial(movable, 1, generator=generator)
        indices[over] = indices[over].scatter_add(1, step, torch.full_like(step, -1))
    order = torch.rand(indices.shape, generator=generator).argsort(-1)
    last = torch.tensor([len(choice.candidates) - 1 for choice in space.choices])
    growing = True
    while growing:
        growing = False
        for step in order.split(1, dim=1):
            larger = indices.scatter_add(1, step, torch.ones_like(step)).minimum(last)
            taken = cost.feasible(space, larger, budget) & (larger != indices).any(-1)
            indices = torch.where(taken[:, None], larger, indices)
            growing |= bool(taken.any())
    return indices


def filled(
    space: SearchSpace,
    budget: Budget,
    indices: Tensor,
    rank: Callable[[int, int], float],
    movable: Tensor | None = None,
) -> Tensor:
    """An architecture [choices] that meets the budget, raised until nothing more fits: one candidate at a time, of the
    choices that still fit (and are `movable`, bool [choices]) the one with the lowest rank(choice, candidate index)."""
    last = torch.tensor([len(choice.candidates) - 1 for choice in space.choices], dtype=torch.long)
    while True:
        possible = indices < last if movable is None else movable & (indices < last)
        raised = indices + torch.eye(len(indices), dtype=torch.long)  # row c: choice c is one candidate larger
        possible = possible & cost.feasible(space, raised.minimum(last), budget)
        if not possible.any():
            return indices
        now = indices.tolist()
        choice = min(possible.nonzero()[:, 0].tolist(), key=lambda column: rank(column, now[column]))
        indices = raised[choice]


def spent(space: SearchSpace, table: Tensor, budget: Budget, pool: Tensor, number: int) -> list[Architecture]:
    """Up to `number` distinct architectures out of `pool` [count, choices], which meet the budget: the first one as it
    is; the next after each has taken what it leaves of the budget, those steps first that cost the least probability of
    the table; then, where these coincide, the pool's as they are."""
    steps = table.detach().cpu().double().clamp(min=1e-12).log().diff(dim=-1).neg().tolist()
    rows = list(dict.fromkeys(map(tuple, pool.tolist())))
    found = dict.fromkeys([space.architecture(rows[0])])
    for row in rows:
        if len(found) >= number:
            return list(found)
        start = torch.tensor(row, dtype=torch.long)
        raised = filled(space, budget, start, lambda choice, index: steps[choice][index])
        found.setdefault(space.architecture(raised.tolist()))
    return list(dict.fromkeys([*found, *map(space.architecture, rows)]))[:number]


def most_probable(table: Tensor, count: int) -> Tensor:
    """The `count` most probable architectures of a table, most probable first: candidate indices [<= count, choices].

    Exact: choices are independent, so a beginning of one of the n best is among the n best beginnings.
    """
    scores = torch.zeros(1, dtype=torch.float64)
    indices = torch.zeros(1, 0, dtype=torch.long)
    for row in table.detach().cpu().double().log():
        total = (scores[:, None] + row).flatten()
        scores, flat = total.topk(min(count, int(total.isfinite().sum())))
        indices = torch.cat([indices[flat // len(row)], flat[:, None] % len(row)], dim=1)
    return indices


def most_probable_feasible(
    space: SearchSpace, table: Tensor, budget: Budget, count: int, considered: int = 4096
) -> Tensor:
    """The most probable architectures of a table that meet the budget, in that order: indices [<= count, choices].

    Exact where `count` of the `considered` most probable ones fit. Else the table is tilted further and further below
    the limit until enough of *its* most probable ones fit, and these are ranked by the table itself.
    Fewer than `count`, but at least one, where the space has no more. Raises `Infeasible` where nothing fits.
    """
    require_feasible(space, budget)
    table = table.detach().cpu().double()
    found = torch.zeros(1, len(space.choices), dtype=torch.long)
    for below in (None, 0.0, 0.5, 1.0, 2.0, 4.0):
        tilted = table if below is None else tilt(space, table, budget, below)
        pool = most_probable(tilted, considered)
        found = torch.cat([found, pool[cost.feasible(space, pool, budget)]])
        if len(found) > count:
            break
    found = found.unique(dim=0)
    log_probability = table.log()[torch.arange(len(table)), found].sum(-1)
    return found[log_probability.argsort(descending=True, stable=True)[:count]]
