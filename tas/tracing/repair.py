"""What to give up where no attribute follows a size: tie identities, or keep exactly the ones concerned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from tas.tracing.attributes import AttributeRule, enclosing, factors, twins
from tas.tracing.places import integers
from tas.tracing.recording import Recorder
from tas.tracing.records import Axis, Record, Span

_VIEWS = {"view", "_unsafe_view", "reshape", "unflatten"}
_PARTS = {"split_with_sizes", "split", "slice"}
SIZED = {*_VIEWS, *_PARTS}
Told = tuple[list[int], Callable[[Axis], int]]  # sizes that the code asked for in one architecture, and kept ones there


def give_way(
    recorder: Recorder,
    record: Record,
    told: Callable[[], Iterator[Told]],
    kept: Callable[[Axis], int],
    rules: list[AttributeRule],
    why: str,
) -> bool:
    """Change identities so that the operator can run as the code wants it: whether anything changed. `told` gives
    what it asks for, first in the architecture that fails, whose kept sizes are `kept`, and then in others, each run
    when it is first asked for. In this order:

    follow  one attribute serves several sizes, and the code asked for what it now says: they become one
    tie     the code computes a factor (`C // heads`) or a part (`[..., :C]`) from a width, that of a tensor which has
            now the size that fits what the code asked for, or else of an input: width and product become one
    merge   one attribute serves several sizes, or several factors of what is split: they become one
    part    the code takes a whole fraction of a width (`[: C // 2]`): all such parts become equal
    freeze  the sizes that the code did not follow; else everything at the operator, and before it
    """
    asked, _ = next(told(), (None, kept))
    return (
        _follow_attribute(recorder, record, asked, kept, rules)
        or _tie_to_read(recorder, record, asked, told)
        or (not _is_literal(record, told) and _tie_to_input(recorder, record))
        or _merge_served(recorder, record, rules)
        or _merge_factors(recorder, record)
        or _tie_parts(recorder, record)
        or _freeze_asked(recorder, record, asked, kept, why)
        or _freeze_all(recorder, record, kept, why)
    )


def _follow_attribute(
    recorder: Recorder,
    record: Record,
    asked: Sequence[int] | None,
    kept: Callable[[Axis], int],
    rules: list[AttributeRule],
) -> bool:
    """Of a view, the dimensions for which the code asked for the number that an attribute around it has by a rule."""
    if asked is None or record.operator not in _VIEWS or len(asked) != len(record.outputs[0].shape):
        return False
    for span in reversed(_enclosing(recorder, record)):
        for rule in [rule for rule in rules if rule.module == span.module and rule.was == rule.full]:
            now = kept((rule.full, rule.rows))
            axes = enumerate(record.outputs[0].axes())
            dims = [d for d, axis in axes if axis[0] == rule.was and asked[d] == now != kept(axis)]
            places = [(record, rule)] + [
                (twin, other)
                for twin, around in twins(recorder, record, span)
                for other in rules
                if other.module == around.module and other.key == rule.key
            ]
            if sum(_follow(recorder, place, mine, d) for place, mine in places for d in dims):  # all of them, not any
                return True
    return False


def _follow(recorder: Recorder, record: Record, rule: AttributeRule, dim: int) -> bool:
    axes = record.outputs[0].axes()
    if dim >= len(axes) or not axes[dim][0] == rule.was == rule.full or not recorder.carries(axes[dim][1]):
        return False
    why = f"one attribute, {rule.named()}, is both sizes"
    return recorder.tie_counts(rule.rows, axes[dim][1], why)


def _tie_to_read(
    recorder: Recorder, record: Record, asked: Sequence[int] | None, told: Callable[[], Iterator[Told]]
) -> bool:
    """Of a view, dimensions for which the code asked for what follows from the present size of a tensor that the
    modules around were given, or made before; of a slice or split, parts of that size."""
    shape = record.outputs[0].shape if record.outputs else ()
    if asked is None:
        return False
    if record.operator in _VIEWS and len(asked) == len(shape):
        return any(_tie_seen(recorder, record, told, (0, *place), _follow_from) for place in _ranges(len(shape)))
    dim = _dim_of_parts(record) if record.operator in _PARTS else None
    places = [] if dim is None else [(number, dim, dim + 1) for number in range(len(record.outputs))]
    tied = [_tie_seen(recorder, record, told, place, _is_part) for place in places]
    return any(tied)


def _tie_seen(
    recorder: Recorder,
    record: Record,
    told: Callable[[], Iterator[Told]],
    place: tuple[int, int, int],
    fits: Callable[[Sequence[int], Sequence[int], int, tuple[int, int, int]], bool],
) -> bool:
    """Tie dimensions of an output to the first that was seen of their size and that has what fits in all architectures;
    also at the same place of the other calls of modules of the class."""
    number, start, stop = place
    shape = record.outputs[number].shape
    full = prod(shape[start:stop])
    for span in reversed(_enclosing(recorder, record)):
        for at, axis in enumerate(_seen(recorder, record, span)):
            if axis[0] != full or not recorder.carries(axis[1]) or _is_within(recorder, axis, record):
                continue
            if not all(fits(asked, shape, kept(axis), place) for asked, kept in told()):
                continue
            if all(kept(axis) == full for _, kept in told()):
                continue
            if _tie(recorder, record, axis, *place):
                for twin, around in twins(recorder, record, span):
                    for theirs in _seen(recorder, twin, around)[at : at + 1]:
                        _tie(recorder, twin, theirs, *place)
                return True
    return False


def _is_within(recorder: Recorder, axis: Axis, record: Record) -> bool:
    """Whether a dimension is a part of one that parts are taken of: `C // 4` is a share of it and not another part."""
    wholes = [recorder.identities.canonical(rows) for rows in record.inputs[0].rows if record.operator in _PARTS]
    part = recorder.identities.canonical(axis[1])
    return any(whole is not None and part is not None and bool(np.isin(part, whole).all()) for whole in wholes)


def _seen(recorder: Recorder, record: Record, span: Span) -> list[Axis]:
    """The dimensions of tensors that code around an operator could read sizes of: the inputs first, then the latest."""
    made = (value for earlier in reversed(recorder.records[span.first : record.index]) for value in earlier.outputs)
    return [axis for value in (*span.inputs, *made) for axis in reversed(value.axes())]


def _follow_from(asked: Sequence[int], shape: Sequence[int], width: int, place: tuple[int, int, int]) -> bool:
    """Whether a size that was asked for is a width divided by those beside it: `view(..., heads, width // heads)`."""
    _, start, stop = place
    beside = [n if a == -1 else a for a, n in zip(asked[start:stop], shape[start:stop], strict=True)]
    others = [prod(beside[:d] + beside[d + 1 :]) for d in range(len(beside))]
    return any(other > 0 and a == width // other for a, other in zip(asked[start:stop], others, strict=True))


def _is_part(asked: Sequence[int], _: Sequence[int], width: int, place: tuple[int, int, int]) -> bool:
    """Whether a part that was asked for has a width's size; a `split` has one size for all."""
    number = place[0] if len(asked) > 1 else 0
    return number < len(asked) and asked[number] == width


