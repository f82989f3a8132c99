"""The tensors in whatever a network, module or operator is given or gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


def tensors_of(tree: Any) -> list[Tensor]:
    """Those that torch knows how to get at."""
    return [tree] if isinstance(tree, Tensor) else [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def memory_of(tensor: Tensor) -> int:
    """Where its numbers lie; views of one memory have one."""
    return tensor.untyped_storage().data_ptr()


def with_paths(output: Any) -> list[tuple[str, Tensor]]:
    """The tensors that a network gives back, each with the path to it, also those in objects that torch does not know
    how to look into."""
    found, waiting, seen = list[tuple[str, Tensor]](), [("", output)], dict[int, Any]()
    while waiting:
        path, leaf = waiting.pop(0)
        if id(leaf) not in seen and isinstance(leaf, Tensor):
            found.append((path, leaf))
        elif id(leaf) not in seen and not isinstance(leaf, (type, nn.Module)):
            waiting += [(path + step, part) for step, part in _parts(leaf)]
        seen[id(leaf)] = leaf  # held, or another object could come to have its number
    return found


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f".{key}", part) for key, part in value.items())
    elif isinstance(value, (tuple, list)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    else:
        yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
        yield from ((f".{name}", getattr(value, name, None)) for name in getattr(value, "__slots__", ()))
        leaves = () if is_dataclass(value) else tree_leaves(value)  # what torch was told how to look into
        yield from (("", leaf) for leaf in leaves if leaf is not value)
