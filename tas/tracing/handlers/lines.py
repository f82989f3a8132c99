"""Handlers of the operators that work along one dimension: sums up to a position, ranks, what indices pick and write.

That dimension must stay whole; in the others every position is on its own, so channels there are free.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tas.tracing.recording import Handler, Recorder

_SCALES_ALONG = {
    *("cumsum", "cummax", "cummin", "sort", "topk", "kthvalue", "median", "nanmedian", "mode"),
}  # f(m x) = m f(x) for m >= 0


def along_one(t: Recorder, out: Any, x: Tensor, *args: Any, **options: Any) -> None:
    """cumsum, sort, topk, median ...: nothing of the dimension may be cut."""
    name, rows = t.current.operator, t.rows(x)
    place = 1 if name in ("topk", "kthvalue") else 0
    every = name in ("median", "nanmedian") and not args and "dim" not in options
    dim = options.get("dim", args[place] if len(args) > place else -1)
    gone = set(range(x.dim())) if every else {dim % max(x.dim(), 1)}
    t.freeze(*(part for d, part in enumerate(rows) if d in gone), why="all positions are needed")
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            whole = tensor.dim() == x.dim()
            t.put(tensor, [None if d in gone else part for d, part in enumerate(rows) if whole or d not in gone])
    t.current.flow = "pass" if name in _SCALES_ALONG else "other"


def reversed_(t: Recorder, out: Tensor, x: Tensor, dims: list[int]) -> None:
    """flip: what is kept comes in reversed order, as it does in the whole network."""
    rows = t.rows(x)
    for d in dims:
        known = t.identities.canonical(rows[d])
        rows[d] = None if known is None else known[::-1]
    t.put(out, rows)
    t.current.flow = "pass"


def scrambled(t: Recorder, out: Tensor, x: Tensor, _: Any = 1, dims: Any = ()) -> None:
    """roll, rot90: the touched dimensions must stay whole."""
    rows = t.rows(x)
    touched = {d % x.dim() for d in ([dims] if isinstance(dims, int) else dims) or range(x.dim())}
    t.freeze(*(rows[d] for d in touched), why="positions change places")
    t.put(out, [None if d in touched else part for d, part in enumerate(rows)])
    t.current.flow = "pass"


def gather(t: Recorder, out: Tensor, x: Tensor, dim: int, index: Tensor, **_: Any) -> None:
    """In the other dimensions each position picks for itself (tokens by an index that is expanded over channels)."""
    if not _meet(t, x, dim, index):
        t.put(out, [None] * out.dim())
    else:
        t.put(out, [None if d == dim % x.dim() else part for d, part in enumerate(t.rows(x))])
    t.current.flow = "pass"


def scatter(
    t: Recorder, out: Tensor, x: Tensor, dim: int, index: Tensor, source: Any = 0, *rest: Any, **_: Any
) -> None:
    """scatter, scatter_add, scatter_reduce: the reverse of gather."""
    _meet(t, x, dim, *(tensor for tensor in (index, source) if isinstance(tensor, Tensor)))
    t.put(out, t.rows(x))
    plain = isinstance(source, Tensor) and "prod" not in rest
    t.current.flow = "pass" if plain or (isinstance(source, (int, float)) and source == 0) else "other"


def _meet(t: Recorder, x: Tensor, dim: int, *others: Tensor) -> bool:
    """Unify all dimensions but one. Where another tensor is shorter, only the first positions are used: these are kept.
    Whether all are as long."""
    rows, alike = t.rows(x), True
    for other in others if x.dim() else ():
        for d, part in enumerate(t.rows(other)):
            if d == dim % x.dim():
                t.freeze(rows[d], part, why="positions are picked by an index")
            elif other.shape[d] == x.shape[d]:
                t.unify(rows[d], part)
            else:
                t.freeze(rows[d], part, why="only its first positions are picked")
                alike = False
    return alike


def index_write(t: Recorder, out: Tensor, x: Tensor, dim: int, _: Tensor, source: Any, *rest: Any, **__: Any) -> None:
    """index_add, index_copy, index_fill, index_reduce: slices written where an index points."""
    rows = t.rows(x)
    tensors = [source] if isinstance(source, Tensor) and source.dim() == x.dim() else []
    t.freeze(rows[dim], *(t.rows(tensor)[dim] for tensor in tensors), why="positions are picked by an index")
    for tensor in tensors:
        for d, part in enumerate(t.rows(tensor)):
            if d != dim % x.dim():
                t.unify(rows[d], part)
    t.put(out, rows)
    t.current.flow = "pass" if (tensors and "prod" not in rest) or source == 0 else "other"


def slice_write(t: Recorder, out: Tensor, x: Tensor, source: Tensor, dim: int = 0, *_: Any, **__: Any) -> None:
    """select_scatter, slice_scatter: a part along one dimension written anew."""
    rows, parts, dim = t.rows(x), t.rows(source), dim % x.dim()
    if source.dim() < x.dim():
        parts.insert(dim, None)
    t.freeze(rows[dim], parts[dim], why="a part of it is written")
    for d, part in enumerate(parts):
        if d != dim:
            t.unify(rows[d], part)
    t.put(out, rows)
    t.current.flow = "pass"


def index_select(t: Recorder, out: Tensor, x: Tensor, dim: int, _: Tensor) -> None:
    rows = t.rows(x)
    t.freeze(rows[dim], why="picked by an index")
    rows[dim] = None
    t.put(out, rows)
    t.current.flow = "pass"


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(
        [
            *("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort", "topk", "kthvalue", "median"),
            *("nanmedian", "mode"),
        ],
        along_one,
    ),
    "flip": reversed_,
    **dict.fromkeys(["roll", "rot90"], scrambled),
    "gather": gather,
    **dict.fromkeys(["scatter", "scatter_add", "scatter_reduce"], scatter),
    **dict.fromkeys(["index_add", "index_copy", "index_fill", "index_reduce"], index_write),
    **dict.fromkeys(["select_scatter", "slice_scatter"], slice_write),
    "index_select": index_select,
}
