"""How the channel factor of a choice gets from the records that apply it to those that sum over its channels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Set
from dataclasses import dataclass
from itertools import islice

from tas.tracing.identity import Array
from tas.tracing.recording import Recorder
from tas.tracing.records import Record, Site, Value
from tas.tracing.units import Units

Read = tuple[int, int, int]  # a record, the place of one of its inputs, and the number of the sum: directions share it
_ZEROS = {"zeros", "new_zeros", "zeros_like"}


class Course:
    """A forward, as all factors find it: which choices decide about a value, which records have to do with a choice,
    and which use a parameter."""

    def __init__(self, recorder: Recorder, units: Units) -> None:
        self.recorder, self.units = recorder, units
        self.uses = uses_of(recorder)
        self.zeros = _zeros(recorder)
        self._known: dict[int, tuple[Value, frozenset[str]]] = {}
        self.records: dict[str, list[Record]] = defaultdict(list)
        for record in recorder.records:
            names = (units.groups_of(rows) for _, rows, _ in record.contracted)
            for name in set().union(*names, *map(self.choices, (*record.inputs, *record.outputs))):
                self.records[name].append(record)

    def choices(self, value: Value) -> frozenset[str]:
        if id(value) not in self._known:
            names = frozenset(name for rows in value.rows for name in self.units.groups_of(rows))
            self._known[id(value)] = (value, names)
        return self._known[id(value)][1]


@dataclass(frozen=True)
class Met:
    """A record that has to do with a choice: the inputs that its factor matters to, the sums over its channels with the
    columns that they meet, and whether an output has such channels."""

    record: Record
    inputs: list[Value]
    reads: dict[Read, tuple[Site, ...]]
    makes: bool


class Factor:
    """The channel factor of one choice, and all that it meets."""

    def __init__(self, course: Course, choice: str) -> None:
        self.course, self.choice, self.recorder = course, choice, course.recorder
        self.met = [self._met(record) for record in course.records[choice]]

    def _met(self, record: Record) -> Met:
        reads = {
            (record.index, place, number): sites
            for number, (place, rows, sites) in enumerate(record.contracted)
            if self.choice in self.course.units.groups_of(rows)
        }
        makes = any(self.choice in self.course.choices(value) for value in record.outputs)
        return Met(record, [value for value in record.inputs if self.on(value)], reads, makes)

    def on(self, value: Value) -> bool:
        """Whether the factor matters to a value."""
        return value.real and value.made_by not in self.course.zeros and self.choice in self.course.choices(value)

    def dims(self, value: Value) -> list[int]:
        """The dimensions of a value whose positions the choice decides about."""
        return [d for d, rows in enumerate(value.rows) if self.choice in self.course.units.groups_of(rows)]

    def scales(self, site: Site) -> bool:
        """Whether the choice decides about the positions of a parameter dimension."""
        return self.choice in self.course.units.groups_of(self.recorder.tensors[site[0]][site[1]])

    def sites(self, index: int) -> tuple[Site, ...]:
        """The parameter dimensions with which a record applies it."""
        return scaled_by(self.recorder.records[index], self.scales)

    def makers(self, value: Value, unfit: Set[int]) -> set[int]:
        """The records that apply it to a value, but for the `unfit`; none where some part of it has no such record."""
        if len(self.dims(value)) > 1:  # which of them a factor would come along is not followed
            return set()
        return {maker.index for maker in upstream(self.recorder, value, self.on, self.scales, unfit) or []}

    def units_of(self, value: Value, dim: int) -> Array:
        units = self.course.units.rows(value.rows[dim])
        assert units is not None
        return units

    def spread(self, marked: set[int]) -> tuple[dict[int, set[int]], set[int]]:
        """Which records' outputs carry the factor when the records `marked` apply it, and from which of them it comes;
        and which of the marked must not: those whose factor would reach a norm, another marked record or an operator
        that does not keep zero at zero, meets a value without it in a sum or side by side, or is met twice in a
        product."""
        reached: dict[int, set[int]] = {}
        conflict: set[int] = set()
        for met in self.met:
            record = met.record
            paths = [reached.get(value.made_by, set()) for value in met.inputs]
            source = set().union(*paths)
            if record.index in marked and _adds_bias(record):
                reached[record.index] = source | {record.index}
                scaled = (path for value, path in zip(met.inputs, paths, strict=True) if value.shown != record.scales)
                conflict |= reached[record.index] if not all(scaled) else set()
            elif record.index in marked:
                reached[record.index] = {record.index}
                conflict |= source if not met.reads else set()
            elif source and met.makes and not met.reads:
                if keeps_factor(record, met.inputs, [bool(path) for path in paths]):
                    reached[record.index] = source
                else:
                    conflict |= source
        return reached, conflict


def uses_of(recorder: Recorder) -> dict[Site, set[int]]:
    """The records that do something with a parameter, other than show it: scaling it reaches all of them."""
    uses: dict[Site, set[int]] = defaultdict(set)
    for record in recorder.records:
        shown = {site for value in record.outputs for site in value.shown}
        for site in {site for value in record.inputs for site in value.shown} - shown:
            uses[site].add(record.index)
    return uses


def _zeros(recorder: Recorder) -> set[int]:
    """The records that give zeros, which any factor leaves as they are: memory that is then written into."""
    found: set[int] = set()
    for record in recorder.records:
        shown = record.flow == "pass" and record.inputs and all(value.made_by in found for value in record.inputs)
        if shown or record.operator in _ZEROS:
            found.add(record.index)
    return found


def scaled_by(record: Record, scales: Callable[[Site], bool]) -> tuple[Site, ...]:
    """The parameter dimensions, of those that `scales` names, with which every channel of an output is scaled: of the
    affine of a layer or norm, or of a parameter that is multiplied with something."""
    if record.flow != "multiply":
        return tuple(filter(scales, record.scales))
    factors = (site for value in record.inputs if value.made_by < 0 for site in value.shown if scales(site))
    return tuple(islice(factors, 1))


def upstream(
    recorder: Recorder,
    value: Value,
    carries: Callable[[Value], bool],
    scales: Callable[[Site], bool],
    unfit: Set[int] = frozenset(),
) -> list[Record] | None:
    """The records that last scaled every channel of a value by parameters that do, but for the `unfit`, or None where
    some part of it has no such record."""
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
        if made_by not in unfit and record.flow in ("norm", "product") and any(map(scales, record.scales)):
            makers[made_by] = record
        elif record.flow == "product" and _parameters(record) == 1 and len(sources) == 1:
            waiting += sources  # it scales other channels (heads, tokens), and adds nothing
        elif record.flow == "multiply":
            paths = [upstream(recorder, v, carries, scales, unfit) for v in sources]
            own = [record] if made_by not in unfit and scaled_by(record, scales) else None
            found = next((path for path in paths if path), own)
            if found is None:
                return None
            makers.update({r.index: r for r in found})
        elif _adds_bias(record) and made_by in unfit:
            return None
        elif record.flow == "pass" or (record.flow == "add" and len(sources) == len(record.inputs)):
            makers |= {made_by: record} if _adds_bias(record) else {}
            waiting += [v for v in sources if not (_adds_bias(record) and v.shown == record.scales)]
        else:
            return None
    return list(makers.values())


def _parameters(record: Record) -> int:
    """How many scale its output: a weight, or a bias as well."""
    return len({name for name, _ in record.scales})


def _adds_bias(record: Record) -> bool:
    """Whether it adds a parameter alone: the factor of what it is added to has to be on both."""
    return record.flow == "add" and bool(record.scales)


def keeps_factor(record: Record, mine: list[Value], factored: list[bool]) -> bool:
    """Whether the output carries the factor once, given which of the inputs that have these channels carry it."""
    if record.flow == "add":
        return all(factored) and len(mine) == len(record.inputs)
    if record.flow == "multiply":
        return sum(factored) == 1
    if record.flow == "pass":
        slopes = "prelu" in record.operator  # they are no operand
        return all(f or (slopes and bool(value.shown)) for f, value in zip(factored, mine, strict=True))
    return record.flow == "product" and _parameters(record) < 2  # the bias of a depthwise layer would lack the factor
