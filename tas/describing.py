"""A space in numbers: budgets by what tables call them, costs, and what can be reached."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from tas import cost
from tas.calibration import modes_restored
from tas.errors import BadRecipe, Untraceable
from tas.latency import MEASURE
from tas.methods.baselines import uniform
from tas.recipe import Limits
from tas.space import Budget, SearchSpace
from tas.tracing import Rules
from tas.tracing.independent import independent_macs

_NARROWING = ("minimum", "bound", "divisor", "ratios")  # the rules that take candidates from a choice
_MEASURES = {"macs": "MACs", "params": "parameters", MEASURE: "latency"}


def require_choices(space: SearchSpace, rules: Rules) -> None:
    """`Untraceable` where nothing is left to be searched, with the reasons; `BadRecipe` where `rules` are one."""
    if any(len(choice.candidates) > 1 for choice in space.choices):
        return
    narrowed = [name for name in _NARROWING if getattr(rules, name) != getattr(Rules(), name)]
    if space.choices and narrowed:
        told = ", ".join(f"space.{name} {getattr(rules, name)}" for name in narrowed)
        sizes = ", ".join(f"{choice.name} {choice.candidates[0]}" for choice in space.choices[:4])
        raise BadRecipe(
            f"a search needs a choice with at least two candidates, {told} leaves each of {len(space.choices)} a "
            f"single one ({sizes}{', ...' if space.choices[4:] else ''}): loosen that rule"
        )
    reasons = dict.fromkeys(f"{kept.name}: {kept.reason}" for kept in space.kept if kept.stream in ("", kept.name))
    listed = "; ".join(list(reasons)[:4]) + (f"; and {len(reasons) - 4} more" if len(reasons) > 4 else "")
    raise Untraceable(
        f"no choice is left to search, every size is kept. {listed or 'It has no convolution or linear layer.'}"
    )


def require_member(space: SearchSpace, architecture: Mapping[str, int], where: str = "the architecture") -> None:
    """`BadRecipe` where an architecture is not of the space: which choice is wrong, and what it may be."""
    try:
        space.indices(architecture)
    except ValueError as problem:
        raise BadRecipe(f"{where} must be of this recipe's space, see `tas space`: {problem}") from problem


def budget_of(space: SearchSpace, limits: Limits) -> Budget:
    return cost.budget(space, limits.slack, **limits.model_dump(exclude={"slack"}))


def budgets_of(space: SearchSpace, limits: Sequence[Limits], key: str = "budget") -> dict[str, Budget]:
    """By what tables call them: "50% of MACs". `BadRecipe` where two are called alike."""
    whole, found = costs_of_original(space), {}
    for each in limits:
        budget = budget_of(space, each)
        parts = [
            f"{limit / whole[measure]:.1%} of {_MEASURES.get(measure, measure)}" for measure, limit in budget.limits
        ]
        label = ", ".join(parts).replace(".0%", "%")
        if label in found:
            raise BadRecipe(f"the budgets in {key} must differ by 0.1 % of the original at least, two are {label}")
        found[label] = budget
    return found


def costs(space: SearchSpace, architecture: Mapping[str, int]) -> dict[str, float]:
    """By measure: MACs and parameters, and milliseconds where the space has a latency."""
    return {m: cost.whole(m, cost.of(space, architecture, m)) for m in _measures(space)}


def costs_of_original(space: SearchSpace) -> dict[str, float]:
    return {m: cost.whole(m, cost.original(space, m)) for m in _measures(space)}


def _measures(space: SearchSpace) -> list[str]:
    return ["macs", "params", *([MEASURE] if MEASURE in cost.measures(space) else [])]


def feasibility(space: SearchSpace, budgets: Mapping[str, Budget] | None = None) -> dict[str, dict[str, Any]]:
    """Costs of the smallest architecture, of the smallest widths where blocks can go as well, of a uniform and the
    largest architecture: uniform at each budget, else at half width; of uniform ones also the smallest and the largest
    part of a width that is kept ("widths")."""
    budgets = budgets or {}
    middle = {row_name("uniform", label, budgets): uniform(space, budget) for label, budget in budgets.items()}
    middle = middle or {"uniform": space.uniform(0.5)}
    deep = {choice.kind for choice in space.choices} == {"width", "depth"}
    narrow = {"smallest, with all blocks": space.uniform(0)} if deep else {}
    rows = {"smallest": space.smallest(), **narrow, **middle, "largest": space.largest()}
    found: dict[str, dict[str, Any]] = {name: costs(space, architecture) for name, architecture in rows.items()}
    for name, architecture in middle.items():
        parts = [architecture[choice.name] / choice.size for choice in space.choices if choice.kind == "width"]
        found[name] |= {"widths": [min(parts), max(parts)]} if parts else {}
    bounded = any(choice.size > choice.candidates[-1] for choice in space.choices)
    return found | ({"original": costs_of_original(space)} if bounded else {})


def row_name(name: str, label: str, budgets: Collection[str]) -> str:
    """What a row of a table is called: by its budget too where there are several."""
    return name if len(budgets) == 1 else f"{name} at {label}"


def describe(space: SearchSpace, budgets: Mapping[str, Budget] | None = None) -> dict[str, Any]:
    """Plain data for `space.json`; `budgets` are the limits of each, by what tables call it."""
    limits = {label: dict(budget.limits) for label, budget in (budgets or {}).items()}
    return {**space.to_dict(), "feasibility": feasibility(space, budgets), "budgets": limits}


def survey(
    space: SearchSpace, network: nn.Module, inputs: Any, seconds: float, budgets: Mapping[str, Budget] | None = None
) -> dict[str, Any]:
    """Plain data for `tas space --json`: `describe`, and of the original's MACs, which part the smallest architecture
    lacks and which part lies in layers that a choice changes; the MACs by the formula and as torch counts them; how
    many batch norms there are; how long the trace took."""
    original = costs_of_original(space)
    with modes_restored(network):
        counted = independent_macs(network.eval(), inputs)
    return {
        **describe(space, budgets),
        "searchable": {
            "macs": 1 - cost.macs(space, space.smallest()) / max(original["macs"], 1),
            "params": 1 - cost.params(space, space.smallest()) / max(original["params"], 1),
            "layers": _macs_with_choices(space) / max(original["macs"], 1),
        },
        "counted": {"formula": original["macs"], "torch": counted},
        "batch_norms": sum(isinstance(module, _BatchNorm) for module in network.modules()),
        "seconds": round(seconds, 2),
    }


def _macs_with_choices(space: SearchSpace) -> float:
    free = {choice.name for choice in space.choices if len(choice.candidates) > 1}
    changed = {
        layer.layer
        for layer in space.costs
        if layer.measure == "macs" and any(factor.choice in free for term in layer.terms for factor in term.factors)
    }
    layers = cost.by_layer(space, space.original())
    return sum(macs for layer, macs in layers.items() if layer in changed)
