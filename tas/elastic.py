"""Tensor functions that run a layer at a part of its channels, and mix channel counts.

Everything works on prefixes: a layer at width w uses its first w channels, and reads as many input channels as its
input has. Two ways to bring C channels to more, C':

- *zero extension* (`extend`, `extension_mask`): the missing channels are zero. Mixing several widths is then one factor
  a channel.
- *channel interpolation* (`interpolate`, `interpolation`), CWI in Dong & Yang 2019: adaptive mean pooling over
  the channel axis. For C <= C' an output channel is one input channel or the mean of two neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor


def sliced_conv2d(x: Tensor, weight: Tensor, outputs: int, stride: int = 1, padding: int = 0) -> Tensor:
    """The first `outputs` channels of a convolution whose missing input channels are zero, without the zeros.

    x [N, c, H, W] with c <= C; weight [O, C, k, k] with outputs <= O; -> [N, outputs, H', W'].
    """
    return F.conv2d(x, weight[:outputs, : x.shape[1]], stride=stride, padding=padding)


def sliced_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer whose missing input features are zero: x [N, c], weight [O, C], c <= C -> [N, O]."""
    return F.linear(x, weight[:, : x.shape[1]], bias)


def extend(x: Tensor, channels: int) -> Tensor:
    """Zeros behind the channels of x [N, C, ...], up to [N, channels, ...]."""
    missing = channels - x.shape[1]
    return x if missing == 0 else torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], 1)


def extension_mask(values: Sequence[int], weights: Tensor) -> Tensor:
    """What mixing `values` channel counts by zero extension does to each channel: the weights [len(values)] of the
    counts that include it, [max(values)]."""
    channel = torch.arange(max(values), device=weights.device)
    included = channel < torch.tensor(values, device=weights.device)[:, None]
    return (weights[:, None] * included).sum(0)


def prefix_add(x: Tensor, y: Tensor) -> Tensor:
    """Sum of [N, C, ...] and [N, D, ...] on their common first channels, the rest from the one that has more."""
    wide, narrow = (x, y) if x.shape[1] >= y.shape[1] else (y, x)
    common = narrow.shape[1]
    if common == wide.shape[1]:
        return wide + narrow
    return torch.cat([wide[:, :common] + narrow, wide[:, common:]], 1)


def interpolate(x: Tensor, channels: int) -> Tensor:
    """Channel interpolation of [N, C, H, W] to [N, channels, H, W]."""
    if x.shape[1] == channels:
        return x
    return mix_channels(x, interpolation(x.shape[1], channels).to(x), x.new_zeros(channels))


def mix_channels(x: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """matrix [D, C] applied to the channels of every pixel of [N, C, H, W], plus shift [D]: -> [N, D, H, W].

    A product of small matrices, not a 1x1 convolution, which takes twice as long on a CPU (16 to 64 channels, forward
    and backward, one thread).
    """
    pixels = torch.baddbmm(shift[:, None], matrix.expand(len(x), *matrix.shape), x.flatten(2))
    return pixels.unflatten(2, x.shape[2:])


@lru_cache(maxsize=4096)
def interpolation(inputs: int, outputs: int) -> Tensor:
    """Channel interpolation as a matrix [outputs, inputs], float64: output o is the mean of the inputs from
    floor(o C / C') to ceil((o + 1) C / C') - 1."""
    output = torch.arange(outputs)[:, None]
    first = output * inputs // outputs
    beyond = -((output + 1) * inputs // -outputs)
    input = torch.arange(inputs)
    taken = ((first <= input) & (input < beyond)).double()
    return taken / taken.sum(1, keepdim=True)


@lru_cache(maxsize=4096)
def interpolations(values: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The interpolations of `values` channel counts to the largest, c, zero columns behind: [len(values), c, c]."""
    widest = max(values)
    padded = [F.pad(interpolation(value, widest), (0, widest - value)) for value in values]
    return torch.stack(padded).to(device, dtype)
