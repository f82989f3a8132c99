"""One cost formula for integers, index tensors and expectations, and the budget's penalty.

The cost of a network is a sum of terms: coefficient x product of functions of *distinct* choices (`space.Term`).
Each function of a choice is a row of a table over its candidates. An architecture picks one column of the row, a
distribution averages the row with its probabilities; since the choices are independent, the product of those averages
is the exact expectation of the product, also where one choice enters a layer twice (a power is one row: E[w^2], not
E[w]^2, which is up to 15 % lower).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor

from tas.errors import BadRecipe, Infeasible
from tas.space import Budget, Factor, SearchSpace, Term

_COUNTED = ("macs", "params")  # whole numbers, or per example of a batch that shares work; what is measured is not
_ROWS_AT_ONCE = 1 << 22  # numbers held at once while many architectures are counted: 32 MB


@dataclass(frozen=True)
class _Formula:
    table: Tensor  # [functions + 1, candidates]: a function of one choice at each candidate; the last row is all ones
    owner: Tensor  # [functions + 1]: the choice that each row belongs to
    coefficient: Tensor  # [terms]
    members: Tensor  # [terms, factors]: rows to be multiplied, padded with the row of ones


@lru_cache(maxsize=256)
def _formula(space: SearchSpace, measure: str, layer: str | None = None, device: str = "cpu") -> _Formula:
    merged: dict[tuple[Factor, ...], float] = defaultdict(float)
    for cost in space.costs:
        if cost.measure == measure and layer in (None, cost.layer):
            for term in cost.terms:
                merged[tuple(sorted(term.factors, key=repr))] += term.coefficient
    merged = {factors: coefficient for factors, coefficient in merged.items() if coefficient}
    rows = {factor: row for row, factor in enumerate(dict.fromkeys(f for factors in merged for f in factors))}
    widest = max((len(choice.candidates) for choice in space.choices), default=1)
    table = torch.zeros(len(rows) + 1, widest, dtype=torch.float64)
    table[-1] = 1
    owner = torch.zeros(len(rows) + 1, dtype=torch.long)
    for factor, row in rows.items():
        owner[row] = space.position[factor.choice]
        candidates = space.choices[space.position[factor.choice]].candidates
        table[row, : len(candidates)] = torch.tensor([float(factor.at(size)) for size in candidates])
    longest = max((len(factors) for factors in merged), default=0)
    members = torch.full((len(merged), max(longest, 1)), len(rows), dtype=torch.long)
    for index, factors in enumerate(merged):
        members[index, : len(factors)] = torch.tensor([rows[factor] for factor in factors], dtype=torch.long)
    coefficient = torch.tensor([float(c) for c in merged.values()], dtype=torch.float64)
    return _Formula(table.to(device), owner.to(device), coefficient.to(device), members.to(device))


def count(space: SearchSpace, indices: Tensor, measure: str = "macs", layer: str | None = None) -> Tensor:
    """Exact cost of many architectures: candidate indices [..., choices] -> float64 [...] (exact below 2^53)."""
    formula = _formula(space, measure, layer, str(indices.device))
    if not space.choices:
        return formula.coefficient.sum().expand(indices.shape[:-1])
    flat = indices.reshape(-1, indices.shape[-1])
    step = max(1, _ROWS_AT_ONCE // (formula.members.numel() + len(formula.owner)))
    parts = []
    for chunk in flat.split(step):
        values = formula.table[torch.arange(len(formula.owner), device=flat.device), chunk[:, formula.owner]]
        product = values[:, formula.members[:, 0]]
        for column in range(1, formula.members.shape[1]):
            product = product * values[:, formula.members[:, column]]
        parts.append(product @ formula.coefficient)
    total = torch.cat(parts) if parts else flat.new_zeros(0, dtype=torch.float64)
    return total.reshape(indices.shape[:-1])


def expected(space: SearchSpace, probabilities: Tensor, measure: str = "macs") -> Tensor:
    """Expected cost when every choice is drawn by its row of `probabilities` [choices, candidates], as float64."""
    formula = _formula(space, measure, None, str(probabilities.device))
    if not space.choices:
        return formula.coefficient.sum()
    chances = probabilities.double()[formula.owner]
    constant = torch.zeros_like(chances[-1]).index_fill(0, torch.tensor([0], device=chances.device), 1.0)
    chances = torch.cat([chances[:-1], constant[None]])  # the row of ones is 1 whatever the probabilities sum to
    values = (formula.table * chances).sum(-1)
    return (values[formula.members].prod(-1) * formula.coefficient).sum()


def macs(space: SearchSpace, architecture: Mapping[str, int]) -> int:
    """Multiply-accumulates of one forward at batch 1: convolutions, linear layers and attention products."""
    return _of(space, architecture, "macs")


def params(space: SearchSpace, architecture: Mapping[str, int]) -> int:
    """Number of parameters (not buffers)."""
    return _of(space, architecture, "params")


def _of(space: SearchSpace, architecture: Mapping[str, int], measure: str) -> int:
    return int(whole(measure, of(space, architecture, measure)))


def of(space: SearchSpace, architecture: Mapping[str, int], measure: str) -> float:
    """The cost of one architecture by any of `measures(space)`, such as "latency_ms"."""
    return float(count(space, torch.tensor(space.indices(architecture), dtype=torch.long), measure))


def measures(space: SearchSpace) -> list[str]:
    """What the space has costs in, and budgets may limit."""
    return sorted({cost.measure for cost in space.costs})


@lru_cache(maxsize=64)
def original(space: SearchSpace, measure: str = "macs") -> float:
    """The cost of the original: that of the largest architecture, unless rules bound choices below. MACs and parameters
    are whole numbers."""
    total = sum(by_layer(space, space.original(), measure).values())
    return whole(measure, total) if measure in _COUNTED else total


def whole(measure: str, value: float) -> float:
    """A cost as a whole number where it counts something, the smallest limit that it meets; in four digits where it was
    measured."""
    return ceil(value - tolerance(measure)) if measure in _COUNTED else float(f"{value:.4g}")


def by_layer(space: SearchSpace, architecture: Mapping[str, int], measure: str = "macs") -> dict[str, float]:
    """The cost of each layer at an architecture, in the order of the forward."""
    totals: dict[str, float] = defaultdict(int)

    def value(term: Term) -> float:
        product = term.coefficient
        for factor in term.factors:
            product *= factor.at(architecture[factor.choice])
        return product

    for cost in space.costs:
        if cost.measure == measure:
            totals[cost.layer] += sum(value(term) for term in cost.terms)
    return dict(totals)


def budget(space: SearchSpace, slack: float = 0.05, **limits: float | int | None) -> Budget:
    """A `Budget` from ratios of the original (0 < r <= 1, as a float) or absolute numbers, by measure.

    >>> tas.budget(space, macs=0.5, params=200_000)

    Where the space has a measured latency (`tas.with_latency`), `latency_ms` limits it in milliseconds, whatever the
    number, and `latency` as a ratio. Raises `Infeasible` when a limit is above the original or below the smallest
    architecture.
    """
    resolved, known = {}, measures(space)
    for name, limit in limits.items():
        if limit is None:
            continue
        if not isinstance(limit, int | float):
            raise BadRecipe(f"a budget's {name} is a number, such as 0.5 for half of the original's, got {limit!r}")
        measure = f"{name}_ms" if name == "latency" else name
        if measure not in known:
            told = "; measure it first (tas.measure_latency, tas.with_latency)" if measure == "latency_ms" else ""
            raise Infeasible(f"a budget limits one of {known}, got {name!r}{told}")
        if measure in resolved or (name == "latency" and limit > 1):
            raise Infeasible(f"latency is a ratio up to 1.0, latency_ms milliseconds: give one of them, got {limits}")
        largest, smallest = original(space, measure), of(space, space.smallest(), measure)
        if limit <= 0:
            raise Infeasible(f"the {measure} budget must be above 0, got {limit}")
        ratio = name == "latency" or (name in _COUNTED and isinstance(limit, float) and limit <= 1)
        absolute = limit * largest if ratio else limit
        if absolute > largest:
            raise Infeasible(
                f"the {measure} budget must not exceed the original's {whole(measure, largest):,}, "
                f"got {limit:,}; "
                "a float up to 1.0 is a ratio of the original, everything else an absolute number"
            )
        if absolute + tolerance(measure) < smallest:
            raise Infeasible(
                f"the {measure} budget {whole(measure, absolute):,} ({absolute / largest:.1%} of the original) is "
                f"below the smallest architecture's {whole(measure, smallest):,} ({smallest / largest:.1%}); ask for "
                f"at least that{_meant(limit)}"
            )
        resolved[measure] = float(absolute)
    if not resolved:
        raise Infeasible(f"a budget needs at least one limit on {known}")
    return Budget(tuple(resolved.items()), slack)


def _meant(limit: float) -> str:
    """A number such as 50 was meant as a part of the original."""
    return f" (or for {limit / 100:g}, in a recipe {limit:g}%, of the original)" if 1 < limit <= 100 else ""


def feasible(space: SearchSpace, indices: Tensor, limits: Budget) -> Tensor:
    """Whether each architecture, candidate indices [..., choices], meets every limit: bool [...]."""
    fits = torch.ones(indices.shape[:-1], dtype=torch.bool, device=indices.device)
    for measure, limit in limits.limits:
        fits &= count(space, indices, measure) <= limit + tolerance(measure)
    return fits


def tolerance(measure: str) -> float:
    """What a cost may lie above a limit that it meets: limits from ratios are no whole numbers, and sums of the same
    terms differ in their last bits. Above one half, so that halves (the edges of a graph, by its nodes) fall on one
    side whatever these bits are."""
    return 0.501 if measure in _COUNTED else 1e-9


def penalty(space: SearchSpace, limits: Budget, probabilities: Tensor) -> Tensor:
    """The cost term of the TAS architecture loss (Dong & Yang 2019, eq. 8, and its code): +log E where the most
    probable architecture costs more than the limit R, -log E where it costs less than R - slack x original, else 0;
    E is the expected cost in millions (only gradients matter, and those of log E know no unit). With several limits
    the lower branch needs room under all of them: a limit that does not bind would else pull against the one that does.
    Only log E has a gradient; no value is read back to the host."""
    mode = probabilities.argmax(-1)
    above, below, logs = [], [], []
    for measure, limit in limits.limits:
        actual = count(space, mode, measure)
        above.append((actual > limit + tolerance(measure)).double())
        below.append((actual < limit - limits.slack * original(space, measure)).double())
        logs.append((expected(space, probabilities, measure) / 1e6).log())
    sign = torch.stack(above) - torch.stack(below).amin(0)
    return (sign * torch.stack(logs)).sum()
