"""Branches of residual additions that can be left out each by itself: the halves of a transformer block.

In x + f(x) the modules of which f is made are left out: those whose output is the branch give zeros, those that feed
only them give back their input. Unlike a block in whose place nn.Identity is put, nothing on the stream goes, be it a
norm behind the addition or a relu.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from heapq import heappop, heappush

from tas.tracing.recording import Recorder
from tas.tracing.records import Call, Record, Value
from tas.tracing.regions import Region, Removal, calls_of_one, keeps_identities, operands_of

Readers = Mapping[int, set[int]]  # the records that read what a record made


def find_halves(recorder: Recorder) -> list[Region]:
    """The branches of residual additions that modules make all by themselves, each of them called once."""
    readers = _readers(recorder)
    once = [call for call in calls_of_one(recorder) if call.first < call.last]
    once.sort(key=lambda call: (call.first, -call.last, len(call.module)))
    streams: dict[int, Value] = {}  # residual addition -> the operand that is the stream
    alike: dict[object, list[int]] = defaultdict(list)  # additions of such branches, by the names of their modules
    found = []
    for record in recorder.records:
        for stream, branch in _sums(record):
            mine = _private(recorder, readers, record.index, branch)
            trunk = _trunk(recorder, streams, [stream])
            if not _is_residual(recorder, streams, mine, trunk):
                continue
            streams[record.index] = stream
            removed = _removals(recorder, readers, once, mine, record.index, branch)
            if removed:
                key = tuple(_kind(recorder, removal) for removal in removed)
                before = max((index for index in alike[key] if index in trunk), default=-1)
                alike[key].append(record.index)
                first = min(removal.first for removal in removed)
                name = _main(recorder, removed)
                found.append(Region(name, first, record.index, (branch,), before, record.index, removed))
            break
    return found


def innermost(halves: list[Region], blocks: list[Region]) -> list[Region]:
    """Without the branches that hold others, or blocks: of nested depths the inner ones are searched."""
    taken = [block.module for block in blocks] + [removal.module for half in halves for removal in half.removed]

    def holds(half: Region) -> bool:
        own = [removal.module for removal in half.removed]
        return any(other.startswith(f"{name}.") for name in own for other in taken) or any(
            block.module in own for block in blocks
        )

    return [half for half in halves if not holds(half)]


def whole_blocks(blocks: list[Region], halves: list[Region]) -> list[Region]:
    """Without the blocks of several branches, each of which can be left out alone."""
    alone = {branch.made_by for half in halves for branch in half.branches}
    return [b for b in blocks if len(b.branches) < 2 or any(branch.made_by not in alone for branch in b.branches)]


def outside(halves: list[Region], blocks: list[Region]) -> list[Region]:
    """The branches that are no part of these blocks."""
    return [half for half in halves if not any(block.first <= half.last < block.last for block in blocks)]


def _readers(recorder: Recorder) -> Readers:
    readers: dict[int, set[int]] = defaultdict(set)
    for record in recorder.records:
        for value in record.inputs:
            readers[value.made_by].add(record.index)
    return readers


def _sums(record: Record) -> list[tuple[Value, Value]]:
    """The operands of an addition as (stream, branch), both ways round."""
    operands = [value for _, value in operands_of(record)]
    if record.operator.rstrip("_") != "add" or len(operands) != 2:
        return []
    a, b = operands
    if a.shape != b.shape or a.made_by == b.made_by or a.shown or b.shown:
        return []
    return [(a, b), (b, a)]


def _private(recorder: Recorder, readers: Readers, addition: int, branch: Value) -> set[int]:
    """The records that nothing but the branch depends on. Later records first: a record is one of them where all its
    readers are."""
    mine: set[int] = set()
    waiting = [-branch.made_by]
    while waiting:
        index = -heappop(waiting)
        if index in mine or index < 0:
            continue
        allowed = {addition} if index == branch.made_by else mine
        if readers[index] <= allowed:
            mine.add(index)
            for value in recorder.records[index].inputs:
                heappush(waiting, -value.made_by)
    return mine


def _trunk(recorder: Recorder, streams: Mapping[int, Value], values: list[Value]) -> set[int]:
    """The records that a stream went through up to here: residual additions, norms and what keeps zero at zero; -1
    where it is an input of the network."""
    trunk: set[int] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if value.made_by in trunk or not value.real or value.shown:
            continue
        trunk.add(value.made_by)
        if value.made_by in streams:
            waiting.append(streams[value.made_by])
        elif value.made_by >= 0 and _goes_on(recorder.records[value.made_by]):
            waiting += recorder.records[value.made_by].inputs
    return trunk


def _goes_on(record: Record) -> bool:
    """Whether a stream is still itself behind an operator; scales of its own do not change that."""
    computed = [value for value in record.inputs if not value.shown]
    return record.flow in ("pass", "norm") or (record.flow == "multiply" and len(computed) == 1)


def _is_residual(recorder: Recorder, streams: Mapping[int, Value], mine: set[int], trunk: set[int]) -> bool:
    """Whether a branch is computed from the stream that it is added to, or from a norm of it."""
    given = [v for i in mine for v in recorder.records[i].inputs if v.made_by not in mine]
    return not trunk.isdisjoint(_trunk(recorder, streams, given))


def _removals(
    recorder: Recorder, readers: Readers, once: list[Call], mine: set[int], addition: int, branch: Value
) -> tuple[Removal, ...]:
    """The largest modules that make the branch by convolutions or products. None where such are left between them: they
    would go on to cost; or where shapes could come out otherwise without them at some width."""
    cover: list[Call] = []
    for call in once:
        out = call.last > addition or (bool(cover) and call.last <= cover[-1].last)
        if call.output.made_by in mine and not out and _only_feeds(readers, call, mine, branch):
            cover.append(call)
    owner = {index: call for call in cover for index in range(call.first, call.last)}
    between = [recorder.records[index] for index in mine if index not in owner]
    shapes_stay = all(keeps_identities(recorder, call) for call in cover) or all(map(_keeps_shape, between))
    heavy = any(recorder.records[index].flow == "product" for index in owner)
    if not heavy or not shapes_stay or any(record.flow == "product" for record in between):
        return ()
    last: set[str] = set()  # the modules that no other one of them stands behind
    waiting, seen = [branch.made_by], set()
    while waiting:
        index = waiting.pop()
        if index in owner:
            last.add(owner[index].module)
        elif index in mine and index not in seen:
            seen.add(index)
            waiting += [value.made_by for value in recorder.records[index].inputs]
    return tuple(Removal.of(call, call.module in last) for call in cover)


def _only_feeds(readers: Readers, call: Call, mine: set[int], branch: Value) -> bool:
    """Whether nothing but the branch reads what a module computes."""
    inside = range(call.first, call.last)
    read = {reader for index in inside if index != branch.made_by for reader in readers.get(index, ())}
    return all(reader in inside or reader in mine for reader in read)


def _keeps_shape(record: Record) -> bool:
    shapes = {value.shape for value in (*record.inputs, *record.outputs) if value.shape and not value.shown}
    return len(shapes) <= 1


def _kind(recorder: Recorder, removal: Removal) -> tuple[str, ...]:
    """What does the same in one block as in another: names that differ by the blocks' numbers, layers of the same
    classes. ("attn1" and "attn2" of one block differ.)"""
    layers = recorder.network.get_submodule(removal.module).modules()
    path, _, name = removal.module.rpartition(".")
    where = re.sub(r"\d+", "*", path), "*" if name.isdigit() else name
    return (*where, *(type(layer).__name__ for layer in layers if next(layer.parameters(), None) is not None))


def _main(recorder: Recorder, removed: tuple[Removal, ...]) -> str:
    """The module that stands for the branch in names: the last of those with most products."""

    def products(removal: Removal) -> int:
        return sum(record.flow == "product" for record in recorder.records[removal.first : removal.last])

    return max(reversed(removed), key=products).module
