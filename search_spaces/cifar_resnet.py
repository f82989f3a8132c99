"""The residual networks of the CIFAR literature, and the narrower and shorter ones that a TAS search makes of them.

Three stages, of 16, 32 and 64 channels (bottlenecks: four times as many between the blocks); blocks that end in a
ReLU; the first block of stages 2 and 3 halves the image. Three ways to carry a block's input past it where the shape
changes (`A` and `B`: He et al. 2016; `tas`: Dong & Yang 2019):

- `A`: every second pixel, zeros for the channels that are missing, half of them in front; no parameters.
- `B`: 1x1 convolution and batch norm.
- `tas`: mean of 2x2 pixels where the image is halved, then a 1x1 convolution.

`from_widths` builds the networks of the TAS paper's tables from their widths. What its shortcuts do, since each point
changes the count of MACs:

- where the image is halved there always is mean + 1x1 convolution, without norm, also between equal widths;
- elsewhere the shortcut is the identity if the widths are equal, and else a 1x1 convolution on the full image, followed
  by a norm in basic blocks and by none in bottlenecks. That includes the first block of stage 1 behind the stem: in the
  full ResNet-164 it goes from 16 to 64 channels by such a convolution;
- a bottleneck halves the image in its 3x3 convolution;
- blocks are dropped from the end of a stage, and the next stage reads the width of the last block that is there.

With these ResNet-20/32/56/110/164 count 40.81, 69.12, 125.75, 253.15 and 247.65 M MACs, as published.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tas.errors import BadNetwork

Stages = Sequence[Sequence[Sequence[int]]]  # [stage][block][convolution] -> output channels


def resnet20(num_classes: int = 10, *, shortcut: str = "A", in_channels: int = 3) -> CifarResNet:
    return CifarResNet(16, _basic(3), shortcut, num_classes, in_channels)


def resnet32(num_classes: int = 10, *, shortcut: str = "A", in_channels: int = 3) -> CifarResNet:
    return CifarResNet(16, _basic(5), shortcut, num_classes, in_channels)


def resnet56(num_classes: int = 10, *, shortcut: str = "A", in_channels: int = 3) -> CifarResNet:
    return CifarResNet(16, _basic(9), shortcut, num_classes, in_channels)


def resnet110(num_classes: int = 10, *, shortcut: str = "A", in_channels: int = 3) -> CifarResNet:
    return CifarResNet(16, _basic(18), shortcut, num_classes, in_channels)


def resnet164(num_classes: int = 10, *, shortcut: str = "A", in_channels: int = 3) -> CifarResNet:
    return CifarResNet(16, _bottleneck(18), shortcut, num_classes, in_channels)


def from_widths(stem: int, stages: Stages, num_classes: int = 10, *, in_channels: int = 3) -> CifarResNet:
    """The network with these output channels, shortcuts as in the TAS paper.

    `stages[s][b]` holds the widths of the convolutions of block b of stage s: two make a basic block, three a
    bottleneck. A truncated stage just has fewer blocks. Raises `BadNetwork` where the lists make no network.
    """
    return CifarResNet(stem, stages, "tas", num_classes, in_channels)


def widths(network: CifarResNet) -> tuple[int, list[list[list[int]]]]:
    """Stem and stages as `from_widths` takes them."""
    stages = [[[conv.out_channels for conv in block.convolutions()] for block in stage] for stage in network.stages()]
    return network.conv1.out_channels, stages


class CifarResNet(nn.Module):
    """Images [batch, in_channels, height, width], sides divisible by 4 -> logits [batch, num_classes].

    Convolutions start Kaiming normal (fan out), norms at 1 and 0, the head N(0, 0.01^2) without bias (TAS).
    """

    def __init__(self, stem: int, stages: Stages, shortcut: str, num_classes: int, in_channels: int) -> None:
        super().__init__()
        _check(stem, stages, shortcut)
        self.shortcut_kind = shortcut
        ends = [stem, *(stage[-1][-1] for stage in stages)]
        self.conv1 = _conv(in_channels, stem, 3)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = _stage(ends[0], stages[0], 1, shortcut)
        self.layer2 = _stage(ends[1], stages[1], 2, shortcut)
        self.layer3 = _stage(ends[2], stages[2], 2, shortcut)
        self.linear = nn.Linear(ends[3], num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))

    def stages(self) -> list[list[Block]]:
        """The blocks of each stage, without what stands in a student for dropped ones."""
        return [
            [block for block in stage if isinstance(block, Block)] for stage in (self.layer1, self.layer2, self.layer3)
        ]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, the first one strided."""

    def __init__(self, inputs: int, outputs: Sequence[int], stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs[0], 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs[0])
        self.conv2 = _conv(outputs[0], outputs[1], 3)
        self.bn2 = nn.BatchNorm2d(outputs[1])
        self.shortcut = _shortcut(shortcut, inputs, outputs[1], stride, norm=True)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))

    def convolutions(self) -> tuple[nn.Conv2d, ...]:
        return self.conv1, self.conv2


