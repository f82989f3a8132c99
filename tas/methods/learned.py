"""Which architectures a learned distribution proposes to be scored: at the budget of its search, and at any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tas import cost
from tas.sampling import (
    draws,
    in_band,
    most_probable,
    most_probable_feasible,
    require_feasible,
    sample_many,
    spent,
    tilt,
)
from tas.space import Architecture, Budget, SearchSpace

_FLOOR = 1e-6  # probability that every candidate keeps, so that any feasible budget can be reached by tilting
_CONSIDERED = 4096  # most probable architectures of a tilted distribution that are looked through


def table_of(space: SearchSpace, probabilities: Mapping[str, Sequence[float]]) -> Tensor:
    """Probabilities by name of choice as a table, float64 [choices, widest], 0 in padded columns. ValueError where they
    are not of this space."""
    if foreign := sorted(set(probabilities) - {choice.name for choice in space.choices}):
        raise ValueError(f"probabilities belong to another space: this one has no choice {foreign[0]!r}")
    table = torch.zeros(len(space.choices), max((len(c.candidates) for c in space.choices), default=1)).double()
    for row, choice in zip(table, space.choices, strict=True):
        given = probabilities.get(choice.name, ())
        if len(given) != len(choice.candidates):
            raise ValueError(
                f"probabilities of {choice.name!r} are one a candidate of {choice.candidates}, got {len(given)}: "
                "they belong to another space"
            )
        row[: len(given)] = torch.tensor(given, dtype=torch.float64)
    return table


def candidates(
    space: SearchSpace, table: Tensor, budget: Budget, number: int, generator: torch.Generator
) -> list[Architecture]:
    """Up to `number` distinct architectures that meet the budget that the table was learned at: half of them the most
    probable ones, the most probable first (the mode, if it fits); the others drawn, because probable ones differ in few
    choices. All but the first are filled up (`sampling.spent`): uniform widths use the whole budget too."""
    probable = most_probable_feasible(space, table, budget, number)
    drawn = draws(tilt(space, table, budget), generator, 64 * number)
    drawn = drawn[cost.feasible(space, drawn, budget)]
    return spent(space, table, budget, _half_drawn(probable, drawn, number), number)


def candidates_at(
    space: SearchSpace, table: Tensor, budget: Budget, number: int, generator: torch.Generator
) -> list[Architecture]:
    """The same in the band of another budget, by the tilted table.

    Tilting multiplies every probability by exp(-t x marginal expected cost), with t negative for a budget above the
    table's own cost (see `sampling.tilt`). Ranking the table itself would give a budget with room to spare the same
    small architecture as before. Raises `Infeasible`.
    """
    require_feasible(space, budget)
    floored = torch.where(_present(space), table.clamp(min=_FLOOR), 0.0)
    tilted = tilt(space, floored / floored.sum(-1, keepdim=True), budget)
    probable = most_probable(tilted, _CONSIDERED)
    probable = probable[in_band(space, probable, budget)]
    drawn = sample_many(space, generator, 16 * number, budget, tilted)
    return spent(space, tilted, budget, _half_drawn(probable, drawn, number), number)


def _half_drawn(probable: Tensor, drawn: Tensor, number: int) -> Tensor:
    """Where to take `number` from, in this order; the draws of a peaked distribution repeat themselves."""
    return torch.cat([probable[: -(-number // 2)], drawn, probable])


def _present(space: SearchSpace) -> Tensor:
    """Which columns of a table are candidates and not padding: bool [choices, widest]."""
    sizes = torch.tensor([len(choice.candidates) for choice in space.choices])
    return torch.arange(int(sizes.max()) if len(sizes) else 1) < sizes[:, None]
