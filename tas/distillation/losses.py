"""Distillation losses between the outputs of a student and of its teacher."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from tas.errors import BadNetwork
from tas.objectives import cross_entropy


def soft_targets(student: Any, teacher: Any, temperature: float = 4.0) -> Tensor:
    """T^2 x KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (Hinton et al. 2015, §2).

    Logits [batch, classes] of both. The factor T^2 keeps gradients as large as those of cross-entropy, whatever T.
    """
    if not isinstance(student, Tensor) or not isinstance(teacher, Tensor) or student.shape != teacher.shape:
        found = " and ".join(_described(outputs) for outputs in (student, teacher))
        raise BadNetwork(
            f"soft targets need one tensor of logits, of one shape, from student and teacher; got {found}; "
            "pass soft_loss(student_outputs, teacher_outputs) to compare other outputs"
        )
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * functional.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def kd(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, alpha: float = 0.9, temperature: float = 4.0
) -> Tensor:
    """(1 - alpha) x cross-entropy + alpha x `soft_targets`: the loss that trains the networks TAS finds (Dong & Yang
    2019, eq. 9, with alpha and T of its code).

    Logits [batch, classes], targets int64 [batch], alpha in [0, 1], temperature > 0.
    """
    soft = soft_targets(student_logits, teacher_logits, temperature)
    return (1 - alpha) * cross_entropy(student_logits, targets) + alpha * soft


def _described(outputs: Any) -> str:
    return f"{list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