class Bottleneck(nn.Module):
    """1x1, 3x3 (strided) and 1x1 convolution."""

    def __init__(self, inputs: int, outputs: Sequence[int], stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs[0], 1)
        self.bn1 = nn.BatchNorm2d(outputs[0])
        self.conv2 = _conv(outputs[0], outputs[1], 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs[1])
        self.conv3 = _conv(outputs[1], outputs[2], 1)
        self.bn3 = nn.BatchNorm2d(outputs[2])
        self.shortcut = _shortcut(shortcut, inputs, outputs[2], stride, norm=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))

    def convolutions(self) -> tuple[nn.Conv2d, ...]:
        return self.conv1, self.conv2, self.conv3


Block = BasicBlock | Bottleneck


class ZeroPadded(nn.Module):
    """Shortcut A: every `stride`-th pixel, and zero channels in front and behind."""

    def __init__(self, missing: int, stride: int) -> None:
        super().__init__()
        self.front, self.behind, self.stride = missing // 2, missing - missing // 2, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.front, self.behind))


def initialize(network: nn.Module, generator: torch.Generator | None = None) -> None:
    """The start of the TAS paper's code; norms already start at 1 and 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01, generator=generator)
            nn.init.zeros_(module.bias)


def _basic(blocks: int) -> Stages:
    return [[[planes, planes]] * blocks for planes in (16, 32, 64)]


def _bottleneck(blocks: int) -> Stages:
    return [[[planes, planes, 4 * planes]] * blocks for planes in (16, 32, 64)]


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def _stage(inputs: int, blocks: Sequence[Sequence[int]], stride: int, shortcut: str) -> nn.Sequential:
    stage = nn.Sequential()
    for outputs in blocks:
        block: type[Block] = BasicBlock if len(outputs) == 2 else Bottleneck
        stage.append(block(inputs, outputs, stride, shortcut))
        inputs, stride = outputs[-1], 1
    return stage


def _shortcut(kind: str, inputs: int, outputs: int, stride: int, norm: bool) -> nn.Module:
    """`norm`: whether kind `tas` has a norm behind the convolution of a shortcut that keeps the image size."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    if kind == "A":
        return ZeroPadded(outputs - inputs, stride)
    if kind == "B":
        return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
    if stride == 2:
        return nn.Sequential(nn.AvgPool2d(2), _conv(inputs, outputs, 1))
    return nn.Sequential(_conv(inputs, outputs, 1), *([nn.BatchNorm2d(outputs)] if norm else []))


def _check(stem: int, stages: Stages, shortcut: str) -> None:
    if shortcut not in ("A", "B", "tas"):
        raise BadNetwork(f"shortcut must be 'A', 'B' or 'tas', got {shortcut!r}")
    if not _is_width(stem):
        raise BadNetwork(f"the stem width must be a whole number from 1, got {stem!r}")
    if len(stages) != 3:
        raise BadNetwork(f"a CIFAR residual network has 3 stages, got {len(stages)}; give stages[stage][block][conv]")
    for s, stage in enumerate(stages):
        if not isinstance(stage, Sequence) or not stage:
            raise BadNetwork(f"a stage is a list of at least one block, but stages[{s}] is {stage!r}")
        for b, block in enumerate(stage):
            if not isinstance(block, Sequence) or len(block) not in (2, 3) or not all(map(_is_width, block)):
                raise BadNetwork(
                    f"a block is a list of 2 (basic) or 3 (bottleneck) whole numbers from 1, "
                    f"but stages[{s}][{b}] is {block!r}"
                )
            if len(block) != len(stages[0][0]):
                raise BadNetwork(
                    f"all blocks of a network have the same number of convolutions: stages[0][0] has "
                    f"{len(stages[0][0])}, but stages[{s}][{b}] has {len(block)}"
                )


def _is_width(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
