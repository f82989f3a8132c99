"""The pieces of which a network's latency is the sum: layers, each with what follows it immediately.

A piece begins with a layer that multiplies and goes on while a module is given just what the one before it gave
(convolution, norm, activation): runtimes fuse such, and what has just been written is read from the cache. A module
that multiplies in its own forward (attention) is one piece with all that it calls. What else code does between modules
is in no piece; the fit to whole networks stands for it (`tas.latency.table`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tas.errors import BadNetwork
from tas.space import Architecture, Choice, Factor
from tas.tracing import Traced, batch_of
from tas.tracing.recording import plain_attention
from tas.tracing.regions import leave_out
from tas.tracing.undoing import hooked

_MOST_CHOICES = 3  # of a piece that is a module with modules inside; where it has more, they are measured one by one
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """One piece: the layer that it is named by, the widths that decide about its size, which sizes of each are
    measured, and when it is there (factors "above" of depth choices)."""

    layer: str
    choices: tuple[str, ...]
    grid: tuple[Sizes, ...]
    alive: tuple[Factor, ...]

    def points(self) -> Iterator[Sizes]:
        """All combinations of the grid, the last choice varying fastest."""
        return product(*self.grid)


@dataclass(eq=False)
class Stretch:
    """Modules as they were called one after the other, with the inputs of the first."""

    name: str
    modules: list[nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    shapes: list[str] = field(default_factory=list)
    inner: bool = False  # whether it calls other modules

    def given_just(self, output: Any) -> bool:
        return len(self.args) == 1 and not self.kwargs and isinstance(output, Tensor) and self.args[0] is output

    def network(self) -> nn.Module:
        return _Chain(self.modules)

    def key(self) -> str:
        """Equal for stretches that do the same work: module by module what it is, its parameters, its inputs."""
        return sha256("\n".join(self.shapes).encode()).hexdigest()[:16]


class _Chain(nn.Module):
    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.first, self.rest = modules[0], nn.ModuleList(modules[1:])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        x = self.first(*args, **kwargs)
        for module in self.rest:
            x = module(x)
        return x


def pieces_of(traced: Traced, args: tuple[Any, ...], kwargs: Mapping[str, Any], points: int) -> list[Piece]:
    """The pieces of a traced network on these inputs, with `points` sizes a choice to be measured (fewer where it has
    fewer candidates; three at most where a piece depends on three choices)."""
    whole = stretches_at(traced, sizes_of(traced), args, kwargs)
    depends = _dependence(traced, args, kwargs, whole)
    pieces = []
    for stretch, names in zip(whole, depends, strict=True):
        choices = [traced.space.choices[traced.space.position[name]] for name in names]
        count = points if len(choices) < _MOST_CHOICES else min(points, 3)
        grid = tuple(grid_of(choice, count) for choice in choices)
        pieces.append(Piece(stretch.name, names, grid, _alive(traced, stretch.name)))
    return pieces


def grid_of(choice: Choice, points: int) -> Sizes:
    """Up to `points` of a choice's sizes, evenly over its candidates, the ends and the original's among them."""
    sizes = sorted({*choice.candidates, choice.size})
    if len(sizes) <= points:
        return tuple(sizes)
    return tuple(sorted({sizes[round(i * (len(sizes) - 1) / (points - 1))] for i in range(points)}))


def sizes_of(traced: Traced, **sizes: int) -> Architecture:
    """The original's sizes, others where they are given by name of the choice."""
    return Architecture.of({**traced.space.original(), **sizes})


def network_at(traced: Traced, sizes: Mapping[str, int]) -> nn.Module:
    """The network at these sizes, as `extract`, but also at the original's where rules bound a choice below."""
    network = traced.cut(traced.keep_mask(sizes))
    leave_out(network, traced.dead(sizes))
    return network.eval()


def stretches_at(
    traced: Traced, sizes: Mapping[str, int], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Stretch]:
    """The stretches of the network at these sizes, in the order of the forward."""
    network = network_at(traced, sizes)
    multiply = {cost.layer for cost in traced.space.costs if cost.measure == "macs"}
    calls = _calls(network, args, kwargs, {name for name in multiply if _few_choices(traced, name)})
    found: list[Stretch] = []
    for call in calls:
        follows = found and call.name not in multiply and call.given_just(found[-1].output)
        if follows and _alive(traced, call.name) == _alive(traced, found[-1].name):
            found[-1].modules += call.modules
            found[-1].shapes += call.shapes
            found[-1].output = call.output
        else:
            found.append(call)
    return found


