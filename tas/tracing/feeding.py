"""Where the factor of a choice is multiplied with what a module is given, since no parameter takes it."""

from __future__ import annotations

from collections.abc import Mapping, Set

from tas.tracing.factors import Factor, Read, keeps_factor
from tas.tracing.records import Feed, Site, Span


def find_feeds(
    factor: Factor, read: Read, bare: Mapping[Read, Site | None], reached: Set[int]
) -> tuple[list[Feed], set[Read]] | None:
    """Where the innermost possible module around a read takes the factor with what it is given, at every call of it;
    and the reads that have it then, all of which are `bare` of it. reached: the records whose outputs have it."""
    recorder = factor.recorder
    around = (span for span in recorder.spans if span.first <= read[0] < span.last)
    for span in sorted(around, key=lambda span: (-span.first, span.last)):
        places, covered = set(), set[Read]()
        for call in recorder.spans_of[span.module]:
            arguments, reads = _summed_inside(factor, call, reached)
            places.add(arguments)
            covered |= reads
        if read in covered and covered <= bare.keys() and len(places) == 1:
            given = dict(zip(span.places, span.inputs, strict=True))
            along = [(place, dim) for place in places.pop() for dim in factor.dims(given[place])]
            return [Feed(span.module, p, dim, factor.units_of(given[p], dim)) for p, dim in along], covered
    return None


def _summed_inside(factor: Factor, call: Span, reached: Set[int]) -> tuple[tuple[int | str, ...], set[Read]]:
    """The arguments of a call whose factor would be summed over inside, and nowhere else; and the reads that sum over
    it. Empty where it has none, or the factor would get elsewhere. (That the module comes at the tensor in another way,
    by an attribute say, is not seen.)"""
    nothing: tuple[tuple[int | str, ...], set[Read]] = ((), set())
    given = [(p, v) for p, v in zip(call.places, call.inputs, strict=True) if factor.on(v)]
    mine = {place: value.made_by for place, value in given if place is not None}
    inside, covered = set(mine.values()), set[Read]()
    plain = len(mine) == len(given) and all(len(factor.dims(value)) == 1 for _, value in given)
    if len(inside) != 1 or not plain or inside & {-1, *reached}:
        return nothing
    for met in factor.met:
        record = met.record
        hit = [i for i, v in enumerate(record.inputs) if factor.on(v) and v.made_by in inside]
        within = call.first <= record.index < call.last
        if not within and any(record.inputs[i].made_by not in mine.values() for i in hit):
            return nothing  # it leaves the module
        if not within or not hit:
            continue
        if met.reads and {place for _, place, _ in met.reads}.issuperset(hit):
            covered |= {read for read in met.reads if read[1] in hit}
        elif not met.reads and keeps_factor(record, met.inputs, [v.made_by in inside for v in met.inputs]):
            inside.add(record.index)
        else:
            return nothing
    if any(value.made_by in inside for _, value in factor.recorder.outputs if factor.on(value)):
        return nothing
    return tuple(mine), covered