def _is_literal(record: Record, told: Callable[[], Iterator[Told]]) -> bool:
    """Whether a view asked for the same sizes in all architectures, those of the whole network: they are written in the
    code, and no width is read."""
    shape = record.outputs[0].shape if record.operator in _VIEWS and record.outputs else ()
    sizes = [asked for asked, _ in told()]
    return len(sizes) > 1 and all(
        len(asked) == len(shape) and all(a in (-1, n) for a, n in zip(asked, shape, strict=True)) for asked in sizes
    )


def _tie_to_input(recorder: Recorder, record: Record) -> bool:
    if record.operator not in _VIEWS or not record.outputs:
        return False
    idle = [not recorder.carries(rows) for rows in record.outputs[0].rows]
    # by chance 16 tokens x 3 x 4 heads are as many as the width: sizes that can change come first
    ranges = sorted(_ranges(len(idle)), key=lambda range: sum(idle[slice(*range)]))
    for span in reversed(_enclosing(recorder, record)):
        for start, stop in ranges:
            if not all(idle[start:stop]) and _tie_input(recorder, record, span, start, stop):
                for twin, around in twins(recorder, record, span):
                    _tie_input(recorder, twin, around, start, stop)
                return True
    return False


def _tie_input(recorder: Recorder, record: Record, span: Span, start: int, stop: int) -> bool:
    axes = (axis for given in span.inputs for axis in reversed(given.axes()))
    rows = record.outputs[0].rows[start:stop]
    return any(map(recorder.carries, rows)) and any(_tie(recorder, record, axis, 0, start, stop) for axis in axes)


