"""Distillation losses between the outputs of a student and of its teacher."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tas.errors import BadNetwork
from tas.objectives import cross_entropy


def soft_targets(student: Any, teacher: Any, temperature: float = 4.0) -> Tensor:
    """T^2 x KL(softmax(teacher / T) || softmax(student / T)), mean over the batch (Hinton et al. 2015, §2).

    Logits [batch, classes] of both, or [batch, classes, ...], one prediction a pixel: then the mean over pixels too, as
    cross-entropy takes it. The factor T^2 keeps gradients as large as those of cross-entropy, whatever T.
    """
    require_alike(student, teacher)
    log_student = functional.log_softmax(student / temperature, dim=1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=1)
    pointwise = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return temperature**2 * pointwise.sum(1).mean()


def decoupled(
    student: Any, teacher: Any, targets: Any, temperature: float = 4.0, target: float = 1.0, others: float = 8.0
) -> Tensor:
    """T^2 x (`target` x TCKD + `others` x NCKD), mean over the batch: DKD (Zhao et al. 2022, eq. 7).

    Soft targets are TCKD + (1 - p) NCKD: a KL divergence between the pairs (p, 1 - p) of the true class and the rest,
    and one among the other classes, which counts the less the surer the teacher is (p its probability of the true
    class). Here both have weights of their own. 1 and 8 are the authors' for CIFAR-100, beside cross-entropy of weight
    1: alpha 0.5. Logits [batch, classes], targets int64 [batch] (BadNetwork otherwise).
    """
    require_alike(student, teacher)
    if student.dim() != 2 or not isinstance(targets, Tensor) or targets.shape != student.shape[:1]:
        raise BadNetwork(
            f"dkd needs logits [batch, classes] and one true class an example, got outputs {described(student)} and "
            f"targets {described(targets)}; use kd, or dist"
        )
    true = targets[:, None]
    logs = [functional.log_softmax(logits / temperature, dim=1) for logits in (student, teacher)]
    log_others = [_without(log, true) for log in logs]
    both = zip(logs, log_others, strict=True)
    pairs = [torch.cat([log.gather(1, true), rest.logsumexp(1, keepdim=True)], 1) for log, rest in both]
    rests = [functional.log_softmax(rest, dim=1) for rest in log_others]
    between = functional.kl_div(pairs[0], pairs[1], reduction="batchmean", log_target=True)
    among = functional.kl_div(rests[0], rests[1], reduction="batchmean", log_target=True)
    return temperature**2 * (target * between + others * among)


def relational(student: Any, teacher: Any, temperature: float = 4.0, inter: float = 1.0, intra: float = 1.0) -> Tensor:
    """T^2 x (`inter` x L_inter + `intra` x L_intra): DIST (Huang et al. 2022, eq. 8-10).

    With probabilities Y [batch, classes] at temperature T: 1 - Pearson's correlation of student and teacher, of every
    example's row (mean over the batch), and of every class's column (mean over classes). It asks for the teacher's
    rankings, not for its values. The authors' weights are 1 and 1 on CIFAR-100 beside cross-entropy of weight 1: alpha
    0.5. A batch of one example has no L_intra.
    """
    require_alike(student, teacher)
    ours, theirs = (functional.softmax(logits / temperature, dim=1) for logits in (student, teacher))
    apart = inter * (1 - _correlation(ours, theirs, 1)).mean()
    if len(ours) > 1:
        apart = apart + intra * (1 - _correlation(ours, theirs, 0)).mean()
    return temperature**2 * apart


def kd(
    student_logits: Tensor, teacher_logits: Tensor, targets: Tensor, alpha: float = 0.9, temperature: float = 4.0
) -> Tensor:
    """(1 - alpha) x cross-entropy + alpha x `soft_targets`: the loss that trains the networks TAS finds (Dong & Yang
    2019, eq. 9, with alpha and T of its code).

    Logits [batch, classes], targets int64 [batch], alpha in [0, 1], temperature > 0.
    """
    soft = soft_targets(student_logits, teacher_logits, temperature)
    return (1 - alpha) * cross_entropy(student_logits, targets) + alpha * soft


def require_alike(student: Any, teacher: Any) -> None:
    """`BadNetwork` unless both are logits of one shape, of two classes at least: the softmax of one number is 1,
    whatever it is."""
    both = isinstance(student, Tensor) and isinstance(teacher, Tensor)
    if not both or student.shape != teacher.shape:
        found = " and ".join(described(outputs) for outputs in (student, teacher))
        raise BadNetwork(
            f"soft targets need one tensor of logits, of one shape, from student and teacher; got {found}; "
            + ("take a teacher of the same classes, or " if both else "")
            + "pass soft_loss(student_outputs, teacher_outputs), distill.loss in a recipe, to compare other outputs"
        )
    if student.dim() < 2 or student.shape[1] < 2:
        raise BadNetwork(
            "soft targets compare logits [batch, classes] of two classes at least, the outputs are "
            f"{described(student)}; for a regression pass a soft_loss of both outputs (distill.loss in a recipe), such "
            "as torch.nn.functional:mse_loss, or set alpha to 0"
        )


def require_classes_first(outputs: Any, targets: Any) -> None:
    """`BadNetwork` where targets, one class a position, show that dimension 1 of the outputs is not the classes but the
    last one is: soft targets would be probabilities over positions, and nobody would see it."""
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return
    if targets.shape == outputs.shape[:-1] != (*outputs.shape[:1], *outputs.shape[2:]):
        raise BadNetwork(
            "soft targets take the classes from dimension 1, as cross-entropy does: [batch, classes, ...]; outputs "
            f"{described(outputs)} for targets {described(targets)} have them last. Let the network return "
            "outputs.movedim(-1, 1), pass a soft_loss of both outputs (distill.loss in a recipe, by import path) that "
            "takes them as they are, or set alpha to 0"
        )


def _without(values: Tensor, true: Tensor) -> Tensor:
    """[batch, classes - 1]: without the entry of the true class, [batch, 1]."""
    other = torch.ones_like(values, dtype=torch.bool).scatter(1, true, False)
    return values[other].reshape(len(values), -1)


def _correlation(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson's, along `dim`; where one of them is constant, 0."""
    return functional.cosine_similarity(a - a.mean(dim, keepdim=True), b - b.mean(dim, keepdim=True), dim=dim, eps=1e-8)


def described(outputs: Any) -> str:
    return f"{list(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs).__name__
