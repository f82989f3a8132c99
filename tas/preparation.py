"""From a recipe to what a run works with, all of it checked before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tas.data import Data, require_two
from tas.describing import budgets_of, require_choices, require_member
from tas.distillation import LOSSES, find_taps, require_teacher
from tas.distillation.inversion import require_batch_norm
from tas.distillation.synthesis import check_settings
from tas.errors import BadData, BadNetwork, BadRecipe
from tas.fitting import doubts, require_agreement, require_judged, require_labelled
from tas.latency import Table
from tas.methods import optuna_study
from tas.objectives import Objective, loss_function
from tas.originals import build, check_runs, load_weights
from tas.parts import data_of, device_of, example_inputs, objective_of, original_of, source_of, timed
from tas.recipe import Recipe
from tas.space import Budget, SearchSpace
from tas.tracing import Traced
from tas.training import require_trainable


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
    require_two(data.train)
    source = source_of(recipe, network, example_inputs(recipe.network, network, data))
    require_choices(source.space, recipe.space)
    require_trainable(network)
    teachers = _teachers(recipe, network, data)
    outputs, targets = require_judged(network, data.train, judge)
    doubted = _frozen(network) + [said for split in data.splits if (said := require_labelled(split, judge, outputs))]
    soft_loss = _check_training(recipe, source, outputs, targets)
    source, table = timed(recipe, source, progress)
    if storage := getattr(recipe.search, "storage", None):
        from tas.methods.storages import require_server  # Optuna is slow to import

        require_server(storage)
    if isinstance(recipe.search, optuna_study.Settings):
        for given in optuna_study.warm_starts(recipe.search):
            require_member(source.space, given, "an architecture of search.warm_start")
    budgets = budgets_of(source.space, recipe.budgets)
    doubted += doubts(targets, judge, recipe.distill.loss, recipe.distill.alpha)
    parts = (recipe, device, data, judge, network, source, budgets, teachers, table, soft_loss)
    prepared = Prepared(*parts, tuple(doubted))
    _check_synthesis(prepared)
    return prepared


def _frozen(network: nn.Module) -> list[str]:
    """What to say where parts of a network are not trained."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    still, whole = sum(n for n, trained in counts if not trained), sum(n for n, _ in counts)
    said = f"{still:,} of {whole:,} parameters of the network require no gradients: they are cut, but never trained."
    return [said] if still else []


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
            require_teacher(network, teacher, next(data.train.take(2).batches(2))[0], own_loss=own_loss)
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
