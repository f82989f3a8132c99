"""A small residual network for 28x28 digits: the original of the quickstart.

It needs no rules of its own: widths of the streams and inside the blocks, and the number of blocks of each stage, are
found by `tas.trace`. 8.5 M MACs, nine blocks, so that width and depth both matter, and an epoch of 4,000 images takes
seconds on a processor.
"""

from __future__ import annotations

from torch import Tensor, nn


def small(num_classes: int = 10, in_channels: int = 1) -> MnistResNet:
    """Three stages of three blocks, 16, 32 and 64 channels."""
    return MnistResNet(num_classes, in_channels)


class MnistResNet(nn.Module):
    """Images [batch, in_channels, 28, 28] -> logits [batch, num_classes]."""

    def __init__(self, num_classes: int, in_channels: int, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, widths[0], 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        blocks: list[nn.Module] = []
        inputs = widths[0]
        for stage, outputs in enumerate(widths):
            for block in range(3):
                blocks.append(Block(inputs, outputs, stride=2 if stage and not block else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(inputs, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(self.norm(self.stem(images)).relu())
        return self.head(features.mean((2, 3)))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: the identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (branch + self.shortcut(x)).relu()
