"""Depth: residual modules that can be left out, and the runs that they form."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from tas.tracing.identity import Rows
from tas.tracing.recording import Call, Record, Recorder, Value


@dataclass(frozen=True)
class Region:
    """A module that returns its input plus a branch: `branch` is the operand of the addition that it computes."""

    module: str
    first: int
    last: int
    branch: Value
    reads: int  # the record that made its input
    makes: int  # the record that made its output


def find_regions(recorder: Recorder) -> list[Region]:
    """Innermost modules, called once, whose input and output agree in shape and identities and that hold an addition
    of which both operands descend from the input, one of them through a convolution or product."""
    called = Counter(call.module for call in recorder.calls)
    found = []
    for call in recorder.calls:
        if call.module and called[call.module] == 1 and _keeps_identities(recorder, call):
            branch = _branch(recorder, call)
            if branch is not None:
                found.append(
                    Region(call.module, call.first, call.last, branch, call.input.made_by, call.output.made_by)
                )
    names = [region.module for region in found]
    inner = [r for r in found if not any(name.startswith(f"{r.module}.") for name in names)]
    return sorted(inner, key=lambda region: region.first)


def chain(regions: list[Region]) -> list[list[Region]]:
    """Runs of regions that feed one another directly."""
    runs: list[list[Region]] = []
    for region in regions:
        if runs and runs[-1][-1].makes == region.reads:
            runs[-1].append(region)
        else:
            runs.append([region])
    return runs


def _keeps_identities(recorder: Recorder, call: Call) -> bool:
    if call.input.shape != call.output.shape or call.first == call.last or not call.output.real:
        return False
    return all(_same(recorder, a, b) for a, b in zip(call.input.rows, call.output.rows, strict=True))


def _same(recorder: Recorder, a: Rows, b: Rows) -> bool:
    a, b = recorder.identities.canonical(a), recorder.identities.canonical(b)
    if a is None or b is None:
        return a is None and b is None
    return a.shape == b.shape and bool(np.array_equal(np.sort(a, 1), np.sort(b, 1)))


def _branch(recorder: Recorder, call: Call) -> Value | None:
    given = call.input_descends_from
    inside = ((1 << call.last) - 1) ^ ((1 << call.first) - 1)
    for record in recorder.records[call.first : call.last]:
        operands = _operands(record)
        if record.operator.rstrip("_") != "add" or len(operands) != 2:
            continue
        (left, value_left), (right, value_right) = operands
        if given and ((left & given) != given or (right & given) != given):
            continue  # a bias or a constant does not descend from the module's input
        left, right = left & inside, right & inside
        if left == right or (left & right) not in (left, right):
            continue
        short, value, long = (left, value_right, right) if (left & right) == left else (right, value_left, left)
        heavy = long & ~short
        if any(r.flow == "product" and heavy >> r.index & 1 for r in recorder.records[call.first : call.last]):
            return value
    return None


def _operands(record: Record) -> list[tuple[int, Value]]:
    return [(bits, value) for bits, value in zip(record.input_before, record.inputs, strict=True) if value.shape]
