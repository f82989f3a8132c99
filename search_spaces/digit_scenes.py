"""Segmentation small enough for a processor: two handwritten digits on a noisy canvas, and every pixel has a class.

Scenes are pasted from the 5,000 digits of `mnist5k`: those of the test split only ever appear in test scenes. The loss
and the metric are what a recipe names in `objective`; `unet` is a network with skip connections and transposed
convolutions, that nothing here adapts to `tas`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from tas.data import load

CLASSES = 11  # background, then the digits 0 to 9
_INK = 96  # of 255: a pixel of a digit


def scenes(train: int = 3000, test: int = 1000, size: int = 48, seed: int = 0) -> Mapping[str, Dataset]:
    """Splits "train" and "test": images uint8 [count, 1, size, size], masks int64 [count, size, size]."""
    digits = load("mnist5k")
    assert digits.test is not None
    generator = torch.Generator().manual_seed(seed)
    return {
        "train": _pasted(*_all(digits.train), train, size, generator),
        "test": _pasted(*_all(digits.test), test, size, generator),
    }


def _all(split: object) -> tuple[Tensor, Tensor]:
    source = split.source  # type: ignore[attr-defined]
    return source.inputs, source.targets


def _pasted(digits: Tensor, labels: Tensor, count: int, size: int, generator: torch.Generator) -> TensorDataset:
    """Two digits a scene, the second over the first, on noise of up to a quarter of the brightness."""
    side = digits.shape[-1]
    images = torch.randint(0, 64, (count, 1, size, size), generator=generator, dtype=torch.uint8)
    masks = torch.zeros(count, size, size, dtype=torch.int64)
    picked = torch.randint(len(digits), (count, 2), generator=generator).tolist()
    places = torch.randint(size - side + 1, (count, 2, 2), generator=generator).tolist()
    for scene in range(count):
        for digit, (top, left) in zip(picked[scene], places[scene], strict=True):
            window = (scene, slice(top, top + side), slice(left, left + side))
            image = images[window[0], 0, window[1], window[2]]
            torch.maximum(image, digits[digit, 0], out=image)
            masks[window][digits[digit, 0] > _INK] = int(labels[digit]) + 1
    return TensorDataset(images, masks)


def pixel_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over all pixels; background counts a fifth, because four pixels of five are background."""
    weight = torch.ones(CLASSES, device=outputs.device)
    weight[0] = 0.2
    return functional.cross_entropy(outputs, targets, weight=weight)


def mean_iou(outputs: Tensor, targets: Tensor) -> Tensor:
    """Intersection over union in percent, [batch]: of every scene the mean over the classes in its mask."""
    guessed = functional.one_hot(outputs.argmax(1), CLASSES).flatten(1, 2)
    true = functional.one_hot(targets, CLASSES).flatten(1, 2)
    both, either = (guessed & true).sum(1), (guessed | true).sum(1)
    there = true.any(1)
    return 100 * (both / either.clamp(min=1) * there).sum(1) / there.sum(1)


def unet(widths: tuple[int, ...] = (16, 32, 64), classes: int = CLASSES, in_channels: int = 1) -> UNet:
    """One level a width, each at half of the resolution of the one before."""
    return UNet(tuple(widths), classes, in_channels)


class UNet(nn.Module):
    """Images [batch, in_channels, H, W] -> logits [batch, classes, H, W]; H and W divisible by 2^(levels - 1)."""

    def __init__(self, widths: tuple[int, ...], classes: int, in_channels: int) -> None:
        super().__init__()
        before = (in_channels, *widths)
        self.down = nn.ModuleList(_level(a, b) for a, b in zip(before, widths, strict=False))
        falling = widths[::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in zip(falling, falling[1:], strict=False)
        )
        self.merge = nn.ModuleList(_level(2 * width, width) for width in falling[1:])
        self.head = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for number, level in enumerate(self.down):
            x = level(x if number == 0 else functional.max_pool2d(x, 2))
            skipped.append(x)
        for up, merge, skip in zip(self.up, self.merge, skipped[-2::-1], strict=True):
            x = merge(torch.cat([up(x), skip], 1))
        return self.head(x)


def _level(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
