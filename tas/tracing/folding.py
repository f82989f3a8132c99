"""Where a factor on channels can be folded into parameters.

A supernet mixes candidate widths by zero extension: channel c counts with m_c, the summed weight of the candidates that
have it. A factor before a norm is normalised away, so it belongs on the last affine before the channel is summed over
by a convolution or product: gamma and beta of the norm, or rows and bias of the layer itself where no norm follows.
Where no such place serves (an operator in between does not keep zero at zero), the columns of the reading layer do; and
where these are computed (a spectral norm, a mask, a sum of matrices), what its module is given.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from itertools import islice

from tas.tracing.identity import Array, Rows
from tas.tracing.recording import Recorder
from tas.tracing.records import Feed, Record, Site, Span, Value
from tas.tracing.regions import Region
from tas.tracing.units import Units

Carries = Callable[[Value], bool]
_ZEROS = {"zeros", "new_zeros", "zeros_like"}
_Read = tuple[int, int, int]  # a record, the place of one of its inputs, and the number of the sum: directions share it


@dataclass(frozen=True)
class Fold:
    """What the channel factors of a choice multiply: dimensions of parameters, and of what modules are given."""

    sites: tuple[Site, ...] = ()
    feeds: tuple[Feed, ...] = ()


def fold_widths(recorder: Recorder, units: Units) -> tuple[dict[str, Fold], list[tuple[Rows, str]]]:
    """For every width choice, what its channel factors multiply; and the identities of the choices for which nothing
    takes them everywhere, with the reason."""
    carried, uses = _Carried(recorder, units), _uses(recorder)
    folds: dict[str, Fold] = {}
    unmixable: list[tuple[Rows, str]] = []
    for number, group in enumerate(units.groups):
        folds[group.name], why = _fold_width(recorder, carried, uses, group.name)
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
    sites = {site for record in makers.values() for site in _scales(record, lambda site: True)}
    if not all(uses[site] <= makers.keys() for site in sites):
        return ()
    return tuple(sorted({name: (name, dim) for name, dim in sorted(sites)}.values()))  # once, whichever the dimension


def _uses(recorder: Recorder) -> dict[Site, set[int]]:
    """The records that do something with a parameter, other than show it: scaling it reaches all of them."""
    uses: dict[Site, set[int]] = defaultdict(set)
    for record in recorder.records:
        shown = {site for value in record.outputs for site in value.shown}
        for site in {site for value in record.inputs for site in value.shown} - shown:
            uses[site].add(record.index)
    return uses


class _Carried:
    """Which choices decide about the positions of a value, and which records have to do with a choice."""

    def __init__(self, recorder: Recorder, units: Units) -> None:
        self._units = units
        self._known: dict[int, tuple[Value, frozenset[str]]] = {}
        self._summed: dict[int, list[tuple[_Read, frozenset[str], tuple[Site, ...]]]] = {}
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

    def dims(self, value: Value, choice: str) -> list[int]:
        """The dimensions of a value whose positions a choice decides about."""
        return [d for d, rows in enumerate(value.rows) if choice in self.along(rows)]

    def units_of(self, rows: Rows) -> Array:
        units = self._units.rows(rows)
        assert units is not None
        return units

    def summed(self, record: Record) -> list[tuple[_Read, frozenset[str], tuple[Site, ...]]]:
        if record.index not in self._summed:
            self._summed[record.index] = [
                ((record.index, place, number), self._units.groups_of(rows), sites)
                for number, (place, rows, sites) in enumerate(record.contracted)
            ]
        return self._summed[record.index]


def _zeros(recorder: Recorder) -> set[int]:
    """The records that give zeros, which any factor leaves as they are: memory that is then written into."""
    found: set[int] = set()
    for record in recorder.records:
        shown = record.flow == "pass" and record.inputs and all(value.made_by in found for value in record.inputs)
        if shown or record.operator in _ZEROS:
            found.add(record.index)
    return found


def _fold_width(recorder: Recorder, carried: _Carried, uses: Mapping[Site, set[int]], choice: str) -> tuple[Fold, str]:
    """The fold of a choice, and why there is none that serves."""

    def scales(site: Site) -> bool:
        return choice in carried.along(recorder.tensors[site[0]][site[1]])

    reads: dict[_Read, Site | None] = {
        read: next(filter(scales, columns), None)
        for record in carried.records[choice]
        for read, names, columns in carried.summed(record)
        if choice in names
    }
    put_out = [value for value in recorder.freed if carried.factored(value, choice)]
    marked, reached, bare = _marked(recorder, carried, uses, choice, scales, reads, put_out)
    if any(value.made_by not in reached for value in put_out):
        return Fold(), "no parameter takes its factor when candidates are mixed: it is an output of the network"
    feeds: list[Feed] = []
    while (lacking := _without_column(bare, uses)) is not None:
        found = _feeds(recorder, carried, choice, lacking, bare, reached)
        if found is None:
            where = recorder.records[lacking[0]].where()
            return Fold(), f"no parameter of its own takes its factor when candidates are mixed: {where}"
        feeds += found[0]
        bare = {read: column for read, column in bare.items() if read not in found[1]}
    rows = [site for index in sorted(marked) for site in _scales(recorder.records[index], scales)]
    sites = tuple(dict.fromkeys([*rows, *(column for column in bare.values() if column is not None)]))
    why = "" if sites or feeds else "it is never summed over: nothing takes its factor when candidates are mixed"
    return Fold(sites, tuple(feeds)), why


def _marked(
    recorder: Recorder,
    carried: _Carried,
    uses: Mapping[Site, set[int]],
    choice: str,
    scales: Callable[[Site], bool],
    reads: Mapping[_Read, Site | None],
    put_out: list[Value],
) -> tuple[set[int], dict[int, set[int]], dict[_Read, Site | None]]:
    """The records that apply the factor of a choice, which records' outputs carry it then (`_spread`), and the reads
    that still lack it."""

    def carries(value: Value) -> bool:
        return carried.factored(value, choice)

    def makers(value: Value) -> set[int]:
        if len(carried.dims(value, choice)) > 1:  # which of them a factor would come along is not followed
            return set()
        return {maker.index for maker in _upstream(recorder, value, carries, scales, unfit) or []}

    # for these, others are sought, and else those that read behind take the factor in their columns
    unfit: set[int] = set()
    sides = {read: _sides(recorder, read) for read in reads}
    while True:
        of_reads = [next(filter(None, map(makers, values)), set[int]()) for values in sides.values()]
        marked = set[int]().union(*of_reads, *map(makers, put_out)) - unfit
        # where several apply one parameter (parts of it, as torch's attention does), all may bring the factor
        layers = [index for index in marked if recorder.records[index].flow != "norm"]  # one norm twice: its square
        applied = {site for index in layers for site in _scales(recorder.records[index], scales)}
        users = {i for site in applied for i in uses[site] if site in _scales(recorder.records[i], scales)}
        together = marked | users - unfit
        reached, conflict = _spread(carried, choice, marked)
        if together > marked and (joint := _spread(carried, choice, together))[1] <= conflict:
            marked, (reached, conflict) = together, joint
        brought = {read: [value.made_by for value in sides[read] if value.made_by in reached] for read in reads}
        bare = {read: column for read, column in reads.items() if not brought[read]}
        # a parameter that others use too would bring them the factor
        conflict |= {i for i in marked if any(not uses[s] <= marked for s in _scales(recorder.records[i], scales))}
        for read, column in reads.items():  # one layer, called with the factor and without
            if column in bare.values():
                conflict |= set().union(*(reached[made_by] for made_by in brought[read]))
        if not conflict:
            return marked, reached, bare
        unfit |= conflict


def _sides(recorder: Recorder, read: _Read) -> list[Value]:
    """What is summed over, and what it is multiplied with: it is enough where one has the factor. (Where both have it,
    as in products of a tensor with itself, the mixture has its square.)"""
    record = recorder.records[read[0]]
    return [record.inputs[place] for place in (read[1], record.met_by) if place is not None]


def _without_column(bare: Mapping[_Read, Site | None], uses: Mapping[Site, set[int]]) -> _Read | None:
    """The first of the reads without the factor whose layer has no column of its own to take it."""
    for read, column in bare.items():
        if column is None or not uses[column] <= {at for (at, *_), other in bare.items() if other == column}:
            return read
    return None


def _feeds(
    recorder: Recorder,
    carried: _Carried,
    choice: str,
    read: _Read,
    bare: Mapping[_Read, Site | None],
    reached: Mapping[int, set[int]],
) -> tuple[list[Feed], set[_Read]] | None:
    """Where the innermost possible module around a read takes the factor with what it is given, at every call of it;
    and the reads that have it then, all of which are `bare` of it."""
    around = (span for span in recorder.spans if span.first <= read[0] < span.last)
    for span in sorted(around, key=lambda span: (-span.first, span.last)):
        places, covered = set(), set[_Read]()
        for call in recorder.spans_of[span.module]:
            arguments, reads = _fed(recorder, carried, choice, call, reached)
            places.add(arguments)
            covered |= reads
        if read in covered and covered <= bare.keys() and len(places) == 1:
            given = dict(zip(span.places, span.inputs, strict=True))
            along = [(place, dim) for place in places.pop() for dim in carried.dims(given[place], choice)]
            return [Feed(span.module, p, dim, carried.units_of(given[p].rows[dim])) for p, dim in along], covered
    return None


def _fed(
    recorder: Recorder, carried: _Carried, choice: str, call: Span, reached: Mapping[int, set[int]]
) -> tuple[tuple[int | str, ...], set[_Read]]:
    """The arguments of a call whose factor would be summed over inside, and nowhere else; and the reads that sum over
    it. Empty where it has none, or the factor would get elsewhere. (That the module comes at the tensor in another way,
    by an attribute say, is not seen.)"""
    nothing: tuple[tuple[int | str, ...], set[_Read]] = ((), set())
    given = [(p, v) for p, v in zip(call.places, call.inputs, strict=True) if carried.factored(v, choice)]
    mine = {place: value.made_by for place, value in given if place is not None}
    inside, covered = set(mine.values()), set[_Read]()
    plain = len(mine) == len(given) and all(len(carried.dims(value, choice)) == 1 for _, value in given)
    if len(inside) != 1 or not plain or inside & {-1, *reached}:
        return nothing
    for record in carried.records[choice]:
        hit = [i for i, v in enumerate(record.inputs) if carried.factored(v, choice) and v.made_by in inside]
        within = call.first <= record.index < call.last
        if not within and any(record.inputs[i].made_by not in mine.values() for i in hit):
            return nothing  # it leaves the module
        if not within or not hit:
            continue
        summed = {read for read, names, _ in carried.summed(record) if choice in names}
        values = [v for v in record.inputs if carried.factored(v, choice)]
        if summed and {place for _, place, _ in summed}.issuperset(hit):
            covered |= {read for read in summed if read[1] in hit}
        elif not summed and _keeps_factor(record, values, [v.made_by in inside for v in values]):
            inside.add(record.index)
        else:
            return nothing
    if any(value.made_by in inside for _, value in recorder.outputs if carried.factored(value, choice)):
        return nothing
    return tuple(mine), covered


def _scales(record: Record, scales: Callable[[Site], bool]) -> tuple[Site, ...]:
    """The parameter dimensions, of those that `scales` names, with which every channel of an output is scaled: of the
    affine of a layer or norm, or of a parameter that is multiplied with something."""
    if record.flow != "multiply":
        return tuple(filter(scales, record.scales))
    factors = (site for value in record.inputs if value.made_by < 0 for site in value.shown if scales(site))
    return tuple(islice(factors, 1))


def _upstream(
    recorder: Recorder, value: Value, carries: Carries, scales: Callable[[Site], bool], unfit: Set[int] = frozenset()
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
            paths = [_upstream(recorder, v, carries, scales, unfit) for v in sources]
            own = [record] if made_by not in unfit and _scales(record, scales) else None
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
            scaled = (path for value, path in zip(mine, paths, strict=True) if value.shown != record.scales)
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
        return all(f or (slopes and bool(value.shown)) for f, value in zip(factored, mine, strict=True))
    return record.flow == "product" and _parameters(record) < 2  # the bias of a depthwise layer would lack the factor
