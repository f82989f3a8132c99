"""Where a factor on channels can be folded into parameters.

A supernet mixes candidate widths by zero extension: channel c counts with m_c, the summed weight of the candidates that
have it. A factor before a norm is normalised away, so it belongs on the last affine before the channel is summed over
by a convolution or product: gamma and beta of the norm, or rows and bias of the layer itself where no norm follows.
Where no such place serves (an operator in between does not keep zero at zero), the columns of the reading layer do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

from tas.tracing.identity import Rows
from tas.tracing.recording import Recorder
from tas.tracing.records import Record, Site, Value
from tas.tracing.regions import Region
from tas.tracing.units import Units

Carries = Callable[[Value], bool]
_ZEROS = {"zeros", "new_zeros", "zeros_like"}


def fold_widths(recorder: Recorder, units: Units) -> tuple[dict[str, tuple[Site, ...]], list[tuple[Rows, str]]]:
    """For every width choice, the parameter dimensions that its channel factors multiply; and the identities of the
    choices for which no parameters do that everywhere, with the reason."""
    carried, uses = _Carried(recorder, units), _uses(recorder)
    folds: dict[str, tuple[Site, ...]] = {}
    unmixable: list[tuple[Rows, str]] = []
    for number, group in enumerate(units.groups):
        sites, why = _fold_width(recorder, carried, uses, group.name)
        folds[group.name] = sites
        if why:
            unmixable.append((units.atoms(number), why))
    return folds, unmixable


def fold_regions(recorder: Recorder, regions: list[Region]) -> dict[str, tuple[Site, ...]]:
    """For every residual region the parameter dimensions whose scaling scales all its branches; empty where there are
    none."""
    uses = _uses(recorder)
    return {region.module: _fold_region(recorder, uses, region) for region in regions}


def _fold_region(recorder: Recorder, uses: Mapping[Site, set[int]], region: Region) -> tuple[Site, ...]:
    makers: dict[int, Record] = {}
    for branch in region.branches:
        found = _upstream(recorder, branch, lambda value: True, lambda site: True)
        if not found or any(not region.first <= r.index < region.last for r in found):
            return ()
        makers |= {record.index: record for record in found}
    sites = {site for record in makers.values() for site in record.scales}
    return tuple(sorted(sites)) if all(uses[site] <= makers.keys() for site in sites) else ()


def _uses(recorder: Recorder) -> dict[Site, set[int]]:
    """The records that do something with a parameter, other than show it: scaling it reaches all of them."""
    uses: dict[Site, set[int]] = defaultdict(set)
    for record in recorder.records:
        shown = {site for value in record.outputs for site in value.sites}
        for site in {site for value in record.inputs for site in value.sites} - shown - {None}:
            uses[site].add(record.index)  # type: ignore[index]
    return uses


class _Carried:
    """Which choices decide about the positions of a value, and which records have to do with a choice."""

    def __init__(self, recorder: Recorder, units: Units) -> None:
        self._units = units
        self._known: dict[int, tuple[Value, frozenset[str]]] = {}
        self._summed: dict[int, list[tuple[int, frozenset[str], Site | None]]] = {}
        self._zeros = _zeros(recorder)
        self.records: dict[str, list[Record]] = defaultdict(list)
        for record in recorder.records:
            names = (units.groups_of(rows) for _, rows, _ in record.contracted)
            for name in set().union(*names, *map(self, (*record.inputs, *record.outputs))):
                self.records[name].append(record)

    def __call__(self, value: Value) -> frozenset[str]:
        if id(value) not in self._known:
            names = frozenset(name for rows in value.rows for name in self._units.groups_of(rows))
            self._known[id(value)] = (value, names)
        return self._known[id(value)][1]

    def factored(self, value: Value, choice: str) -> bool:
        """Whether a factor on the channels of a choice matters to a value."""
        return value.real and value.made_by not in self._zeros and choice in self(value)

    def along(self, rows: Rows) -> frozenset[str]:
        return self._units.groups_of(rows)

    def summed(self, record: Record) -> list[tuple[int, frozenset[str], Site | None]]:
        if record.index not in self._summed:
            found = [(index, self._units.groups_of(rows), site) for index, rows, site in record.contracted]
            self._summed[record.index] = found
        return self._summed[record.index]


def _zeros(recorder: Recorder) -> set[int]:
    """The records that give zeros, which any factor leaves as they are: memory that is then written into."""
    found: set[int] = set()
    for record in recorder.records:
        shown = record.flow == "pass" and record.inputs and all(value.made_by in found for value in record.inputs)
        if shown or record.operator in _ZEROS:
            found.add(record.index)
    return found


def _fold_width(
    recorder: Recorder, carried: _Carried, uses: Mapping[Site, set[int]], choice: str
) -> tuple[tuple[Site, ...], str]:
    """The sites of a choice, and why there are none that serve."""

    def carries(value: Value) -> bool:
        return carried.factored(value, choice)

    def scales(site: Site) -> bool:
        return choice in carried.along(recorder.tensors[site[0]][site[1]])

    records = carried.records[choice]
    reads = [
        (record, record.inputs[index].made_by, column)
        for record in records
        for index, names, column in carried.summed(record)
        if choice in names
    ]
    put_out = [value for value in recorder.freed if carries(value)]
    given = [r.inputs[index] for r in records for index, names, _ in carried.summed(r) if choice in names] + put_out
    marked = {maker.index for value in given for maker in _upstream(recorder, value, carries, scales) or []}
    while True:
        reached, conflict = _spread(carried, choice, marked)
        bare = [(record, column) for record, made_by, column in reads if made_by not in reached]
        # a parameter that others use too would bring them the factor
        conflict |= {i for i in marked if any(not uses[site] <= marked for site in recorder.records[i].scales)}
        for _, made_by, column in reads:  # one layer, called with the factor and without
            if made_by in reached and column in {c for _, c in bare}:
                conflict |= reached[made_by]
        if not conflict:
            break
        marked -= conflict  # those that read behind them take the factor in their columns
    for record, column in bare:
        if column is None or not uses[column] <= {r.index for r, c in bare if c == column}:
            return (), f"no parameter of its own takes its factor when candidates are mixed: {record.where()}"
    if any(value.made_by not in reached for value in put_out):
        return (), "no parameter takes its factor when candidates are mixed: it is an output of the network"
    rows = [site for index in sorted(marked) for site in recorder.records[index].scales]
    sites = tuple(dict.fromkeys([*rows, *(column for _, column in bare if column is not None)]))
    return sites, "" if sites else "it is never summed over: nothing takes its factor when candidates are mixed"


def _upstream(
    recorder: Recorder, value: Value, carries: Carries, scales: Callable[[Site], bool]
) -> list[Record] | None:
    """The records that last scaled every channel of a value by parameters that do, or None where some part of it has
    no such record."""
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
        if record.flow in ("norm", "product") and any(map(scales, record.scales)):
            makers[made_by] = record
        elif record.flow == "product" and len(record.scales) == 1 and len(sources) == 1:
            waiting += sources  # it scales other channels (heads, tokens), and adds nothing
        elif record.flow == "multiply":
            paths = [_upstream(recorder, v, carries, scales) for v in sources]
            found = next((path for path in paths if path), None)
            if found is None:
                return None
            makers.update({r.index: r for r in found})
        elif record.flow == "pass" or (record.flow == "add" and len(sources) == len(record.inputs)):
            makers |= {made_by: record} if _adds_bias(record) else {}
            waiting += [v for v in sources if not (_adds_bias(record) and v.sites == record.scales)]
        else:
            return None
    return list(makers.values())


def _adds_bias(record: Record) -> bool:
    """Whether it adds a parameter alone: the factor of what it is added to has to be on both."""
    return record.flow == "add" and bool(record.scales)


def _spread(carried: _Carried, choice: str, marked: set[int]) -> tuple[dict[int, set[int]], set[int]]:
    """Which records' outputs carry the factor when the records `marked` apply it, and from which of them it comes; and
    which of the marked must not: those whose factor would reach a norm, another marked record or an operator that does
    not keep zero at zero, meets a value without it in a sum or side by side, or is met twice in a product."""
    reached: dict[int, set[int]] = {}
    conflict: set[int] = set()
    for record in carried.records[choice]:
        mine = [value for value in record.inputs if carried.factored(value, choice)]
        paths = [reached.get(value.made_by, set()) for value in mine]
        source = set().union(*paths)
        summed = any(choice in names for _, names, _ in carried.summed(record))
        makes = any(choice in carried(value) for value in record.outputs)
        if record.index in marked and _adds_bias(record):
            reached[record.index] = source | {record.index}
            scaled = (path for value, path in zip(mine, paths, strict=True) if value.sites != record.scales)
            conflict |= reached[record.index] if not all(scaled) else set()
        elif record.index in marked:
            reached[record.index] = {record.index}
            conflict |= source if not summed else set()
        elif source and makes and not summed:
            if _keeps_factor(record, mine, [bool(path) for path in paths]):
                reached[record.index] = source
            else:
                conflict |= source
    return reached, conflict


def _keeps_factor(record: Record, mine: list[Value], factored: list[bool]) -> bool:
    """Whether the output carries the factor once, given which of the inputs that have these channels carry it."""
    if record.flow == "add":
        return all(factored) and len(mine) == len(record.inputs)
    if record.flow == "multiply":
        return sum(factored) == 1
    if record.flow == "pass":
        slopes = "prelu" in record.operator  # they are no operand
        return all(f or (slopes and any(value.sites)) for f, value in zip(factored, mine, strict=True))
    return record.flow == "product" and len(record.scales) < 2  # the bias of a depthwise layer would lack the factor
