"""Proof by replay: networks cut at several architectures are run, and every operator must give the predicted shape."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tas.tracing.identity import Array, Rows
from tas.tracing.recording import Record, Recorder, Site, plain_attention
from tas.tracing.units import Units

if TYPE_CHECKING:
    from tas.tracing import Traced

# contiguity and sizes of one decide whether these appear: never compare on them
_COMES_AND_GOES = {"clone", "_to_copy", "alias", "detach", "lift_fresh", "contiguous", "copy_"}
_ALIKE = {"_unsafe_view": "view", "_reshape_alias": "view", "reshape": "view", "unsafe_split": "split"}


def disproved(recorder: Recorder, units: Units, traced: Traced) -> list[tuple[Rows, str]]:
    """Identities to freeze because a cut network does not run as predicted; empty where all is proved."""
    for mask in _masks(traced):
        network = traced.cut(mask)
        replay = _Replay(recorder, units, mask)
        try:
            with torch.no_grad(), plain_attention(), replay:
                network(*traced.args, **traced.kwargs)
        except _Differs as error:
            wrong = replay.suspects(str(error))
        except Exception as error:
            wrong = replay.suspects(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        else:
            continue
        if not wrong:
            raise AssertionError(f"the cut network fails where nothing is cut: {replay.at().where()}")
        return wrong
    return []


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
    scaled, without = copy.deepcopy(network).eval(), copy.deepcopy(network).eval()
    names = {name for module in modules for name, _ in folds[module]}
    with torch.no_grad():
        for module in modules:
            without.set_submodule(module, nn.Identity())
        for name, parameter in scaled.named_parameters():
            if name in names:
                parameter.zero_()
        try:
            outputs = [tree_leaves(n(*args, **kwargs)) for n in (scaled, without)]
        except Exception:  # the network needs something else of the module: it cannot be left out
            return False
    pairs = zip(*outputs, strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))


def _masks(traced: Traced) -> list[Array]:
    """The smallest network and three random ones."""
    generator = np.random.default_rng(0)
    picks = [{c.name: c.candidates[0] for c in traced.space.choices}]
    picks += [{c.name: int(generator.choice(c.candidates)) for c in traced.space.choices} for _ in range(3)]
    return [traced.keep_mask(pick) for pick in picks]


class _Differs(Exception):
    pass


class _Replay(TorchDispatchMode):
    """Compares each operator's output shapes with the prediction; goes on unaligned where operators differ."""

    def __init__(self, recorder: Recorder, units: Units, mask: Array) -> None:
        super().__init__()
        self.recorder, self.units, self.mask = recorder, units, mask
        self.position, self.aligned = 0, True

    def at(self) -> Record:
        return self.recorder.records[min(self.position, len(self.recorder.records) - 1)]

    def _skip_comings_and_goings(self) -> None:
        while self.position < len(self.recorder.records) - 1 and self.at().operator in _COMES_AND_GOES:
            self.position += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[-1]
        if not self.aligned or name in _COMES_AND_GOES:
            return out
        self._skip_comings_and_goings()
        record = self.at()
        if _ALIKE.get(record.operator, record.operator) != _ALIKE.get(name, name):
            self.aligned = False  # a size of one can change a decomposition: the forward still has to finish
            return out
        tensors = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        for tensor, value in zip(tensors, record.outputs, strict=False):
            wanted = tuple(self._kept(n, rows) for n, rows in value.axes())
            if tuple(tensor.shape) != wanted and value.real:
                raise _Differs(f"it gives {tuple(tensor.shape)} where {wanted} was due")
        self.position += 1
        return out

    def _kept(self, n: int, rows: Rows) -> int:
        units = self.units.rows(rows)
        return n if units is None else int(self.mask[units].all(1).sum())

    def suspects(self, what: str) -> list[tuple[Rows, str]]:
        """The dimensions at the failing operator that this architecture cuts: outputs first, else inputs, else the
        nearest operator before it that has any."""
        self._skip_comings_and_goings()
        records = self.recorder.records
        for index in range(min(self.position, len(records) - 1), -1, -1):
            record = records[index]
            for values in (record.outputs, record.inputs):
                cut = [rows for v in values for n, rows in v.axes() if rows is not None and self._kept(n, rows) != n]
                if cut:
                    return [(rows, f"the code does not follow its size: {what}: {record.where()}") for rows in cut]
        return []


