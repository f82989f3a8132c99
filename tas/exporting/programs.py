"""Students as files that other runtimes run, ONNX and `torch.export`, compared with the student before they stay."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tas.errors import BadNetwork, BadRecipe
from tas.exporting import formats
from tas.exporting.norms import fold_norms
from tas.tracing import as_call

Format = Literal["onnx", "torch"]
Dtype = Literal["float32", "float16", "bfloat16"]

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}

# Largest difference, as a part of the largest output. float32: other kernels, another order of sums. float16 keeps 11
# bits and bfloat16 8, and the errors of many layers add up.
_TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
_ONNX = ("onnx", "onnxruntime", "onnxscript")
_OPSET = 20


class Mismatch(RuntimeError):
    """The exported file computes something else than the student; nothing was written."""


@dataclass(frozen=True)
class Exported:
    """What was written. `largest_difference`: of any output value, between the file in its own runtime and the student
    over `images` inputs; it had to be at most `allowed`. `folded`: how many batch norms went into layers."""

    path: Path
    format: Format
    opset: int | None
    dtype: Dtype
    folded: int
    bytes: int
    images: int
    largest_difference: float
    allowed: float


def export(
    student: nn.Module,
    path: str | Path,
    format: Format = "onnx",
    *,
    inputs: Any,
    fold: bool = False,
    dtype: Dtype = "float32",
    channels_last: bool = False,
    dynamic_batch: bool = True,
    opset: int = _OPSET,
    tolerance: float | None = None,
) -> Exported:
    """Write `student` as one ONNX file, or as a `torch.export` program, and check it on `inputs` in its own runtime.

    inputs: a batch of 2 or more real examples, as for `tas.trace`; where the batch is dynamic, the first one is run
    alone, too. fold: batch norms go into the layers before them. dtype: of the weights and inside; inputs and outputs
    stay in float32. channels_last: PyTorch's memory layout, for "torch" only. tolerance: the largest difference
    allowed, as a part of the largest output; by default 1e-4, in float16 0.02, in bfloat16 0.1.

    The student is not changed. `Mismatch` where the file computes something else: nothing is written then. `BadNetwork`
    where torch cannot export the network; `BadRecipe` for wrong options, a folder that cannot be written, or an extra
    that is not installed.
    """
    path, (args, kwargs) = Path(path), as_call(inputs)
    _check_options(path, format, dtype, channels_last)
    count = _examples(args, kwargs, dynamic_batch)
    network = copy.deepcopy(student).cpu().float().eval()
    examples = [(args, kwargs), *([_first(args, kwargs, count)] if dynamic_batch else [])]
    wanted = [_wanted(network, *example) for example in examples]
    folded = fold_norms(network, args, kwargs) if fold else []
    if dtype != "float32" or channels_last:
        network = formats.Deployed(network, getattr(torch, dtype), channels_last)
    program = formats.program(network, args, kwargs, count if dynamic_batch else None)
    with _beside(path) as part:
        stated = formats.write_onnx(program, part, opset) if format == "onnx" else formats.write_torch(program, part)
        runtime = formats.onnx_runtime(part) if format == "onnx" else formats.torch_runtime(part)
        found = [_outputs(runtime, *example) for example in examples]
        difference, allowed = _compared(found, wanted, _TOLERANCE[dtype] if tolerance is None else tolerance)
        size = part.stat().st_size
        part.replace(path)
    return Exported(path, format, stated, dtype, len(folded), size, count, difference, allowed)


def _check_options(path: Path, format: str, dtype: str, channels_last: bool) -> None:
    if format not in SUFFIXES:
        raise BadRecipe(f"an export format is onnx or torch, got {format!r}")
    if dtype not in _TOLERANCE:
        raise BadRecipe(f"an export dtype is one of {', '.join(_TOLERANCE)}, got {dtype!r}")
    if format == "onnx" and channels_last:
        raise BadRecipe("channels_last is a memory layout of PyTorch, ONNX has none; leave it out, or use format torch")
    missing = [name for name in _ONNX if format == "onnx" and find_spec(name) is None]
    if missing:
        raise BadRecipe(f"ONNX export needs {', '.join(missing)}; install the extra: pip install 'tas[onnx]'")
    if format == "onnx" and dtype == "bfloat16":
        raise BadRecipe("ONNX Runtime cannot run convolutions in bfloat16; use float16, or format torch")
    if path.suffix != SUFFIXES[format] or path.is_dir():
        raise BadRecipe(f"an export of format {format} is a file that ends in {SUFFIXES[format]}, got {path}")


def _examples(args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic_batch: bool) -> int:
    """How many there are in the inputs."""
    batched = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor) and leaf.dim()]
    count, least = len(batched[0]) if batched else 0, 2 if dynamic_batch else 1
    if count < least:  # torch takes a size of 1 for a constant
        raise BadRecipe(f"an export needs inputs of {least} or more examples to be checked on, got {count}")
    return count


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any], count: int) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    def one(value: Any) -> Any:
        return value[:1] if isinstance(value, Tensor) and value.dim() and len(value) == count else value

    return tree_map(one, (args, dict(kwargs)))


def _wanted(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    try:
        return _outputs(network, args, kwargs)
    except Exception as problem:  # the user's code may fail in any way
        raise BadNetwork(
            f"the network must run on the inputs, and on the first one alone, got {type(problem).__name__}: {problem}; "
            "where it fixes the batch size, export with a fixed batch"
        ) from problem


def _outputs(network: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(network(*args, **kwargs)) if isinstance(leaf, Tensor)]


def _compared(
    found: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]], tolerance: float
) -> tuple[float, float]:
    """The largest difference and the allowed one; `Mismatch` where it is exceeded or an output has another shape."""
    largest = max((float(b.abs().max()) for outputs in wanted for b in outputs if b.numel()), default=1.0)
    difference, allowed = 0.0, tolerance * largest
    for ours, theirs in zip(found, wanted, strict=True):
        shapes = [[list(value.shape) for value in outputs] for outputs in (ours, theirs)]
        if shapes[0] != shapes[1]:
            raise Mismatch(f"the exported file gives outputs of shapes {shapes[0]}, the student {shapes[1]}")
        for a, b in zip(ours, theirs, strict=True):
            apart = float((a.double() - b.double()).abs().max()) if b.numel() else 0.0
            difference = apart if not apart <= difference else difference  # a NaN stays
    if not difference <= allowed:
        raise Mismatch(
            f"outputs of the exported file must stay within {allowed:.2g} of the student's, they differ by "
            f"{difference:.2g}; nothing was written. Export in float32, or allow a larger tolerance"
        )
    return difference, allowed


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A file of the same name in a folder beside it that is gone afterwards: what stays is renamed to `path`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent)
    except OSError as problem:
        raise BadRecipe(f"cannot write an export to {path}: {problem.strerror}") from problem
    with folder as name:
        yield Path(name) / path.name
