"""Where a network is to be fast: runtime, device, batch and threads; and forwards as that runtime runs them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from tas.errors import BadRecipe
from tas.exporting import formats
from tas.tracing.leaves import tensors_of

Runtime = Literal["eager", "compile", "onnxruntime"]
Forward = Callable[[], Any]

_ONNX = ("onnx", "onnxruntime", "onnxscript")
_OPSET = 20


@dataclass(frozen=True)
class Target:
    """What is measured on.

    runtime: "eager" PyTorch; "compile", `torch.compile` with its default options; "onnxruntime" (extra `onnx`).
    device: "cpu", "cuda" or "cuda:1". batch: examples of a forward. threads: of an operator, on the CPU.
    """

    runtime: Runtime = "eager"
    device: str = "cpu"
    batch: int = 1
    threads: int = 1

    def __post_init__(self) -> None:
        if self.runtime not in get_args(Runtime):
            raise BadRecipe(f"latency.runtime is one of {', '.join(get_args(Runtime))}, got {self.runtime!r}")
        if self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise BadRecipe(f"latency.device is cpu or cuda, got {self.device!r}")
        for name in ("batch", "threads"):
            if getattr(self, name) < 1:
                raise BadRecipe(f"latency.{name} is at least 1, got {getattr(self, name)}")

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' if self.threads > 1 else ''}" if self.device == "cpu" else ""
        return f"{self.runtime} on {self.device}{threads}, batch {self.batch}"


@contextmanager
def ready(target: Target) -> Iterator[torch.device]:
    """The target's device, with its number of threads inside. `BadRecipe` where this machine lacks what it needs."""
    device = torch.device(target.device)
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise BadRecipe(f"latency.device {target.device} needs a CUDA device, torch finds none such here")
    if target.runtime == "compile":
        _require_compiler(device)
    if target.runtime == "onnxruntime":
        _require_onnx(device)
    before = torch.get_num_threads()
    torch.set_num_threads(target.threads)
    try:
        with torch.no_grad():
            yield device
    finally:
        torch.set_num_threads(before)


def forward_of(target: Target, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Forward:
    """One forward of `network` on these inputs, as the target's runtime does it, to be called inside `ready(target)`.

    The network moves to the target's device. `BadNetwork` where the runtime cannot take it.
    """
    network.eval()
    if target.runtime == "onnxruntime":
        return _in_onnx_runtime(target, network.cpu(), args, kwargs)
    device = torch.device(target.device)
    network.to(device)
    args, kwargs = tree_map(partial(_moved, device), (args, dict(kwargs)))
    if target.runtime == "compile":
        return partial(torch.compile(_own_code(network), dynamic=False), *args, **kwargs)
    return partial(network, *args, **kwargs)


def _moved(device: torch.device, value: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def _own_code(network: nn.Module) -> Callable[..., Any]:
    """The network as a function with a code object of its own: torch keeps what it has compiled by code object, and
    falls back to eager where one has been compiled for a few networks."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return network(*args, **kwargs)

    return FunctionType(run.__code__.replace(), run.__globals__, "run", None, run.__closure__)


def _require_compiler(device: torch.device) -> None:
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as problem:  # no C++ compiler, no Triton, an old Python
        reason = next(iter(str(problem).strip().splitlines()), type(problem).__name__)
        raise BadRecipe(
            f"latency.runtime compile needs a torch.compile that works here; it says: {reason:.200}. Install a C++ "
            "compiler (g++; on a GPU Triton too), or measure in eager"
        ) from problem


def _require_onnx(device: torch.device) -> None:
    missing = [name for name in _ONNX if find_spec(name) is None]
    if missing:
        raise BadRecipe(
            f"latency.runtime onnxruntime needs {', '.join(missing)}; install the extra: pip install 'tas[onnx]'"
        )
    import onnxruntime

    if device.type == "cuda" and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise BadRecipe("latency.device cuda needs an ONNX Runtime with CUDA: pip install onnxruntime-gpu")


def _in_onnx_runtime(target: Target, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = target.threads, 1
    options.log_severity_level = 3
    device = torch.device(target.device)
    provider: Any = "CPUExecutionProvider"
    if device.type == "cuda":
        provider = ("CUDAExecutionProvider", {"device_id": device.index or 0})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        formats.write_onnx(formats.program(network, args, kwargs, None), path, _OPSET)
        session = onnxruntime.InferenceSession(path, options, providers=[provider])
    values = tensors_of((args, dict(kwargs)))
    binding = session.io_binding()
    for slot, value in zip(session.get_inputs(), values, strict=True):  # copied to the device once, not a forward
        binding.bind_ortvalue_input(slot.name, onnxruntime.OrtValue.ortvalue_from_numpy(value.numpy(), *_place(device)))
    for slot in session.get_outputs():
        binding.bind_output(slot.name, *_place(device))
    return partial(session.run_with_iobinding, binding)


def _place(device: torch.device) -> tuple[str, int]:
    return device.type, device.index or 0
