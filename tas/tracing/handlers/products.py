"""Handlers of the operators that multiply and add: convolutions, linear layers, matrix and attention products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tas.tracing.handlers.pointwise import broadcast
from tas.tracing.identity import Rows
from tas.tracing.recording import Handler, Recorder
from tas.tracing.records import Axis, Site


def convolution(
    t: Recorder,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *rest: Any,
) -> None:
    given, kernel = t.rows(x), t.rows(weight)
    at = x.dim() - (weight.dim() - 1)  # where the channels are: 1, or 0 without a batch
    t.freeze(*kernel[2:], why="a kernel size")
    space: list[Rows] = []
    for d in range(at + 1, x.dim()):  # sliding over a dimension of channels keeps their count but not their neighbours
        slides = t.carries(given[d]) and out.shape[d] == x.shape[d] and all(s == 1 for s in stride)
        if slides:
            t.mark_inexact(f"a convolution slides over channels: {t.current.where()}")
            t.ordered.append(given[d])
        else:
            t.freeze(given[d], why="a spatial size")
        space.append(given[d] if slides else None)
    reads, makes = (0, 1) if transposed else (1, 0)
    if groups == 1:
        t.unify(given[at], kernel[reads])
        channels, summed = kernel[makes], kernel[reads]
    else:
        channels, summed = _grouped(t, x.shape[at], given[at], weight, groups, transposed)
    if bias is not None:
        t.unify(channels, t.rows(bias)[0])
    t.put(out, [*given[:at], channels, *space])
    size = weight.shape[reads] if groups == 1 or not transposed else x.shape[at] // groups
    taps: list[Axis] = [(n, None) for n in weight.shape[2:]]
    points: list[Axis] = [(n, None) for n in x.shape[at + 1 :]] if transposed else []
    axes: list[Axis] = list(zip(out.shape, t.rows(out), strict=True))
    t.current.products = [(axes[: at + 1] + points if points else axes) + [(size, summed)] + taps]
    t.current.flow = "product"
    if groups == 1 or not transposed:
        t.current.scales = t.scaling((weight, makes), (bias, 0))
    columns = t.site(weight, reads) if groups == 1 or not transposed else ()
    t.current.contracted = ((0, summed, columns),)


def _grouped(
    t: Recorder, channels: int, given: Rows, weight: Tensor, groups: int, transposed: bool
) -> tuple[Rows, Rows]:
    """Channels in = groups x I, channels out = groups x O with the same groups: both groups and widths can be free."""
    kernel, why = t.rows(weight), t.current.where()
    inside = t.identities.factor(given, [groups, channels // groups], why, [True, True])
    if transposed:  # the weight is [groups x I, O]
        t.unify(given, kernel[0])
        made = t.identities.outer([inside[0], kernel[1]], [groups, weight.shape[1]])
    else:
        if channels > groups:
            t.unify(inside[1], kernel[1])
        outside = t.identities.factor(kernel[0], [groups, weight.shape[0] // groups], why, [True, True])
        t.unify(inside[0], outside[0])
        made = kernel[0]
    axes = (channels, given), (channels // groups, inside[1])
    t.grouped[t.current.module] = axes
    return t.identities.canonical(made), t.identities.canonical(inside[1])


def deformed_convolution(
    t: Recorder,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    *rest: Any,
) -> None:
    """torchvision's deform_conv2d: offsets and masks belong to points of the picture and taps of the kernel."""
    groups, offset_groups, given = rest[6], rest[7], t.rows(x)
    t.freeze(*t.rows(offset)[1:], *t.rows(mask)[1:], why="one position a tap of the kernel")
    t.freeze(*given[2:], why="a spatial size")
    if offset_groups > 1:
        sizes = [offset_groups, x.shape[1] // offset_groups]
        t.identities.factor(given[1], sizes, t.current.where(), [False, True])
    convolution(t, out, x, weight, bias, [1, 1], None, None, False, None, groups)


def trilinear(
    t: Recorder, out: Tensor, a: Tensor, weight: Tensor, b: Tensor, *expanded: Sequence[int], **_: Any
) -> None:
    """Three tensors with dimensions of one put in, multiplied and summed (nn.Bilinear: a, weight [out, a, b], b)."""
    *ones, summed = expanded[:4]
    n = a.dim() + len(ones[0])
    grid: list[Axis] = []
    for axis in range(n):
        parts: list[Axis] = []
        for x, put_in in zip((a, weight, b), ones, strict=True):
            if axis not in put_in:
                d = axis - sum(other < axis for other in put_in)
                parts.append((x.shape[d], t.rows(x)[d]))
        size = max(part[0] for part in parts)
        alike = [rows for m, rows in parts if m == size]
        for other in alike[1:] if size > 1 else ():
            t.unify(alike[0], other)
        grid.append((size, alike[0]))
    t.put(out, [rows for axis, (_, rows) in enumerate(grid) if axis not in summed])
    t.current.products, t.current.flow = [grid], "product"
    t.current.scales = t.site(weight, 0) if 0 not in summed else ()
    columns = {axis: t.site(weight, axis - len(ones[1])) for axis in summed}
    t.current.contracted = tuple(
        (place, grid[axis][1], columns[axis])
        for axis in summed
        for place, put_in in ((0, ones[0]), (2, ones[2]))
        if axis not in put_in
    )


def linear(t: Recorder, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    given, kernel = t.rows(x), t.rows(weight)
    t.unify(given[-1], kernel[1])
    if bias is not None:
        t.unify(kernel[0], t.rows(bias)[0])
    t.put(out, [*given[:-1], kernel[0]])
    _multiplied(t, out, (x.shape[-1], kernel[1]), t.site(weight, 1))
    t.current.scales = t.scaling((weight, 0), (bias, 0))


def matmul(t: Recorder, out: Tensor, a: Tensor, b: Tensor) -> None:
    """mm, bmm, mv: the last dimension of a meets the last but one of b."""
    left, right = t.rows(a), t.rows(b)
    meets = b.dim() - 2 if b.dim() > 1 else 0
    t.unify(left[-1], right[meets])
    if a.dim() == 3:
        t.unify(left[0], right[0])
    t.put(out, left[:-1] + ([right[-1]] if b.dim() > 1 else []))
    _multiplied(t, out, (a.shape[-1], left[-1]), t.site(b, meets))
    if b.dim() == 1:  # not counted, by torch's counter neither: the power iteration of a spectral norm, say
        t.current.products = []
    t.current.scales = t.site(b, b.dim() - 1) if b.dim() > 1 else ()


def grouped_matmul(t: Recorder, out: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> None:
    """The rows of a in groups, each with a matrix of its own in b (experts and their tokens): groups stay. Otherwise
    grouped are columns or what is summed over, for gradients: these stay as they are."""
    left, right = t.rows(a), t.rows(b)
    if b.dim() == 3:
        t.freeze(left[0], right[0], why="rows are in groups")
        t.unify(left[-1], right[1])
        t.put(out, [*[None] * (out.dim() - 2), t.rows(a)[-2], right[2]])
    else:
        t.freeze(*left, *right, why="columns are in groups")
        t.put(out, [None] * out.dim())
    _multiplied(t, out, (a.shape[-1], left[-1]), t.site(b, b.dim() - 2))
    if a.dim() == b.dim() == 2:  # every position that is summed over is in one group
        t.current.products = [t.current.products[0][1:]]
    t.current.scales = t.site(b, b.dim() - 1)


def aligned_grouped_matmul(t: Recorder, out: Tensor, a: Tensor, b: Tensor, *rest: Any, **options: Any) -> None:
    """torch's kernel wants rows of whole 16 bytes: a's and b's, and in the backward pass the output's."""
    grouped_matmul(t, out, a, b, *rest, **options)
    t.steps += [(part, 16 // a.element_size()) for part in (t.rows(a)[-1], t.rows(b)[-1])]


def added_matmul(t: Recorder, out: Tensor, c: Tensor, a: Tensor, b: Tensor, **_: Any) -> None:
    """addmm, baddbmm: c + a @ b."""
    matmul(t, out, a, b)
    products, contracted = t.current.products, t.current.contracted
    broadcast(t, out, [out, c])
    t.current.products, t.current.flow = products, "product"
    t.current.contracted, t.current.met_by = tuple((1, rows, site) for _, rows, site in contracted), 2
    t.current.scales = t.scaling((b, b.dim() - 1), (c, c.dim() - 1)) if b.dim() > 1 else ()


def _multiplied(t: Recorder, out: Tensor, summed: tuple[int, Rows], columns: tuple[Site, ...]) -> None:
    t.current.products = [[*zip(out.shape, t.rows(out), strict=True), summed]]
    t.current.flow = "product"
    t.current.contracted, t.current.met_by = ((0, summed[1], columns),), 1


def attention(t: Recorder, out: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **options: Any) -> None:
    """Scaled dot products: batch and heads of q, k, v go together, head size of q with k, positions of k with v. Fewer
    heads of k and v serve as many heads of q each (grouped queries): q has keys' heads x queries a head."""
    first = out[0] if isinstance(out, (tuple, list)) else out
    rows_q, rows_k, rows_v = t.rows(q), t.rows(k), t.rows(v)
    for d in range(q.dim() - 2):
        for other, rows in ((k, rows_k), (v, rows_v)):
            fewer, each = other.shape[d], q.shape[d] // other.shape[d]
            if each == 1:
                t.unify(rows_q[d], rows[d])
            elif 1 < fewer < q.shape[d]:
                served = t.identities.fresh(each)
                t.unify(rows_q[d], t.identities.outer([rows[d], served], [fewer, each]))
    t.unify(rows_q[-1], rows_k[-1])
    t.unify(rows_k[-2], rows_v[-2])
    mask = next((a for a in [*rest, *options.values()] if isinstance(a, Tensor)), None)
    if mask is not None:
        scores = [*rows_q[:-1], rows_k[-2]]
        for d in range(1, mask.dim() + 1):
            if mask.shape[-d] > 1:
                t.unify(t.rows(mask)[-d], scores[-d])
    if t.carries(rows_q[-1]) and options.get("scale") is None:
        t.mark_inexact(f"the scale follows the head size: {t.current.where()}")
    t.put(first, [*rows_q[:-1], rows_v[-1]])
    if isinstance(out, (tuple, list)) and len(out) > 1 and isinstance(out[1], Tensor) and out[1].dim() == q.dim() - 1:
        t.put(out[1], rows_q[:-1])
    positions = (k.shape[-2], rows_k[-2])
    t.current.products = [
        [*zip(first.shape, t.rows(first), strict=True), positions],
        [*zip(q.shape, rows_q, strict=True), positions],
    ]
    t.current.flow = "product"
    t.current.contracted, t.current.met_by = ((0, rows_q[-1], ()),), 1


def dot(t: Recorder, out: Tensor, a: Tensor, b: Tensor) -> None:
    t.unify(t.rows(a)[0], t.rows(b)[0])
    t.put(out, [])


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(["convolution", "_convolution", "mkldnn_convolution"], convolution),
    "deform_conv2d": deformed_convolution,
    "_trilinear": trilinear,
    "linear": linear,
    **dict.fromkeys(["mm", "bmm", "mv"], matmul),
    **dict.fromkeys(["addmm", "baddbmm", "addmv"], added_matmul),
    **dict.fromkeys(
        [
            "scaled_dot_product_attention",
            "_scaled_dot_product_attention_math",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_fused_attention_overrideable",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
        ],
        attention,
    ),
    **dict.fromkeys(["dot", "vdot"], dot),
    "_grouped_mm": aligned_grouped_matmul,
    "transformers::grouped_mm_fallback": grouped_matmul,  # theirs, where torch has no kernel
}
