"""Train a student to do its task and to agree with its teacher, the original."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tas.calibration import modes_restored
from tas.distillation.losses import decoupled, kd, relational, soft_targets
from tas.errors import BadRecipe
from tas.objectives import Objective, default_objective
from tas.training import Progress, TrainingPlan, call, objective_loss, train

__all__ = ["LOSSES", "decoupled", "distill", "kd", "relational", "soft_targets"]

LOSSES = ("kd", "dkd", "dist")


def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: Any,
    plan: TrainingPlan,
    objective: Objective | None = None,
    *,
    generator: torch.Generator,
    alpha: float = 0.9,
    temperature: float = 4.0,
    soft: Literal["kd", "dkd", "dist"] = "kd",
    soft_loss: Callable[[Any, Any], Tensor] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
) -> list[dict[str, float]]:
    """Train `student` in place on (1 - alpha) x the objective's loss + alpha x a soft loss; the history of `train`.

    soft: the loss at `temperature` between logits: "kd" (`soft_targets`), "dkd" (`decoupled`), "dist" (`relational`);
    the latter two were made for alpha 0.5. soft_loss(student_outputs, teacher_outputs) -> scalar replaces it, for
    networks that return anything else than one tensor of logits. alpha in [0, 1]: 0 never runs the teacher.
    The teacher sees the same augmented batches in eval mode without gradients, and is the same, bit for bit, afterwards
    (but on `device`). The other arguments are those of `train`.
    """
    if not 0 <= alpha <= 1 or temperature <= 0:
        raise BadRecipe(f"distillation needs alpha in [0, 1] and temperature above 0, got {alpha=} and {temperature=}")
    if soft not in LOSSES:
        raise BadRecipe(f"a distillation loss is one of {', '.join(LOSSES)}, got {soft!r}")
    objective = objective or default_objective()
    hard, agreement = objective_loss(objective, plan), _agreement(soft, temperature, soft_loss)
    teacher.to(device)

    def loss(inputs: Any, outputs: Any, targets: Any) -> Tensor:
        value = hard(inputs, outputs, targets)
        if alpha == 0:
            return value
        with torch.no_grad():  # not inference_mode: its tensors cannot take part in the student's backward
            guidance = call(teacher, inputs)
        return (1 - alpha) * value + alpha * agreement(outputs, guidance, targets)

    with modes_restored(teacher):
        teacher.eval()
        return train(student, data, plan, objective, generator, device, loss, progress, checkpoint)


def _agreement(
    soft: str, temperature: float, soft_loss: Callable[[Any, Any], Tensor] | None
) -> Callable[[Any, Any, Any], Tensor]:
    """(student's outputs, teacher's, targets) -> scalar."""

    def agreement(outputs: Any, guidance: Any, targets: Any) -> Tensor:
        if soft_loss is not None:
            return soft_loss(outputs, guidance)
        if soft == "dkd":
            return decoupled(outputs, guidance, targets, temperature)
        return (relational if soft == "dist" else soft_targets)(outputs, guidance, temperature)

    return agreement
