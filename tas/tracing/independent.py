"""The MACs of a network counted by torch, to hold against the formula's: it knows nothing of choices and records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from tas import cost
from tas.tracing import as_call, batch_of
from tas.tracing.whole import in_pairs, is_of_several, sums_over_one


def independent_macs(network: nn.Module, inputs: Any) -> int:
    """Multiply-accumulates of one example by torch's FlopCounterMode, in a forward with gradients on and the plain
    attention kernel (without either it misses attention products and fused encoders), recurrent layers step by step.
    What the mode does not know is added: deformable convolutions, bilinear layers, products that are added in place,
    products of experts with their tokens, a kernel of attention that the code itself asks for, and sums of `einsum`
    over one position, which torch computes without a product."""
    args, kwargs = as_call(inputs)
    counter, sums = FlopCounterMode(display=False, custom_mapping=_unknown()), _SumsOfOne()
    with sdpa_kernel(SDPBackend.MATH), _single_steps(network), counter, sums:
        network(*args, **kwargs)
    return int(cost.whole("macs", (counter.get_total_flops() / 2 + sums.macs) / batch_of(args, kwargs)))


def _unknown() -> dict[Any, Any]:
    """The operators that torch's counter does not know, with how to count them, from shapes; twice the products."""
    aten = torch.ops.aten
    found: dict[Any, Any] = {
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._trilinear: _bilinear,
        aten.addmm_: _added,
        aten.baddbmm_: _added,
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):  # where torchvision is loaded
        found[torch.ops.torchvision.deform_conv2d] = _deformed
    for library, name in ((aten, "_grouped_mm"), (torch.ops.transformers, "grouped_mm_fallback")):
        if hasattr(library, name):
            found[getattr(library, name)] = _grouped
    return found


def _attention(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return 2 * prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _added(_: Any, a: Any, b: Any, **__: Any) -> int:
    return 2 * prod(a) * b[-1]


def _bilinear(a: Any, weight: Any, *_: Any, **__: Any) -> int:
    """As nn.Bilinear calls it: a weight [out, one, other], for all examples before the last dimension."""
    return 2 * prod(a[:-1]) * prod(weight)


def _deformed(_: Any, weight: Any, *__: Any, out_shape: Any, **___: Any) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


def _grouped(a: Any, b: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Where both are matrices, what is summed over is in groups, and the output has a matrix for each of them."""
    return 2 * prod(out_shape[1:] if len(a) == len(b) == 2 else out_shape) * a[-1]


class _SumsOfOne(TorchFunctionMode):
    """Counts `einsum` where all that is summed over has size one (the last head of several)."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.einsum and is_of_several(*args):
            return in_pairs(partial(self.__torch_function__, func, types), *args)
        out = func(*args, **(kwargs or {}))
        if func is torch.einsum and sums_over_one(*args):
            self.macs += out.numel()
        return out


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
