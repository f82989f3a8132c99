"""Sizes that live in Python attributes (`num_heads`, `hidden_dim`, lists of splits): found by running cut networks.

A rule says that one integer of one module is the kept size of a dimension that the trace saw, times a ratio. Rules are
found where a replay first leaves the prediction: an attribute that has the old size gets the new one, and is accepted
when the replay comes further. A rule found for one module is tried on all modules of its class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice, product

import numpy as np
from torch import nn

from tas.tracing.identity import Rows, same
from tas.tracing.places import Key, integers, lists
from tas.tracing.recording import Recorder
from tas.tracing.records import Axis, Record, Span
from tas.tracing.units import Units

_NEAR = 6  # records before and behind a failing one whose sizes are tried as well
_FACTORS = 3  # of a dimension, at most, of which each and any two are tried
_COMBINATIONS = 16  # of values, where one attribute may become several sizes


@dataclass(frozen=True, eq=False)
class AttributeRule:
    """`module.key` is `was` x (kept size of a dimension) / (its full size `full`)."""

    module: str
    key: Key
    was: int
    full: int
    rows: Rows

    def value(self, kept: Callable[[Axis], int]) -> int:
        """What the integer is where so much of a dimension is kept."""
        return self.was * kept((self.full, self.rows)) // self.full

    def named(self) -> str:
        return f"{'.'.join(map(str, self.key))} of {self.module}"

    def same_place(self, other: AttributeRule) -> bool:
        return (self.module, self.key) == (other.module, other.key)

    def says(self, other: AttributeRule) -> bool:
        """Whether it is the same rule."""
        return self.same_place(other) and self.full == other.full and same(self.rows, other.rows)


def in_units(rules: Sequence[AttributeRule], units: Units) -> tuple[AttributeRule, ...]:
    """The rules with units in place of atoms."""
    return tuple(replace(rule, rows=units.rows(rule.rows)) for rule in rules)


def candidates(
    recorder: Recorder, network: nn.Module, record: Record, kept: Callable[[Axis], int]
) -> Iterator[list[AttributeRule]]:
    """Sets of rules that could mend a replay that fails at `record`, likelier ones first: several attributes at once
    (a view needs the number of heads and their size), then single ones."""
    changed = [axis for axis in _axes(recorder, record) if kept(axis) != axis[0]]
    near = recorder.records[max(0, record.index - _NEAR) : record.index + _NEAR]
    around = changed + [axis for r in near for axis in _axes(recorder, r) if kept(axis) != axis[0]]
    chain = list(dict.fromkeys([*record.owners, *enclosing(record.module), *_holders(recorder, record)]))
    for name in chain[:3]:
        yield from _listed(recorder, network, name, record, kept)
    # parts may be sums of sizes that are told apart further on: [inner + 2 * state, heads]
    sizes = (changed, around) if record.operator == "split_with_sizes" else (changed,)
    for axes, settings in product(sizes, (False, True)):
        for name in chain[:3]:
            options = _options(recorder, network, name, axes, kept, settings)
            yield from (list(rules) for rules in islice(product(*options), _COMBINATIONS) if len(rules) > 1)
    for name in chain:
        for rules in _options(recorder, network, name, around, kept):
            yield from ([rule] for rule in rules)
    for name in chain:
        yield from ([rule] for rule in _fractions(recorder, network, name, around, kept))


def _holders(recorder: Recorder, record: Record) -> Iterator[str]:
    """The modules whose parameters make up a whole input of an operator: code that applies the weight of a layer which
    it does not call may read that layer's settings (`F.conv2d(x, quantised(c.weight), groups=c.groups)`)."""
    for value, before in zip(record.inputs, record.input_before, strict=True):
        names = {name for name, _ in value.shown}
        names |= {name for name, bits in recorder.reads.items() if bits & before}
        owners = {name.rpartition(".")[0] for name in names}
        if len(owners) == 1:
            yield from owners


def for_peers(recorder: Recorder, network: nn.Module, rule: AttributeRule, record: Record) -> list[AttributeRule]:
    """The same rule for the other modules of the class, each with the dimension at the same place of its own call."""
    modules = dict(network.named_modules())
    kind, place = type(modules[rule.module]), _place(recorder, record, rule)
    home = next((s for s in recorder.spans if s.module == rule.module and s.first <= record.index < s.last), None)
    calls = _of_line(recorder, record) if home is None else _in_calls(recorder, record, home)
    found = []
    for name, twin in calls if place is not None else ():
        steps, at = place  # type: ignore[misc]
        axes = _axes_at(recorder, twin.index + steps)
        if name == rule.module or type(modules.get(name)) is not kind or at >= len(axes):
            continue
        full, rows = axes[at]
        was = dict(integers(modules[name])).get(rule.key)
        if was is not None and was * rule.full == rule.was * full:
            found.append(AttributeRule(name, rule.key, was, full, rows))
    return found


def _in_calls(recorder: Recorder, record: Record, home: Span) -> Iterator[tuple[str, Record]]:
    return ((span.module, twin) for twin, span in twins(recorder, record, home))


