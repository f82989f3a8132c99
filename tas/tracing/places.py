"""Where the integers of a module live: its attributes, its class, and the containers and objects of settings it holds.

A *key* leads from a module to an integer: an attribute, then indices of tuples and lists, keys of dicts, attributes of
objects. Nothing on the way is changed in place: modules share settings, and each gets a copy of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from enum import Enum
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Key = tuple[Any, ...]
MODULES_OWN = frozenset(vars(nn.Module()))  # every module has these: looking at each of them takes half of a replay
_LONGEST = 16  # of tuples and lists; longer ones are data
_MOST = 200  # of dicts and objects; larger ones are data
_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_DEEPEST = 4  # steps: self.settings.model.sizes[0]


def integers(module: nn.Module, settings: bool = True) -> Iterator[tuple[Key, int]]:
    """The integers above 1 that a module holds, the nearest first; with those in objects of settings."""
    deepest = _DEEPEST if settings else 2
    for key, value in _held(module, deepest):
        if _is_size(value) and (settings or len(key) == 1 or not holds_settings(vars(module).get(key[0]))):
            yield key, int(value)


def lists(module: nn.Module) -> Iterator[tuple[Key, list[Any] | tuple[Any, ...]]]:
    """The tuples and lists that a module holds, of two entries or more."""
    return (
        (key, value) for key, value in _held(module) if isinstance(value, (tuple, list)) and 1 < len(value) < _LONGEST
    )


def loose_tensors(module: nn.Module) -> Iterator[tuple[Key, Tensor]]:
    """The tensors that a module holds and that are neither parameters nor buffers: nothing cuts them."""
    return ((key, value) for key, value in _held(module) if isinstance(value, Tensor))


def _held(module: nn.Module, deepest: int = _DEEPEST) -> Iterator[tuple[Key, Any]]:
    waiting: list[tuple[Key, Any]] = [
        ((name,), value)
        for name, value in {**_of_class(type(module)), **vars(module)}.items()
        if name not in MODULES_OWN and not name.endswith(("_hooks", "_kwargs", "_hooks_always_called"))
    ]
    while waiting:
        further: list[tuple[Key, Any]] = []
        for key, value in waiting:
            yield key, value
            if len(key) < deepest:
                further += [((*key, step), part) for step, part in _parts(value)]
        waiting = further


def set_integer(module: nn.Module, key: Key, value: int) -> None:
    """Set one integer of a module."""
    setattr(module, key[0], with_integer(getattr(module, key[0]), key[1:], value))


def with_integer(old: Any, steps: Key, value: int) -> Any:
    """`value`, or a copy of what `old` is, a container or an object, with `value` where the steps lead."""
    if not steps:
        return torch.full_like(old, value) if isinstance(old, Tensor) else type(old)(value) if is_boxed(old) else value
    step, rest = steps[0], steps[1:]
    if isinstance(old, tuple):
        items = [with_integer(item, rest, value) if i == step else item for i, item in enumerate(old)]
        return type(old)(*items) if hasattr(old, "_fields") else type(old)(items)
    new = copy.copy(old)
    if isinstance(old, (list, dict)):
        new[step] = with_integer(old[step], rest, value)
    else:  # what is frozen refuses `setattr`
        object.__setattr__(new, step, with_integer(getattr(old, step), rest, value))
    return new


def written(before: nn.Module, after: nn.Module) -> frozenset[tuple[str, str]]:
    """Modules and their attributes that hold settings which a forward changes, in `after`, a copy of `before` that has
    run: what one module writes another may read, so that no module can have a copy of its own."""
    modules = dict(before.named_modules())
    return frozenset(
        (name, key)
        for name, module in after.named_modules()
        for key, value in vars(modules[name]).items()
        if key not in MODULES_OWN and holds_settings(value) and not _alike(value, vars(module).get(key))
    )


def _alike(left: Any, right: Any) -> bool:
    """Whether two values are the same settings."""
    if not _is_object(left):
        return type(left) is type(right) and (left is right or bool(left == right))
    if not holds_settings(right):
        return False
    ours, theirs = fields(left), fields(right)
    return ours.keys() == theirs.keys() and all(_alike(ours[key], theirs[key]) for key in ours)


def _is_size(value: Any) -> bool:
    whole = isinstance(value, int) and not isinstance(value, (bool, Enum))
    return (whole or is_boxed(value)) and bool(value > 1)


def is_boxed(value: Any) -> bool:
    """Whether it is one integer of NumPy, or a tensor that is."""
    if isinstance(value, Tensor):
        return value.dim() == 0 and value.is_cpu and value.dtype in _WHOLE
    return isinstance(value, np.integer)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    """What a container, or an object that holds settings, is made of."""
    if isinstance(value, (tuple, list)):
        yield from enumerate(value) if len(value) < _LONGEST else ()
    elif isinstance(value, dict):
        yield from value.items() if len(value) < _MOST else ()
    elif holds_settings(value):
        yield from fields(value).items()


def holds_settings(value: Any) -> bool:
    """Whether an object (a dataclass, a namespace, a configuration) holds settings alone. Of what holds tensors or
    modules, a copy could be something else: a cache that modules share."""
    if not _is_object(value):
        return False
    held = fields(value)
    return 0 < len(held) < _MOST and all(_is_setting(part, 1) for part in held.values())


def _is_object(value: Any) -> bool:
    kind = type(value)
    if isinstance(value, (type, nn.Module, Tensor, Enum, FunctionType, ModuleType)) or _is_torchs(kind):
        return False
    return hasattr(value, "__dict__") or hasattr(kind, "__slots__")


def fields(value: Any) -> dict[str, Any]:
    """The attributes of an object: those of its class that are integers, of its slots, and its own."""
    slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {**_of_class(type(value)), **held, **getattr(value, "__dict__", {})}


def _is_setting(value: Any, depth: int) -> bool:
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, type, Enum, FunctionType)):
        return True
    if isinstance(value, (torch.dtype, torch.device)):
        return True
    if depth > _DEEPEST:
        return False
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(_is_setting(part, depth + 1) for part in value)
    if isinstance(value, Mapping):
        return all(_is_setting(part, depth + 1) for part in value.values())
    return holds_settings(value)


def _of_class(kind: type) -> Mapping[str, int]:
    """The integers that a class, or one of those it comes from, gives its instances."""
    found = [vars(parent) for parent in reversed(kind.__mro__) if not _is_torchs(parent) and parent is not object]
    held = {name: value for own in found for name, value in own.items() if not name.startswith("__")}
    return {name: value for name, value in held.items() if _is_size(value)}


def _slots(kind: type) -> tuple[str, ...]:
    names = vars(kind).get("__slots__", ())
    return (
        (names,) if isinstance(names, str) else tuple(name for name in names if name not in ("__dict__", "__weakref__"))
    )


def _is_torchs(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "builtins")