def _calls(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], units: set[str]) -> list[Stretch]:
    """The calls of modules that call no other one, and those of the `units`."""
    open_calls: list[tuple[Stretch, int]] = []
    found: list[Stretch] = []
    with _noting(network, open_calls, found, units), torch.no_grad(), plain_attention():
        network(*args, **kwargs)
    if not found:
        raise BadNetwork("a latency table is made of modules that are called, this network calls none")
    return found


@contextmanager
def _noting(
    network: nn.Module, open_calls: list[tuple[Stretch, int]], found: list[Stretch], units: set[str]
) -> Iterator[None]:
    names = {module: name for name, module in network.named_modules()}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if open_calls:
            open_calls[-1][0].inner = True
        call = Stretch(names[module], [module], args, kwargs, None, [_signature(module, args, kwargs)])
        open_calls.append((call, len(found)))

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        call, before = open_calls.pop()
        call.output = output
        if not call.inner or (call.name and call.name in units):
            del found[before:]
            found.append(call)

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in names]
    handles += [module.register_forward_hook(leave, with_kwargs=True) for module in names]
    with hooked(handles):
        yield


def _signature(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    state = [(name, tuple(tensor.shape)) for name, tensor in module.state_dict(keep_vars=True).items()]
    leaves = tree_leaves((args, dict(kwargs)))
    inputs = [(tuple(leaf.shape), str(leaf.dtype)) if isinstance(leaf, Tensor) else str(leaf) for leaf in leaves]
    return f"{module!r} {state} {inputs}"


def _few_choices(traced: Traced, layer: str) -> bool:
    """Of the layer and of all inside it: whether a grid over all of them is small."""
    prefix = f"{layer}."
    inside = (cost for cost in traced.space.costs if cost.layer == layer or cost.layer.startswith(prefix))
    widths = {f.choice for cost in inside for term in cost.terms for f in term.factors if f.kind == "power"}
    return len(widths) <= _MOST_CHOICES


def _alive(traced: Traced, module: str) -> tuple[Factor, ...]:
    """When a module is there: blocks of one run are all there when the last of them is."""
    last: dict[str, int] = {}
    for name, run in traced.runs.items():
        for index, part in enumerate(run):
            if any(f"{module}.".startswith(f"{removal.module}.") for removal in traced.removals[part]):
                last[name] = max(index, last.get(name, index))
    return tuple(Factor(name, "above", index) for name, index in sorted(last.items()))


def _dependence(
    traced: Traced, args: tuple[Any, ...], kwargs: Mapping[str, Any], whole: Sequence[Stretch]
) -> list[tuple[str, ...]]:
    """For every stretch the widths that change it, found by cutting each width alone."""
    found: list[list[str]] = [[] for _ in whole]
    for choice in traced.space.choices:
        if choice.kind == "depth" or len({*choice.candidates, choice.size}) == 1:
            continue
        cut = stretches_at(traced, sizes_of(traced, **{choice.name: choice.candidates[0]}), args, kwargs)
        if [stretch.name for stretch in cut] != [stretch.name for stretch in whole]:
            raise BadNetwork(
                f"a latency table needs the same modules called at all sizes; {choice.name!r} changes them"
            )
        for names, before, after in zip(found, whole, cut, strict=True):
            if before.key() != after.key():
                names.append(choice.name)
    return [tuple(names) for names in found]


def at_batch(traced: Traced, batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The trace's example inputs with `batch` examples: theirs again and again."""
    have = batch_of(traced.args, traced.kwargs)

    def filled(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim() or value.shape[0] != have:
            return value
        return value.detach().cpu()[torch.arange(batch) % have]

    args, kwargs = tree_map(filled, (tuple(traced.args), dict(traced.kwargs)))
    if batch_of(args, kwargs) != batch:
        raise BadNetwork(
            f"a latency table at batch {batch} needs inputs with the batch first, got other example inputs"
        )
    return args, kwargs
