"""Example inputs from one line each: `1,3,224,224`, or with a name, a type and a range `input_ids=1,16:int64:0-999`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tas.errors import BadRecipe

_FORM = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<sizes>[^:=]*)(?::(?P<type>\w+))?(?::(?P<low>\d+)-(?P<high>\d+))?")
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_INTEGERS = ("int64", "int32", "int16", "int8", "uint8")


@dataclass(frozen=True)
class Input:
    """name: of a keyword argument, "" for a positional one. sizes: batch first. low, high: of integers, inclusive."""

    name: str
    sizes: tuple[int, ...]
    dtype: str
    low: int
    high: int

    def tensor(self, batch: int | None, generator: torch.Generator) -> Tensor:
        """Normally distributed numbers, integers of the range, or true; of the given batch, or of its own."""
        sizes = self.sizes if batch is None else (batch, *self.sizes[1:])
        dtype: torch.dtype = getattr(torch, self.dtype)
        if self.dtype in _FLOATS:
            return torch.randn(sizes, generator=generator).to(dtype)
        return torch.randint(self.low, self.high + 1, sizes, generator=generator).to(dtype)


def parse_inputs(texts: Sequence[str]) -> tuple[Input, ...]:
    """`BadRecipe` where one is malformed, or they do not go together."""
    inputs = tuple(_parse(text) for text in texts)
    names = [given.name for given in inputs]
    if any(names) and not all(names):
        raise BadRecipe(f"inputs have names, all of them or none; got {', '.join(texts)}")
    if any(names) and len(set(names)) < len(names):
        raise BadRecipe(f"an input has one description; {max(names, key=names.count)!r} has two: {', '.join(texts)}")
    if len({given.sizes[0] for given in inputs}) > 1:
        raise BadRecipe(f"the first size of every input is the batch, the same in all; got {', '.join(texts)}")
    return inputs


def examples(texts: Sequence[str], batch: int | None = None) -> Any:
    """What `tas.trace` takes: one tensor, a tuple of them, or by name; the same numbers every time."""
    inputs, generator = parse_inputs(texts), torch.Generator().manual_seed(0)
    tensors = [given.tensor(batch, generator) for given in inputs]
    if inputs[0].name:
        return {given.name: tensor for given, tensor in zip(inputs, tensors, strict=True)}
    return tensors[0] if len(tensors) == 1 else tuple(tensors)


def _parse(text: str) -> Input:
    match = _FORM.fullmatch(text.strip())
    sizes = _sizes(match["sizes"]) if match else ()
    if match is None or not sizes:
        raise BadRecipe(
            "--shape takes sizes from 1, batch first, such as 1,3,224,224, and, where it is needed, a name, a type and "
            f"a range of integers, such as input_ids=1,16:int64:0-999; got {text!r}"
        )
    dtype = match["type"] or "float32"
    if dtype not in (*_FLOATS, *_INTEGERS, "bool"):
        known = ", ".join((*_FLOATS, *_INTEGERS, "bool"))
        raise BadRecipe(f"the type of an input is one of {known}; got {dtype!r} in {text!r}")
    if match["low"] is None:
        return Input(match["name"] or "", sizes, dtype, 1, 1)
    low, high = int(match["low"]), int(match["high"])
    if dtype not in _INTEGERS or low > high or high > torch.iinfo(getattr(torch, dtype)).max:
        raise BadRecipe(f"a range is for integers that its type can hold, from low to high; got {text!r}")
    return Input(match["name"] or "", sizes, dtype, low, high)


def _sizes(text: str) -> tuple[int, ...]:
    """() where the text is anything but sizes from 1."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        return ()
    return sizes if min(sizes) >= 1 else ()
