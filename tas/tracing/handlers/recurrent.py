"""Handlers of recurrent layers, each call of which is one record (see `whole`).

A layer has hidden units of its own in either direction; the first dimension of its weights holds them once a gate. One
Python attribute is the hidden size of all layers and directions, so their numbers are equal, not their units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tas.tracing.identity import Rows
from tas.tracing.leaves import tensors_of
from tas.tracing.recording import Handler, Recorder
from tas.tracing.records import Axis

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
_CREATED = {"zeros", "zeros_like", "new_zeros", "ones", "full"}  # alike in all positions: only their number matters


@dataclass(frozen=True)
class _Cell:
    """The parameters of one layer in one direction. H hidden units, R of them or of their projection are put out."""

    reads: Tensor  # [gates x H, inputs]
    recurs: Tensor  # [gates x H, R]
    biases: tuple[Tensor, ...]  # [gates x H] each
    projects: Tensor | None = None  # [R, H]


def layer(t: Recorder, out: Sequence[Tensor], x: Tensor, *args: Any) -> None:
    """lstm, gru, rnn: (x, state, parameters, biases, layers, dropout, training, both directions, batch first), or for
    packed sequences (data, batch sizes, state, parameters, biases, layers, dropout, training, both directions)."""
    packed = not isinstance(args[2], bool)
    state, flat, biased, layers, _, _, both = args[1:8] if packed else args[:7]
    cells = _cells(flat, biased, layers * (1 + both))
    lead: list[Axis] = list(zip(x.shape, t.rows(x), strict=True))[:-1]
    time = 0 if packed or not args[7] else 1
    t.freeze(lead[time][1], why="time steps of a recurrent layer")
    given, hidden, made = t.rows(x)[-1], [], []
    t.current.products, summed = [], []
    for index in range(layers):
        outputs = []
        for cell in cells[index * (1 + both) : (index + 1) * (1 + both)]:
            units, output = _cell(t, cell, given, lead)
            summed += _reads(cell, x if index == 0 else cell.reads)
            hidden.append((cell.recurs.shape[0] // _gates(t), units))
            made.append((cell.recurs.shape[1], output))
            outputs.append(made[-1])
        given = _joined(t, outputs)
    for axes, name in ((hidden, "hidden_size"), (made, "proj_size or hidden_size")):
        for _, rows in axes[1:]:
            t.tie_counts(axes[0][1], rows, f"one {name}: {t.current.where()}")
    _given_state(t, state, made, hidden)
    batch = None if packed else lead[1 - time][1]
    t.put(out[0], [*(rows for _, rows in lead), given])
    for tensor, axes in zip(out[1:], (made, hidden), strict=False):
        t.put(tensor, [None, batch, axes[-1][1]])
        t.when_read(tensor, [(axes[-1][1], rows) for _, rows in axes[:-1]])
    _note(t, (x, *args), summed + _state_reads(state, cells[0]))


def cell(t: Recorder, out: Any, x: Tensor, state: Any, reads: Tensor, recurs: Tensor, *biases: Tensor | None) -> None:
    """lstm_cell, gru_cell, rnn_tanh_cell, rnn_relu_cell: one time step."""
    mine = _Cell(reads, recurs, tuple(bias for bias in biases if bias is not None))
    lead: list[Axis] = list(zip(x.shape, t.rows(x), strict=True))[:-1]
    t.current.products = []
    units, _ = _cell(t, mine, t.rows(x)[-1], lead)
    for tensor in tree_leaves(state):
        t.unify(t.rows(tensor)[-1], units)
    for tensor in tree_leaves(out):
        t.put(tensor, [*(rows for _, rows in lead), units])
    summed = [(x, reads), *((tensor, recurs) for tensor in tree_leaves(state))]
    _note(t, (x, state, reads, recurs, *biases), summed)


def _gates(t: Recorder) -> int:
    return GATES[t.current.operator.removesuffix("_cell")]


def _cells(flat: Sequence[Tensor], biased: bool, count: int) -> list[_Cell]:
    each = len(flat) // count
    parts = [flat[i * each : (i + 1) * each] for i in range(count)]
    last = 4 if biased else 2
    return [_Cell(p[0], p[1], tuple(p[2:last]), p[last] if each > last else None) for p in parts]


def _cell(t: Recorder, cell: _Cell, given: Rows, lead: list[Axis]) -> tuple[Rows, Rows]:
    """The identities of the hidden units, and of what is put out."""
    wide, gates = cell.reads.shape[0], _gates(t)
    t.unify(given, t.rows(cell.reads)[1])
    for tensor in (cell.recurs, *cell.biases):
        t.unify(t.rows(cell.reads)[0], t.rows(tensor)[0])
    size = [gates, wide // gates]
    units = t.identities.factor(t.rows(cell.reads)[0], size, t.current.where(), [False, True])[1]
    output = units
    if cell.projects is not None:
        t.unify(units, t.rows(cell.projects)[1])
        output = t.rows(cell.projects)[0]
        _stays_larger(t, (size[1], units), (cell.projects.shape[0], output))
    t.unify(output, t.rows(cell.recurs)[1])
    rows: Axis = (wide, t.rows(cell.reads)[0])
    t.current.products += [[*lead, rows, (cell.reads.shape[1], t.rows(cell.reads)[1])]]
    t.current.products += [[*lead, rows, (cell.recurs.shape[1], output)]]
    if cell.projects is not None:
        t.current.products += [[*lead, (cell.projects.shape[0], output), (size[1], units)]]
    return units, output


def _stays_larger(t: Recorder, hidden: Axis, projected: Axis) -> None:
    """torch takes a layer to be without projection where hidden and projected size are equal."""
    times, rest = divmod(hidden[0], projected[0])
    if rest or not t.carries(projected[1]):
        t.freeze(hidden[1], why="a hidden size must differ from the size it is projected to")
    else:
        why = f"a hidden size must differ from the size it is projected to: {t.current.where()}"
        t.tie_counts(hidden[1], np.repeat(projected[1], times, 0), why)  # type: ignore[arg-type]


def _joined(t: Recorder, parts: list[Axis]) -> Rows:
    """Directions side by side."""
    if len(parts) == 1:
        return parts[0][1]
    known = [(n, t.identities.canonical(rows)) for n, rows in parts]
    width = max((rows.shape[1] for _, rows in known if rows is not None), default=0)
    filled = [np.zeros((n, 0), int) if rows is None else rows for n, rows in known]
    return np.concatenate([np.pad(rows, ((0, 0), (0, width - rows.shape[1]))) for rows in filled]) if width else None


def _given_state(t: Recorder, state: Any, made: list[Axis], hidden: list[Axis]) -> None:
    """The state of all layers and directions is one tensor: they have the same units, where it is more than zeros."""
    for tensor, units in zip(tree_leaves(state), (made, hidden), strict=False):
        maker = t.made_by(tensor)
        alike = maker is not None and maker.operator in _CREATED
        for _, rows in units[:1] if alike else units:
            t.unify(t.rows(tensor)[-1], rows)
        t.freeze(t.rows(tensor)[0], why="layers of a recurrent state")


def _reads(cell: _Cell, source: Tensor) -> list[tuple[Tensor, Tensor]]:
    """What is summed over with which weights: the input, by the weights themselves where it is computed inside."""
    inside = [(weight, weight) for weight in (cell.recurs, cell.projects) if weight is not None]
    return [(source, cell.reads), *inside]


def _state_reads(state: Any, first: _Cell) -> list[tuple[Tensor, Tensor]]:
    """A given state must not carry a factor: it is taken in by the columns of what reads it, for all time steps."""
    columns = [first.recurs, first.recurs if first.projects is None else first.projects]
    return list(zip(tree_leaves(state), columns, strict=False))


def _note(t: Recorder, args: Any, summed: list[tuple[Tensor, Tensor]]) -> None:
    given = tensors_of(args)
    places = {id(tensor): index for index, tensor in reversed([*enumerate(given)])}
    t.current.contracted = tuple(
        (places[id(source)], t.rows(weight)[1], t.site(weight, 1)) for source, weight in summed
    )


def pack(t: Recorder, out: Sequence[Tensor], x: Tensor, lengths: Tensor, batch_first: bool) -> None:
    """Sequences of several lengths, time step by time step: [all steps, features]."""
    rows = t.rows(x)
    t.freeze(*rows[:2], why="sequences and time steps are packed")
    t.put(out[0], [None, *rows[2:]])
    t.current.flow = "pass"


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(GATES, layer),
    **dict.fromkeys((f"{name}_cell" for name in GATES), cell),
    "_pack_padded_sequence": pack,
}
