"""What a network and its example inputs must be like to be traced: `BadNetwork` says what is not."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tas.errors import BadNetwork
from tas.tracing.copying import copy_sharing
from tas.tracing.leaves import tensors_of


def require_module(network: Any) -> None:
    """`BadNetwork` for anything but an instance of a module, and where one inside runs its modules by itself."""
    if not isinstance(network, nn.Module):
        what = f"the class {network.__name__}: call it" if isinstance(network, type) else f"a {type(network).__name__}"
        raise BadNetwork(f"a network is an instance of torch.nn.Module, got {what}")
    for name, module in network.named_modules():
        place = f"module {name!r}" if name else "the network"
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            raise BadNetwork(
                f"a network is traced without what spreads it over devices, {place} is a {type(module).__name__}: "
                f"put what that wraps in its place, network{'.' if name else ''}{name}.module"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise BadNetwork(
                f"a network is followed through its Python code, {place} is a program of torch.jit.script or "
                "torch.jit.trace: use the module that it was made of"
            )


def copied(network: nn.Module) -> nn.Module:
    """A deep copy; `BadNetwork` where none can be made: a lazy module, a kept result with gradients, a lock, a file."""
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if is_lazy(tensor):
            raise BadNetwork(
                f"{name!r} has no shape yet (a lazy module): run the network once on an example before it is traced"
            )
    try:
        return copy_sharing(network)
    except Exception as error:
        raise BadNetwork(f"the network must be such that it can be copied, got: {first_line(error)}") from error


def check_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    tensors = tensors_of((args, dict(kwargs)))
    if not tensors:
        raise BadNetwork(f"example inputs must hold a tensor, got {shapes(args, kwargs) or 'nothing'}")
    first = next((t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)), None)
    if first is not None and first.dim() and first.shape[0] < 2:
        raise BadNetwork(
            f"example inputs need a batch of 2 or more (the first dimension of the first tensor), got "
            f"{tuple(first.shape)}: a batch of 1 cannot be told from a size of 1"
        )


def check_devices(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """`BadNetwork` unless network and inputs lie on one device, which holds numbers."""
    ours = {tensor.device for tensor in (*network.parameters(), *network.buffers())}
    theirs = {tensor.device for tensor in tensors_of((args, dict(kwargs)))}
    if any(device.type == "meta" for device in ours | theirs):
        raise BadNetwork("tensors on the meta device hold no numbers: give the network and its inputs on a real device")
    if len(ours) == len(theirs) == 1 and ours != theirs:
        raise BadNetwork(
            f"the network lies on {_only(ours)}, the example inputs on {_only(theirs)}: move one of them to the other"
        )


def structure(network: nn.Module) -> dict[str, object]:
    """The very modules and parameters, by name."""
    modules = {f"module {name!r}": module for name, module in network.named_modules(remove_duplicate=False)}
    parameters = network.named_parameters(remove_duplicate=False)
    return modules | {f"parameter {name!r}": parameter for name, parameter in parameters}


def check_steady(before: Mapping[str, object], network: nn.Module) -> None:
    after = structure(network)
    changed = [key for key in {**before, **after} if before.get(key) is not after.get(key)]
    if changed:
        raise BadNetwork(
            f"a forward must leave the network's modules and parameters as they are, it changed {changed[0]}"
            + (f" and {len(changed) - 1} more" if len(changed) > 1 else "")
            + ": where layers are built on first use, run the network once before it is traced"
        )


def check_output(output: Any) -> None:
    if not numbers(output):
        raise BadNetwork(
            f"the network must give tensors, alone or in tuples, lists, dicts and dataclasses; got {_kind(output)}"
        )


def check_repeats(one: list[Tensor], again: list[Tensor]) -> None:
    """For the `numbers` of two outputs: what torch's global generators draw is the same in a second call; what others
    draw is not."""
    for a, b in zip(one, again, strict=False):
        if a.shape != b.shape or not torch.allclose(a, b, rtol=1e-2, atol=1e-3 * _largest(b), equal_nan=True):
            raise BadNetwork(
                "the network must give the same output for the same input in eval mode, two runs differ: does its "
                "forward draw random numbers outside torch, or keep something from earlier calls?"
            )


def _largest(tensor: Tensor) -> float:
    finite = tensor[torch.isfinite(tensor)] if tensor.numel() else tensor
    return float(finite.abs().max()) if finite.numel() else 0.0


def numbers(output: Any) -> list[Tensor]:
    """Copies, as an output may be a tensor that the next forward writes to."""
    tensors = [t.detach() for t in tensors_of(output)]
    real = [t for t in tensors if not t.is_quantized and not t.is_complex()]
    others = [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t.dequantize() for t in tensors if not real]
    return [t.to(torch.float64, copy=True) for t in real or others]


def first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _only(devices: set[torch.device]) -> str:
    return str(next(iter(devices)))


def _kind(output: Any) -> str:
    return type(output).__name__ if not isinstance(output, (tuple, list, dict)) else repr(copy.copy(output))[:60]


def shapes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    named = [*(("", a) for a in args), *((f"{k}=", v) for k, v in kwargs.items())]
    return ", ".join(f"{k}{_shape(a)}" for k, a in named)


def _shape(value: Any) -> str:
    """Tensors by their shape, in containers too: a detector's pictures and targets are lists of them."""
    if isinstance(value, torch.Tensor):
        return str(tuple(value.shape))
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shape, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {_shape(part)}' for key, part in value.items())}}}"
    if is_dataclass(value) and not isinstance(value, type):
        parts = ((field.name, getattr(value, field.name)) for field in fields(value))
        return f"{type(value).__name__}({', '.join(f'{key}={_shape(part)}' for key, part in parts)})"
    return repr(value)
