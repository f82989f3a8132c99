"""Where the factor of a choice is multiplied with what a module or function is given, since no parameter takes
it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np

from tas.tracing.factors import Factor, Read, keeps_factor
from tas.tracing.identity import Array
from tas.tracing.records import CallSite, Feed, Site, Span


@dataclass(frozen=True)
class _Taker:
    """What could take a factor: a module with what it is given at `calls`, or an argument of a function."""

    to: str | CallSite
    calls: Sequence[Span]
    only: int | str | None = None
    call: tuple[int, int] | None = None


def find_feeds(
    factor: Factor, read: Read, bare: Mapping[Read, Site | None], reached: Set[int]
) -> tuple[list[Feed], set[Read]] | None:
    """Where the innermost possible module around a read takes the factor with what it is given, at every call of it;
    and the reads that have it then, all of which are `bare` of it. Where no module does, the function of torch that
    sums, at all calls in its line or at one of them. reached: the records whose outputs have it."""
    for taker in chain(_modules(factor, read), _functions(factor, read)):
        along, covered = list[tuple[Any, ...]](), set[Read]()
        for call in taker.calls:
            arguments, reads = _summed_inside(factor, call, reached, taker.only)
            given = dict(zip(call.places, call.inputs, strict=True))
            dims = [(place, dim) for place in arguments for dim in factor.dims(given[place])]
            along.append(tuple((place, dim, factor.units_of(given[place], dim)) for place, dim in dims))
            covered |= reads
        if read in covered and covered <= bare.keys() and all(_alike(along[0], other) for other in along[1:]):
            parts, known = [(place, dim, *_once(rows)) for place, dim, rows in along[0]], factor.recorder.call_sites
            if all(1 in (turns, times) for *_, turns, times in parts):  # else which of them other inputs change?
                return [Feed(taker.to, *part, taker.call, known) for part in parts], covered
    return None


def _once(rows: Array) -> tuple[Array, int, int]:
    """Different positions, how often all of them come one after another, and how often each in a row: the numbers of a
    batch and of pixels, which other inputs have others of."""
    once = rows[np.sort(np.unique(rows, axis=0, return_index=True)[1])]
    times = int(np.argmax(np.append((rows != rows[0]).any(1), True)))
    turns = len(rows) // (len(once) * times)
    whole = np.tile(np.repeat(once, times, 0), (turns, 1))
    return (once, turns, times) if np.array_equal(whole, rows) else (rows, 1, 1)


def _modules(factor: Factor, read: Read) -> Iterator[_Taker]:
    """The modules around a read, innermost first."""
    around = filter(partial(_holds, read), factor.recorder.spans)
    for span in sorted(around, key=lambda span: (-span.first, span.last)):
        yield _Taker(span.module, factor.recorder.spans_of[span.module])


def _functions(factor: Factor, read: Read) -> Iterator[_Taker]:
    """The function around a read, by each of its arguments."""
    for site, numbered in factor.recorder.applied.items():
        for number, span in [(number, span) for number, span in numbered if _holds(read, span)]:
            times = Counter(number for number, _ in numbered)
            for only in filter(lambda place: place is not None, span.places):
                yield _Taker(site, [other for _, other in numbered], only)
                if len(set(times.values())) == 1:  # as many in every forward of the module
                    same = [other for n, other in numbered if n == number]
                    yield _Taker(site, same, only, (number, len(times)))


def _holds(read: Read, span: Span) -> bool:
    return span.first <= read[0] < span.last


def _alike(some: tuple[Any, ...], others: tuple[Any, ...]) -> bool:
    """Whether two calls take the factor by the same arguments and dimensions, with the same units."""
    return len(some) == len(others) and all(
        a[:2] == b[:2] and np.array_equal(a[2], b[2]) for a, b in zip(some, others, strict=True)
    )


def _summed_inside(
    factor: Factor, call: Span, reached: Set[int], only: int | str | None
) -> tuple[tuple[int | str, ...], set[Read]]:
    """The arguments of a call (or the `only` one of it, with those that the same record made: inside they are not told
    apart) whose factor would be summed over inside, and nowhere else; and the reads that sum over it. Empty where it
    has none, or the factor would get elsewhere. (That the module comes at the tensor in another way, by an attribute
    say, is not seen.)"""
    nothing: tuple[tuple[int | str, ...], set[Read]] = ((), set())
    given = [(place, value) for place, value in zip(call.places, call.inputs, strict=True) if factor.on(value)]
    if only is not None:
        given = [(p, v) for p, v in given if v.made_by in [other.made_by for at, other in given if at == only]]
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
