"""Handlers of the operators over space that treat every channel alone: pooling, resizing, mirror padding, sampling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tas.tracing.identity import Rows
from tas.tracing.recording import Handler, Recorder


def over_space(t: Recorder, out: Any, x: Tensor, *args: Any, **options: Any) -> None:
    """Pooling, resizing, mirror padding: channels stay, what lies behind them is spatial."""
    at = x.dim() - _spatial(t)
    rows = t.rows(x)
    t.freeze(*rows[at:], why="a spatial size")
    for tensor in tree_leaves((args, options)):  # indices of maxima, random numbers for each channel
        if isinstance(tensor, Tensor) and tensor.shape[:at] == x.shape[:at]:
            for part, mine in zip(t.rows(tensor)[:at], rows, strict=False):
                t.unify(mine, part)
    for tensor in tree_leaves(out):
        if isinstance(tensor, Tensor):
            t.put(tensor, rows[:at] + [None] * (tensor.dim() - at))
    t.current.flow = "pass"


def _spatial(t: Recorder) -> int:
    return next((n for n in (1, 2, 3) if f"{n}d" in t.current.operator), 2)


def average_pool(
    t: Recorder, out: Tensor, x: Tensor, kernel: Sequence[int], stride: Any = (), padding: Any = 0, *_: Any, **__: Any
) -> None:
    """Over space; also over neighbouring channels, with zeros put around all of them (local response norm)."""
    spatial = _spatial(t)
    at = x.dim() - spatial
    rows, space = t.rows(x), list[Rows]()
    for d in range(spatial):
        size, step, more = (_of(given, d) for given in (kernel, stride or kernel, padding))
        inside = _neighbours(t, rows[at + d], size, more) if step == 1 else None
        if inside is None:
            t.freeze(rows[at + d], why="a spatial size")
        elif size > 1:
            t.mark_inexact(f"a mean slides over channels: {t.current.where()}", inside)
            t.ordered.append(inside)
        space.append(inside)
    t.put(out, rows[:at] + space)
    t.current.flow = "pass"


def _of(given: Any, place: int) -> int:
    return given if isinstance(given, int) else given[place] if len(given) > 1 else given[0]


def _neighbours(t: Recorder, rows: Rows, kernel: int, padding: int) -> Rows:
    """The positions in the middle of windows, where these are as many as the channels with zeros put around them."""
    known = t.identities.canonical(rows)
    if known is None:
        return None
    live = np.flatnonzero(known.any(1))
    before, behind = live[0], len(known) - 1 - live[-1]
    return known[before : len(known) - behind] if before + behind + 2 * padding == kernel - 1 else None


def grid_sample(t: Recorder, out: Tensor, x: Tensor, grid: Tensor, *_: Any, **__: Any) -> None:
    """Pictures read at the points of a grid."""
    rows, points = t.rows(x), t.rows(grid)
    t.unify(rows[0], points[0])
    t.freeze(*rows[2:], *points[1:], why="a spatial size")
    t.put(out, rows[:2] + [None] * (out.dim() - 2))
    t.current.flow = "pass"


def affine_grid(t: Recorder, out: Tensor, matrices: Tensor, *_: Any) -> None:
    rows = t.rows(matrices)
    t.freeze(*rows[1:], why="a matrix for points of a grid")
    t.put(out, [rows[0], *[None] * (out.dim() - 1)])


HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(
        [
            *(f"{kind}_pool{n}d" for n in (1, 2, 3) for kind in ("max", "adaptive_avg", "_adaptive_avg")),
            *(f"{kind}_pool{n}d" for n in (1, 2, 3) for kind in ("adaptive_max",)),
            *(f"max_pool{n}d_with_indices" for n in (2, 3)),
            *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d")),
            *("upsample_trilinear3d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
            *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
            *(f"{kind}_pad{n}d" for n in (1, 2, 3) for kind in ("reflection", "replication")),
            *(f"{kind}{n}d" for n in (2, 3) for kind in ("fractional_max_pool", "max_unpool")),
        ],
        over_space,
    ),
    **dict.fromkeys((f"avg_pool{n}d" for n in (1, 2, 3)), average_pool),
    **dict.fromkeys(["grid_sampler_2d", "grid_sampler_3d"], grid_sample),
    "affine_grid_generator": affine_grid,
}
