"""Handlers of the operators that treat every channel alone: elementwise, norms, reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tas.tracing.identity import Rows
from tas.tracing.leaves import tensors_of
from tas.tracing.recording import Handler, Recorder
from tas.tracing.records import Site

# f(0) = 0, so a channel that is multiplied by 0 before is 0 behind
_ZERO_STAYS_ZERO = {
    *("relu", "leaky_relu", "silu", "gelu", "hardswish", "tanh", "elu", "celu", "selu", "mish", "abs", "neg", "square"),
    *("dropout", "native_dropout", "clone", "detach", "alias", "_to_copy", "contiguous", "sign", "sin", "erf", "sqrt"),
    *("prelu", "_prelu_kernel", "rrelu_with_noise", "copy", "round", "floor", "trunc", "hardshrink", "softshrink"),
    *("complex", "_conj", "_neg_view", "conj_physical", "_conj_physical"),
}
_SAME_TENSOR = {"clone", "detach", "alias", "_to_copy", "contiguous", "_conj"}
_MORE_POINTWISE = {
    *("copy", "lerp", "native_dropout", "clamp", "hardtanh", "_to_copy", "clone", "masked_fill", "where", "addcmul"),
    *("addcdiv", "zeros_like", "ones_like", "rand_like", "empty_like", "full_like", "randn_like", "bernoulli", "alias"),
    *("detach", "lift_fresh", "lift_fresh_copy", "contiguous", "rrelu_with_noise", "fill", "zero", "nan_to_num"),
    *("hardswish", "hardsigmoid", "silu", "mish", "gelu", "elu", "leaky_relu", "polar", "normal", "uniform", "random"),
    *("exponential", "geometric", "cauchy", "log_normal", "log_sigmoid_forward", "complex", "_conj", "_neg_view"),
    *("conj_physical", "_conj_physical", "bucketize"),
}


def pointwise(t: Recorder, out: Any, *args: Any, **options: Any) -> None:
    inputs = tensors_of((args, options))
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            broadcast(t, tensor, inputs)
    name = t.current.operator.rstrip("_")
    numbers = [a for a in args[1:] if isinstance(a, (int, float)) and not isinstance(a, bool)]
    if name in ("add", "sub"):
        t.current.flow = "add" if not any(numbers) else "other"
        t.current.scales = _bias(t, out, inputs) if not any(numbers) else ()
    elif name == "mul":
        t.current.flow = "multiply"
        if t.sums_over_one:
            t.current.products = [list(zip(out.shape, t.rows(out), strict=True))]
    elif name == "div":
        t.current.flow = "multiply" if len(inputs) < 2 or not any(t.carries(r) for r in t.rows(inputs[1])) else "other"
    elif name in ("hardtanh", "clamp"):
        low, high = (*args[1:], None, None)[:2] if args[1:] else (options.get("min"), options.get("max"))
        default = (-1.0, 1.0) if name == "hardtanh" else (None, None)
        low, high = (b if b is not None else d for b, d in zip((low, high), default, strict=True))
        inside = all(b is None or isinstance(b, (int, float)) for b in (low, high))
        t.current.flow = "pass" if inside and (low or 0) <= 0 <= (high or 0) + (high is None) else "other"
    elif name in _ZERO_STAYS_ZERO:
        t.current.flow = "pass"
    scaled = name in ("mul", "div") and len(inputs) == 1  # by a number: a factor on the parameter is one on the product
    if (name in _SAME_TENSOR or scaled) and inputs:
        t.keep_origin(inputs[0], out, range(out.dim()))


def _bias(t: Recorder, out: Tensor, inputs: Sequence[Tensor]) -> tuple[Site, ...]:
    """The parameter that is added to every channel: torch adds a layer's bias apart where memory is not in order."""
    vectors = [x for x in inputs if x.dim() == 1 < out.dim() and x.shape[0] == out.shape[-1]]
    return t.site(vectors[0], 0) if len(inputs) == 2 and len(vectors) == 1 else ()


