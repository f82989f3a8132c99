"""The search network of the TAS paper for CIFAR residual networks, with the paper's rules for mixing candidates.

In place of `tas.Supernet`, which mixes by zero extension, this one computes what the paper's network computes (Dong &
Yang 2019):

- every candidate width of a convolution has its own batch norm, affine and statistics, shortcuts included;
- the picked candidates meet at the largest picked width by channel interpolation;
- a block's input and branch are added on their first channels: the trunk has the largest width since its stage began;
- all blocks up to the deepest picked depth run, and a stage ends in the weighted, interpolated sum of the ends of its
  picked depths.

It is trained from scratch, and so is the student: neither inherits weights. An iteration (weight step and architecture
step) takes about 1.9 plain training steps, and the paper's code 4.2 for the same numbers, because

- convolutions are sliced, not full and fed with zeros;
- the candidates of a layer see the same convolution, so they share the batch's statistics; norm, interpolation and
  weighing of all of them are one small matrix;
- under `frozen_weights` the architecture step computes no gradients of weights.

`scripts/benchmarks/supernet_step.py` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.cifar_resnet import Block, CifarResNet, initialize
from search_spaces.cifar_resnet_space import search_space, student, width_candidates
from tas.distribution import Draw, Pick, one_hot
from tas.elastic import interpolation, interpolations, mix_channels, prefix_add, sliced_conv2d, sliced_linear
from tas.space import Architecture
from tas.supernet import without_gradients


class CifarSupernet(nn.Module):
    """A search network around `network`, whose widths and blocks it takes and whose weights it does not.

    `forward(x, draw)`: images [batch, channels, image, image] -> logits [batch, classes] at a draw or an architecture
    of `.space`. `generator` draws the initial weights.
    """

    def __init__(self, network: CifarResNet, image: int = 32, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.space = search_space(network, image)
        self._network = (network,)  # in a tuple, so that its parameters are not ours
        self.conv1 = ElasticConv(network.conv1)
        for name, stage in zip(("layer1", "layer2", "layer3"), network.stages(), strict=True):
            self.add_module(name, nn.ModuleList(ElasticBlock(block) for block in stage))
        self.linear = nn.Linear(network.linear.in_features, network.linear.out_features)
        initialize(self, generator)

    def forward(self, x: Tensor, draw: Draw | Architecture) -> Tensor:
        if isinstance(draw, Architecture):
            draw = one_hot(draw)
        x = self.conv1(x, draw["conv1"]).relu()
        for stage in ("layer1", "layer2", "layer3"):
            x = self._stage(stage, x, draw)
        return sliced_linear(x.mean((2, 3)), self.linear.weight, self.linear.bias)

    def _stage(self, stage: str, x: Tensor, draw: Draw) -> Tensor:
        depths = draw[f"{stage}.depth"]
        blocks = cast(Sequence[ElasticBlock], self.get_submodule(stage))
        ends = []
        for b in range(max(depths.values)):
            x = blocks[b](x, [draw[f"{stage}.{b}.conv{index + 1}"] for index in range(len(blocks[b].convs))])
            if b + 1 in depths.values:
                ends.append(x)
        return _sum_depths(ends, depths.weights)

    def weight_parameters(self) -> list[nn.Parameter]:
        """All of them: what the optimizer of the weight step takes."""
        return list(self.parameters())

    def frozen_weights(self) -> AbstractContextManager[None]:
        """No gradients of weights inside: only what the draw's weights need is computed."""
        return without_gradients(self.weight_parameters())

    def student(self, architecture: Mapping[str, int]) -> CifarResNet:
        """The final network at an architecture of `.space`, with fresh weights."""
        return student(self._network[0], architecture)


