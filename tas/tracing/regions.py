"""Depth: residual modules that can be left out, what stands in for them, and the runs that they form."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import nn

from tas.stand_in import stand_in
from tas.tracing.identity import Rows
from tas.tracing.recording import Recorder
from tas.tracing.records import Call, Record, Value
from tas.tracing.slicing import unfused


@dataclass(frozen=True)
class Removal:
    """A module that is left out, with its records first..last-1: what stands in for it gives back what the module is
    given, or zeros of that shape."""

    module: str
    first: int
    last: int
    zeros: bool
    argument: int | str
    alone: bool
    nones: int

    @classmethod
    def of(cls, call: Call, zeros: bool) -> Removal:
        return cls(call.module, call.first, call.last, zeros, call.argument, call.alone, call.nones)

    def stand_in(self) -> nn.Module:
        return stand_in(self.zeros, self.argument, self.nones, self.alone)


def leave_out(network: nn.Module, removals: Iterable[Removal]) -> None:
    """Put what stands in for modules in their places."""
    removals = list(removals)
    for name, attributes in unfused(network, [removal.module for removal in removals]).items():
        vars(network.get_submodule(name)).update(attributes)
    for removal in removals:
        network.set_submodule(removal.module, removal.stand_in())


@dataclass(frozen=True)
class Region:
    """What can be left out as one: a module that returns its input plus `branches`, the operands of its additions that
    it computes; or the modules that compute one branch (`tas.tracing.halves`). Records first..last-1 belong to it."""

    module: str
    first: int
    last: int
    branches: tuple[Value, ...]
    reads: int  # the record that made its input
    makes: int  # the record that made its output
    removed: tuple[Removal, ...]


def find_regions(recorder: Recorder) -> list[Region]:
    """Innermost modules, called once, whose input and output agree in shape and identities and that hold an addition
    of its input and something computed from it by a convolution or product. Further arguments (a mask) and None behind
    the output are no hindrance; tensors behind the output, or the input as another than the first argument, are."""
    found = []
    for call in calls_of_one(recorder):
        if keeps_identities(recorder, call):
            branches = _branches(recorder, call)
            if branches:
                ends, removed = (call.input.made_by, call.output.made_by), (Removal.of(call, zeros=False),)
                found.append(Region(call.module, call.first, call.last, branches, *ends, removed))
    names = [region.module for region in found]
    inner = [r for r in found if not any(name.startswith(f"{r.module}.") for name in names)]
    return sorted(inner, key=lambda region: region.first)


def calls_of_one(recorder: Recorder) -> list[Call]:
    """The calls of modules that are called once and can go as a whole: neither they nor layers inside have a second
    name elsewhere, under which they would stay. (A layer that is called by each of its names goes with the last.)"""
    called = Counter(span.module for span in recorder.spans)
    paths: dict[nn.Module, list[str]] = {}
    for name, module in recorder.network.named_modules(remove_duplicate=False):
        paths.setdefault(module, []).append(name)
    shared = [(module, names) for module, names in paths.items() if len(names) > 1]
    weighty = [n for module, n in shared if called[n[0]] < len(n) and any(True for _ in module.parameters())]
    taken = {name for _, names in shared for name in names}

    def whole(name: str) -> bool:
        inside = ([path.startswith(f"{name}.") for path in names] for names in weighty)
        return name not in taken and not any(any(part) and not all(part) for part in inside)

    return [call for call in recorder.calls if call.module and called[call.module] == 1 and whole(call.module)]


def chain(regions: list[Region]) -> list[list[Region]]:
    """Runs of regions that feed one another directly."""
    runs: list[list[Region]] = []
    ends: dict[int, list[Region]] = {}  # by the record that made the output of a run's last region
    for region in regions:
        run = ends.pop(region.reads, None)
        if run is None:
            run = []
            runs.append(run)
        run.append(region)
        ends[region.makes] = run
    return runs


def keeps_identities(recorder: Recorder, call: Call) -> bool:
    if call.input.shape != call.output.shape or call.first == call.last or not call.output.real:
        return False
    return all(_same(recorder, a, b) for a, b in zip(call.input.rows, call.output.rows, strict=True))


def _same(recorder: Recorder, a: Rows, b: Rows) -> bool:
    a, b = recorder.identities.canonical(a), recorder.identities.canonical(b)
    if a is None or b is None:
        return a is None and b is None
    return a.shape == b.shape and bool(np.array_equal(np.sort(a, 1), np.sort(b, 1)))


def _branches(recorder: Recorder, call: Call) -> tuple[Value, ...]:
    """What is added to the trunk, the path on which the input itself goes through: it may be added to several times
    (attention, then the rest of a transformer block). Empty where the output is not the trunk's end."""
    given = call.input_descends_from
    trunk, branches = {call.input.made_by}, []
    for record in recorder.records[call.first : call.last]:
        operands = operands_of(record)
        on_trunk = [value.made_by in trunk for _, value in operands]
        if record.flow == "pass" and any(on_trunk):
            trunk.add(record.index)
        elif record.operator.rstrip("_") == "add" and len(operands) == 2 and sum(on_trunk) == 1:
            bits, value = operands[on_trunk.index(False)]
            heavy = any(
                r.flow == "product" and bits >> r.index & 1 for r in recorder.records[call.first : record.index]
            )
            if heavy and (bits & given) == given:  # a bias or a constant does not descend from the module's input
                trunk.add(record.index)
                branches.append(value)
    return tuple(branches) if call.output.made_by in trunk else ()


def operands_of(record: Record) -> list[tuple[int, Value]]:
    return [(bits, value) for bits, value in zip(record.input_before, record.inputs, strict=True) if value.shape]
