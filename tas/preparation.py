"""From a recipe to what a run works with: device, data, original, traced space, budget; all checked before training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tas import cost
from tas.data import Data, load
from tas.errors import BadData, BadRecipe, Untraceable
from tas.methods.baselines import uniform
from tas.objectives import Objective, objective
from tas.originals import build, check_runs, load_weights
from tas.recipe import DataSource, Limits, Machine, Network, ObjectiveNames, Recipe
from tas.space import Architecture, Budget, SearchSpace
from tas.tracing import Traced, trace


@dataclass(frozen=True)
class Prepared:
    """`traced` is of the original as the recipe gives it: with its weights, or untrained."""

    recipe: Recipe
    device: torch.device
    data: Data
    objective: Objective
    traced: Traced
    budget: Budget

    @property
    def space(self) -> SearchSpace:
        return self.traced.space


def prepare(recipe: Recipe) -> Prepared:
    """Everything that can be wrong with a recipe is found here, in the order: names, data, network, space, budget."""
    if recipe.network.weights is None and recipe.original is None:
        raise BadRecipe("the recipe needs network.weights, or a section `original` that says how to train the original")
    device = device_of(recipe.machine)
    judge = objective_of(recipe.objective)
    network = original_of(recipe.network, recipe.seed)
    data = data_of(recipe.data)
    traced = trace(network, example_inputs(recipe.network, network, data), recipe.space)
    require_choices(traced.space)
    return Prepared(recipe, device, data, judge, traced, budget_of(traced.space, recipe.budget))


def device_of(machine: Machine) -> torch.device:
    if machine.threads:
        torch.set_num_threads(machine.threads)
    if machine.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=machine.device).device
    except (RuntimeError, AssertionError) as problem:  # torch without CUDA asserts
        reason = str(problem).splitlines()[0]
        raise BadRecipe(
            f"machine.device must be a device of this machine, got {machine.device!r}: {reason}"
        ) from problem


def objective_of(names: ObjectiveNames) -> Objective:
    return objective(**names.model_dump())


def data_of(source: DataSource) -> Data:
    return load(**source.model_dump())


def original_of(section: Network, seed: int = 0) -> nn.Module:
    """The network of the recipe; where it has no weights, its random start depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(section.name, section.kwargs)
    if section.weights is not None:
        load_weights(network, section.weights)
    return network


def example_inputs(section: Network, network: nn.Module, data: Data | None = None) -> Any:
    """Two inputs, from the data where there are any, that the network has been seen to take."""
    if section.shape is not None:
        check_runs(network, section.shape)
        return torch.randn((2, *section.shape[1:]), generator=torch.Generator().manual_seed(0))
    if data is None:
        raise BadRecipe("the shape of an input is needed: give --shape or network.shape, such as 1,3,224,224")
    inputs, _ = next(data.train.take(2).batches(2))
    if isinstance(inputs, Tensor):
        check_runs(network, tuple(inputs.shape))
        _require_outputs(network, inputs, data)
    return inputs


def _require_outputs(network: nn.Module, inputs: Tensor, data: Data) -> None:
    """One logit a class, where the network gives one tensor [batch, logits] and targets are class labels."""
    training = network.training
    with torch.no_grad():
        outputs = network.eval()(inputs)
    network.train(training)
    if data.classes is not None and isinstance(outputs, Tensor) and outputs.dim() == 2:
        found = outputs.shape[1]
        if found < data.classes:
            raise BadData(
                f"{data.name!r} has {data.classes} classes, the network has {found} outputs: one a class is needed"
            )


def require_choices(space: SearchSpace) -> None:
    """`Untraceable` where nothing is left to be searched, with the reasons."""
    if any(len(choice.candidates) > 1 for choice in space.choices):
        return
    reasons = dict.fromkeys(f"{kept.name}: {kept.reason}" for kept in space.kept)
    listed = "; ".join(list(reasons)[:4]) + (f"; and {len(reasons) - 4} more" if len(reasons) > 4 else "")
    raise Untraceable(
        f"no choice is left to search, every size is kept. {listed or 'It has no convolution or linear layer.'}"
    )


def budget_of(space: SearchSpace, limits: Limits) -> Budget:
    return cost.budget(space, limits.slack, macs=limits.macs, params=limits.params)


def costs(space: SearchSpace, architecture: Mapping[str, int]) -> dict[str, int]:
    return {"macs": cost.macs(space, architecture), "params": cost.params(space, architecture)}


def feasibility(space: SearchSpace, budget: Budget | None = None) -> dict[str, dict[str, int]]:
    """Costs of the smallest, a uniform and the largest architecture: uniform at the budget, else at half width."""
    middle: Architecture = space.uniform(0.5) if budget is None else uniform(space, budget)
    rows = {"smallest": space.smallest(), "uniform": middle, "largest": space.largest()}
    return {name: costs(space, architecture) for name, architecture in rows.items()}


def describe(space: SearchSpace, budget: Budget | None = None) -> dict[str, Any]:
    """Plain data for `space.json` and `tas space --json`."""
    limits = {} if budget is None else {"budget": dict(budget.limits)}
    return {**space.to_dict(), "feasibility": feasibility(space, budget), **limits}
