"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): every input of a batch is blended with another of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tas.data import map_tensors
from tas.errors import BadRecipe


@dataclass(frozen=True, eq=False)
class Mixed:
    """The targets of a mixed batch: of each input `share` in [0, 1] is the example of `first`, the rest that of
    `second`."""

    first: Any
    second: Any
    share: float


def of_both(loss: Callable[[Any], Tensor], targets: Any) -> Tensor:
    """`loss` of plain targets; of mixed ones share x loss(first) + (1 - share) x loss(second). For cross-entropy that
    is the loss at the mixed labels."""
    if not isinstance(targets, Mixed):
        return loss(targets)
    return targets.share * loss(targets.first) + (1 - targets.share) * loss(targets.second)


def mixed(
    batches: Iterable[tuple[Any, Any]], mixup: float, cutmix: float, generator: torch.Generator
) -> Iterator[tuple[Any, Any]]:
    """Batches (inputs, `Mixed`) out of (inputs, targets); unchanged where both are 0.

    mixup, cutmix: the parameter a of the share's Beta(a, a) distribution, one share a batch; where both are above 0 a
    coin decides for each batch. `BadRecipe` where inputs are not one tensor of real numbers ([batch, channels, height,
    width] for CutMix).
    """
    if not mixup and not cutmix:
        yield from batches
        return
    for inputs, targets in batches:
        draw = np.random.default_rng(int(torch.randint(2**62, (), generator=generator, device=generator.device)))
        cut = cutmix > 0 and (mixup == 0 or draw.random() < 0.5)
        _check(inputs, cut)
        order = torch.from_numpy(draw.permutation(len(inputs))).to(inputs.device)
        share = float(draw.beta(cutmix, cutmix) if cut else draw.beta(mixup, mixup))
        if cut:
            inputs, share = _pasted(inputs, order, share, draw)
        else:
            inputs = share * inputs + (1 - share) * inputs[order]
        yield inputs, Mixed(targets, map_tensors(itemgetter(order), targets), share)


def _pasted(images: Tensor, order: Tensor, share: float, draw: np.random.Generator) -> tuple[Tensor, float]:
    """A box of about (1 - share) of the area, its centre uniform, from other images; and the share that stays."""
    sides = []
    for length in images.shape[2:]:
        half, centre = length * (1 - share) ** 0.5 / 2, int(draw.integers(length))
        sides.append((max(0, round(centre - half)), min(length, round(centre + half))))
    (top, bottom), (left, right) = sides
    images = images.clone()
    images[:, :, top:bottom, left:right] = images[order, :, top:bottom, left:right]
    return images, 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])


def _check(inputs: Any, cut: bool) -> None:
    real = isinstance(inputs, Tensor) and inputs.is_floating_point()
    if not real or (cut and inputs.dim() != 4):
        need = "pictures [batch, channels, height, width]" if cut else "one tensor of real numbers"
        found = f"{list(inputs.shape)} of {inputs.dtype}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise BadRecipe(f"{'cutmix' if cut else 'mixup'} blends {need}, got {found}; set it to 0")
