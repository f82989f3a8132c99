"""Proof by replay: networks cut at several architectures are run, and every operator must give the predicted shape.

Where one does not, the attribute that holds the size is looked for (`attributes`); where there is none, identities give
way (`repair`) and everything is worked out again. What comes out has run at every architecture that was tried.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tas.tracing.attributes import AttributeRule, candidates, for_peers, in_units, set_integer
from tas.tracing.identity import Array
from tas.tracing.recording import Axis, Record, Recorder, Site, fractions, plain_attention
from tas.tracing.repair import give_way
from tas.tracing.slicing import copy_sharing
from tas.tracing.units import Units

if TYPE_CHECKING:
    from tas.tracing import Traced

# contiguity and sizes of one decide whether these appear: never compare on them
_COMES_AND_GOES = {"clone", "_to_copy", "alias", "detach", "lift_fresh", "contiguous", "copy_"}
_ALIKE = {"_unsafe_view": "view", "_reshape_alias": "view", "reshape": "view", "unsafe_split": "split"}
_TRIES = 60  # attributes tried at one operator before identities give way


def prove(recorder: Recorder, units: Units, traced: Traced, rules: list[AttributeRule]) -> bool:
    """Replay the smallest and three random architectures until all of them hold with the same attribute rules. New
    rules are added to `rules`; False where identities changed, so that the widths have to be worked out anew."""
    disproved: list[AttributeRule] = []
    masks = _masks(traced)
    held = 0
    for mask in cycle(masks):
        proof = _Proof(recorder, units, replace(traced, attribute_rules=in_units(rules, units)), mask, rules, disproved)
        if not proof.holds():
            return False
        held = 1 if proof.new else held + 1
        if held == len(masks):
            break
    return True


def _masks(traced: Traced) -> list[Array]:
    generator = np.random.default_rng(0)
    picks = [{c.name: int(generator.choice(c.candidates)) for c in traced.space.choices} for _ in range(3)]
    picks.insert(1, {c.name: c.candidates[0] for c in traced.space.choices})
    return [traced.keep_mask(pick) for pick in picks]


class _Proof:
    """The replay of one architecture, and what it takes to make it run."""

    def __init__(
        self,
        recorder: Recorder,
        units: Units,
        traced: Traced,
        mask: Array,
        rules: list[AttributeRule],
        disproved: list[AttributeRule],
    ) -> None:
        self.recorder, self.units, self.traced, self.mask = recorder, units, traced, mask
        self.rules, self.disproved = rules, disproved  # those in force; those that failed at some architecture
        self.new: list[AttributeRule] = []
        self.network = traced.cut(mask, share=True).eval()
        self._sizes: dict[int, tuple[Any, int]] = {}

    def kept(self, axis: Axis) -> int:
        n, rows = axis
        if rows is None:
            return n
        if id(rows) not in self._sizes:
            units = self.units.rows(rows)
            self._sizes[id(rows)] = (rows, n if units is None else int(self.mask[units].all(1).sum()))
        return self._sizes[id(rows)][1]

    def holds(self) -> bool:
        """Whether the architecture runs as predicted, with rules found on the way; False where identities changed."""
        replay = self._replay()
        while replay.error is not None or not (replay.aligned or self._equals_masked(replay)):
            found = self._mend(replay)
            if found is None:
                record, error = replay.at(), replay.error or "its values differ from those of the masked network"
                if not give_way(self.recorder, record, replay.asked, self.kept, self.rules, error):
                    raise AssertionError(
                        f"the cut network fails where nothing is cut: {record.where()}: {replay.error}"
                    )
                return False
            rules, replay = found
            self.new += rules
        self._drop_coincidences()
        return True

    def _replay(self) -> _Replay:
        replay = _Replay(self.recorder, self.kept)
        with torch.no_grad(), plain_attention(), unchanged(self.network.modules()):
            replay.run(self.network, self.traced.args, self.traced.kwargs)
        return replay

    def _equals_masked(self, replay: _Replay) -> bool:
        """Where operators could not be compared to the end: whether the cut network computes what the whole one does
        with zeros for what is cut. Norms and means over channels do not, by their nature."""
        if self.traced.space.notes:
            return True
        masked = copy.deepcopy(self.traced.network).eval()
        tensors = {**dict(masked.named_parameters()), **dict(masked.named_buffers())}
        with torch.no_grad():
            for name, tensor in tensors.items():
                for dim, rows in enumerate(self.traced.rows.get(name, ())):
                    if rows is not None:
                        keep = torch.from_numpy(self.mask[rows].all(1)).to(tensor)
                        tensor.mul_(keep.reshape([-1 if d == dim else 1 for d in range(tensor.dim())]))
            with plain_attention(), unchanged(self.network.modules()):
                outputs = [tree_leaves(n(*self.traced.args, **self.traced.kwargs)) for n in (masked, self.network)]
        pairs = [(a, b) for a, b in zip(*outputs, strict=True) if isinstance(a, Tensor)]
        same = all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in pairs)
        replay.error = None if same else "the cut network computes something else"
        return same

    def _mend(self, failed: _Replay) -> tuple[list[AttributeRule], _Replay] | None:
        """Rules, new or taken back, with which the replay comes further; they are in force afterwards."""
        original = self.traced.network
        for number, rules in enumerate(candidates(self.recorder, original, failed.at(), self.kept)):
            if number >= _TRIES:
                break
            if all(any(r.same_place(k) and self._value(r) == self._value(k) for k in self.rules) for r in rules):
                continue
            if any(r.says(known) for r in rules for known in self.disproved):
                continue
            before = [(r, self._in_force(r)) for r in rules]
            self._set(rules)
            replay = self._replay()
            if replay.error is None or replay.position > failed.position:
                peers = [p for rule in rules for p in for_peers(self.recorder, original, rule, failed.at())]
                peers = [p for p in peers if not any(p.same_place(known) for known in (*self.rules, *rules))]
                self.disproved += [k for k in self.rules if any(k.same_place(r) for r in rules)]
                self.rules[:] = [k for k in self.rules if not any(k.same_place(r) for r in rules)] + rules + peers
                self._set(peers)
                return rules + peers, self._replay() if peers else replay
            for rule, value in before:
                set_integer(self.network.get_submodule(rule.module), rule.key, value)
        return None

    def _drop_coincidences(self) -> None:
        """An attribute that merely had the same value goes back: where the replay holds without it."""
        kinds = {(type(self.traced.network.get_submodule(r.module)), r.key) for r in self.new}
        for kind, key in kinds:
            group = [
                r for r in self.rules if r.key == key and type(self.traced.network.get_submodule(r.module)) is kind
            ]
            for rule in group:
                set_integer(self.network.get_submodule(rule.module), rule.key, rule.was)
            replay = self._replay()
            if replay.error is None and replay.aligned:
                self.rules[:] = [r for r in self.rules if r not in group]
                self.new = [r for r in self.new if r not in group]
            else:
                self._set(group)

    def _value(self, rule: AttributeRule) -> int:
        return rule.was * self.kept((rule.full, rule.rows)) // rule.full

    def _in_force(self, rule: AttributeRule) -> int:
        known = next((k for k in self.rules if k.same_place(rule)), None)
        return rule.was if known is None else self._value(known)

    def _set(self, rules: list[AttributeRule]) -> None:
        for rule in rules:
            set_integer(self.network.get_submodule(rule.module), rule.key, self._value(rule))


class _Differs(Exception):
    pass


class _Replay(TorchDispatchMode):
    """Compares each operator's output shapes with the prediction; goes on unaligned where operators differ."""

    def __init__(self, recorder: Recorder, kept: Callable[[Axis], int]) -> None:
        super().__init__()
        self.recorder, self.kept = recorder, kept
        self.position, self.aligned = 0, True
        self.asked: list[int] | None = None  # the sizes that a failing operator was given
        self.error: str | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see Recorder

    def run(self, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        try:
            with self:
                network(*args, **kwargs)
        except _Differs as error:
            self.error = str(error)
        except Exception as error:  # whatever the user's forward raises at a wrong size
            lines = str(error).strip().splitlines()
            self.error = f"{type(error).__name__}: {lines[0] if lines else ''}"

    def at(self) -> Record:
        """The operator that is due, or failed."""
        records = self.recorder.records
        while self.position < len(records) - 1 and records[self.position].operator in _COMES_AND_GOES:
            self.position += 1
        return records[min(self.position, len(records) - 1)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked = list(args[1]) if len(args) > 1 and isinstance(args[1], (list, tuple)) else None
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        whole = name == "alias" and self.at().operator == "slice"  # a slice up to the end or beyond
        if not self.aligned or (name in _COMES_AND_GOES and not whole):
            return out
        record = self.at()
        if _ALIKE.get(record.operator, record.operator) != _ALIKE.get(name, name) and not whole:
            self.aligned = False  # a size of one can change a decomposition: the forward still has to finish
            return out
        tensors = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        for tensor, value in zip(tensors, record.outputs, strict=False):
            wanted = tuple(self.kept(axis) for axis in value.axes())
            if tuple(tensor.shape) != wanted and value.real:
                raise _Differs(f"it gives {tuple(tensor.shape)} where {wanted} was due")
        if record.numbers != fractions((args, kwargs)):  # a scale computed from the head size, say
            self.recorder.mark_inexact(f"a number follows a width: {record.where()}")
        self.position += 1
        self.asked = None
        return out


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
def unchanged(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Puts back what a forward leaves in its modules (caches filled in eval mode hold sizes of this forward)."""
    before = [(m, dict(vars(m)), {k: copy.copy(v) for k, v in vars(m).items() if _is_store(k, v)}) for m in modules]
    try:
        yield
    finally:
        for module, values, stores in before:
            vars(module).clear()
            vars(module).update(values)
            vars(module).update(stores)


def _is_store(name: str, value: Any) -> bool:
    torchs_own = name in ("_parameters", "_buffers", "_modules") or name.endswith("_hooks")
    return isinstance(value, (dict, list)) and not torchs_own


def skips_exactly(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    folds: Mapping[str, tuple[Site, ...]],
    modules: list[str],
) -> list[str]:
    """The modules of which leaving out equals scaling the branch by 0: all at once, else one by one."""
    if not modules or _skips(network, args, kwargs, folds, modules):
        return modules
    return [module for module in modules if _skips(network, args, kwargs, folds, [module])]


def _skips(
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    folds: Mapping[str, tuple[Site, ...]],
    modules: list[str],
) -> bool:
    names = {name for module in modules for name, _ in folds[module]}
    alike = {name for name, p in network.named_parameters() if p.numel() and p.min() == p.max()}
    without = copy_sharing(network, [p for name, p in network.named_parameters() if name not in alike]).eval()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():  # zero-initialised heads and gammas would make everything equal
        for name, parameter in without.named_parameters():
            if name in alike:
                parameter.add_(torch.randn(parameter.shape, generator=noise).to(parameter), alpha=0.05)
        scaled = copy_sharing(without, [p for name, p in without.named_parameters() if name not in names])
        for name, parameter in scaled.named_parameters():
            if name in names:
                parameter.zero_()
        for module in modules:
            without.set_submodule(module, nn.Identity())
        try:
            outputs = [tree_leaves(n(*args, **kwargs)) for n in (scaled, without)]
        except Exception:  # the network needs something else of the module: it cannot be left out
            return False
    pairs = zip(*outputs, strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))