def _tie(recorder: Recorder, record: Record, axis: Axis, number: int, start: int, stop: int) -> bool:
    """Make the product of dimensions start..stop of an output and a dimension of that size one that the code read."""
    value, identities = record.outputs[number], recorder.identities
    n, theirs = axis
    sizes, rows = value.shape[start:stop], value.rows[start:stop]
    if len(value.shape) < stop or n != prod(sizes) or not recorder.carries(theirs):
        return False
    mine = identities.outer(rows, sizes)
    why = f"its size is computed from the width of a tensor: {record.where()}"
    return recorder.tie_counts(theirs, mine, why)


def _merge_served(recorder: Recorder, record: Record, rules: list[AttributeRule]) -> bool:
    """Also in the other modules of the class: one at a time, each would cost a proof of its own."""
    modules: Any = dict(recorder.network.named_modules())
    spans = {span.module: span for span in _enclosing(recorder, record)[-2:]}
    near = {*spans, record.module}
    merged: dict[tuple[type, Any], Span | None] = {}
    for rule in rules:
        if rule.module in near and _merge(recorder, rule, [record]):
            merged[type(modules[rule.module]), rule.key] = spans.get(rule.module)
    for rule in rules:
        kind = type(modules[rule.module]), rule.key
        if kind in merged and rule.module not in near:
            span = merged[kind]
            around = () if span is None else twins(recorder, record, span)
            _merge(recorder, rule, [twin for twin, other in around if other.module == rule.module])
    return bool(merged)


def _merge_factors(recorder: Recorder, record: Record) -> bool:
    """Code that splits into [heads * size, fewer * size, ...] has one size for all."""
    if record.operator != "split_with_sizes":
        return False
    whole = [axis for value in record.outputs for axis in value.axes() if recorder.carries(axis[1])]
    found = [*whole, *(axis for _, rows in whole for axis in factors(recorder, rows))]
    for name in dict.fromkeys([*record.owners, *enclosing(record.module)]):
        for key, value in recorder.looked_up(name, integers(recorder.network.get_submodule(name))):
            alike = [rows for n, rows in found if n == value]
            why = f"one attribute, {'.'.join(map(str, key))} of {name or 'the network'}, is both sizes"
            if sum(recorder.tie_counts(alike[0], rows, why) for rows in alike[1:]):
                return True
    return False


def _merge(recorder: Recorder, rule: AttributeRule, records: list[Record]) -> bool:
    """Make all sizes one that the attribute is used for, at these records and where its module cuts or shapes."""
    if rule.was != rule.full:
        return False
    served = [rule.rows] + [rows for record in records for n, rows in _axes_of(record) if n == rule.was]
    for other in recorder.records:
        if other.module == rule.module and other.operator in SIZED:
            served += [rows for value in other.outputs for n, rows in value.axes() if n == rule.was]
    served = [rows for rows in served if rows is not None and recorder.carries(rows)]
    why = f"one attribute, {rule.named()}, is both sizes"
    return sum(recorder.tie_counts(served[0], rows, why) for rows in served[1:]) > 0  # all of them, not any


