"""What a forward leaves behind, found and put back: in modules, in buffers, in torch's generators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tas.tracing.leaves import memory_of, tensors_of
from tas.tracing.places import MODULES_OWN
from tas.tracing.watching import Watching

Store = dict[Any, Any] | list[Any]
Held = tuple[nn.Module, dict[str, Any], list[tuple[Any, Store]]]
_HOOKS = {name for name in MODULES_OWN if "hooks" in name and "state_dict" not in name and "backward" not in name}


def leaves_traces(before: nn.Module, after: nn.Module) -> tuple[str, ...]:
    """The modules that a forward left something in: those of `after`, a copy of `before` that has run, that hold other
    names, or more or less in a list or dict."""
    modules, found = dict(before.named_modules()), []
    for name, module in after.named_modules():
        old, new = vars(modules[name]), vars(module)
        stores = [key for key in new if _is_store(key, new[key]) and isinstance(old.get(key), (dict, list))]
        if old.keys() != new.keys() or any(len(old[key]) != len(new[key]) for key in stores):
            found.append(name)
    return tuple(found)


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Takes these hooks off again."""
    with ExitStack() as stack:
        for handle in handles:
            stack.enter_context(handle)
        yield


@contextmanager
def unchanged(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Puts back what a forward leaves in its modules: caches filled in eval mode hold sizes of this forward, hooks are
    hung on. Lists and dicts stay the same objects, since handles of hooks refer to them."""
    before = held(modules)
    try:
        yield
    finally:
        for module, values, stores in before:
            vars(module).clear()
            vars(module).update(values)
            for store, content in stores:
                store.clear()
                store.extend(content) if isinstance(store, list) else store.update(content)


def held(modules: Iterable[nn.Module]) -> list[Held]:
    """What modules hold now: the attributes of each, and what their lists and dicts hold."""
    return [(m, dict(vars(m)), [(v, _content(v)) for k, v in vars(m).items() if _is_store(k, v)]) for m in modules]


def holds_still(before: list[Held]) -> bool:
    """Whether modules hold the very same objects as `before`."""
    return all(
        _are_same(values, vars(module)) and all(_are_same(content, store) for store, content in stores)
        for module, values, stores in before
    )


def _are_same(before: Any, now: Any) -> bool:
    """In order, too, which code may go by."""
    if isinstance(before, dict):
        return _are_same([*before, *before.values()], [*now, *now.values()])
    return len(before) == len(now) and all(a is b for a, b in zip(before, now, strict=True))


def _content(store: Store) -> Store:
    """What a store holds now; `copy.copy` takes ten times as long, and every module has five of them."""
    return dict(store) if isinstance(store, dict) else list(store)


def _is_store(name: str, value: Any) -> bool:
    return (name not in MODULES_OWN or name in _HOOKS) and isinstance(value, (dict, list))


@contextmanager
def buffers_unchanged(network: nn.Module) -> Iterator[None]:
    """Puts back what is written into buffers: running statistics, in train mode."""
    with torch.no_grad():
        before = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, content in before:
                if not torch.equal(buffer, content):  # one that was expanded cannot be written
                    buffer.copy_(content)


@contextmanager
def parameters_unchanged(network: nn.Module) -> Iterator[None]:
    """Puts back what a forward does to parameters: averages of other weights, in train mode. Only what is written to is
    copied."""
    modules = [(module, dict(module._parameters)) for module in network.modules()]
    parameters = [(parameter, parameter.data, parameter.requires_grad) for parameter in network.parameters()]
    written = _Written({id(parameter): data for parameter, data, _ in parameters})
    try:
        with written:
            yield
    finally:
        for module, own in modules:
            module._parameters.clear()
            module._parameters.update(own)
        with torch.no_grad():
            for parameter, data, learned in parameters:
                parameter.data = data
                parameter.requires_grad_(learned)
                if id(parameter) in written.content:
                    data.copy_(written.content[id(parameter)])


class _Written(Watching):
    """Copies tensors, known by keys, right before an operator writes to them."""

    def __init__(self, tensors: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.content: dict[int, Tensor] = {}
        self._at: dict[int | None, list[tuple[int, Tensor]]] = {}
        for key, tensor in tensors.items():
            self._at.setdefault(_memory(tensor), []).append((key, tensor))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        for number, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = args[number] if number < len(args) else given.get(argument.name)
                for tensor in tensors_of(value):
                    for key, data in self._at.get(_memory(tensor), ()):
                        if key not in self.content:
                            self.content[key] = data.clone()
        return func(*args, **given)


def _memory(tensor: Tensor) -> int | None:
    """None of a sparse tensor, which has no one memory."""
    return memory_of(tensor) if tensor.layout is torch.strided else None


@contextmanager
def same_draws(network: nn.Module) -> Iterator[None]:
    """torch's global generators start the same, and go on behind as if nothing had been drawn."""
    devices = {parameter.device for parameter in network.parameters() if parameter.is_cuda}
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(0)
        yield