def twins(recorder: Recorder, record: Record, home: Span) -> Iterator[tuple[Record, Span]]:
    """In the other calls of modules of the class, the operator in the same line of code, after as many like it: what
    comes before may differ (a shift, a padding). In the module's own forward it is the lines from there on that count:
    a helper's line serves several steps."""
    modules = dict(recorder.network.named_modules())

    def like(span: Span, end: int) -> Iterator[Record]:
        inside = recorder.records[span.first : end]
        if record.module != home.module:
            return _like(record, inside)
        mine = (record.operator, record.path)
        return (other for other in inside if other.module == span.module and (other.operator, other.path) == mine)

    number = sum(1 for _ in like(home, record.index))
    for span in recorder.spans:
        if span is not home and type(modules.get(span.module)) is type(modules[home.module]):
            yield from ((twin, span) for twin in islice(like(span, span.last), number, number + 1))


def _of_line(recorder: Recorder, record: Record) -> Iterator[tuple[str, Record]]:
    """The operator in the same line of code, by methods of other modules."""
    return ((name, twin) for twin in _like(record, recorder.records) for name in twin.owners)


def _like(record: Record, others: Sequence[Record]) -> Iterator[Record]:
    return (other for other in others if (other.operator, other.source) == (record.operator, record.source))


def _axes(recorder: Recorder, record: Record) -> list[Axis]:
    """The dimensions of an operator's tensors; then the factors of those that are products: code that splits into
    [heads x size, ...] multiplies numbers that are no dimension here."""
    axes = [axis for value in (*record.outputs, *record.inputs) for axis in value.axes()]
    return axes + [factor for _, rows in axes if rows is not None for factor in factors(recorder, rows)]


def factors(recorder: Recorder, rows: Rows) -> Iterator[Axis]:
    """Of a dimension that is a product, its factors and the products of some of them."""
    known = recorder.identities.canonical(rows)
    if known is None or known.shape[1] > _FACTORS:
        return
    for count in range(1, known.shape[1] + 1):
        for some in combinations(range(known.shape[1]), count):
            part = np.unique(known[:, list(some)], axis=0)
            if 1 < len(part) < len(known):
                yield len(part), part


def _place(recorder: Recorder, record: Record, rule: AttributeRule) -> tuple[int, int] | None:
    """Where a rule has its dimension from: how many records behind this one, the nearest, and which of its axes."""
    for steps in sorted(range(-_NEAR, _NEAR), key=abs):
        for at, (n, rows) in enumerate(_axes_at(recorder, record.index + steps)):
            if n == rule.full and same(rows, rule.rows):
                return steps, at
    return None


def _axes_at(recorder: Recorder, index: int) -> list[Axis]:
    return _axes(recorder, recorder.records[index]) if 0 <= index < len(recorder.records) else []


def enclosing(module: str) -> Iterator[str]:
    """A module and those around it, innermost first."""
    while module:
        yield module
        module = module.rpartition(".")[0]
    yield ""


def _options(
    recorder: Recorder,
    network: nn.Module,
    name: str,
    axes: list[Axis],
    kept: Callable[[Axis], int],
    settings: bool = True,
) -> list[list[AttributeRule]]:
    """For every integer of a module that is the size of a changed dimension: the rules that it could follow."""
    found = []
    for key, value in recorder.looked_up(name, integers(network.get_submodule(name), settings)):
        by_size = {
            kept(axis): AttributeRule(name, key, value, value, axis[1]) for axis in reversed(axes) if axis[0] == value
        }
        if by_size:
            found.append(list(by_size.values())[::-1])
    return found


def _listed(
    recorder: Recorder, network: nn.Module, name: str, record: Record, kept: Callable[[Axis], int]
) -> Iterator[list[AttributeRule]]:
    """Rules for a tuple or list of a module that has the sizes of the operator's outputs in order (parts of a
    split), or those of its output (a view): tried value by value, four parts of two sizes would be 16 combinations."""
    sequences = [list(axes) for axes in zip(*(value.axes() for value in record.outputs), strict=False)]
    if len(record.outputs) == 1:
        sequences = [record.outputs[0].axes()]
    for key, value in recorder.looked_up(name, lists(network.get_submodule(name))):
        for sequence in sequences:
            for start in range(len(sequence) - len(value) + 1):
                part = sequence[start : start + len(value)]
                if [n for n, _ in part] == list(value):
                    rules = [AttributeRule(name, (*key, i), n, n, rows) for i, (n, rows) in enumerate(part)]
                    changed = [rule for rule in rules if kept((rule.full, rule.rows)) != rule.full]
                    if len(changed) > 1:
                        yield changed


def _fractions(
    recorder: Recorder, network: nn.Module, name: str, axes: list[Axis], kept: Callable[[Axis], int]
) -> Iterator[AttributeRule]:
    """Integers that divide a changed dimension (heads where batch and heads are merged), or are a multiple of it."""
    for key, value in recorder.looked_up(name, integers(network.get_submodule(name))):
        for full, rows in axes:
            whole = value != full and (full % value == 0 or value % full == 0)
            if whole and value * kept((full, rows)) % full == 0:
                yield AttributeRule(name, key, value, full, rows)
