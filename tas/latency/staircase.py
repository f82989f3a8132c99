"""Which multiple of channels a target likes: layers alone, at many sizes that follow each other.

Kernels work in blocks (16 channels of AVX-512, 8 of a tensor core), so latency over channels may be a staircase: of the
sizes between two multiples all cost as much as the upper one. A width between them pays for channels that it has not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn

from tas import cost
from tas.errors import BadNetwork, BadRecipe
from tas.latency.measuring import in_turns
from tas.latency.pieces import at_batch, sizes_of, stretches_at
from tas.latency.table import MEASURE, Samples, smoothed
from tas.latency.target import Target, forward_of, ready
from tas.timing import Latency, summary
from tas.tracing import Traced

DIVISORS = (2, 4, 8, 16, 32, 64)
_LAYERS = 4  # those that take most
_INSIDE = 1 / 3  # of what a straight line saves between multiples: a staircase saves at most this there
_CLEAR = 3  # spreads that the whole rise must exceed
_FEWEST = 5


@dataclass(frozen=True)
class Staircase:
    """A layer alone over its outputs or its inputs; `sizes` follow each other, `samples` are milliseconds a round."""

    layer: str
    side: str
    other: int  # channels on the side that stays
    sizes: tuple[int, ...]
    samples: tuple[Samples, ...]

    @property
    def taken(self) -> tuple[Latency, ...]:
        return tuple(summary(samples) for samples in self.samples)

    @property
    def times(self) -> np.ndarray:
        """The medians, smoothed: a larger size takes at least as long."""
        return smoothed(np.array([one.median for one in self.taken]))

    @property
    def flat(self) -> bool:
        """Whether these sizes differ in nothing but noise."""
        noise = float(np.median([(one.high - one.low) / 2 for one in self.taken]))
        return float(self.times[-1] - self.times[0]) <= _CLEAR * noise


def staircases(timed: Traced, target: Target, points: int = 33, rounds: int = 15) -> list[Staircase]:
    """The convolutions and linear layers of a network that take most, each alone, over `points` sizes of its outputs
    and of its inputs that end at the original's; all in turns, round by round.

    timed: with the latency of a table (`with_latency`). 33 sizes show divisors up to 16, 129 up to 64. `BadRecipe` for
    less than 5 points or 3 rounds, `BadNetwork` where no layer is of a kind that can be built alone.
    """
    if points < _FEWEST or rounds < 3:
        raise BadRecipe(f"a staircase takes at least {_FEWEST} sizes and 3 rounds, got {points} and {rounds}")
    wanted = _wanted(timed, target, points)
    with ready(target) as device:
        forwards = [
            forward_of(target, *_alone(layer, x, side, size), {})
            for _, layer, x, side, sizes in wanted
            for size in sizes
        ]
        taken = iter(in_turns(forwards, device, rounds))
    return [
        Staircase(name, side, _ends(layer, side)[1], sizes, tuple(islice(taken, len(sizes))))
        for name, layer, _, side, sizes in wanted
    ]


def divisor(found: Sequence[Staircase]) -> int | None:
    """The largest divisor of `DIVISORS` at whose multiples alone these staircases save time; 1 where every channel
    saves some, None where they are too flat or too short to tell.

    That is: of the time saved, between multiples no more than a third of what a straight line would save there, on
    average over the staircases that reach over two multiples.
    """
    clear = [each for each in found if not each.flat and len(each.sizes) >= _FEWEST]
    liked = [d for d in DIVISORS if (inside := _inside(clear, d)) is not None and inside <= _INSIDE]
    return max(liked) if liked else (1 if clear else None)


def _inside(found: Sequence[Staircase], by: int) -> float | None:
    """What is saved between multiples of `by`, as a part of what a straight line saves there; the mean over those that
    reach over two multiples."""
    parts = []
    for each in found:
        steps, between = np.diff(each.times), np.array(each.sizes[:-1]) % by != 0
        if (~between).sum() >= 2:
            parts.append(float(steps[between].sum() / steps.sum() / between.mean()))
    return float(np.mean(parts)) if parts else None


Wanted = tuple[str, nn.Module, Tensor, str, tuple[int, ...]]


def _wanted(timed: Traced, target: Target, points: int) -> list[Wanted]:
    """Layer, input, side and sizes of what is measured: different layers only, those that take most first."""
    args, kwargs = at_batch(timed, target.batch)
    took = cost.by_layer(timed.space, timed.space.original(), MEASURE)
    alone = {
        each.shapes[0]: each
        for each in stretches_at(timed, sizes_of(timed), args, kwargs)
        if type(each.modules[0]) in _BUILDERS and getattr(each.modules[0], "groups", 1) == 1
    }
    largest = sorted(alone.values(), key=lambda each: -took.get(each.name, 0.0))[:_LAYERS]
    wanted: list[Wanted] = []
    for each in largest:
        for side in ("outputs", "inputs"):
            size, _ = _ends(each.modules[0], side)
            sizes = tuple(range(max(1, size - points + 1), size + 1))
            if len(sizes) >= _FEWEST:
                wanted.append((each.name, each.modules[0], each.args[0], side, sizes))
    if not wanted:
        raise BadNetwork("a staircase is measured on plain convolutions and linear layers, this network has none")
    return wanted


def _ends(layer: nn.Module, side: str) -> tuple[int, int]:
    """Channels on the side asked for, and on the other one."""
    out, into = layer.get_parameter("weight").shape[:2]
    return (out, into) if side == "outputs" else (into, out)


def _alone(layer: nn.Module, x: Tensor, side: str, size: int) -> tuple[nn.Module, tuple[Tensor]]:
    """A fresh layer of the same kind with other outputs or inputs, and an input for it."""
    _, other = _ends(layer, side)
    into, out = (other, size) if side == "outputs" else (size, other)
    build, channels = _BUILDERS[type(layer)]
    shape = list(x.shape)
    shape[channels] = into
    return build(layer, into, out), (torch.randn(shape),)


def _convolution(layer: nn.Module, into: int, out: int) -> nn.Module:
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    return type(layer)(into, out, bias=layer.bias is not None, **{name: getattr(layer, name) for name in names})


def _linear(layer: nn.Module, into: int, out: int) -> nn.Module:
    return nn.Linear(into, out, bias=layer.bias is not None)


_BUILDERS: dict[type[nn.Module], tuple[Callable[[nn.Module, int, int], nn.Module], int]] = {
    nn.Conv1d: (_convolution, 1),
    nn.Conv2d: (_convolution, 1),
    nn.Conv3d: (_convolution, 1),
    nn.Linear: (_linear, -1),
}
