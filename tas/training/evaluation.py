"""What a network reaches on a split, and the one rule by which batches enter a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tas.calibration import modes_restored
from tas.data import Split, examples_in
from tas.objectives import Objective, cross_entropy, require_labels


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

    `forward` runs one batch of inputs, by default `network` itself.
    """
    network.to(device)
    metric, loss, count = 0.0, 0.0, 0
    check = class_check(split, objective)
    with modes_restored(network), torch.inference_mode():
        network.eval()
        for inputs, targets in split.batches(batch, device=device):
            outputs = call(network, inputs) if forward is None else forward(inputs)
            check(outputs)
            size = examples_in(targets)
            values = objective.metric(outputs, targets).float()
            metric += float(values.sum()) / values.numel() * size  # a sum of 0s and 100s is exact, their mean is not
            loss += float(objective.loss(outputs, targets)) * size
            count += size
    return {objective.name: metric / count, "loss": loss / count}


def class_check(split: Split, objective: Objective) -> Callable[[Any], None]:
    """A check of outputs [batch, classes] against the labels of `split`: BadData where a label has no output.

    Cross-entropy itself would stop with an index error, and on a GPU take the whole process with it.
    """
    labels = split.targets if objective.loss is cross_entropy else None
    labels = labels if labels is not None and len(labels) else None
    lowest, highest = (0, -1) if labels is None else (int(labels.min()), int(labels.max()))

    def check(outputs: Any) -> None:
        if labels is None or not isinstance(outputs, Tensor) or outputs.dim() != 2:
            return
        classes = outputs.shape[1]
        if lowest < 0 or classes <= highest:
            require_labels(classes, labels, repr(split.name))

    return check
