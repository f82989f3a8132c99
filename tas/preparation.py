"""From a recipe to what a run works with: device, data, original, traced space, budget; all checked before training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tas import cost
from tas.calibration import modes_restored
from tas.data import Data, load
from tas.distillation import LOSSES, find_taps, require_teacher
from tas.distillation.inversion import require_batch_norm
from tas.distillation.synthesis import check_settings
from tas.errors import BadData, BadNetwork, BadRecipe, Untraceable
from tas.fitting import doubts, require_agreement, require_judged
from tas.importing import imported
from tas.latency import MEASURE, Table, measure_latency, with_latency
from tas.latency.table import fingerprint
from tas.methods import optuna_study
from tas.methods.baselines import uniform
from tas.objectives import Objective, loss_function, objective
from tas.originals import build, check_runs, load_weights
from tas.recipe import DataSource, Latency, Limits, Machine, Network, ObjectiveNames, Recipe, examples
from tas.space import Budget, SearchSpace
from tas.tracing import Traced, trace
from tas.tracing.independent import independent_macs

NO_DATA = "none"  # the name of the data in a recipe that was made of an import path
_MEASURES = {"macs": "MACs", "params": "parameters", MEASURE: "latency"}


@dataclass(frozen=True)
class Prepared:
    """`original` as the recipe gives it: with its weights, or untrained. `source` is what is searched: its trace, or
    the search network with rules of its own that `network.supernet` names."""

    recipe: Recipe
    device: torch.device
    data: Data
    objective: Objective
    original: nn.Module
    source: Any
    budgets: Mapping[str, Budget]  # by what people call them
    teachers: tuple[nn.Module | None, ...] = (None,)  # None: the original
    latency: Table | None = None  # where the recipe has a section `latency`, or a budget of it
    soft_loss: Callable[[Any, Any], Tensor] | None = None  # where distill.loss names a function
    doubts: tuple[str, ...] = ()

    @property
    def space(self) -> SearchSpace:
        return self.source.space

    @property
    def budget(self) -> Budget:
        """The first one."""
        return next(iter(self.budgets.values()))

    @property
    def classifies(self) -> bool:
        """Whether outputs are logits [batch, classes] and targets class labels."""
        return self.objective.name == "top1" and self.data.classes is not None


def prepare(recipe: Recipe, progress: Callable[[int, int], None] | None = None) -> Prepared:
    """Everything that can be wrong with a recipe is found here, in the order: names, network, data, space, budget.

    A latency table that the recipe asks for is read from its file, or else measured; `progress` is told (rounds done,
    rounds).
    """
    if recipe.network.weights is None and recipe.original is None:
        raise BadRecipe("the recipe needs network.weights, or a section `original` that says how to train the original")
    if recipe.network.supernet is not None and recipe.initialize.weights != "scratch":
        raise BadRecipe("students of network.supernet start from fresh weights: set initialize.weights to scratch")
    if recipe.network.supernet is not None and recipe.search.method == "tuned":
        raise BadRecipe(
            "search.method tuned scores with the original's weights, network.supernet starts from fresh ones: "
            "use differentiable"
        )
    device = device_of(recipe.machine)
    judge = objective_of(recipe.objective)
    network = original_of(recipe.network, recipe.seed)
    data = data_of(recipe.data)
    source = source_of(recipe, network, example_inputs(recipe.network, network, data))
    require_choices(source.space)
    teachers = _teachers(recipe, network, data)
    outputs, targets = require_judged(network, data.train, judge)
    soft_loss = _check_training(recipe, source, outputs, targets)
    source, table = timed(recipe, source, progress)
    if isinstance(recipe.search, optuna_study.Settings):
        for given in optuna_study.warm_starts(recipe.search):
            require_member(source.space, given, "an architecture of search.warm_start")
    budgets = budgets_of(source.space, recipe.budgets)
    doubted = tuple(doubts(targets, judge, recipe.distill.loss, recipe.distill.alpha))
    prepared = Prepared(recipe, device, data, judge, network, source, budgets, teachers, table, soft_loss, doubted)
    _check_synthesis(prepared)
    return prepared


def _check_synthesis(prepared: Prepared) -> None:
    """`TasError` where there is nothing to train on, or images are asked for that cannot be made."""
    recipe, data = prepared.recipe, prepared.data
    how = recipe.synthesize
    if not data.has_training and (recipe.network.weights is None or how is None):
        raise BadRecipe(
            "without training images (data.train false) the recipe needs network.weights, and a section `synthesize` "
            "that says how to make images, such as --set synthesize.images=2000"
        )
    if how is None:
        return
    require_batch_norm(prepared.original)
    if not prepared.classifies:
        raise BadRecipe("synthesize makes images of classes: it needs class labels, cross-entropy and top-1")
    inputs, _ = next(replace(data.train, mean=None, std=None).take(2).batches(2))
    if data.train.mean is None or not isinstance(inputs, Tensor) or inputs.dtype != torch.uint8:
        raise BadData(
            "synthesize makes pixels: the data must be uint8 images with mean and std, not normalised already"
        )
    if how.real_images and not data.has_training:
        raise BadRecipe(f"data.train is false: there are no {how.real_images} synthesize.real_images")
    check_settings(how, inputs.shape[1:], data.classes or 0)
    if how.coarse_steps:
        halved = torch.zeros(2, inputs.shape[1], *(side // 2 for side in inputs.shape[2:]))
        try:
            check_runs(prepared.original, halved)
        except BadNetwork as problem:
            raise BadRecipe(f"synthesize.coarse_steps must be 0 for this network: {problem}") from problem


def _teachers(recipe: Recipe, network: nn.Module, data: Data) -> tuple[nn.Module | None, ...]:
    """Those of the recipe, seen to fit the original's inputs and outputs; None for the original."""
    found: list[nn.Module | None] = []
    for asked in recipe.distill.teacher:
        if asked.name == "original":
            found.append(None)
            continue
        teacher = build(asked.name, asked.kwargs, "distill.teacher")
        load_weights(teacher, str(asked.weights), "distill.teacher.weights")
        if recipe.distill.alpha:
            own_loss = recipe.distill.loss not in LOSSES
            require_teacher(network, teacher, next(data.train.take(2).batches(2))[0], own_loss)
        found.append(teacher)
    return tuple(found) or (None,)


