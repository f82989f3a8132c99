"""The search network of the TAS paper for CIFAR residual networks, with its own rules for mixing candidates.

In place of `tas.Supernet`, which mixes by zero extension, this one computes what the paper's network computes:

- every candidate width of a convolution has its own batch norm, affine and statistics, shortcuts included;
- the picked candidates meet at the largest picked width by channel interpolation;
- a block's input and output are added on their first channels, so the trunk has the largest width since the stage
  began;
- all blocks up to the deepest picked depth run, and a stage ends in the weighted, interpolated sum of the ends of its
  picked depths.

It is trained from scratch, and so is the student: neither inherits weights. Four things make an iteration (weight step
and architecture step) cost about 2.3 plain training steps where the paper's code takes 4.2, with the same numbers
(`scripts/benchmarks/supernet_step.py`): convolutions are sliced where the paper's are full and padded with zeros;
the candidates of a layer see the same convolution, so they share the batch statistics, and norm, interpolation and
weighing of all of them are one matrix with few entries a row; a branch is produced at the trunk's width; and
`frozen_weights` spares the architecture step the gradients of the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces.cifar_resnet import CifarResNet, initialize
from search_spaces.cifar_resnet_space import search_space, student, width_candidates
from tas.distribution import Draw, Pick, one_hot
from tas.elastic import interpolation, interpolations, mix_channels, sliced_conv2d, sliced_linear
from tas.space import Architecture


class CifarSupernet(nn.Module):
    """A search network around `network`, whose widths and blocks it takes and whose weights it does not.

    `forward(x, draw)`: images [batch, channels, image, image] -> logits [batch, classes] at a draw or an architecture
    of `.space`. `generator` draws the initial weights.
    """

    def __init__(self, network: CifarResNet, image: int = 32, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.space = search_space(network, image)
        self._original = [network]  # in a list, so that its parameters are not ours
        self.conv1 = ElasticConv(network.conv1)
        for name, stage in zip(("layer1", "layer2", "layer3"), network.stages(), strict=True):
            self.add_module(name, nn.ModuleList(ElasticBlock(block) for block in stage))
        self.linear = nn.Linear(network.linear.in_features, network.linear.out_features)
        initialize(self, generator)

    def forward(self, x: Tensor, draw: Draw | Architecture) -> Tensor:
        if isinstance(draw, Architecture):
            draw = one_hot(draw)
        x = self.conv1(x, draw["conv1"]).relu_()
        for stage in ("layer1", "layer2", "layer3"):
            x = self._stage(stage, x, draw)
        return sliced_linear(x.mean((2, 3)), self.linear.weight, self.linear.bias)

    def _stage(self, stage: str, x: Tensor, draw: Draw) -> Tensor:
        depths = draw[f"{stage}.depth"]
        blocks = cast(nn.ModuleList, self.get_submodule(stage))
        ends = []
        for b, block in enumerate(blocks[: max(depths.values)]):
            x = block(x, [draw[f"{stage}.{b}.conv{i + 1}"] for i in range(len(block.convs))])
            if b + 1 in depths.values:
                ends.append(x)
        return _sum_depths(ends, depths.weights)

    def weight_parameters(self) -> list[nn.Parameter]:
        """All of them: what the optimizer of the weight step takes."""
        return list(self.parameters())

    @contextmanager
    def frozen_weights(self) -> Iterator[None]:
        """No gradients of weights inside: only what the draw's weights need is computed."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)

    def student(self, architecture: Mapping[str, int]) -> CifarResNet:
        """The final network at an architecture of `.space`, freshly initialized (the paper trains it from scratch)."""
        return student(self._original[0], architecture)