def broadcast(t: Recorder, out: Tensor, inputs: Sequence[Tensor]) -> None:
    """Dimensions are matched from the right; those of the output's size go together, those of size 1 say nothing."""
    rows: list[Rows] = []
    for d in range(-out.dim(), 0):
        alike = [x for x in inputs if x.dim() >= -d and x.shape[d] == out.shape[d] and out.shape[d] > 1]
        for other in alike[1:]:
            t.unify(t.rows(alike[0])[d], t.rows(other)[d])
        rows.append(t.rows(alike[0])[d] if alike else None)
    t.put(out, rows)


def prelu(t: Recorder, out: Tensor, x: Tensor, weight: Tensor) -> None:
    rows = t.rows(x)
    if weight.dim() == 1 and weight.numel() > 1:
        t.unify(rows[1 if x.dim() > 1 else 0], t.rows(weight)[0])
        t.put(out, rows)
    else:
        broadcast(t, out, [x, weight])
    t.current.flow = "pass"


def batch_norm(
    t: Recorder, out: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any, **_: Any
) -> None:
    rows = t.rows(x)
    for tensor in (weight, bias, *rest[:2]):
        if isinstance(tensor, Tensor):
            t.unify(rows[1], t.rows(tensor)[0])
    t.put(out[0], rows)
    if weight is not None and bias is None and any(t.site(x, 1)):  # standardised weights: their gain scales the rows
        t.keep_origin(weight, out[0], [0 if d == 1 else None for d in range(x.dim())])
    for statistic in out[1:]:  # of the batch, where it is used
        if isinstance(statistic, Tensor) and statistic.shape == x.shape[1:2]:
            t.put(statistic, rows[1:2])
    if any(t.carries(r) for r in rows[2:]) and any(flag is True for flag in rest):
        t.mark_inexact(f"batch statistics over channels: {t.current.where()}", *rows[2:])
    t.current.flow = "norm"
    t.current.scales = t.scaling((weight, 0), (bias, 0)) if weight is not None else ()


def weight_norm(t: Recorder, out: Any, direction: Tensor, length: Tensor, dim: int = 0) -> None:
    """length x direction / |direction|, the norm over all dimensions but one: scaling the length scales the rows."""
    rows = t.rows(direction)
    t.unify(rows[dim], t.rows(length)[dim])
    t.put(out[0], rows)
    t.put(out[1], [part if n > 1 else None for n, part in zip(out[1].shape, rows, strict=True)])
    if any(t.carries(part) for d, part in enumerate(rows) if d != dim % len(rows)):
        t.mark_inexact(f"a norm over channels: {t.current.where()}")
    t.keep_origin(length, out[0], [d if d == dim % len(rows) else None for d in range(len(rows))])
    t.current.flow = "norm"


def layer_norm(
    t: Recorder, out: Any, x: Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, *_: Any
) -> None:
    """Also root mean square norms: a mean over the normalised dimensions, then an affine over them."""
    first = out[0] if isinstance(out, (tuple, list)) else out
    rows = t.rows(x)
    tensors = [w for w in (weight, bias) if isinstance(w, Tensor)]
    for tensor in tensors:
        for d in range(1, len(shape) + 1):
            t.unify(rows[-d], t.rows(tensor)[-d])
    if any(t.carries(r) for r in rows[-len(shape) :]):
        t.mark_inexact(f"a norm over channels: {t.current.where()}", *rows[-len(shape) :])
    t.put(first, rows)
    for statistic in out[1:] if isinstance(out, (tuple, list)) else ():  # mean and deviation, of every head say
        if statistic.dim() == x.dim():
            t.put(statistic, [part if n > 1 else None for n, part in zip(statistic.shape, rows, strict=True)])
    t.current.flow = "norm"
    t.current.scales = t.scaling(*((w, -1) for w in tensors)) if len(shape) == 1 else ()


