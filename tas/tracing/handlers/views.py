"""Handlers of the operators that show the same elements in another shape: views, permutations, repetitions, windows."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from tas.tracing.identity import Rows
from tas.tracing.recording import Handler, Recorder


def view(t: Recorder, out: Tensor, x: Tensor, *args: Any, **_: Any) -> None:
    if out.shape == x.shape:  # also a view as another dtype
        t.put(out, t.rows(x))
        t.keep_origin(x, out, range(x.dim()))
    else:
        t.put(out, t.identities.view(x.shape, t.rows(x), out.shape, t.current.where()))
        t.keep_origin(x, out, _shown(x.shape, out.shape))
        t.joined.update(site for dim in _joined(x.shape, out.shape) for site in t.site(x, dim))
    t.current.flow = "pass"


def _shown(before: Sequence[int], after: Sequence[int]) -> list[tuple[int, ...]]:
    """For each dimension of a reshaped tensor the ones before that it is made of; none where it is a part of them."""
    ends = {1: -1, **{prod(before[: d + 1]): d for d in reversed(range(len(before)))}}  # the first that ends there
    origin: list[tuple[int, ...]] = []
    for d, n in enumerate(after):
        first, last = ends.get(prod(after[:d])), ends.get(prod(after[: d + 1]))
        if n == 1 or first is None or last is None:
            origin.append(())
        else:
            origin.append(tuple(e for e in range(first + 1, last + 1) if before[e] != 1))
    return origin


def _joined(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """The dimensions before whose positions no longer begin a dimension: with the one in front they make another."""
    begins = {prod(after[d:]) for d in range(len(after) + 1)}
    return [d for d in range(len(before)) if prod(before[d:]) not in begins]


def _moved(t: Recorder, out: Tensor, x: Tensor, order: Sequence[int | None]) -> None:
    rows = t.rows(x)
    t.put(out, [None if d is None else rows[d] for d in order])
    t.keep_origin(x, out, order)
    t.current.flow = "pass"


def permute(t: Recorder, out: Tensor, x: Tensor, dims: Sequence[int]) -> None:
    _moved(t, out, x, [d % x.dim() for d in dims])


def transpose(t: Recorder, out: Tensor, x: Tensor, a: int, b: int) -> None:
    order = list(range(x.dim()))
    if order:
        order[a], order[b] = order[b], order[a]
    _moved(t, out, x, order)


def reverse(t: Recorder, out: Tensor, x: Tensor) -> None:
    _moved(t, out, x, list(range(x.dim()))[::-1])


def unsqueeze(t: Recorder, out: Tensor, x: Tensor, dim: int) -> None:
    order: list[int | None] = list(range(x.dim()))
    order.insert(dim % out.dim(), None)
    _moved(t, out, x, order)


def squeeze(t: Recorder, out: Tensor, x: Tensor, dim: Any = None) -> None:
    dims = range(x.dim()) if dim is None else [d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)]
    _moved(t, out, x, [d for d in range(x.dim()) if not (d in dims and x.shape[d] == 1)])


def expand(t: Recorder, out: Tensor, x: Tensor, *_: Any, **__: Any) -> None:
    """A size that the code chose to repeat to goes with whatever meets it."""
    rows, more = t.rows(x), out.dim() - x.dim()
    new = [d < more or x.shape[d - more] != n for d, n in enumerate(out.shape)]
    t.put(
        out,
        [_open(t, n) if is_new else rows[d - more] for d, (n, is_new) in enumerate(zip(out.shape, new, strict=True))],
    )
    t.current.flow = "pass"


def created(t: Recorder, out: Tensor, *_: Any, **__: Any) -> None:
    """zeros, ones, new_zeros ...: sizes that the code chose go with whatever meets them."""
    t.put(out, [_open(t, n) for n in out.shape])


def counted(t: Recorder, out: Tensor) -> None:
    """arange, linspace ...: of a size that the code chose, but each position has a number of its own, which goes with
    its place and not with what it meets there: those keep their order."""
    if out.dim() == 1:
        created(t, out)
        if t.current.operator != "arange":
            t.mark_inexact(f"numbers follow a width: {t.current.where()}", *t.rows(out))
        t.ordered += [rows for rows in t.rows(out) if rows is not None and not bool((out == out[0]).all())]


def eye(t: Recorder, out: Tensor, *_: Any, **__: Any) -> None:
    """Rows and columns are the same."""
    rows = _open(t, out.shape[0])
    t.put(out, [rows, rows] if out.shape[0] == out.shape[1] else [None, None])


def _open(t: Recorder, n: int) -> Rows:
    return t.identities.fresh(n) if n > 1 else None


def repeat(t: Recorder, out: Tensor, x: Tensor, _: Any) -> None:
    rows, more = t.rows(x), out.dim() - x.dim()
    parts: list[Rows] = []
    for d, n in enumerate(out.shape):
        size = x.shape[d - more] if d >= more else 1
        part = t.identities.canonical(rows[d - more]) if d >= more else None
        parts.append(_open(t, n) if size == 1 else None if part is None else np.tile(part, (n // size, 1)))
    t.put(out, parts)
    t.current.flow = "pass"


def strided(t: Recorder, out: Tensor, x: Tensor, size: Sequence[int], stride: Sequence[int], *_: Any) -> None:
    """The same elements where sizes agree and every dimension steps over those behind it, as in dense memory (pooling
    to one position of a channels-last picture ends like that); anything else is not followed."""
    dense = [int(np.prod(size[d + 1 :])) for d in range(len(size))]
    if tuple(size) == tuple(x.shape) and all(n == 1 or s == d for n, s, d in zip(size, stride, dense, strict=True)):
        t.put(out, t.rows(x))
        t.current.flow = "pass"
    else:
        t.freeze(*t.rows(x), why="its memory is read in another order")
        t.put(out, [None] * out.dim())


def pixel_shuffle(t: Recorder, out: Tensor, x: Tensor, factor: int) -> None:
    parts = t.identities.factor(t.rows(x)[-3], [out.shape[-3], factor**2], t.current.where(), [True, False])
    t.put(out, [*t.rows(x)[:-3], parts[0], None, None])
    t.current.flow = "pass"


def pixel_unshuffle(t: Recorder, out: Tensor, x: Tensor, factor: int) -> None:
    part = t.identities.canonical(t.rows(x)[-3])
    t.put(out, [*t.rows(x)[:-3], None if part is None else np.repeat(part, factor**2, 0), None, None])
    t.current.flow = "pass"


def channel_shuffle(t: Recorder, out: Tensor, x: Tensor, groups: int) -> None:
    rows, size = t.rows(x), x.shape[1] // groups
    parts = t.identities.factor(rows[1], [groups, size], t.current.where(), [False, True])
    rows[1] = t.identities.outer([parts[1], parts[0]], [size, groups])
    t.put(out, rows)
    t.current.flow = "pass"


def im2col(t: Recorder, out: Tensor, x: Tensor, kernel: Sequence[int], *_: Any) -> None:
    part = t.identities.canonical(t.rows(x)[1])
    t.put(out, [t.rows(x)[0], None if part is None else np.repeat(part, kernel[0] * kernel[1], 0), None])
    t.current.flow = "pass"


def col2im(t: Recorder, out: Tensor, x: Tensor, _: Any, kernel: Sequence[int], *__: Any) -> None:
    taps = kernel[0] * kernel[1]
    parts = t.identities.factor(t.rows(x)[1], [x.shape[1] // taps, taps], t.current.where(), [True, False])
    t.put(out, [t.rows(x)[0], parts[0], None, None])
    t.current.flow = "pass"


def unfold(t: Recorder, out: Tensor, x: Tensor, dim: int, *_: Any) -> None:
    rows = t.rows(x)
    t.freeze(rows[dim], why="windows slide over it")
    rows[dim] = None
    t.put(out, [*rows, None])


def triangle(t: Recorder, out: Tensor, x: Tensor, *_: Any) -> None:
    """tril, triu: of matrices."""
    rows = t.rows(x)
    t.freeze(*rows[-2:], why="a triangle is cut out")
    t.put(out, [*rows[:-2], None, None])
    t.current.flow = "pass"


def diagonal(t: Recorder, out: Tensor, x: Tensor, offset: int = 0, first: int = 0, second: int = 1) -> None:
    """Of square matrices, the elements that are in row and column alike."""
    rows, axes = t.rows(x), (first % x.dim(), second % x.dim())
    a, b = (rows[axis] for axis in axes)
    if offset == 0 and x.shape[axes[0]] == x.shape[axes[1]]:
        t.unify(a, b)
    else:
        t.freeze(a, b, why="a diagonal is picked")
        a = None
    t.put(out, [*(part for d, part in enumerate(rows) if d not in axes), a])
    t.current.flow = "pass"


def diag_embed(t: Recorder, out: Tensor, x: Tensor, offset: int = 0, first: int = -2, second: int = -1) -> None:
    rows = t.rows(x)
    if offset:
        t.freeze(rows[-1], why="a diagonal is written")
    rest = iter(rows[:-1])
    axes = {first % out.dim(), second % out.dim()}
    t.put(out, [(None if offset else rows[-1]) if d in axes else next(rest) for d in range(out.dim())])
    t.current.flow = "pass"


def glu(t: Recorder, out: Tensor, x: Tensor, dim: int = -1) -> None:
    """One half gates the other: the two must stay equal."""
    rows = t.rows(x)
    halves = t.identities.factor(rows[dim], [2, out.shape[dim]], t.current.where(), [False, True])
    rows[dim] = halves[1]
    t.put(out, rows)


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(
        ["view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "_reshape_copy", "unflatten", "flatten"],
        view,
    ),
    **dict.fromkeys(["permute", "permute_copy"], permute),
    **dict.fromkeys(["transpose", "transpose_copy", "swapaxes"], transpose),
    **dict.fromkeys(["t", "numpy_T", "mT", "adjoint", "t_copy"], reverse),
    **dict.fromkeys(["unsqueeze", "unsqueeze_copy"], unsqueeze),
    **dict.fromkeys(["squeeze", "squeeze_copy"], squeeze),
    **dict.fromkeys(["expand", "expand_copy"], expand),
    **dict.fromkeys(
        [
            *("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided", "empty", "zeros", "ones", "full"),
            *("empty_strided", "rand", "randn"),
        ],
        created,
    ),
    "eye": eye,
    "repeat": repeat,
    **dict.fromkeys(["tril", "triu"], triangle),
    **dict.fromkeys(["diagonal", "diagonal_copy"], diagonal),
    "diag_embed": diag_embed,
    "glu": glu,
    **dict.fromkeys(["as_strided", "as_strided_copy"], strided),
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    **dict.fromkeys(["channel_shuffle", "native_channel_shuffle"], channel_shuffle),
    "im2col": im2col,
    "col2im": col2im,
    **dict.fromkeys(["unfold", "unfold_copy"], unfold),
}