def _tie_parts(recorder: Recorder, record: Record) -> bool:
    """Also at the same place of the other calls of modules of the class."""
    changed = _equal_parts(recorder, record)
    for span in reversed(_enclosing(recorder, record)[-1:]):
        for twin, _ in twins(recorder, record, span):
            changed |= _equal_parts(recorder, twin)
    return changed


def _equal_parts(recorder: Recorder, record: Record) -> bool:
    if record.operator != "slice":
        return False
    changed = False
    for (whole, rows), (part, _) in zip(record.inputs[0].axes(), record.outputs[0].axes(), strict=True):
        known = recorder.identities.canonical(rows)
        if known is not None and 0 < part < whole and whole % part == 0:
            why = f"a part of it is a fraction of the width: {record.where()}"
            parts = [known[at : at + part] for at in range(part, whole, part)]
            changed |= sum(recorder.tie_counts(known[:part], other, why) for other in parts) > 0  # all of them, not any
    return changed


def _freeze_asked(
    recorder: Recorder, record: Record, asked: Sequence[int] | None, kept: Callable[[Axis], int], why: str
) -> bool:
    """Of a view or expansion, only the dimensions for which the code asked another size than the kept one; of a split
    into listed sizes, such parts."""
    if asked is None or not record.outputs:
        return False
    along = _dim_of_parts(record)
    if record.operator in {*_VIEWS, "expand"} and len(asked) == len(record.outputs[0].shape):
        places = [(0, d) for d in range(len(asked))]
    elif record.operator == "split_with_sizes" and len(asked) == len(record.outputs) and along is not None:
        places = [(number, along) for number in range(len(asked))]
    else:
        return False
    sizes = [kept(record.outputs[number].axes()[d]) for number, d in places]
    wrong = [place for place, size, now in zip(places, asked, sizes, strict=True) if size not in (-1, now)]
    changed = _freeze(recorder, record, wrong, why)
    for span in reversed(_enclosing(recorder, record)[-1:]):
        for twin, _ in twins(recorder, record, span):
            _freeze(recorder, twin, [place for place in wrong if changed], why)
    return changed


def _dim_of_parts(record: Record) -> int | None:
    """Along which dimension an operator takes parts, if it does not take all."""
    shapes = zip(record.inputs[0].shape, record.outputs[0].shape, strict=False)
    return next((d for d, (n, part) in enumerate(shapes) if n != part), None)


def _freeze(recorder: Recorder, record: Record, places: list[tuple[int, int]], why: str) -> bool:
    """Dimensions of outputs, each as (number of the output, dimension)."""
    known = [(record.outputs[number].rows, d) for number, d in places if number < len(record.outputs)]
    rows = [dims[d] for dims, d in known if d < len(dims) and recorder.carries(dims[d])]
    for part in rows:
        recorder.identities.freeze(part, f"the code does not follow its size: {why}: {record.where()}")
    return bool(rows)


def _freeze_all(recorder: Recorder, record: Record, kept: Callable[[Axis], int], why: str) -> bool:
    """Everything cut at the operator; else what is given to the modules around it; else at the nearest one before."""
    around = [axis for span in reversed(_enclosing(recorder, record)) for v in span.inputs for axis in v.axes()]
    before = (axis for r in reversed(recorder.records[: record.index]) for axis in _axes_of(r))
    for axes in (iter(_axes_of(record)), iter(around), before):
        for axis in axes:
            if axis[1] is not None and recorder.carries(axis[1]) and kept(axis) != axis[0]:
                reason = f"the code does not follow its size: {why}: {record.where()}"
                recorder.identities.freeze(axis[1], reason)
                return True
    return False


def _enclosing(recorder: Recorder, record: Record) -> list[Span]:
    """The module calls around a record, outermost first."""
    return sorted((s for s in recorder.spans if s.first <= record.index < s.last), key=lambda s: (s.first, -s.last))


def _ranges(n: int) -> Iterator[tuple[int, int]]:
    return ((start, stop) for start in range(n) for stop in range(n, start, -1))


def _axes_of(record: Record) -> list[Axis]:
    return [axis for value in (*record.outputs, *record.inputs) for axis in value.axes()]
