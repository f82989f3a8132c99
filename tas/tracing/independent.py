"""The MACs of a network counted by torch, to hold against the formula's: it knows nothing of choices and records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tas.tracing import as_call, batch_of


def independent_macs(network: nn.Module, inputs: Any) -> int:
    """Multiply-accumulates of one example by torch's FlopCounterMode, in a forward with gradients on and the plain
    attention kernel (without either it misses attention products and fused encoders), recurrent layers step by step."""
    args, kwargs = as_call(inputs)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), _single_steps(network), counter:
        network(*args, **kwargs)
    return round(counter.get_total_flops() / 2 / batch_of(args, kwargs))


@contextmanager
def _single_steps(network: nn.Module) -> Iterator[None]:
    """Without the fused kernels of recurrent layers, whose products the counter does not know."""
    if not any(isinstance(module, nn.RNNBase) for module in network.modules()):
        yield
        return
    backends: tuple[Any, ...] = torch.backends.mkldnn, torch.backends.cudnn
    before = [backend.enabled for backend in backends]
    try:
        for backend in backends:
            backend.enabled = False
        yield
    finally:
        for backend, enabled in zip(backends, before, strict=True):
            backend.enabled = enabled
