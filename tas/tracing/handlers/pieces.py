"""Handlers of the operators that join tensors or take parts of them: concatenation, slices, padding, indices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tas.tracing.identity import Rows
from tas.tracing.recording import Handler, Recorder


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
        t.keep_origin(x, part, range(x.dim()))
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
        t.keep_origin(x, part, [d for d in range(x.dim()) if d != dim])
    t.current.flow = "pass"


def select(t: Recorder, out: Tensor, x: Tensor, dim: int, _: int) -> None:
    dim %= x.dim()
    rows = t.rows(x)
    t.freeze(rows[dim], why="one position is picked")
    t.put(out, rows[:dim] + rows[dim + 1 :])
    t.keep_origin(x, out, [d for d in range(x.dim()) if d != dim])
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
    t.keep_origin(x, out, range(x.dim()))
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


def index(t: Recorder, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> None:
    t.put(out, _indexed(t, x, indices))
    t.current.flow = "pass"


def index_put(t: Recorder, out: Tensor, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, *_: Any) -> None:
    """x with `values` where the indices point: what is not indexed goes with the values' dimensions."""
    written = _indexed(t, x, indices)
    for d, part in enumerate(reversed(t.rows(values)), 1):
        if d <= len(written) and values.shape[-d] > 1:
            t.unify(written[-d], part)
    t.put(out, t.rows(x))
    t.current.flow = "pass"


def masked_select(t: Recorder, out: Tensor, x: Tensor, mask: Tensor) -> None:
    t.freeze(*t.rows(x), *t.rows(mask), why="picked by a mask")
    t.put(out, [None])


def _indexed(t: Recorder, x: Tensor, indices: Sequence[Tensor | None]) -> list[Rows]:
    """Identities of x[indices]. A mask stands for as many dimensions as it has; all indices together give those that
    they are broadcast to, in place of the first where they are neighbours, else in front."""
    rows, dims, why, d = t.rows(x), list[int](), "picked by an index", 0
    width = 0
    for given in indices:
        if given is None:
            d += 1
            continue
        masks = given.dtype in (torch.bool, torch.uint8)
        covered = given.dim() if masks else 1
        why = "picked by a mask" if masks else why
        width = max(width, 1 if masks else given.dim())
        dims += range(d, d + covered)
        d += covered
    t.freeze(*(rows[d] for d in dims), why=why)
    kept = [r for d, r in enumerate(rows) if d not in dims]
    at = dims[0] if dims == list(range(dims[0], dims[-1] + 1)) else 0
    return kept[:at] + [None] * width + kept[at:]


def roi_align(t: Recorder, out: Any, x: Tensor, regions: Tensor, *_: Any) -> None:
    """torchvision's roi_align, roi_pool: regions of pictures; channels stay."""
    rows = t.rows(x)
    t.freeze(rows[0], *rows[2:], *t.rows(regions), why="regions are taken out")
    for tensor in tree_leaves(out):
        t.put(tensor, [None, rows[1], None, None])
    t.current.flow = "pass"


def embedding(t: Recorder, out: Tensor, weight: Tensor, indices: Tensor, *_: Any) -> None:
    rows = t.rows(weight)
    t.freeze(rows[0], why="rows of an embedding")
    t.put(out, [None] * indices.dim() + [rows[1]])
    t.current.flow, t.current.scales = "product", t.site(weight, 1)


def embedding_bag(t: Recorder, out: Sequence[Tensor], weight: Tensor, *rest: Any) -> None:
    """Sums, means or maxima of rows; behind them, what a gradient needs."""
    rows = t.rows(weight)
    weights = (part for tensor in rest if isinstance(tensor, Tensor) for part in t.rows(tensor))
    t.freeze(rows[0], *weights, why="rows of an embedding")
    for tensor in out[1:]:
        t.put(tensor, [None] * tensor.dim())
    t.put(out[0], [None, rows[1]])
    t.current.flow, t.current.scales = "product", t.site(weight, 1)


HANDLERS: dict[str, Handler] = {
    "cat": cat,
    "stack": stack,
    **dict.fromkeys(["split", "split_with_sizes", "chunk", "unsafe_split", "split_with_sizes_copy"], split),
    "unbind": unbind,
    **dict.fromkeys(["select", "select_copy"], select),
    **dict.fromkeys(["slice", "slice_copy"], slice_),
    **dict.fromkeys(["constant_pad_nd", "pad"], pad),
    **dict.fromkeys(["index", "_unsafe_index"], index),
    **dict.fromkeys(["index_put", "_unsafe_index_put", "_index_put_impl"], index_put),
    "masked_select": masked_select,
    **dict.fromkeys(["roi_align", "roi_pool"], roi_align),
    "embedding": embedding,
    **dict.fromkeys(["_embedding_bag", "_embedding_bag_forward_only"], embedding_bag),
}