def _check_training(recipe: Recipe, source: Any, outputs: Any, targets: Any) -> Callable[[Any, Any], Tensor] | None:
    """What students are trained by, as far as it names parts, files or functions, or asks for outputs of a form: those
    of the original and the targets of two examples are given. The function that distill.loss names, if any."""
    how = recipe.distill
    soft_loss = None if how.loss in LOSSES else loss_function("distill.loss", how.loss)
    if how.alpha:
        require_agreement(outputs, targets, how.loss, soft_loss, how.temperature)
    if recipe.distill.taps:
        if not isinstance(source, Traced):
            raise BadRecipe("distill.taps compare channels that a trace follows; network.supernet has rules of its own")
        found = find_taps(source, source.space.original(), recipe.distill.taps)
        if not found.kept:
            name, reason = next(iter(found.skipped.items()))
            raise BadRecipe(f"distill.taps name modules that give a tensor; {name!r}: {reason}")
    if recipe.initialize.checkpoint is not None:
        early = build(recipe.network.name, recipe.network.kwargs)
        load_weights(early, recipe.initialize.checkpoint, "initialize.checkpoint")
    return soft_loss


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


def require_choices(space: SearchSpace) -> None:
    """`Untraceable` where nothing is left to be searched, with the reasons."""
    if any(len(choice.candidates) > 1 for choice in space.choices):
        return
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


def feasibility(space: SearchSpace, budgets: Mapping[str, Budget] | None = None) -> dict[str, dict[str, float]]:
    """Costs of the smallest, a uniform and the largest architecture: uniform at each budget, else at half width."""
    budgets = budgets or {}
    middle = {row_name("uniform", label, budgets): uniform(space, budget) for label, budget in budgets.items()}
    rows = {"smallest": space.smallest(), **(middle or {"uniform": space.uniform(0.5)}), "largest": space.largest()}
    found = {name: costs(space, architecture) for name, architecture in rows.items()}
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
