"""The original from its import path, arguments and weights file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tas.calibration import modes_restored
from tas.errors import BadNetwork
from tas.importing import imported
from tas.tracing import as_call


def build(name: str, kwargs: Mapping[str, Any] | None = None, section: str = "network") -> nn.Module:
    """Call what the import path names with `kwargs`; `BadNetwork` unless that gives a module with numbers.

    section: of the recipe, for messages.
    """
    factory = imported(name, BadNetwork)
    if not callable(factory):
        raise BadNetwork(f"{section}.name must name a class or a function, {name!r} is a {type(factory).__name__}")
    try:
        network = factory(**(kwargs or {}))
    except Exception as problem:  # the user's code may fail in any way
        raise BadNetwork(f"cannot build {name!r} with {dict(kwargs or {})}: {_reason(problem)}") from problem
    if not isinstance(network, nn.Module):
        raise BadNetwork(f"{section}.name must build a torch.nn.Module, {name!r} gives a {type(network).__name__}")
    _require_real(network, f"{section}.name")
    return network


def _require_real(network: nn.Module, key: str) -> None:
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_meta:
            raise BadNetwork(
                f"{key} must build a network that holds numbers, {name!r} lies on the meta device: build it on the CPU"
            )


def load_weights(network: nn.Module, path: str | Path, key: str = "network.weights") -> None:
    """Read a safetensors file or a state dict saved by torch (`weights_only`: nothing is unpickled but tensors).

    `BadNetwork` where the file is missing or unreadable, or its keys or shapes are not the network's. key: of the
    recipe, for messages.
    """
    tensors = _read(Path(path), key)
    own = network.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}  # older files have none, nobody needs them
    missing = sorted(own.keys() - tensors.keys() - counters)
    unexpected = sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise BadNetwork(
            f"{path} must hold the network's own tensors; missing {_some(missing)}, unexpected {_some(unexpected)}"
        )
    for key in tensors:
        if tensors[key].shape != own[key].shape:
            raise BadNetwork(f"{path}: {key!r} must be {list(own[key].shape)}, is {list(tensors[key].shape)}")
    _require_numbers(tensors, {name for name, _ in network.named_parameters()}, path)
    if not hasattr(tensors, "_metadata"):  # safetensors does not say which version of a module wrote a file: this one
        own.update(tensors)
        tensors = own
    network.load_state_dict(tensors, strict=False)


def _require_numbers(tensors: Mapping[str, Tensor], parameters: set[str], path: str | Path) -> None:
    """`BadNetwork` with the first tensor that holds NaN, or, if it is a parameter, infinity: buffers may be masks."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        wrong = tensor.float().isfinite().logical_not() if name in parameters else tensor.float().isnan()
        if count := int(wrong.sum()):
            raise BadNetwork(
                f"weights must be finite numbers, {count} of the {tensor.numel()} of {name!r} in {path} are not: "
                "save the network again, from before its training diverged"
            )


def check_runs(network: nn.Module, inputs: Any) -> None:
    """`BadNetwork` unless the network takes these inputs: a tensor, a tuple of positional ones, or a dict by name."""
    args, kwargs = as_call(inputs)
    try:
        with torch.no_grad(), modes_restored(network):
            network.eval()(*args, **kwargs)
    except Exception as problem:
        given = [*((f"of shape {_form(value)}") for value in args), *(f"{n} {_form(v)}" for n, v in kwargs.items())]
        told = "an input" if len(given) == 1 else "inputs"
        kinds = {p.dtype for p in network.parameters() if p.is_floating_point()} - {torch.float32}
        hint = f" (its parameters are {_kind(next(iter(kinds)))}: call .float() where it is made)" if kinds else ""
        raise BadNetwork(f"the network refuses {told} {', '.join(given)}: {_reason(problem)}{hint}") from problem


def _read(path: Path, key: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadNetwork(f"{key} must name a file, there is none at {path}")
    try:
        tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError, KeyError) as problem:
        raise BadNetwork(f"cannot read weights from {path}: {_reason(problem)}") from problem
    except Exception as problem:  # pickle.UnpicklingError, without importing pickle
        raise BadNetwork(f"{path} holds more than tensors; save network.state_dict() instead") from problem
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise BadNetwork(f"{path} must hold a state dict: names and tensors, nothing else")
    return tensors


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _form(value: Any) -> str:
    """[1, 3, 8, 8], and the type where it is not the usual one; of anything but a tensor only what it is."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    kind = "" if value.dtype is torch.float32 else f" {_kind(value.dtype)}"
    return f"{list(value.shape)}{kind}"


def _some(names: list[str]) -> str:
    return "nothing" if not names else ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def _reason(problem: Exception) -> str:
    lines = str(problem).strip().splitlines() or [type(problem).__name__]
    return lines[0][:200]
