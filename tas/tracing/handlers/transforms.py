"""Handlers of transforms that channels are carried through: Fourier transforms, complex numbers, matrix functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from tas.tracing.leaves import tensors_of
from tas.tracing.recording import Handler, Recorder


def fourier(t: Recorder, out: Tensor, x: Tensor, dims: Sequence[int], *_: Any) -> None:
    """Linear along these dimensions, which must stay whole: with fewer positions all frequencies would be others."""
    rows = t.rows(x)
    touched = {d % x.dim() for d in dims}
    t.freeze(*(rows[d] for d in touched), why="a Fourier transform mixes it")
    t.put(out, [None if d in touched else part for d, part in enumerate(rows)])
    t.current.flow = "pass"


def as_pairs(t: Recorder, out: Tensor, x: Tensor) -> None:
    """view_as_real: real and imaginary parts in a last dimension."""
    t.put(out, [*t.rows(x), None])
    t.keep_origin(x, out, [*range(x.dim()), None])
    t.current.flow = "pass"


def from_pairs(t: Recorder, out: Tensor, x: Tensor) -> None:
    """view_as_complex"""
    t.freeze(t.rows(x)[-1], why="real and imaginary part")
    t.put(out, t.rows(x)[:-1])
    t.keep_origin(x, out, range(out.dim()))
    t.current.flow = "pass"


def matrices(t: Recorder, out: Any, *args: Any, **options: Any) -> None:
    """Inverses, decompositions, solutions: matrices must stay whole, those side by side are each on their own."""
    inputs = tensors_of((args, options))
    widest = max(inputs, key=lambda x: x.dim())
    lead = t.rows(widest)[:-2]
    for tensor in inputs:
        rows = t.rows(tensor)
        t.freeze(*rows[-2:], why="a function of whole matrices")
        for d in range(3, tensor.dim() + 1):
            if tensor.shape[-d] == widest.shape[-d]:
                t.unify(lead[2 - d], rows[-d])
    for tensor in tree_leaves(out):
        sizes = zip(tensor.shape, [*lead, None, None], widest.shape, strict=False)
        t.put(tensor, [part if n == full else None for n, part, full in sizes])


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(["_fft_r2c", "_fft_c2c", "_fft_c2r"], fourier),
    "view_as_real": as_pairs,
    "view_as_complex": from_pairs,
    **dict.fromkeys(
        [
            *("linalg_inv_ex", "linalg_matrix_exp", "linalg_cholesky_ex", "linalg_qr", "_linalg_svd", "_linalg_eigh"),
            *("_linalg_det", "_linalg_solve_ex", "linalg_pinv", "_linalg_slogdet"),
        ],
        matrices,
    ),
}
