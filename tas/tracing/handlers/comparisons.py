"""Handlers of the operators that compare tensors and give a number: losses inside a forward, distances."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tas.tracing.handlers.pointwise import broadcast
from tas.tracing.leaves import tensors_of
from tas.tracing.recording import Handler, Recorder


def loss(t: Recorder, out: Tensor, *args: Any, **options: Any) -> None:
    """mse_loss, binary_cross_entropy ...: element by element, then the mean or sum of all unless none is wanted."""
    inputs = tensors_of((args, options))
    if out.shape == inputs[0].shape:
        broadcast(t, out, inputs)
        return
    widest = max(inputs, key=lambda x: x.dim())
    for other in inputs:
        for d in range(1, other.dim() + 1):
            if other.shape[-d] == widest.shape[-d] > 1:
                t.unify(t.rows(widest)[-d], t.rows(other)[-d])
    t.mark_inexact(f"reduced over channels: {t.current.where()}", *t.rows(widest))
    t.put(out, [None] * out.dim())


def class_loss(t: Recorder, out: Any, x: Tensor, target: Tensor, weight: Tensor | None, *_: Any) -> None:
    """nll_loss: a class of each position, by an index."""
    rows, at = t.rows(x), 1 if x.dim() > 1 else 0
    t.freeze(rows[at], *(t.rows(weight) if weight is not None else ()), why="classes are picked by an index")
    rest = rows[:at] + rows[at + 1 :]
    for part, other in zip(rest, t.rows(target), strict=False):
        t.unify(part, other)
    for tensor in tree_leaves(out):
        t.put(tensor, rest if tensor.dim() and tensor.dim() == len(rest) else [None] * tensor.dim())
    if out[0].dim() != len(rest):
        t.mark_inexact(f"reduced over channels: {t.current.where()}", *rest)


def distances(t: Recorder, out: Tensor, x: Tensor, y: Tensor, *_: Any) -> None:
    """cdist: of each of the points in x to each of those in y."""
    rows, others = t.rows(x), t.rows(y)
    t.unify(rows[-1], others[-1])
    for d in range(3, min(x.dim(), y.dim()) + 1):
        if x.shape[-d] == y.shape[-d]:
            t.unify(rows[-d], others[-d])
    t.mark_inexact(f"a distance over channels: {t.current.where()}", rows[-1])
    lead = rows[:-2] if x.dim() >= y.dim() else others[:-2]
    t.put(out, [*(part if n > 1 else None for n, part in zip(out.shape, lead, strict=False)), rows[-2], others[-2]])


def distance(t: Recorder, out: Tensor, x: Tensor, y: Any = None, *_: Any) -> None:
    """dist: of two tensors as a whole. pdist: of all pairs of points."""
    rows = t.rows(x)
    if isinstance(y, Tensor):
        loss(t, out, x, y)
        return
    t.freeze(rows[0], why="all pairs are needed")
    t.mark_inexact(f"a distance over channels: {t.current.where()}", rows[-1])
    t.put(out, [None] * out.dim())


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(
        [
            *("mse_loss", "smooth_l1_loss", "huber_loss", "soft_margin_loss", "binary_cross_entropy"),
            "binary_cross_entropy_with_logits",
        ],
        loss,
    ),
    **dict.fromkeys(["nll_loss_forward", "nll_loss2d_forward"], class_loss),
    **dict.fromkeys(["_cdist_forward", "_euclidean_dist", "cdist"], distances),
    **dict.fromkeys(["dist", "_pdist_forward"], distance),
}
