"""Train a student to do its task and to agree with its teacher, the original."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tas.calibration import modes_restored
from tas.distillation.losses import kd, soft_targets
from tas.errors import BadRecipe
from tas.objectives import Objective, default_objective
from tas.training import Progress, TrainingPlan, call, objective_loss, train

__all__ = ["distill", "kd", "soft_targets"]


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
    soft_loss: Callable[[Any, Any], Tensor] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
) -> list[dict[str, float]]:
    """Train `student` in place on (1 - alpha) x the objective's loss + alpha x `soft_loss`; the history of `train`.

    soft_loss(student_outputs, teacher_outputs) -> scalar; by default `soft_targets` at `temperature`, for networks that
    return one tensor of logits (BadNetwork otherwise). alpha in [0, 1]: 0 never runs the teacher.
    The teacher sees the same augmented batches in eval mode without gradients, and is the same, bit for bit, afterwards
    (but on `device`). The other arguments are those of `train`.
    """
    if not 0 <= alpha <= 1 or temperature <= 0:
        raise BadRecipe(f"distillation needs alpha in [0, 1] and temperature above 0, got {alpha=} and {temperature=}")
    objective = objective or default_objective()
    hard = objective_loss(objective, plan)
    soft = partial(soft_targets, temperature=temperature) if soft_loss is None else soft_loss
    teacher.to(device)

    def loss(inputs: Any, outputs: Any, targets: Any) -> Tensor:
        value = hard(inputs, outputs, targets)
        if alpha == 0:
            return value
        with torch.no_grad():  # not inference_mode: its tensors cannot take part in the student's backward
            guidance = call(teacher, inputs)
        return (1 - alpha) * value + alpha * soft(outputs, guidance)

    with modes_restored(teacher):
        teacher.eval()
        return train(student, data, plan, objective, generator, device, loss, progress, checkpoint)
