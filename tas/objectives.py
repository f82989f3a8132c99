"""What a network is trained for and judged by: a loss to descend, a metric that decides, and which way is better."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional

from tas.errors import BadData, BadNetwork, BadRecipe
from tas.importing import imported

_IGNORED = -100  # the target that torch's cross-entropy leaves out


@dataclass(frozen=True)
class Objective:
    """loss(outputs, targets) -> scalar Tensor, the mean over the batch.

    metric(outputs, targets) -> Tensor [batch], one value an example, or a scalar, the mean over the batch. The value of
    a split is the mean over its examples: exact for metrics that are such means (accuracy, error), not for others
    (AUC, F1). `name` is how the metric is shown and stored; `higher_is_better` is False for errors.
    """

    loss: Callable[[Any, Any], Tensor]
    metric: Callable[[Any, Any], Tensor]
    name: str
    higher_is_better: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.higher_is_better, bool):
            raise BadRecipe(f"higher_is_better is True or False, got {self.higher_is_better!r}: False for an error")

    def better(self, value: float, than: float) -> bool:
        return value > than if self.higher_is_better else value < than


def default_objective() -> Objective:
    """Cross-entropy and top-1 in percent, for outputs [batch, classes] and int64 targets [batch]."""
    return Objective(cross_entropy, top1, "top1")


def objective(
    loss: str | None = None,
    metric: str | None = None,
    name: str | None = None,
    direction: Literal["max", "min"] = "max",
) -> Objective:
    """An objective from import paths "package.module:function"; what is not given is that of `default_objective`.

    name: of the metric, by default its function's. direction: whether the metric is to be "max" or "min".
    """
    if direction not in ("max", "min"):
        raise BadRecipe(f"objective.direction is 'max' or 'min', got {direction!r}")
    chosen_loss = cross_entropy if loss is None else loss_function("objective.loss", loss)
    chosen_loss = cross_entropy if by_classes(chosen_loss) else chosen_loss
    chosen_metric = top1 if metric is None else loss_function("objective.metric", metric)
    name = name or ("top1" if metric is None else metric.rpartition(":")[2].rpartition(".")[2])
    return Objective(chosen_loss, chosen_metric, name, direction == "max")


def cross_entropy(outputs: Any, targets: Any, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the batch, in nats. BadData where a label has no output."""
    logits = _logits(outputs)
    try:
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    except IndexError:  # where nothing has looked at the labels before
        if logits.dim() > 1:
            require_labels(logits.shape[1], targets, "a batch")
        raise


def by_classes(loss: Callable[[Any, Any], Tensor]) -> bool:
    """Whether a loss is this cross-entropy, or torch's own with its defaults (not a class made of that)."""
    if type(loss) is nn.CrossEntropyLoss:
        settings = (loss.weight, loss.ignore_index, loss.label_smoothing, loss.reduction)
        return settings == (None, _IGNORED, 0.0, "mean")
    return loss in (cross_entropy, functional.cross_entropy)


def require_labels(classes: int, labels: Tensor, where: str) -> None:
    """BadData unless all labels are classes, or the one that cross-entropy leaves out. where: of the labels."""
    wrong = ((labels < 0) & (labels != _IGNORED) | (labels >= classes)).flatten().nonzero().flatten()
    if len(wrong):
        found = int(labels.flatten()[wrong[0]])
        mend = f"give the network {found + 1} outputs" if found > 0 else f"mark what has no label by {_IGNORED}"
        raise BadData(
            f"labels must lie in 0..{classes - 1} for a network of {classes} classes, {where} has {found} at index "
            f"{int(wrong[0])}: correct the label, or {mend}"
        )


def top1(outputs: Any, targets: Any) -> Tensor:
    """100 for every example whose largest logit is its target, else 0: float [batch], so that means are percentages."""
    return 100 * (_logits(outputs).argmax(1) == targets).float()


def top5(outputs: Any, targets: Any) -> Tensor:
    """100 for every example whose target is among the five largest logits, else 0: float [batch]."""
    return 100 * (_logits(outputs).topk(5, dim=1).indices == targets[:, None]).any(1).float()


def _logits(outputs: Any) -> Tensor:
    if not isinstance(outputs, Tensor) or outputs.dim() < 2:
        found = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise BadNetwork(
            f"cross-entropy and top-1 need one tensor [batch, classes], the network returns {found}; "
            "pass an objective whose loss and metric pick what they need"
        )
    return outputs


def loss_function(key: str, path: str) -> Callable[[Any, Any], Tensor]:
    """The function of two arguments that an import path names, or the module (torch.nn:L1Loss). key: of the recipe, for
    messages."""
    found = imported(path, BadRecipe)
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found()  # torch.nn:L1Loss, and the like
    if not callable(found):
        raise BadRecipe(f"{key} must name a function of (outputs, targets), {path!r} is a {type(found).__name__}")
    return found