class ElasticBlock(nn.Module):
    """A basic or bottleneck block; the convolution of a shortcut follows the pick of the block's last convolution."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ElasticConv(conv) for conv in block.convolutions())
        carried = list(block.shortcut.modules())
        self.halves = any(isinstance(module, nn.AvgPool2d) for module in carried)
        self.shortcut = next((ElasticConv(module) for module in carried if isinstance(module, nn.Conv2d)), None)

    def forward(self, x: Tensor, picks: Sequence[Pick]) -> Tensor:
        y = x
        for conv, pick in zip(self.convs[:-1], picks[:-1], strict=True):
            y = conv(y, pick).relu()
        y = self.convs[-1](y, picks[-1])
        if self.shortcut is not None:
            x = self.shortcut(F.avg_pool2d(x, 2) if self.halves else x, picks[-1])
        return prefix_add(x, y).relu_()


class ElasticConv(nn.Module):
    """A convolution without bias at several widths at once, with a batch norm for each candidate width.

    The norms are tables [candidates, channels]; a row is read up to its candidate's width. Rows of candidates that
    were not picked get gradient 0, not None: weight decay and momentum move them too.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.candidates = width_candidates(conv.out_channels)
        self.stride, self.padding = conv.stride[0], conv.kernel_size[0] // 2
        self.conv = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size[0], bias=False)
        table = (len(self.candidates), conv.out_channels)
        self.scale = nn.Parameter(torch.ones(table))
        self.shift = nn.Parameter(torch.zeros(table))
        self.register_buffer("running_mean", torch.zeros(table))
        self.register_buffer("running_var", torch.ones(table))
        self.momentum, self.eps = 0.1, 1e-5

    def forward(self, x: Tensor, pick: Pick) -> Tensor:
        """[N, c, H, W] -> [N, max(pick.values), H', W'], c at most the convolution's inputs."""
        width = max(pick.values)
        y = sliced_conv2d(x, self.conv.weight, width, self.stride, self.padding)
        rows = _rows(self.candidates, pick.values, y.device)
        scale, shift = self.scale[rows, :width], self.shift[rows, :width]
        if self.training:
            y = self._normalize(y, rows)
        else:
            scale = scale * (self.running_var[rows, :width] + self.eps).rsqrt()
            shift = shift - scale * self.running_mean[rows, :width]
        if pick.weights is not None:
            scale, shift = scale * pick.weights[:, None], shift * pick.weights[:, None]
        # The sum over picks k of weight_k CWI(scale_k y[:c_k] + shift_k) is one matrix and one shift.
        moves = interpolations(pick.values, y.dtype, y.device)
        return mix_channels(y, (moves * scale[:, None]).sum(0), (moves * shift[:, None]).sum((0, 2)))

    def _normalize(self, y: Tensor, rows: Tensor) -> Tensor:
        """y normalized by the batch's statistics, which enter the running ones of `rows`, also behind their widths."""
        width = y.shape[1]
        mean, variance = y.new_zeros(width), y.new_ones(width)
        y = F.batch_norm(y, mean, variance, training=True, momentum=1.0, eps=self.eps)  # 1: they become the batch's
        for running, batch in ((self.running_mean, mean), (self.running_var, variance)):
            running[rows, :width] = running[rows, :width].lerp(batch, self.momentum)
        return y


@lru_cache(maxsize=4096)
def _rows(candidates: tuple[int, ...], values: tuple[int, ...], device: torch.device) -> Tensor:
    """Where `values` stand in `candidates`; kept, since making a tensor on a GPU waits for it."""
    return torch.tensor([candidates.index(value) for value in values], device=device)


def _sum_depths(ends: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """Weighted sum of the ends of the picked depths, interpolated to the widest of them."""
    if weights is None:
        return ends[0]
    widest = max(end.shape[1] for end in ends)
    moves = [interpolation(end.shape[1], widest).to(end) * weight for end, weight in zip(ends, weights, strict=True)]
    return mix_channels(torch.cat(list(ends), 1), torch.cat(moves, 1), ends[0].new_zeros(widest))