class ElasticBlock(nn.Module):
    """A basic or bottleneck block; the convolution of a shortcut follows the pick of the block's last convolution."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.convs = nn.ModuleList(ElasticConv(conv) for conv in block.convolutions())
        shortcut = [module for module in block.shortcut.modules() if isinstance(module, nn.Conv2d)]
        self.shortcut = ElasticConv(shortcut[0]) if shortcut else None
        self.halves = any(isinstance(module, nn.AvgPool2d) for module in block.shortcut.modules())

    def forward(self, x: Tensor, picks: Sequence[Pick]) -> Tensor:
        y = x
        for conv, pick in zip(self.convs[:-1], picks, strict=False):
            y = conv(y, pick).relu_()
        if self.shortcut is not None:
            x = self.shortcut(F.avg_pool2d(x, 2) if self.halves else x, picks[-1])
        # The last mixing writes zeros up to the trunk's width: the prefix addition then needs no copy of the trunk.
        y = self.convs[-1](y, picks[-1], at_least=x.shape[1])
        if y.shape[1] == x.shape[1]:
            return y.add_(x).relu_()
        y[:, : x.shape[1]] += x
        return y.relu_()


class ElasticConv(nn.Module):
    """A convolution without bias at several widths at once, with a batch norm for each candidate width.

    The norms are tables [candidates, channels]; a row is in use up to its candidate's width. Rows of candidates that
    were not picked get gradient zero, not none: weight decay and momentum move them, as in the paper's PyTorch.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.candidates = width_candidates(conv.out_channels)
        self.stride, self.padding = conv.stride[0], int(conv.padding[0])
        self.conv = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, bias=False)
        table = (len(self.candidates), conv.out_channels)
        self.scale = nn.Parameter(torch.ones(table))
        self.shift = nn.Parameter(torch.zeros(table))
        self.register_buffer("running_mean", torch.zeros(table))
        self.register_buffer("running_var", torch.ones(table))
        self.momentum, self.eps = 0.1, 1e-5

    def forward(self, x: Tensor, pick: Pick, at_least: int = 0) -> Tensor:
        """[N, c, H, W] -> [N, max(pick.values), H', W'], with zero channels up to `at_least`."""
        width = max(pick.values)
        y = sliced_conv2d(x, self.conv.weight, width, self.stride, self.padding)
        rows = [self.candidates.index(value) for value in pick.values]
        scale, shift = self.scale[rows, :width], self.shift[rows, :width]
        if self.training:
            y = self._normalize(y, pick.values, rows)
        else:
            scale = scale * (self.running_var[rows, :width] + self.eps).rsqrt()
            shift = shift - scale * self.running_mean[rows, :width]
        if pick.weights is not None:
            scale, shift = scale * pick.weights[:, None], shift * pick.weights[:, None]
        # out = sum over picks k of weight_k CWI(scale_k y[:c_k] + shift_k): one matrix for all of them.
        moves = interpolations(pick.values, y.dtype, y.device)
        matrix, offset = (moves * scale[:, None]).sum(0), (moves * shift[:, None]).sum((0, 2))
        missing = max(0, at_least - width)
        return mix_channels(y, F.pad(matrix, (0, 0, 0, missing)), F.pad(offset, (0, missing)))

    def _normalize(self, y: Tensor, values: Sequence[int], rows: Sequence[int]) -> Tensor:
        mean, variance = y.new_zeros(y.shape[1]), y.new_ones(y.shape[1])
        y = F.batch_norm(y, mean, variance, training=True, momentum=1.0, eps=self.eps)  # momentum 1: of this batch
        for value, row in zip(values, rows, strict=True):
            self.running_mean[row, :value].lerp_(mean[:value], self.momentum)
            self.running_var[row, :value].lerp_(variance[:value], self.momentum)
        return y


def _sum_depths(ends: Sequence[Tensor], weights: Tensor | None) -> Tensor:
    """Weighted sum of the ends of the picked depths, interpolated to the widest of them."""
    if weights is None:
        return ends[0]
    widest = max(end.shape[1] for end in ends)
    moves = [interpolation(end.shape[1], widest).to(end) * weight for end, weight in zip(ends, weights, strict=True)]
    return mix_channels(torch.cat(list(ends), 1), torch.cat(moves, 1))
