"""Writing a network as an ONNX file or a `torch.export` program, and running either in its own runtime."""

from __future__ import annotations

import inspect
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tas.errors import BadNetwork

Run = Callable[..., Any]


class Deployed(nn.Module):
    """A network in another precision or memory layout, behind inputs and outputs as they were."""

    def __init__(self, network: nn.Module, dtype: torch.dtype, channels_last: bool) -> None:
        super().__init__()
        self.dtype, self.channels_last = dtype, channels_last
        self.network = network.to(dtype)
        for parameter in self.network.parameters() if channels_last else ():
            if parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(self._enter, (args, kwargs))
        return tree_map(_leave, self.network(*args, **kwargs))

    def _enter(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        value = value.to(self.dtype)
        return value.contiguous(memory_format=torch.channels_last) if self.channels_last and value.dim() == 4 else value


def _leave(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def program(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int | None) -> Any:
    """The network as a `torch.export` program; `batch`, the size that the inputs have, becomes free; None fixes it.

    `BadNetwork` where torch cannot follow the network.
    """
    axis = torch.export.Dim("batch")

    def shape(value: Any) -> Any:
        return {0: axis} if isinstance(value, Tensor) and value.dim() and len(value) == batch else None

    arguments = dict(inspect.signature(network.forward).bind(*args, **kwargs).arguments)
    shapes = None if batch is None else tree_map(shape, arguments)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations
            return torch.export.export(network, args, dict(kwargs), dynamic_shapes=shapes)
    except Exception as problem:  # the network's own code runs here, on values that are not there
        hint = "" if batch is None else "; where it fixes the batch size, export with a fixed batch (--fixed-batch)"
        raise BadNetwork(f"torch.export cannot follow the network: {_line(problem).rstrip(' .;')}{hint}") from problem


def write_torch(exported: Any, path: Path) -> int | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(exported, path)
    return None  # it has no opset


def write_onnx(exported: Any, path: Path, opset: int) -> int:
    """One file with the weights inside; the opset that it states. `BadNetwork` where torch cannot convert to it."""
    import onnx

    try:
        with _unlogged(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(exported, (), path, opset_version=opset, external_data=False, dynamo=True, verbose=False)
    except Exception as problem:
        raise BadNetwork(f"ONNX cannot hold the network at opset {opset}: {_line(problem)}") from problem
    model = onnx.load(path)
    _name_batch(model.graph)
    onnx.save(model, path)
    stated: int = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if stated != opset:
        raise BadNetwork(
            f"torch writes the network at opset {stated} and cannot convert it to {opset}: ask for {stated}"
        )
    return stated


def _name_batch(graph: Any) -> None:
    """Call the free first size of the inputs "batch", here and in what is computed from it: torch names it s77, say."""
    sizes = [size for value in (*graph.input, *graph.output, *graph.value_info) for size in _sizes(value)]
    symbols = {size.dim_param for value in graph.input for size in _sizes(value)[:1] if size.dim_param}
    for symbol in symbols:
        for size in sizes:
            if size.dim_param:
                size.dim_param = re.sub(rf"\b{re.escape(symbol)}\b", "batch", size.dim_param)


def _sizes(value: Any) -> Any:
    return value.type.tensor_type.shape.dim


@contextmanager
def _unlogged() -> Iterator[None]:
    """torch and its converter log what they try, with tracebacks of what did not work; errors are told by us."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def torch_runtime(path: Path) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(path).module()


def onnx_runtime(path: Path) -> Run:
    """ONNX Runtime on the CPU; called like the network, it returns the flat list of its outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*args: Any, **kwargs: Any) -> list[Tensor]:
        values = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        named = {slot.name: value.numpy() for slot, value in zip(session.get_inputs(), values, strict=True)}
        return [torch.from_numpy(output) for output in session.run(None, named)]

    return run


def _line(problem: Exception) -> str:
    return next(iter(str(problem).strip().splitlines()), type(problem).__name__)[:300]
