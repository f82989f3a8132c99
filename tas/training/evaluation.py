"""What a network reaches on a split, and the one rule by which batches enter a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tas.calibration import modes_restored
from tas.data import Split, WithAnswer, examples_in
from tas.data.tensors import tensors_in
from tas.errors import BadNetwork
from tas.mixing import Mixed
from tas.objectives import Objective, by_classes, require_labels


def call(network: Callable[..., Any], inputs: Any) -> Any:
    """A tensor is the one argument, a tuple or list the positional ones, a mapping the keyword arguments."""
    if isinstance(inputs, Mapping):
        return network(**inputs)
    return network(*inputs) if isinstance(inputs, (tuple, list)) else network(inputs)


def evaluate(
    network: nn.Module,
    split: Split,
    objective: Objective,
    batch: int = 250,
    device: torch.device | str = "cpu",
    forward: Callable[[Any], Any] | None = None,
) -> dict[str, float]:
    """{objective.name: ..., "loss": ...} over the examples of `split`, in eval mode; training flags are restored.

    `forward` runs one batch of inputs, by default `network` itself. `BadData` where examples hold NaN and make the
    loss no number: a network's top-1 on them is that of class 0.
    """
    network.to(device)
    metric, loss, count = 0.0, 0.0, 0
    check = class_check(split, objective)
    with modes_restored(network), torch.inference_mode():
        network.eval()
        for inputs, targets in split.batches(batch, device=device):
            outputs = call(network, inputs) if forward is None else forward(inputs)
            check(outputs, targets)
            size = examples_in(targets)
            values = objective.metric(outputs, targets).float()
            metric += float(values.sum()) / values.numel() * size  # a sum of 0s and 100s is exact, their mean is not
            loss += float(objective.loss(outputs, targets)) * size
            count += size
    if not math.isfinite(loss):
        split.require_numbers()
    return {objective.name: metric / count, "loss": loss / count}


def class_check(split: Split, objective: Objective) -> Callable[[Any, Any], None]:
    """A check of outputs [batch, classes, ...] and the targets of a batch of `split`: BadData where a label has no
    output, of all the split's labels where they are known, else of this batch's.

    Cross-entropy itself would stop with an index error, and on a GPU take the whole process with it.
    """
    classifies = by_classes(objective.loss)
    labels = split.targets if classifies else None
    labels = labels if labels is not None and len(labels) else None
    lowest, highest = (0, -1) if labels is None else (int(labels.min()), int(labels.max()))

    def check(outputs: Any, targets: Any) -> None:
        if not classifies or not isinstance(outputs, Tensor) or outputs.dim() < 2:
            return
        classes, own = outputs.shape[1], _plain(targets)
        if labels is None and isinstance(own, Tensor) and not own.is_floating_point():
            require_labels(classes, own, f"a batch of {split.name!r}")
        elif labels is not None and outputs.dim() == 2 and (lowest < 0 or classes <= highest):
            require_labels(classes, labels, repr(split.name))

    return check


def _plain(targets: Any) -> Any:
    """Those of the data, without what training adds. (The second ones of mixed targets are the first, reordered.)"""
    if isinstance(targets, Mixed):
        return targets.first
    return targets.targets if isinstance(targets, WithAnswer) else targets


def require_finite(network: nn.Module, outputs: Any) -> None:
    """BadNetwork where outputs, of inputs that are finite, hold NaN or infinity."""
    if not any(tensor.is_floating_point() and not bool(tensor.isfinite().all()) for tensor in tensors_in(outputs)):
        return
    name = next((name for name, weight in network.named_parameters() if not bool(weight.isfinite().all())), None)
    where = "look for a division by zero, a logarithm or an overflow in its forward"
    if name is not None:
        where = f"its weight {name!r} does, so take weights from before its training diverged"
    raise BadNetwork(
        f"outputs must be finite numbers, {type(network).__name__} gives NaN or infinity for finite inputs: {where}"
    )