def group_norm(t: Recorder, out: Any, x: Tensor, weight: Any, bias: Any, *sizes: Any) -> None:
    """Groups stay, the widths inside them shrink alike; groups that are heads go with these."""
    groups, rows, channels = int(sizes[3]), t.rows(x), x.shape[1]
    outer: Rows = None
    tensors = [w for w in (weight, bias) if isinstance(w, Tensor)]
    for tensor in tensors:
        t.unify(rows[1], t.rows(tensor)[0])
    if groups == channels:
        t.freeze(rows[1], why="one channel a norm group")
    elif groups > 1:
        outer, _ = t.identities.factor(rows[1], [groups, channels // groups], t.current.where(), [False, True])
    if t.carries(rows[1]):
        t.mark_inexact(f"a norm over channels: {t.current.where()}", rows[1])
    t.put(out[0], rows)
    for statistic in out[1:]:
        t.put(statistic, [rows[0], outer])
    t.current.flow = "norm"
    t.current.scales = t.scaling(*((w, 0) for w in tensors))


def cross(t: Recorder, out: Tensor, a: Tensor, b: Tensor, *, dim: int = -1) -> None:
    t.freeze(t.rows(a)[dim], t.rows(b)[dim], why="three coordinates")
    broadcast(t, out, [a, b])
    t.current.flow = "multiply"


def searched(t: Recorder, out: Tensor, edges: Tensor, x: Tensor, **_: Any) -> None:
    """searchsorted: of every number its place among sorted ones."""
    t.freeze(t.rows(edges)[-1], why="all positions are needed")
    for part, mine in zip(t.rows(edges)[:-1], t.rows(x), strict=False):
        t.unify(part, mine)
    t.put(out, t.rows(x))


def along(t: Recorder, out: Any, x: Tensor, dim: int, *_: Any, **__: Any) -> None:
    """Softmax and the like: same shape, mixed along one dimension."""
    if t.carries(t.rows(x)[dim]):
        t.mark_inexact(f"mixed over channels: {t.current.where()}", t.rows(x)[dim])
    t.put(out, t.rows(x))


def reduction(t: Recorder, out: Any, x: Tensor, *args: Any, **options: Any) -> None:
    """mean, sum, var, amax ...: reduced dimensions disappear; exact only where they carry no channels, or in a sum."""
    if args and isinstance(args[0], Tensor):  # max(x, y)
        pointwise(t, out, x, *args, **options)
        return
    name, rows = t.current.operator, t.rows(x)
    wanted = [
        a
        for a in args
        if isinstance(a, (list, tuple) if "norm" in name else (list, tuple, int)) and not isinstance(a, bool)
    ]
    given = wanted[0] if wanted else options.get("dim")
    dims = range(x.dim()) if given is None or given == [] else [given] if isinstance(given, int) else given
    gone = {d % max(x.dim(), 1) for d in dims}
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            if tensor.dim() == x.dim():
                t.put(tensor, [None if d in gone else r for d, r in enumerate(rows)])
            else:
                t.put(tensor, [r for d, r in enumerate(rows) if d not in gone])
    mixed = [rows[d] for d in gone if t.carries(rows[d])]
    if name in ("sum", "nansum") and mixed:
        t.current.flow = "product"
        t.current.contracted = tuple((0, part, ()) for part in mixed)
    elif mixed:
        t.mark_inexact(f"reduced over channels: {t.current.where()}", *mixed)
    elif name in ("mean", "sum", "nansum", "amax", "max", "amin", "min", "aminmax"):
        t.current.flow = "pass"


HANDLERS: dict[str, Handler] = {
    "pointwise": pointwise,
    **dict.fromkeys(_MORE_POINTWISE, pointwise),
    **dict.fromkeys(["prelu", "_prelu_kernel"], prelu),
    **dict.fromkeys(
        [
            *("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit"),
            *("_batch_norm_with_update", "_batch_norm_no_update", "cudnn_batch_norm"),
        ],
        batch_norm,
    ),
    **dict.fromkeys(["native_layer_norm", "_fused_rms_norm", "rms_norm"], layer_norm),
    "native_group_norm": group_norm,
    "_weight_norm_interface": weight_norm,
    "linalg_cross": cross,
    "searchsorted": searched,
    **dict.fromkeys(["_softmax", "_safe_softmax", "_log_softmax", "softmax"], along),
    **dict.fromkeys(
        [
            *("mean", "sum", "var", "std", "var_mean", "std_mean", "amax", "amin", "max", "min", "norm", "prod"),
            *(
                "linalg_vector_norm",
                "logsumexp",
                "argmax",
                "argmin",
                "any",
                "all",
                "nansum",
                "aminmax",
                "count_nonzero",
            ),
        ],
        reduction,
    ),
}
