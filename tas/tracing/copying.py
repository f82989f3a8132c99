"""Copies of a network: deep, but for the tensors that they share with it."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_CONSTANT = (bool, int, float, str, type(None))


def copy_sharing(network: nn.Module, shared: Collection[Tensor] = ()) -> nn.Module:
    """A deep copy that shares these tensors with the network, where no change of mode writes to them: copies of large
    ones take most of a trace. What modules keep of a forward with gradients (features, a table, the weight that an old
    weight norm made) is copied as numbers: torch copies only tensors that nothing was computed for."""
    known: dict[int, Any] = {} if has_own_modes(network) else {id(tensor): tensor for tensor in shared}
    with torch.no_grad():
        known |= {id(tensor): tensor.detach().clone() for tensor in _computed(network)}
    kinds = set(filter(_copies_plainly, {type(module) for module in network.modules()}))
    plain = [module for module in network.modules() if type(module) in kinds]
    known |= {id(module): object.__new__(type(module)) for module in plain}
    # what copy.deepcopy does, but for most of its steps: half of the time; parts first, which others may ask for
    for module in reversed(plain):
        known[id(module)].__setstate__({name: _copied(value, known) for name, value in module.__getstate__().items()})
    return copy.deepcopy(network, known)


def has_own_modes(network: nn.Module) -> bool:
    """Whether any module is one of these."""
    return any(map(has_own_mode, network.modules()))


def has_own_mode(module: nn.Module) -> bool:
    """Whether a module has its own `train` or `eval`: they may keep the mode elsewhere, or fold weights into others."""
    own = vars(module)
    return any(getattr(type(module), name) is not getattr(nn.Module, name) or name in own for name in ("train", "eval"))


def _copies_plainly(kind: type) -> bool:
    """Whether a copy of such a module is made of copies of its attributes: it says nothing about it itself."""
    special = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__getnewargs__", "__getnewargs_ex__")
    own = {name for base in kind.__mro__ if base not in (nn.Module, object) for name in vars(base)}
    return own.isdisjoint((*special, "__slots__"))


def _copied(value: Any, known: dict[int, Any]) -> Any:
    if type(value) in _CONSTANT:
        return value
    if type(value) in (OrderedDict, set) and not value:  # every module keeps a dozen, of hooks
        return known.setdefault(id(value), type(value)())
    return copy.deepcopy(value, known)


def _computed(network: nn.Module) -> Iterator[Tensor]:
    """Tensors with a gradient's history among the attributes of modules, also in lists, tuples and dicts."""
    for module in network.modules():
        for name, value in vars(module).items():
            sizes = isinstance(value, (list, tuple)) and all(type(part) in _CONSTANT for part in value)
            if name in ("_modules", "_parameters") or sizes or (isinstance(value, dict) and not value):
                continue
            if isinstance(value, (Tensor, list, tuple, dict)):
                yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor) and not leaf.is_leaf)
