"""Handlers of the operators that only move positions: views, permutations, concatenation, slices, padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tas.tracing.identity import Rows
from tas.tracing.recording import Handler, Recorder


def view(t: Recorder, out: Tensor, x: Tensor, *args: Any, **_: Any) -> None:
    if out.shape == x.shape:  # also a view as another dtype
        t.put(out, t.rows(x))
        t.keep_origin(x, out, range(x.dim()))
    else:
        t.put(out, t.identities.view(x.shape, t.rows(x), out.shape, t.current.where()))
        long = [d for d, n in enumerate(x.shape) if n != 1]
        if [x.shape[d] for d in long] == [n for n in out.shape if n != 1]:
            t.keep_origin(x, out, _spread(long, out.shape))
    t.current.flow = "pass"


def _spread(dims: list[int], shape: Sequence[int]) -> list[int | None]:
    rest = iter(dims)
    return [None if n == 1 else next(rest) for n in shape]


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


def cat(t: Recorder, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    tensors = [x for x in tensors if not (x.dim() == 1 and x.numel() == 0)]
    dim %= out.dim()
    rows = [t.rows(x) for x in tensors]
    for d in range(out.dim()):
        for other in rows[1:] if d != dim else []:
            t.unify(rows[0][d], other[d])
    parts = [t.identities.canonical(r[dim]) for r in rows]
    widest = max((part.shape[1] for part in parts if part is not None), default=0)
    joined: list[np.ndarray] = []
    for part, x in zip(parts, tensors, strict=True):
        columns = np.zeros((x.shape[dim], widest), int)
        if part is not None:
            columns[:, : part.shape[1]] = part
        joined.append(columns)
    t.put(out, [rows[0][d] if d != dim else np.concatenate(joined) if widest else None for d in range(out.dim())])
    t.current.flow = "pass"


def stack(t: Recorder, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    rows = [t.rows(x) for x in tensors]
    for d in range(len(rows[0])):
        for other in rows[1:]:
            t.unify(rows[0][d], other[d])
    first = list(rows[0])
    first.insert(dim % out.dim(), None)
    t.put(out, first)
    t.current.flow = "pass"


def split(t: Recorder, out: Sequence[Tensor], x: Tensor, sizes: Any, dim: int = 0) -> None:
    """`chunk` computes equal parts from the width: they must stay equal. Sizes that are listed are attributes."""
    dim %= x.dim()
    rows = t.rows(x)
    equal = isinstance(sizes, int) and len(out) > 1 and len({part.shape[dim] for part in out}) == 1
    whole = t.identities.canonical(rows[dim])
    start = 0
    for part in out:
        stop = start + part.shape[dim]
        t.put(part, [*rows[:dim], None if whole is None else whole[start:stop], *rows[dim + 1 :]])
        if whole is not None and len(out) > 1:
            t.apart.append(whole[start:stop])
        if equal and whole is not None:
            t.tie_counts(whole[: out[0].shape[dim]], whole[start:stop], f"equal parts: {t.current.where()}")
        start = stop
    t.current.flow = "pass"


def unbind(t: Recorder, out: Sequence[Tensor], x: Tensor, dim: int = 0) -> None:
    dim %= x.dim()
    rows = t.rows(x)
    t.freeze(rows[dim], why="taken apart one by one")
    for part in out:
        t.put(part, rows[:dim] + rows[dim + 1 :])
    t.current.flow = "pass"


def select(t: Recorder, out: Tensor, x: Tensor, dim: int, _: int) -> None:
    dim %= x.dim()
    rows = t.rows(x)
    t.freeze(rows[dim], why="one position is picked")
    t.put(out, rows[:dim] + rows[dim + 1 :])
    t.current.flow = "pass"


def slice_(
    t: Recorder, out: Tensor, x: Tensor, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1
) -> None:
    dim %= x.dim()
    rows, n = t.rows(x), x.shape[dim]
    part = t.identities.canonical(rows[dim])
    if part is not None and step != 1:
        if n % step == 0:
            t.identities.factor(part, [n // step, step], t.current.where(), [True, False])
        else:
            t.freeze(part, why="every n-th position is picked")
        part = t.identities.canonical(part)
    cut = None if part is None else part[slice(start, stop, step)]
    if cut is not None and step == 1 and len(cut) < n:
        t.apart.append(cut)
    if cut is not None and out.shape[dim] == 1:
        t.freeze(cut, why="one position is picked")
    t.put(out, [*rows[:dim], cut if out.shape[dim] > 1 else None, *rows[dim + 1 :]])
    t.current.flow = "pass"


def pad(t: Recorder, out: Tensor, x: Tensor, amounts: Sequence[int], value: float = 0.0) -> None:
    rows = t.rows(x)
    for index in range(len(amounts) // 2):
        d = x.dim() - 1 - index
        before, after = amounts[2 * index], amounts[2 * index + 1]
        part = t.identities.canonical(rows[d])
        if part is None or before == after == 0:
            continue
        if min(before, after) < 0:
            t.freeze(part, why="cropped by padding")
            rows[d] = None
        else:
            rows[d] = np.pad(part, ((before, after), (0, 0)))
    t.put(out, rows)
    t.current.flow = "pass" if not value else "other"


def scrambled(t: Recorder, out: Any, x: Tensor, *args: Any, **_: Any) -> None:
    """roll, flip: the touched dimensions must stay whole."""
    name = t.current.operator
    dims = args[-1] if name == "flip" or len(args) > 1 else range(x.dim())
    rows = t.rows(x)
    t.freeze(*(rows[d] for d in dims), why="positions change places")
    t.put(out, rows)
    t.current.flow = "pass"


def ordered(t: Recorder, out: Any, x: Tensor, *_: Any, **__: Any) -> None:
    """cumsum, sort, topk, gather ...: nothing of the tensor may be cut."""
    t.freeze(*t.rows(x), why="all positions are needed")
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            t.put(tensor, [None] * tensor.dim())


def glu(t: Recorder, out: Tensor, x: Tensor, dim: int = -1) -> None:
    """One half gates the other: the two must stay equal."""
    rows = t.rows(x)
    halves = t.identities.factor(rows[dim], [2, out.shape[dim]], t.current.where(), [False, True])
    rows[dim] = halves[1]
    t.put(out, rows)


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


def index(t: Recorder, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> None:
    rows = t.rows(x)
    given = [(d, i) for d, i in enumerate(indices) if i is not None]
    if any(i.dtype in (torch.bool, torch.uint8) for _, i in given):
        t.freeze(*rows, why="picked by a mask")
        t.put(out, [None] * out.dim())
        return
    dims = [d for d, _ in given]
    t.freeze(*(rows[d] for d in dims), why="picked by an index")
    width = max(i.dim() for _, i in given)
    kept = [r for d, r in enumerate(rows) if d not in dims]
    at = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    t.put(out, kept[:at] + [None] * width + kept[at:])
    t.current.flow = "pass"


def index_select(t: Recorder, out: Tensor, x: Tensor, dim: int, _: Tensor) -> None:
    rows = t.rows(x)
    t.freeze(rows[dim], why="picked by an index")
    rows[dim] = None
    t.put(out, rows)
    t.current.flow = "pass"


def embedding(t: Recorder, out: Tensor, weight: Tensor, indices: Tensor, *_: Any) -> None:
    rows = t.rows(weight)
    t.freeze(rows[0], why="rows of an embedding")
    t.put(out, [None] * indices.dim() + [rows[1]])
    t.current.flow, t.current.scales = "product", t.site(weight, 1)


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
    "repeat": repeat,
    "cat": cat,
    "stack": stack,
    **dict.fromkeys(["split", "split_with_sizes", "chunk", "unsafe_split", "split_with_sizes_copy"], split),
    "unbind": unbind,
    **dict.fromkeys(["select", "select_copy"], select),
    **dict.fromkeys(["slice", "slice_copy"], slice_),
    **dict.fromkeys(["constant_pad_nd", "pad"], pad),
    **dict.fromkeys(["roll", "flip"], scrambled),
    **dict.fromkeys(["cumsum", "cumprod", "logcumsumexp", "sort", "argsort", "topk", "gather"], ordered),
    "glu": glu,
    **dict.fromkeys(["as_strided", "as_strided_copy"], strided),
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
    **dict.fromkeys(["channel_shuffle", "native_channel_shuffle"], channel_shuffle),
    "im2col": im2col,
    "col2im": col2im,
    **dict.fromkeys(["unfold", "unfold_copy"], unfold),
    **dict.fromkeys(["index", "_unsafe_index"], index),
    "index_select": index_select,
    "embedding": embedding,
}
