"""A student's first weights, its teachers and its training, the same in runs, comparisons and correlations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tas.calibration import recalibrate
from tas.data import Data, Split
from tas.distillation import Taps, distill, find_taps
from tas.errors import Diverged
from tas.files import is_number
from tas.initialization import Weights, student_at
from tas.merging import MERGE_IMAGES
from tas.methods.baselines import uniform
from tas.objectives import Objective
from tas.recipe import Distillation
from tas.scoring import scored_on, search_splits
from tas.stages import Run, rewound, show
from tas.training import call, evaluate

STAGE = "initialize"  # under which `started` leaves its decision in `run.json`


def taught(
    current: Run,
    stage: str,
    architecture: Mapping[str, int],
    source: Any,
    original: nn.Module,
    seed: int,
    *,
    how: Distillation | None = None,
    weights: Weights | None = None,
    data: Data | None = None,
    checkpoint: Path | None = None,
) -> nn.Module:
    """The student of `source` at an architecture, distilled from `original` or the recipe's teachers: by the recipe's
    plan, start of the weights and data where no others are given. All that is random in it follows from `seed`."""
    prepared, how = current.prepared, how or current.recipe.distill
    data, weights = data or prepared.data, weights or started(current, source, original)
    student = _begun(current, architecture, source, original, seed, weights, data)
    taps = _taps(current, stage, architecture, source, how)
    own = original if taps is None else taps.original
    teachers = [own if teacher is None else teacher for teacher in prepared.teachers]
    with current.display.bar(stage) as bar:
        distill(
            student,
            teachers if len(teachers) > 1 else teachers[0],
            data,
            how.plan,
            prepared.objective,
            generator=torch.Generator().manual_seed(seed),
            alpha=how.alpha,
            temperature=how.temperature,
            soft="kd" if prepared.soft_loss else how.loss,  # type: ignore[arg-type]  # one of LOSSES
            soft_loss=prepared.soft_loss,
            teacher_dtype=how.teacher_dtype,
            taps=taps,
            tap_weight=how.tap_weight,
            device=prepared.device,
            progress=lambda at: show(current, stage, at, bar),
            checkpoint=checkpoint,
        )
    return student


def briefly(
    current: Run,
    stage: str,
    architecture: Mapping[str, int],
    source: Any,
    original: nn.Module,
    seed: int,
    epochs: int,
    half: Split,
    held_out: Split,
    *,
    weights: Weights | None = None,
    checkpoint: Path | None = None,
) -> dict[str, float]:
    """Metric and loss on `held_out` images of the student after `epochs` on one `half` of the training images,
    otherwise as `taught`: for what is then decided. NaN where the training diverges."""
    prepared = current.prepared
    try:
        student = taught(
            current,
            stage,
            architecture,
            source,
            original,
            seed,
            how=in_epochs(current.recipe.distill, epochs),
            weights=weights,
            data=replace(prepared.data, train=half, val=None, test=None),
            checkpoint=checkpoint,
        )
    except Diverged:
        return {prepared.objective.name: math.nan, "loss": math.nan}
    return evaluate(student, held_out, prepared.objective, device=prepared.device)


def in_epochs(how: Distillation, epochs: int) -> Distillation:
    """The same training in other many epochs; the warm-up keeps its part of them."""
    return replace(how, epochs=epochs, warmup_epochs=how.warmup_epochs * epochs / how.epochs)


def started(current: Run, source: Any, original: nn.Module) -> Weights:
    """How the recipe's students get their weights; "auto" is decided once a run folder, where `run.json` says how.

    Every candidate start trains uniform widths at the first budget for `initialize.epochs` on the weights half of the
    training images, in the same order of batches, and is judged on images of the other half.
    """
    recipe, prepared = current.recipe, current.prepared
    asked = recipe.initialize
    if asked.weights != "auto":
        return asked.weights

    def work() -> dict[str, Any]:
        seed, rows = recipe.seed, []
        half, held_out = search_splits(prepared.data, seed)[0], scored_on(prepared.data, recipe.search.images, seed)
        even = uniform(prepared.space, prepared.budget)
        for weights in asked.among:
            stage, epochs = f"{STAGE} {weights}", asked.epochs
            reached = briefly(current, stage, even, source, original, seed, epochs, half, held_out, weights=weights)
            if not is_number(reached["loss"]):
                current.warn(f"The short training from the start {weights} diverged: lower distill.lr.")
            rows.append({"weights": weights, **reached})
        best: Weights = best_of(rows, prepared.objective)["weights"]
        current.display.say(f"students start by {best}, the best of {len(rows)} starts in a short training")
        facts = {"epochs": asked.epochs, "trained_on": len(half), "judged_on": len(held_out)}
        return {"chosen": best, "rows": rows, **facts, "architecture": dict(even)}

    chosen: Weights = current.staged(STAGE, work)["chosen"]
    return chosen


def best_of(rows: Sequence[Mapping[str, Any]], objective: Objective) -> Mapping[str, Any]:
    """The row of the best metric, ties by the loss; what is no number comes last."""

    def rank(row: Mapping[str, Any]) -> tuple[bool, float, float]:
        if not (is_number(row[objective.name]) and is_number(row["loss"])):
            return True, 0.0, 0.0
        return False, -row[objective.name] if objective.higher_is_better else row[objective.name], row["loss"]

    return min(rows, key=rank)


def _begun(
    current: Run,
    architecture: Mapping[str, int],
    source: Any,
    original: nn.Module,
    seed: int,
    weights: Weights,
    data: Data,
) -> nn.Module:
    """A student with its first weights."""
    recipe = current.recipe
    batches = data.train.take(MERGE_IMAGES).batches(64, device=current.prepared.device) if weights == "merge" else ()
    if weights == "rewind":
        source = rewound(current.prepared, original)
    student = student_at(source, architecture, weights, seed, (inputs for inputs, _ in batches))
    if recipe.initialize.recalibrate:
        device = current.prepared.device
        images = data.train.take(recipe.search.calibration_images).batches(128, device=device)
        student.to(device)
        recalibrate(student, (inputs for inputs, _ in images), lambda inputs: call(student, inputs))
    return student


def _taps(current: Run, stage: str, architecture: Mapping[str, int], source: Any, how: Distillation) -> Taps | None:
    """The recipe's taps, and a warning for those that this student cannot have."""
    if not how.taps or not how.tap_weight:
        return None
    taps = find_taps(source, architecture, how.taps)
    for reason in dict.fromkeys(taps.skipped.values()):
        names = [name for name, why in taps.skipped.items() if why == reason]
        listed = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if names[4:] else "")
        current.warn(f"{stage}: no tap at {listed}: {reason}.")
    return taps if taps.kept else None
