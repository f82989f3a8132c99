"""The parts of a run, each from its section of the recipe: device, data, objective, original, what is searched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tas.data import Data, load
from tas.errors import BadData, BadNetwork, BadRecipe
from tas.importing import imported
from tas.latency import Table, measure_latency, with_latency
from tas.latency.table import fingerprint
from tas.objectives import Objective, objective
from tas.originals import build, check_runs, load_weights
from tas.recipe import DataSource, Latency, Machine, Network, ObjectiveNames, Recipe, examples
from tas.tracing import Traced, trace

NO_DATA = "none"  # the name of the data in a recipe that was made of an import path


def timed(
    recipe: Recipe, source: Any, progress: Callable[[int, int], None] | None = None, always: bool = False
) -> tuple[Any, Table | None]:
    """`source` with the latency that the recipe asks for, and its table; `always`: also where it asks for none."""
    asked = recipe.latency
    if asked is None and not always and all(b.latency is None and b.latency_ms is None for b in recipe.budgets):
        return source, None
    if not isinstance(source, Traced):
        raise BadRecipe("latency is measured layer by layer of a traced network: leave out network.supernet")
    asked = asked or Latency()
    file = table_file(asked, source)
    table = measure_latency(
        source, asked.target, points=asked.points, rounds=asked.rounds, file=file, progress=progress
    )
    return with_latency(source, table), table


def table_file(asked: Latency, source: Traced) -> Path:
    """Where the latency table of a network lies, or will: every command finds it again."""
    return Path(asked.table or Path("runs") / f"latency-{fingerprint(source, asked.target)}.json")


def source_of(recipe: Recipe, network: nn.Module, inputs: Any) -> Any:
    if recipe.network.supernet is None:
        return trace(network, inputs, recipe.space)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return imported(recipe.network.supernet, BadNetwork)(network)


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
    if source.name == NO_DATA:
        raise BadData("a network alone has no data: name some with --data and --root, or give a recipe")
    return load(**source.model_dump())


def data_of_inputs(recipe: Recipe) -> Data | None:
    """The data whose inputs the network is tried on; None where inputs are described, or a network is named alone."""
    return None if recipe.network.described or recipe.data.name == NO_DATA else data_of(recipe.data)


def original_of(section: Network, seed: int = 0) -> nn.Module:
    """The network of the recipe; where it has no weights, its random start depends on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(section.name, section.kwargs)
    if section.weights is not None:
        load_weights(network, section.weights)
    return network


def example_inputs(section: Network, network: nn.Module, data: Data | None = None) -> Any:
    """Two inputs, from the data where none are described, that the network has been seen to take.

    The data's are tried in any case: a network that refuses them is told of before a run.
    """
    if section.described:
        check_runs(network, examples(section.described))
    elif data is None:
        raise BadRecipe("the shape of an input is needed: give --shape or network.shape, such as 1,3,224,224")
    inputs = None if data is None else next(data.train.take(2).batches(2))[0]
    if inputs is not None:
        check_runs(network, inputs)
    given = section.shape
    if isinstance(inputs, Tensor) and given is not None and inputs.shape[1:] != given[1:]:  # costs would be others'
        raise BadRecipe(
            f"network.shape is that of the data's inputs, {[1, *inputs.shape[1:]]}, got {list(given)}: "
            "leave it out, or resize the data (data.size)"
        )
    return examples(section.described, batch=2) if section.described else inputs
