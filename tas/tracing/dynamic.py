"""Networks whose sizes depend on data: detectors rank, threshold and suppress, and keep any number of boxes.

A *decision* is what an operator makes of real numbers, or of chance, that is not real itself: a mask, an index, a rank,
a number read back into Python. Between decisions a network is smooth, and every size in it follows from them. So
wherever two networks are compared (the replay of a cut one with the record, a supernet with its student), both run
under the decisions that the original took on the same inputs: sizes and counts are then exact, however near a tie was,
and a wrong channel size shows behind a `nms` as it does anywhere.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from tas.tracing.watching import Watching

_SIZED_BY_DATA = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}


@dataclass(frozen=True)
class Decision:
    """One decision: the shapes that it was made of, and what came out, but for real tensors. `learned`: parameters or
    chance had a part in it; only then can it come out otherwise in another forward."""

    shapes: tuple[tuple[int, ...], ...]
    made: tuple[Any, ...]
    learned: bool


@dataclass(frozen=True)
class Decisions:
    """What a network decided in one forward: by operator, in the order of its calls. `sized` counts the operators whose
    output had a size, or was a number in Python, that follows from what the network computed."""

    taken: dict[str, list[Decision]] = field(default_factory=lambda: defaultdict(list))
    sized: Counter[str] = field(default_factory=Counter)

    def note(self) -> str:
        """For a person: how these sizes are counted; empty where there are none."""
        names = ", ".join(self.sized)
        return f"sizes that follow from data are counted as in the trace: behind {names}" if names else ""


class Noting(Watching):
    """Notes the decisions of a network while it runs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.decisions = Decisions()
        self._learned = WeakIdKeyDictionary()
        for tensor in (*network.parameters(), *network.buffers()):
            self._learned[tensor] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        learned = any(tensor in self._learned for tensor in inputs)
        if learned:
            self._learned.update((tensor, True) for tensor in outputs)
        decides = _decides(func, inputs, out)
        if decides:
            made = tuple(None if _real(leaf) else _copied(leaf) for leaf in tree_leaves(out))
            self.decisions.taken[_name(func)].append(
                Decision(_shapes(func, inputs, out), made, learned or _draws(func))
            )
        if learned and _is_sized_by_data(func, args, decides):
            self.decisions.sized[func._schema.name.split("::")[-1]] += 1
        return out


class Holding(Watching):
    """Lets a network take the noted decisions instead of its own, call by call of each operator, where they are made of
    the same shapes. `seen` are the real numbers that it would have decided on."""

    def __init__(self, decisions: Decisions) -> None:
        super().__init__()
        self.decisions = decisions
        self.seen: list[Tensor] = []
        self._calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.call(func, args, kwargs or {})

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operator's result, or the noted decision in its place. (A replay asks by itself: a mode of its own for it
        would take as long again as the comparing.)"""
        out, name = func(*args, **kwargs), _name(func)
        if name not in self.decisions.taken:
            return out
        inputs = _tensors((args, kwargs))
        if not _decides(func, inputs, out):
            return out
        noted, number = self.decisions.taken[name], self._calls[name]
        self._calls[name] += 1
        if number >= len(noted) or not noted[number].learned:
            return out
        self.seen += [tensor.detach().clone() for tensor in inputs if _real(tensor)]
        same = noted[number].shapes == _shapes(func, inputs, out)
        return _retaken(noted[number], func, out, args, kwargs) if same else out


def decisions_of(network: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Decisions:
    """What a network decides on these inputs, in the mode that it is in."""
    noting = Noting(network)
    with torch.no_grad(), noting:
        network(*args, **kwargs)
    return noting.decisions


def outputs_under(
    decisions: Decisions, network: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """The leaves of what a network puts out when it takes these decisions; then the numbers that it would have decided
    on: there may be no box to put out."""
    with Holding(decisions) as held:
        return [*tree_leaves(network(*args, **kwargs)), *held.seen]


def hold(network: nn.Module, decisions: Mapping[bool, Decisions]) -> Callable[[], None]:
    """Let `network`, and all copies made of it from now on, run under these decisions, by training mode. What they
    return becomes (output, the numbers that they would have decided on). Returns what ends it for `network` itself."""
    running: list[Holding] = []

    def enter(module: nn.Module, _: Any) -> None:
        running.append(Holding(decisions[module.training]))
        running[-1].__enter__()

    def leave(_: nn.Module, __: Any, output: Any) -> Any:
        held = running.pop()
        held.__exit__(None, None, None)
        return output, held.seen

    handles = network.register_forward_pre_hook(enter), network.register_forward_hook(leave, always_call=True)

    def end() -> None:
        for handle in handles:
            handle.remove()

    return end


def _retaken(decision: Decision, func: Any, out: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """An operator's result with the noted decision in place of its own; values that were selected follow."""
    if not isinstance(out, (tuple, list)):
        return _copied(decision.made[0])
    if not _selects(func):
        return tuple(o if m is None else _copied(m) for o, m in zip(out, decision.made, strict=True))
    indices, dim = _copied(decision.made[1]), _argument(func, "dim", args, kwargs)
    keeps = indices.dim() == args[0].dim()  # max and the like drop the dimension
    values = torch.gather(args[0], dim, indices if keeps else indices.unsqueeze(dim))
    return values if keeps else values.squeeze(dim), indices


def _decides(func: Any, inputs: list[Tensor], out: Any) -> bool:
    """Whether an operator makes something that is not real of real tensors, or of chance. (Pooling with indices does
    not decide: the indices only serve its gradient.)"""
    if _aliases(func) or not (_draws(func) or any(map(_real, inputs))):
        return False
    leaves = tree_leaves(out)
    return _selects(func) or (bool(leaves) and not any(_real(leaf) or leaf is None for leaf in leaves))


@cache
def _name(func: Any) -> str:
    return str(func)


@cache
def _aliases(func: Any) -> bool:
    return any(result.alias_info is not None for result in func._schema.returns)


@cache
def _draws(func: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in func.tags


@cache
def _selects(func: Any) -> bool:
    """topk, sort, max with a dimension ...: values, and where they stood."""
    return [result.name for result in func._schema.returns] == ["values", "indices"]


def _is_sized_by_data(func: Any, args: Any, decides: bool) -> bool:
    """By torch's own tags; operators of other libraries, which carry none, where they decide (`torchvision::nms`)."""
    if func._schema.name == "aten::index":  # whole numbers as indices have a shape; masks do not say how many they pick
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return bool(_SIZED_BY_DATA & set(func.tags)) or (decides and not func._schema.name.startswith("aten::"))


def _argument(func: Any, name: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
    for position, argument in enumerate(func._schema.arguments):
        if argument.name == name:
            return args[position] if position < len(args) else kwargs.get(name, argument.default_value)
    raise AssertionError(f"{func} has no argument {name}")


def _tensors(tree: Any) -> list[Tensor]:
    """Those among an operator's arguments or results. (`tree_leaves` takes 1.6 times as long; this runs at every
    operator.)"""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors(part)]


def _shapes(func: Any, inputs: list[Tensor], out: Any) -> tuple[tuple[int, ...], ...]:
    """What tells one call from another: the inputs' shapes; where chance draws, what is drawn."""
    return tuple(tuple(tensor.shape) for tensor in (*inputs, *(_tensors(out) if _draws(func) else ())))


def _real(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
