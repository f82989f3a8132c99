"""Train a student to do its task and to agree with its teacher, the original."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tas.calibration import modes_restored
from tas.data import Data, InMemory, Split, WithAnswer, as_data
from tas.distillation.losses import decoupled, kd, relational, soft_targets
from tas.distillation.taps import Heard, Taps, find_taps, listening, require_modules
from tas.distillation.teachers import Ensemble, answered, ask, require_teacher
from tas.errors import BadRecipe
from tas.mixing import of_both
from tas.objectives import Objective, default_objective
from tas.training import Loss, Progress, TrainingPlan, objective_loss, train, training_split

__all__ = [
    "LOSSES",
    "Ensemble",
    "Taps",
    "decoupled",
    "distill",
    "find_taps",
    "kd",
    "relational",
    "require_modules",
    "require_teacher",
    "soft_targets",
]

LOSSES = ("kd", "dkd", "dist")


def distill(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module],
    data: Any,
    plan: TrainingPlan,
    objective: Objective | None = None,
    *,
    generator: torch.Generator,
    alpha: float = 0.9,
    temperature: float = 4.0,
    soft: Literal["kd", "dkd", "dist"] = "kd",
    soft_loss: Callable[[Any, Any], Tensor] | None = None,
    teacher_dtype: Literal["float32", "bfloat16"] | None = None,
    taps: Taps | None = None,
    tap_weight: float = 1.0,
    device: torch.device | str = "cpu",
    progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
) -> list[dict[str, float]]:
    """Train `student` in place on (1 - alpha) x the objective's loss + alpha x a soft loss; the history of `train`.

    teacher: a network, or several, which teach by the mean of their probabilities at `temperature` (`Ensemble`); one
    that refuses the student's inputs, or has other classes, is a `BadNetwork` before the training.
    soft: the loss at `temperature` between logits: "kd" (`soft_targets`), "dkd" (`decoupled`), "dist" (`relational`);
    the latter two were made for alpha 0.5. soft_loss(student_outputs, teacher_outputs) -> scalar replaces it, for
    networks that return anything else than one tensor of logits. alpha in [0, 1]: 0 never runs the teacher.
    teacher_dtype: what teachers run in, by default as the student does (`plan.dtype`); losses are in float32.
    taps: adds tap_weight x their loss (`find_taps`). Where `taps.original` is the teacher too, it runs once a batch.

    The teacher sees the same augmented and mixed batches in eval mode without gradients, and is the same, bit for bit,
    afterwards (but on `device`). Of images in memory that are neither augmented nor mixed its logits are asked for
    once, before the first epoch. The other arguments are those of `train`.
    """
    if not 0 <= alpha <= 1 or temperature <= 0 or tap_weight < 0:
        raise BadRecipe(
            "distillation needs alpha in [0, 1], temperature above 0 and tap_weight from 0, "
            f"got {alpha=}, {temperature=} and {tap_weight=}"
        )
    if soft not in LOSSES:
        raise BadRecipe(f"a distillation loss is one of {', '.join(LOSSES)}, got {soft!r}")
    objective = objective or default_objective()
    teacher = teacher if isinstance(teacher, nn.Module) else Ensemble(teacher, temperature)
    guides = [*([teacher] if alpha else []), *([taps.original] if taps else [])]
    for network in (student, *guides):
        network.to(device)
    split, augment = training_split(data)
    dtype = teacher_dtype or plan.dtype
    if alpha:
        with torch.random.fork_rng(devices=[]):  # a Dataset may draw random transforms
            inputs, targets = next(split.take(2).batches(2, device=device))
            require_teacher(student, teacher, inputs, targets, own_loss=soft_loss is not None)
    hard, agreement = objective_loss(objective, plan), _agreement(soft, temperature, soft_loss)
    with ExitStack() as inside:
        for network in guides:
            inside.enter_context(modes_restored(network))
            network.eval()
        heard = inside.enter_context(listening(student, taps.kept)) if taps else None
        again = augment is not None or plan.mixup or plan.cutmix or (taps is not None and taps.original is teacher)
        if alpha and not again and soft_loss is None and isinstance(split.source, InMemory):
            data = _with_split(data, answered(split, teacher, plan.batch, dtype, device))
        loss = _Guided(hard, agreement, alpha, teacher, dtype, taps, tap_weight, heard)
        return train(student, data, plan, objective, generator, device, loss, progress, checkpoint)


@dataclass(frozen=True, eq=False)
class _Guided:
    """The loss of a batch, with all that the teacher and the original say to it."""

    hard: Loss
    agreement: Callable[[Any, Any, Any], Tensor]
    alpha: float
    teacher: nn.Module
    dtype: str
    taps: Taps | None
    tap_weight: float
    heard: Heard | None  # of the student's forward

    def __call__(self, inputs: Any, outputs: Any, targets: Any) -> Tensor:
        known, targets = (targets.answers, targets.targets) if isinstance(targets, WithAnswer) else (None, targets)
        value = self.hard(inputs, outputs, targets)
        apart = None
        if self.taps is not None and self.heard is not None:
            answer, theirs = self.taps.ask(inputs, self.dtype)
            known = answer if self.taps.original is self.teacher else known
            apart = self.taps.loss(self.heard, theirs)
            for said in self.heard.values():
                said.clear()
        if self.alpha:
            guidance = ask(self.teacher, inputs, self.dtype) if known is None else known
            value = (1 - self.alpha) * value + self.alpha * self.agreement(outputs, guidance, targets)
        return value if apart is None else value + self.tap_weight * apart


def _with_split(data: Any, split: Split) -> Data | Split:
    return split if isinstance(data, Split) else replace(as_data(data), train=split)


def _agreement(
    soft: str, temperature: float, soft_loss: Callable[[Any, Any], Tensor] | None
) -> Callable[[Any, Any, Any], Tensor]:
    """(student's outputs, teacher's, targets) -> scalar."""

    def agreement(outputs: Any, guidance: Any, targets: Any) -> Tensor:
        if soft_loss is not None:
            return soft_loss(outputs, guidance)
        if soft == "dkd":
            return of_both(partial(_decoupled, outputs, guidance, temperature), targets)
        return (relational if soft == "dist" else soft_targets)(outputs, guidance, temperature)

    return agreement


def _decoupled(outputs: Any, guidance: Any, temperature: float, targets: Any) -> Tensor:
    return decoupled(outputs, guidance, targets, temperature)
