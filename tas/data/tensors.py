"""Pure functions on tensors that the data modules share."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def map_tensors(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """The same mappings, tuples and lists, with every tensor replaced; anything else stays."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, item) for item in value)
    return value


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested mappings, tuples and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, tuple, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(item)


def no_numbers(tensor: Tensor) -> Tensor:
    """Where it holds NaN or infinity: bool of its shape. (Less than all numbers masks attention.)"""
    return tensor.isnan() | (tensor == torch.inf)


def examples_in(batch: Any) -> int:
    """Number of examples of a batch: the first size of its first tensor."""
    return next((len(tensor) for tensor in tensors_in(batch) if tensor.dim()), 1)


def stratified(labels: Tensor | None, total: int, count: int, generator: torch.Generator) -> Tensor:
    """Ascending indices of exactly `count` of `total` examples, each class within one example of its share.

    Random order, sorted by class, then every (total / count)-th: systematic sampling. No labels count as one class.
    """
    order = torch.randperm(total, generator=generator, device=generator.device).cpu()
    if labels is not None:
        order = order[labels[order].argsort(stable=True)]
    passed = torch.arange(total + 1) * count // total
    return order[passed[1:] > passed[:-1]].sort().values


def nested(labels: Tensor | None, total: int, generator: torch.Generator) -> Tensor:
    """All indices 0..total-1 in a random order whose every beginning has each class within an example or two of its
    share, so that few examples are a stratified sample too, and part of every larger one. No labels: one class.

    The j-th example of a class of n (in random order) gets the place (j + u) / n, u uniform, one u a class.
    """
    order = torch.randperm(total, generator=generator, device=generator.device).cpu()
    if labels is None:
        return order
    labels, counts = labels.unique(return_inverse=True, return_counts=True)[1:]
    order = order[labels[order].argsort(stable=True)]
    rank = torch.arange(total) - (counts.cumsum(0) - counts)[labels[order]]
    start = torch.rand(len(counts), generator=generator, device=generator.device, dtype=torch.float64).cpu()
    return order[((rank + start[labels[order]]) / counts[labels[order]]).argsort(stable=True)]


def digest(parts: Iterable[Any]) -> str:
    """sha256 over the shapes, dtypes and bytes of all tensors in `parts`, and over texts and numbers."""
    state = hashlib.sha256()
    for part in parts:
        if isinstance(part, (str, int)):
            state.update(repr(part).encode())
        for tensor in tensors_in(part):
            state.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
            state.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()
