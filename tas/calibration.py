"""Adaptive batch norm (EagleEye, Li et al. 2020, §3.3): give a network the batch statistics of its own activations.

Weights inherited at other widths come with running statistics of other activations; without new ones, a pruned network
is judged by numbers that mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tas.tracing.copying import has_own_mode


def has_batch_norm(network: nn.Module) -> bool:
    """Whether any module of `network` keeps running batch statistics."""
    return bool(batch_norms(network))


@contextmanager
def modes_restored(network: nn.Module) -> Iterator[None]:
    """Give every module its own training flag back: a network may hold some modules in eval mode on purpose. Modules
    with a `train` of their own hear of it: they may fold weights for eval mode."""
    flags = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            if module.training != flag and has_own_mode(module):
                module.train(flag)
        for module, flag in flags:
            module.training = flag


def statistics(network: nn.Module) -> dict[str, Tensor]:
    """Copies of the running statistics and batch counts of every batch norm, by name in the state dict."""
    names = {id(buffer) for norm in batch_norms(network) for buffer in norm.buffers(recurse=False)}
    return {name: buffer.clone() for name, buffer in network.named_buffers() if id(buffer) in names}


def restore(network: nn.Module, known: Mapping[str, Tensor]) -> None:
    """Write what `statistics` gave back into a network of the same architecture, in place."""
    buffers = dict(network.named_buffers())
    with torch.no_grad():
        for name, content in known.items():
            buffers[name].copy_(content)


def recalibrate(
    network: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any], Any] | None = None,
    resumed: bool = False,
) -> None:
    """Replace the running statistics of every batch norm by averages over `batches` of inputs, in place.

    mean <- the average over batches of the batch mean; variance <- the average of the *unbiased* batch variance, every
    batch counted alike (PyTorch's momentum=None). That leaves out how much batch means differ from each other, so it is
    below the variance of all images together by about 1 part in the batch size: use batches of 64 and more.

    Only batch norms are put into train mode: dropout stays off and nothing else changes. `forward` runs one batch,
    `network` itself by default; for a supernet at an architecture, `lambda x: supernet(x, architecture)`. Statistics
    may then be views into larger buffers: they are only ever written by the forward itself, whose first batch
    (factor 1/1) overwrites what was there, so what an architecture does not use stays as it was.

    `resumed`: the statistics in place are already averages over the batches that the norms have counted, and `batches`
    are the next ones: the result is bit-identical to one call with all of them.
    """
    norms = batch_norms(network)
    momenta = [norm.momentum for norm in norms]
    forward = network if forward is None else forward
    with modes_restored(network), torch.no_grad():
        network.eval()
        try:
            for norm in norms:
                norm.train()
                norm.momentum = None
                if norm.num_batches_tracked is not None and not resumed:
                    norm.num_batches_tracked.zero_()
            for inputs in batches:
                forward(inputs)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The modules of `network` that keep running batch statistics."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
