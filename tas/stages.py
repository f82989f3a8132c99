"""A run under way, and its first stage: the original, trained where it came without weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tas.cautions import chance, few, unsteady
from tas.data import Data, Split
from tas.describing import describe
from tas.errors import BadData, BadNetwork
from tas.exporting import damage, load, require_place, save
from tas.files import rounded, write_json
from tas.folder import RunFolder
from tas.importance import orders
from tas.latency import MEASURE
from tas.latency.table import write as write_table
from tas.originals import build, load_weights
from tas.parts import original_of
from tas.preparation import Prepared
from tas.recipe import Recipe
from tas.reordering import permute
from tas.reporting.progress import Display, Events
from tas.reporting.tables import grouped
from tas.tracing import Traced
from tas.training import Progress, TrainingPlan, evaluate, train


@dataclass(frozen=True)
class Run:
    """A run under way: what it works with, where it is kept, and how it says where it stands."""

    prepared: Prepared
    folder: RunFolder
    display: Display
    events: Events

    @property
    def recipe(self) -> Recipe:
        return self.prepared.recipe

    def judged(self, network: nn.Module) -> dict[str, float]:
        """Metric and loss of a finished network on the test images."""
        prepared = self.prepared
        found = evaluate(network, judged_on(prepared.data), prepared.objective, device=prepared.device)
        return {name: rounded(value) for name, value in found.items()}

    def staged(self, name: str, work: Callable[[], dict[str, Any]], leaves: Path | None = None) -> dict[str, Any]:
        """The facts of a stage, as `RunFolder.stage` has them. leaves: where it saves a student; a finished one whose
        student cannot be read any more is done again."""
        if leaves is not None and self.folder.finished(name) and (reason := damage(leaves)):
            require_place(leaves)
            self.warn(f"{leaves} could not be read any more, so it was trained again: {reason}.")
            self.folder.forget(name)
        return self.folder.stage(name, work)

    def warn(self, text: str) -> None:
        """Say it now and in the report."""
        self.display.say(f"warning: {text}")
        self.folder.warn(text)


def opened(prepared: Prepared, folder: str | Path, display: Display | None = None) -> Run:
    """Begin the run of a recipe in a folder, or take up the one that is there; `check_owner` has been asked before."""
    recipe = prepared.recipe
    title = recipe.title or f"{recipe.network.name.rpartition(':')[2]} on {recipe.data.name}"
    record = RunFolder(folder, recipe, title, prepared.objective.name, prepared.device)
    write_json(record.path / "space.json", describe(prepared.space, prepared.budgets))
    current = Run(prepared, record, display or Display(), Events(record.path / "events"))
    for note in (*grouped(prepared.space.notes), *prepared.doubts):
        current.warn(note)
    finished = prepared.data.test or prepared.data.val
    if finished is not None and (said := few(finished)):
        current.warn(said)
    if prepared.latency is not None:
        write_table(prepared.latency, record.path / "latency.json")
        if said := unsteady(prepared.latency):
            current.warn(said)
    return current


def judged_on(data: Data) -> Split:
    """The test images, used for finished networks only; the validation images where there are no others."""
    found = data.test or data.val
    if found is None:
        raise BadData(f"{data.name!r} needs a test or a val split to judge the finished networks on")
    return found


def original(current: Run, seed: int | None = None) -> tuple[nn.Module, dict[str, float]]:
    """The original with its weights, trained here if it came without, and what it reaches.

    seed: of another original than the run's, trained by the same plan from another start, on other batches.
    """
    folder, section, own = current.folder, current.recipe.network, current.recipe.seed
    plan = current.recipe.original if section.weights is None else None
    seed = own if seed is None else seed
    stage, place, network = "original", folder.path / "original", current.prepared.original
    if seed != own:
        stage, place = f"original of seed {seed}", folder.path / "compare" / "originals" / f"seed{seed}"
        network = original_of(section, seed)

    def work() -> dict[str, float]:
        if plan is not None:
            _train_original(current, network, plan, stage, seed)
            save(network, place, network=section.model_dump(mode="json"))
        reached = current.judged(network)
        if plan is not None:
            folder.checkpoint(stage).unlink(missing_ok=True)  # not before: an interruption would train it again
        return reached

    facts = current.staged(stage, work)
    if plan is not None:
        try:
            network = load(lambda: build(section.name, section.kwargs), place)
        except BadNetwork as problem:
            raise BadNetwork(
                f"{problem}. All that was done in {folder.path} rests on this original: restore it, or choose another "
                "--out"
            ) from problem
        network.to(current.prepared.device)
    if said := chance(
        judged_on(current.prepared.data), current.prepared.objective, facts[current.prepared.objective.name]
    ):
        current.warn(said)
    return network, numbers(facts, current)


def _train_original(current: Run, network: nn.Module, plan: TrainingPlan, stage: str, seed: int) -> None:
    prepared, checkpoint = current.prepared, current.folder.checkpoint(stage)
    generator = torch.Generator().manual_seed(seed)
    with current.display.bar(stage) as bar:
        train(
            network,
            prepared.data,
            plan,
            prepared.objective,
            generator,
            prepared.device,
            progress=lambda at: show(current, stage, at, bar),
            checkpoint=checkpoint,
        )


def show(current: Run, stage: str, at: Progress, bar: Callable[[int, int, str], None]) -> None:
    bar(at.step, at.steps, f"loss {at.loss:.3f}")
    current.events.training(stage, at)


def weighted(prepared: Prepared, original: nn.Module) -> Any:
    """What is searched, with the trained original's weights, most important channels first."""
    if not isinstance(prepared.source, Traced):
        return prepared.source
    return permute(replace(prepared.source, network=original.cpu()), _orders(prepared, original))


def rewound(prepared: Prepared, original: nn.Module) -> Traced:
    """The same, channels in the same order, with the weights of the early checkpoint of the recipe."""
    section = prepared.recipe.network
    early = build(section.name, section.kwargs)
    load_weights(early, str(prepared.recipe.initialize.checkpoint), "initialize.checkpoint")
    return permute(replace(prepared.source, network=early), _orders(prepared, original))


def _orders(prepared: Prepared, original: nn.Module) -> dict[str, list[int]]:
    with_weights = replace(prepared.source, network=original.cpu())
    generator = torch.Generator().manual_seed(prepared.recipe.seed)
    return orders(with_weights, prepared.recipe.initialize.importance, generator=generator)


def numbers(facts: Mapping[str, Any], current: Run) -> dict[str, Any]:
    keys = (current.prepared.objective.name, "loss", "macs", "params", MEASURE)
    return {key: math.nan if facts[key] is None else facts[key] for key in keys if key in facts}  # JSON has no NaN
