"""Whether network, data, losses and metric fit together: seen on two examples, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tas.calibration import modes_restored
from tas.data import Split, examples_in
from tas.distillation.losses import decoupled, described, require_alike, require_classes_first
from tas.errors import BadRecipe, TasError, failure
from tas.objectives import Objective, by_classes
from tas.training import call
from tas.training.evaluation import class_check, require_finite

_DECODED = 64  # examples whose labels are looked at where they are not known without decoding


def require_judged(network: nn.Module, split: Split, judge: Objective) -> tuple[Any, Any]:
    """The outputs of the network for two examples of `split`, in eval mode, and their targets.

    `BadData` where a label has no output; `BadRecipe` where loss or metric refuse these, or give something else than
    tensors. A loss that is no number is blamed on what brings it in: examples, network, or loss.
    """
    inputs, targets = next(split.take(2).batches(2))
    with modes_restored(network), torch.no_grad():
        outputs = call(network.eval(), inputs)
    class_check(split, judge)(outputs, targets)
    loss = _tried("objective.loss", judge.loss, outputs, targets, "the data's targets")
    if not bool(loss.isfinite().all()):
        split.require_numbers()
        require_finite(network, outputs)
        name = getattr(judge.loss, "__name__", type(judge.loss).__name__)
        raise BadRecipe(
            f"objective.loss must give finite numbers, {name} gives NaN or infinity for finite outputs: look for a "
            "division by zero or a logarithm in it"
        )
    _tried("objective.metric", judge.metric, outputs, targets, "the data's targets", scalar=False)
    return outputs, targets


def require_labelled(split: Split, judge: Objective, outputs: Any) -> str:
    """`BadData` where a label of `split` has none of the outputs [batch, classes]; what to say where all are the same.

    Where labels are known only when examples are decoded, 64 are looked at.
    """
    if not by_classes(judge.loss):
        return ""
    known, check = split.targets, class_check(split, judge)
    parts = [known] if known is not None else [targets for _, targets in split.take(_DECODED).batches(_DECODED)]
    for part in parts:
        check(outputs, part)
    if not all(isinstance(part, Tensor) and not part.is_floating_point() and part.dim() == 1 for part in parts):
        return ""
    labels = torch.cat(parts)
    many, only = len(labels), labels[0]
    if many < 2 or bool((labels != only).any()):
        return ""
    seen = "" if many == len(split) else ", as far as they were looked at,"
    return (
        f"All {many} labels of {split.name!r}{seen} are {int(only)}: a network that always says so is right on them, "
        "so they tell nothing apart. Give examples of every class, or shuffle them."
    )


def require_agreement(
    outputs: Any, targets: Any, soft: str, soft_loss: Callable[[Any, Any], Tensor] | None, temperature: float
) -> None:
    """A `TasError` unless the loss between student and teacher, both of which give such outputs, can be taken."""
    if soft_loss is not None:
        _tried("distill.loss", soft_loss, outputs, outputs, "the teacher's")
    elif soft == "dkd":
        decoupled(outputs, outputs, targets, temperature)
    else:
        require_alike(outputs, outputs)
        require_classes_first(outputs, targets)


def doubts(targets: Any, judge: Objective, soft: str, alpha: float) -> list[str]:
    """What can be meant so, but rarely is: soft targets beside targets that are no classes."""
    if not alpha or ":" in soft or judge.name == "top1" or not isinstance(targets, Tensor):
        return []
    if not targets.dtype.is_floating_point:
        return []
    return [
        f"The targets are real numbers, and distill.loss {soft} takes the outputs for logits of classes that exclude "
        "one another (softmax over dimension 1). For a regression, or several labels an example, name a loss of the "
        "outputs of student and teacher, such as torch.nn.functional:mse_loss, as distill.loss, or set distill.alpha "
        "to 0."
    ]


def _tried(
    key: str, function: Callable[[Any, Any], Any], outputs: Any, other: Any, what: str, scalar: bool = True
) -> Tensor:
    given = f"of the network's outputs {described(outputs)} and {what} {described(other)}"
    try:
        value = function(outputs, other)
    except TasError:
        raise
    except Exception as problem:  # the user's code may fail in any way
        name = getattr(function, "__name__", type(function).__name__)
        raise BadRecipe(f"{key} is a function {given}, but {name} fails: {failure(problem)}") from problem
    form = "the mean over the batch, a tensor of one number" if scalar else "a tensor, one number an example"
    several = isinstance(value, Tensor) and value.numel() != 1
    if not isinstance(value, Tensor) or (several and (scalar or len(value) != examples_in(other))):
        raise BadRecipe(f"{key} gives {form}, {given}; got {described(value)}")
    return value
