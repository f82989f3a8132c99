"""Importance from the size of the weights alone: no data, one pass over the parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Site:
    """Where the n units of a width live in one parameter: `index` [n], or [n, m] for m rows a unit, along `dim`.

    role: "out" where the units are produced (rows of a convolution or linear weight), "in" where they are consumed,
    "norm" for the scale of a norm.
    """

    parameter: Tensor
    dim: int
    index: Tensor
    role: Literal["out", "in", "norm"]


def l1(sites: list[Site]) -> Tensor:
    """Sum of |w| over the rows that produce a unit, in every producer [n] (Li et al. 2017)."""
    return _rows(_producers(sites), torch.abs)


def l1_first(sites: list[Site]) -> Tensor:
    """As `l1`, of the first producer only: in a residual stream the last convolution of its first block or the
    projection, whichever runs first (EagleEye ranks a stage by its first block's last convolution)."""
    return _rows(_producers(sites)[:1], torch.abs)


def l2(sites: list[Site]) -> Tensor:
    """Euclidean norm of all weights that produce a unit [n]."""
    return _rows(_producers(sites), torch.square).sqrt()


def bn_scale(sites: list[Site]) -> Tensor:
    """Sum of |gamma| over the norms that a unit passes [n] (Liu et al. 2017); `l1` where it passes none."""
    norms = [site for site in sites if site.role == "norm"]
    return _rows(norms, torch.abs) if norms else l1(sites)


def random(sites: list[Site], generator: torch.Generator | None = None) -> Tensor:
    """Uniform noise [n]: what any criterion has to beat."""
    return torch.rand(len(sites[0].index), generator=generator)


def _producers(sites: list[Site]) -> list[Site]:
    """Weights that produce the units; a bias says little about a filter, and where nothing else is there, consumers."""
    weights = [site for site in sites if site.parameter.ndim > 1]
    return [site for site in weights if site.role == "out"] or weights or sites


def _rows(sites: list[Site], size: Callable[[Tensor], Tensor]) -> Tensor:
    """The `size` of every weight, summed over each unit's rows in all `sites`, in float64: [n]."""
    totals = []
    for site in sites:
        weight = site.parameter.detach().double().movedim(site.dim, 0)
        row_totals = size(weight.reshape(len(weight), -1)).sum(1)
        totals.append(row_totals[site.index].reshape(len(site.index), -1).sum(1))
    return torch.stack(totals).sum(0)
