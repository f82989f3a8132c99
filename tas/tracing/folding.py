"""Where a factor on channels can be folded into parameters.

A supernet mixes candidate widths by zero extension: channel c counts with m_c, the summed weight of the candidates that
have it. A factor before a norm is normalised away, so it belongs on the last affine before the channel is summed over
by a convolution or product: gamma and beta of the norm, or rows and bias of the layer itself where no norm follows.
Where no such place serves (an operator in between does not keep zero at zero), the columns of the reading layer do.
"""

from __future__ import annotations

from collections.abc import Callable

from tas.tracing.recording import Record, Recorder, Site, Value
from tas.tracing.regions import Region
from tas.tracing.units import Units

Carries = Callable[[Value], bool]


def fold_widths(recorder: Recorder, units: Units) -> dict[str, tuple[Site, ...]]:
    """For every width choice, the parameter dimensions that its channel factors multiply."""
    carried = _Carried(units)
    return {choice.name: _fold_width(recorder, carried, choice.name) for choice in units.choices}


def fold_region(recorder: Recorder, region: Region) -> tuple[Site, ...]:
    """The parameter dimensions whose scaling scales every branch of a residual region; empty where there are none."""
    makers: list[Record] = []
    for branch in region.branches:
        found = _upstream(recorder, branch, lambda value: True)
        if not found or any(not region.first <= r.index < region.last for r in found):
            return ()
        makers += found
    sites = {site for record in makers for site in record.scales}
    shared = [r for r in recorder.records if r not in makers and sites & set(r.scales)]
    return () if shared else tuple(sorted(sites))


class _Carried:
    """Which choices decide about the positions of a value, remembered by value."""

    def __init__(self, units: Units) -> None:
        self._units = units
        self._known: dict[int, tuple[Value, frozenset[str]]] = {}

    def __call__(self, value: Value) -> frozenset[str]:
        if id(value) not in self._known:
            names = frozenset(name for rows in value.rows for name in self._units.choices_of(rows))
            self._known[id(value)] = (value, names)
        return self._known[id(value)][1]

    def summed(self, record: Record) -> list[tuple[int, frozenset[str], Site | None]]:
        return [(index, self._units.choices_of(rows), site) for index, rows, site in record.contracted]


def _fold_width(recorder: Recorder, carried: _Carried, choice: str) -> tuple[Site, ...]:
    def carries(value: Value) -> bool:
        return value.real and choice in carried(value)

    makers: list[Record] = []
    for record in recorder.records:
        for index, names, _ in carried.summed(record):
            if choice in names:
                makers += _upstream(recorder, record.inputs[index], carries) or []
    marked = {record.index for record in makers}
    while True:
        factored, conflict = _spread(recorder, carried, choice, marked)
        if not conflict:
            break
        marked -= conflict  # a norm would meet the factor: those that read behind it take it in their columns
    sites = [site for record in recorder.records if record.index in marked for site in record.scales]
    for record in recorder.records:
        for index, names, column in carried.summed(record):
            if choice in names and record.inputs[index].made_by not in factored and column is not None:
                sites.append(column)
    return tuple(dict.fromkeys(sites))


def _upstream(recorder: Recorder, value: Value, carries: Carries) -> list[Record] | None:
    """The records that last scaled every channel of a value, or None where some part of it has no such record."""
    makers: dict[int, Record] = {}
    waiting, seen = [value], set()
    while waiting:
        made_by = waiting.pop().made_by
        if made_by in seen:
            continue
        seen.add(made_by)
        if made_by < 0:
            return None
        record = recorder.records[made_by]
        sources = [v for v in record.inputs if carries(v)]
        if record.flow in ("norm", "product"):
            if not record.scales:
                return None
            makers[made_by] = record
        elif record.flow == "multiply":
            paths = [_upstream(recorder, v, carries) for v in sources]
            found = next((path for path in paths if path), None)
            if found is None:
                return None
            makers.update({r.index: r for r in found})
        elif record.flow == "pass" or (record.flow == "add" and len(sources) == len(record.inputs)):
            waiting += sources
        else:
            return None
    return list(makers.values())


def _spread(recorder: Recorder, carried: _Carried, choice: str, marked: set[int]) -> tuple[set[int], set[int]]:
    """Which records' outputs carry the factor when the records `marked` apply it, and which of the marked must not:
    those whose factor would reach a norm or another marked record, is added to a value without it, or met twice."""
    comes_from: dict[int, set[int]] = {}
    conflict: set[int] = set()
    for record in recorder.records:
        source: set[int] = set()
        lacking = twice = False
        for value in record.inputs:
            if value.real and choice in carried(value):
                reaches = comes_from.get(value.made_by, set())
                twice = twice or bool(source and reaches)
                source |= reaches
                lacking = lacking or not reaches
        summed = any(choice in names for _, names, _ in carried.summed(record))
        if source and (record.flow == "norm" or (record.index in marked and not summed)):
            conflict |= source
        if source and ((record.flow == "add" and lacking) or (record.flow == "multiply" and twice)):
            conflict |= source
        if source and record.flow == "product" and not summed and len(record.scales) > 1:
            conflict |= source  # a depthwise layer with a bias: the bias would lack the factor
        makes = any(choice in carried(value) for value in record.outputs)
        if record.index in marked:
            comes_from[record.index] = {record.index}
        elif source and not summed and makes and record.flow != "other":
            comes_from[record.index] = source
    return set(comes_from), conflict
