"""The supernet: the original's own forward, run with sliced and scaled parameters at any draw.

Mixing candidates by zero extension is a factor m_c on channel c, folded into the last affine before the channel is
summed over (`tas.tracing.folding`), so several candidates cost as much as the widest of them, and a draw needs no
change of the graph. Depth is mixed alike: the affine that ends a residual branch is scaled by the weight of the depths
that keep its block, and a block that none keeps is not run; so are the branches of a transformer block, each by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import functional_call
from torch.utils.checkpoint import CheckpointFunction

from tas.distribution import Draw, Pick, multiplied, one_hot
from tas.elastic import extension_mask
from tas.errors import BadNetwork
from tas.feeding import Fed, feeding, times
from tas.space import SearchSpace
from tas.tracing import Traced, as_call
from tas.tracing.copying import copy_sharing
from tas.tracing.identity import Array, Rows
from tas.tracing.leaves import memory_of
from tas.tracing.regions import Removal
from tas.tracing.slicing import Cut, apply_cut, unfused, write_cut
from tas.tracing.undoing import unchanged

_REMEMBERED = 64  # plans of architectures that are kept: a score runs one many times, a search each once


@dataclass(frozen=True)
class _Plan:
    """How to run at certain widths: kept units, kept part of every tensor, which of these must be one piece of memory,
    attributes of layers by module."""

    mask: Array
    cuts: dict[str, Cut]
    dense: frozenset[str]
    attributes: dict[str, dict[str, Any]]


class Supernet(nn.Module):
    """A copy of a traced network that runs at any draw: `supernet(x, draw)`.

    `x`: a tensor, a tuple of positional or a dict of keyword arguments. `draw`: a `Pick` for every choice (then the
    gradient of the loss reaches the weights of the picks), or an architecture. In train mode, running statistics of the
    channels in use are updated. The original is not touched.
    """

    def __init__(self, traced: Traced) -> None:
        super().__init__()
        self.network = copy_sharing(traced.network)
        self._traced = traced
        self._plans: dict[tuple[int, ...], _Plan] = {}
        self._stand_ins: dict[Removal, nn.Module] = {}
        self._note_tensors()

    def _note_tensors(self) -> None:
        self._tensors: dict[str, Tensor] = {}  # by first name
        self._first_name: dict[int, str] = {}
        for named in (self.network.named_parameters(), self.network.named_buffers()):
            for name, tensor in named:
                self._tensors[name] = tensor
                self._first_name[id(tensor)] = name
        self._buffer_names = frozenset(dict(self.network.named_buffers()))
        self._slots: dict[tuple[str, ...], list[tuple[str, str]]] = {}

    @property
    def space(self) -> SearchSpace:
        return self._traced.space

    def current(self) -> Traced:
        """The trace with the supernet's present weights."""
        return replace(self._traced, network=self.network)

    def weight_parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    def frozen_weights(self) -> AbstractContextManager[None]:
        """Without gradients of the weights, for the architecture step: only the picks' weights need one."""
        return without_gradients(self.weight_parameters())

    def forward(self, x: Any, draw: Draw | Mapping[str, int]) -> Any:
        picks = self._picks(draw)
        widest = {name: pick.values[-1] for name, pick in picks.items()}
        dead = self._traced.dead(widest)
        plan = self._plan(widest)
        cuts = plan.cuts
        tensors = {name: apply_cut(self._tensors[name], cut) for name, cut in cuts.items()}
        tensors |= {name: tensors[name].contiguous() for name in plan.dense}
        buffers = {name: tensors[name] for name in cuts if name in self._buffer_names}
        copied = {name: part for name, part in buffers.items() if not _same_memory(part, self._tensors[name])}
        factors = self._factors(picks)
        self._scale_widths(tensors, factors, plan.mask)
        self._scale_branches(tensors, picks)
        args, kwargs = as_call(x)
        caching = [self.network.get_submodule(name) for name in self._traced.caching]
        fed = feeding(self.network, self._fed(factors, plan.mask, dead))  # by names that hold before blocks are gone
        with unchanged(caching), fed, self._as_drawn(plan.attributes, dead), without_checkpointing():
            places = self._slots_without(tuple(removal.module for removal in dead))
            swapped = {place: tensors[name] for place, name in places if name in tensors}
            output = functional_call(self.network, swapped, args, kwargs, tie_weights=False)
        if self.network.training:
            self._write_back(copied, cuts)
        return output

    def _picks(self, draw: Draw | Mapping[str, int]) -> Draw:
        if all(isinstance(value, Pick) for value in draw.values()):
            return draw  # type: ignore[return-value]
        self.space.indices(draw)  # type: ignore[arg-type]
        return one_hot(draw)  # type: ignore[arg-type]

    def _slots_without(self, dead: tuple[str, ...]) -> list[tuple[str, str]]:
        """Every place of a tensor in the modules that are there, each module under one name, with the tensor's first
        name. (torch ties names by itself, but puts a module with two names back wrongly.)"""
        if dead not in self._slots:
            if len(self._slots) >= _REMEMBERED:
                self._slots.pop(next(iter(self._slots)))
            self._slots[dead] = [
                (f"{name}.{key}" if name else key, self._first_name[id(tensor)])
                for name, module in self.network.named_modules()
                for key, tensor in (*module._parameters.items(), *module._buffers.items())
                if id(tensor) in self._first_name  # a forward may put another buffer in its place
            ]
        return self._slots[dead]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        applied = super()._apply(fn, recurse)
        self._note_tensors()  # .to(device) may replace tensors
        return applied

    def _plan(self, widest: Mapping[str, int]) -> _Plan:
        """How to run when each width has this many units."""
        key = tuple(widest[choice.name] for choice in self.space.choices if choice.kind == "width")
        if key not in self._plans:
            mask = self._traced.keep_mask(widest)
            cuts = {name: cut for name, cut in self._traced.cuts(mask).items() if name in self._tensors}
            if len(self._plans) >= _REMEMBERED:
                self._plans.pop(next(iter(self._plans)))
            dense = frozenset(name for name, cut in cuts.items() if any((name, d) in self._traced.joined for d in cut))
            self._plans[key] = _Plan(mask, cuts, dense, self._traced.attributes(self.network, cuts, mask))
        return self._plans[key]

    def _factors(self, picks: Draw) -> dict[str, Tensor]:
        """The factor of every unit in use, by group; none where a single candidate is picked."""
        found = {}
        for name in self._traced.folds:
            group = self._traced.groups[name]
            pick = multiplied([(picks[choice], power) for choice, power in group.choices], group.times)
            if pick.weights is not None and len(pick.values) > 1:
                found[name] = extension_mask(pick.values, pick.weights)
        return found

    def _scale_widths(self, tensors: dict[str, Tensor], factors: Mapping[str, Tensor], mask: Array) -> None:
        for group, factor in factors.items():
            known: dict[int, Tensor] = {}
            for name, dim in self._traced.folds[group].sites:
                rows = self._traced.rows[name][dim]
                if id(rows) not in known:
                    known[id(rows)] = self._spread(factor, rows, group, mask)
                tensors[name] = times(tensors.get(name, self._tensors[name]), known[id(rows)], dim)

    def _fed(self, factors: Mapping[str, Tensor], mask: Array, dead: list[Removal]) -> list[Fed]:
        """The factors on what modules and functions are given, where no parameter takes them; not in what is dead."""
        fed = [(feed, group) for group in factors for feed in self._traced.folds[group].feeds]
        if fed and dead:
            gone, every = tuple(f"{removal.module}." for removal in dead), self.network.named_modules
            alive = {id(m) for name, m in every(remove_duplicate=False) if not f"{name}.".startswith(gone)}
            fed = [(feed, group) for feed, group in fed if id(self.network.get_submodule(feed.module)) in alive]
        return [(feed, self._spread(factors[group], feed.rows, group, mask)) for feed, group in fed]

    def _spread(self, factor: Tensor, rows: Rows, group: str, mask: Array) -> Tensor:
        """The factor of every kept position of a dimension: that of its unit of `group`, 1 where it has none."""
        assert rows is not None
        kept = rows[mask[rows].all(1)] - self._traced.first[group]
        if kept.shape[1] == 1 and len(kept) == len(factor) and (kept[:, 0] == np.arange(len(kept))).all():
            return factor  # the dimension is the choice itself
        mine = (kept >= 0) & (kept < len(factor))
        unit = torch.from_numpy(np.where(mine, kept, len(factor))).to(factor.device)
        return torch.cat([factor, factor.new_ones(1)])[unit].prod(1)

    def _scale_branches(self, tensors: dict[str, Tensor], picks: Draw) -> None:
        for choice, modules in self._traced.runs.items():
            pick = picks[choice]
            if pick.weights is None:
                continue
            for index, module in enumerate(modules[: pick.values[-1]]):
                if index < pick.values[0]:
                    continue  # every candidate keeps it
                alive = pick.weights[next(k for k, value in enumerate(pick.values) if value > index) :].sum()
                for name, _ in self._traced.branch_folds[module]:
                    tensors[name] = tensors.get(name, self._tensors[name]) * alive

    @contextmanager
    def _as_drawn(self, attributes: Mapping[str, dict[str, Any]], dead: list[Removal]) -> Iterator[None]:
        """With the layers' attributes as the cuts need them, and without the dead blocks and branches."""
        gone = [removal.module for removal in dead]
        for name, off in unfused(self.network, gone).items():
            attributes = {**attributes, name: {**attributes.get(name, {}), **off}}
        modules = {name: self.network.get_submodule(name) for name in (*attributes, *gone)}
        before = [(modules[name], {key: getattr(modules[name], key) for key in a}) for name, a in attributes.items()]
        try:
            for name, wanted in attributes.items():
                for key, value in wanted.items():
                    setattr(modules[name], key, value)
            for removal in dead:
                if removal not in self._stand_ins:
                    self._stand_ins[removal] = removal.stand_in()
                self.network.set_submodule(removal.module, self._stand_ins[removal])
            yield
        finally:
            for name in gone:
                self.network.set_submodule(name, modules[name])
            for module, values in before:
                for key, value in values.items():
                    setattr(module, key, value)

    def _write_back(self, copied: Mapping[str, Tensor], cuts: Mapping[str, Cut]) -> None:
        """What a forward writes into a copy of a buffer, running statistics of channels that do not lead it say."""
        with torch.no_grad():
            for name, part in copied.items():
                if _may_be_written(part):
                    write_cut(self._tensors[name], cuts[name], part)


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """A checkpointed module would run again in the backward pass, when the parameters of the draw are gone: a crash, or
    gradients that are wrong without one."""
    why = (
        "a search cannot run modules under torch.utils.checkpoint: they run again in the backward pass, with other "
        "widths; switch gradient checkpointing off for the search"
    )

    def refuse(*_: Any) -> Any:
        raise BadNetwork(why)

    reentrant = CheckpointFunction.apply
    CheckpointFunction.apply = refuse
    try:
        with disable_saved_tensors_hooks(why):
            yield
    except RuntimeError as error:
        if str(error) == why:
            raise BadNetwork(why) from error
        raise
    finally:
        CheckpointFunction.apply = reentrant


def _may_be_written(part: Tensor) -> bool:
    """torch counts what is written into a tensor, but for the running statistics of norms, which are vectors."""
    return part.dim() == 1 or part.is_inference() or part._version > 0


def _same_memory(part: Tensor, whole: Tensor) -> bool:
    return memory_of(part) == memory_of(whole)


@contextmanager
def without_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Inside, no gradients of these parameters are computed."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
