"""From arrays and pictures to splits: uint8 tensors [N, C, H, W] in memory when they fit, else decoded on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tas.data.holders import Batches, Examples, InMemory, labels_of
from tas.data.splits import Split
from tas.errors import BadData

IN_MEMORY_BYTES = 2 << 30  # larger data sets are decoded on demand; halving a split copies it, so leave room for twice
_ENOUGH_FOR_STATISTICS = 2048  # pictures decoded for mean and std where they are not all in memory


def from_arrays(name: str, images: Any, labels: Any) -> Split:
    """Images [N, H, W], [N, H, W, C] or [N, C, H, W] with 1 or 3 channels, labels [N] or [N, 1]: whole numbers.

    uint8 pixels are kept so; floating-point ones are taken as normalised already. BadData otherwise.
    """
    pixels = torch.as_tensor(images)
    if pixels.dim() == 3:
        pixels = pixels.unsqueeze(1)
    elif pixels.dim() == 4 and pixels.shape[-1] in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.dim() != 4 or pixels.shape[1] not in (1, 3):
        raise BadData(f"images of {name!r} must be [N, H, W] or [N, H, W, 1 or 3], got {list(pixels.shape)}")
    if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
        raise BadData(f"images of {name!r} must be uint8, or floats already normalised, got {pixels.dtype}")
    targets = torch.as_tensor(np.asarray(labels))
    if targets.dim() == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    if targets.dim() != 1 or targets.is_floating_point() or (len(targets) and targets.min() < 0):
        found = f"{targets.dtype} {list(targets.shape)}" + (f" from {targets.min()}" if len(targets) else "")
        raise BadData(f"labels of {name!r} must be whole numbers from 0, one an image ([N] or [N, 1]), got {found}")
    pixels = pixels if pixels.dtype == torch.uint8 else pixels.float()
    return Split(name, InMemory(pixels.contiguous(), targets.long()))


@dataclass(frozen=True, eq=False)
class Pictures(Dataset[Any]):
    """A Dataset of (PIL image, label) as (uint8 tensor [C, H, W], label).

    size: side of the square cut from the middle after resizing, in pixels; None leaves pictures as they are.
    mode: "L" for one channel, "RGB" for three.
    """

    pictures: Dataset[Any]
    size: int | None
    mode: str

    def __len__(self) -> int:
        return len(self.pictures)  # type: ignore[arg-type]

    @property
    def targets(self) -> Tensor | None:
        return labels_of(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        from PIL import ImageOps

        picture, label = self.pictures[index]
        picture = picture.convert(self.mode)
        if self.size is not None:
            picture = ImageOps.fit(picture, (self.size, self.size))
        pixels = torch.from_numpy(np.array(picture))
        return pixels.unsqueeze(0) if pixels.dim() == 2 else pixels.permute(2, 0, 1), label


def from_pictures(name: str, pictures: Dataset[Any], mode: str, size: int | None = None, workers: int = 0) -> Split:
    """Decode a Dataset of (PIL image, label): into memory up to `IN_MEMORY_BYTES`, otherwise on demand."""
    decoded = Pictures(pictures, size, mode)
    if len(decoded) == 0:
        raise BadData(f"a split needs at least one picture, {name!r} has none")
    shape = decoded[0][0].shape
    if len(decoded) * shape.numel() > IN_MEMORY_BYTES:
        return Split(name, Examples(decoded, workers))
    inputs = torch.empty((len(decoded), *shape), dtype=torch.uint8)
    targets: list[Tensor] = []
    filled = 0
    for pixels, labels in Examples(decoded, workers).read(256, None, False, torch.device("cpu")):
        if pixels.shape[1:] != shape:
            found = f"{list(shape)} and {list(pixels.shape[1:])}"
            raise BadData(f"all pictures of {name!r} must have one shape, got {found}; set `size` to resize them")
        if not isinstance(labels, Tensor):
            raise BadData(f"every picture of {name!r} needs a number as its label, got {type(labels).__name__}")
        inputs[filled : filled + len(pixels)] = pixels
        targets.append(labels)
        filled += len(pixels)
    return Split(name, InMemory(inputs, torch.cat(targets)))


def noise(
    count: int, shape: Sequence[int], mean: Sequence[float], std: Sequence[float], generator: torch.Generator
) -> Tensor:
    """uint8 [count, channels, height, width]: pixels that are N(0, 1) once normalised, clipped to black and white."""
    means, stds = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    drawn = torch.randn((count, *shape), generator=generator) * stds + means
    return (drawn * 255).round().clamp(0, 255).byte()


def without_training(
    name: str, splits: Mapping[str, Split], mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> dict[str, Split]:
    """The other splits, and, as "train", a split of two images of noise a class that is named "noise"."""
    others = {split: found for split, found in splits.items() if split != "train"}
    if not others or mean is None or std is None:
        found = f"{sorted(others) or 'none'}, {mean=} and {std=}"
        raise BadData(f"without training images, {name!r} needs a test or val split, and mean and std; it has {found}")
    like = others.get("test", next(iter(others.values())))
    if not _has_pixels(like) or like.targets is None:
        raise BadData(f"training images can only be left out of uint8 images with class labels, {name!r} has others")
    labels = torch.arange(max(int(s.targets.max()) for s in others.values() if s.targets is not None) + 1).repeat(2)
    generator = torch.Generator().manual_seed(0)
    pixels = noise(len(labels), tuple(_first(like).shape), mean, std, generator)
    return {"train": Split("noise", InMemory(pixels, labels)), **others}


def mode_of(picture: Any) -> str:
    """Grey pictures keep one channel, all others become RGB."""
    return "L" if picture.mode in ("1", "L") else "RGB"


def normalised(
    splits: Mapping[str, Split], mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> dict[str, Split]:
    """The splits with `mean` and `std` for their uint8 images, by default those of "train"."""
    train = splits["train"]
    if not _has_pixels(train) or train.mean is not None:
        return dict(splits)
    if (mean is None) != (std is None):
        raise BadData(f"mean and std are given together or not at all, got {mean=} and {std=}")
    if mean is None or std is None:
        mean, std = channel_statistics(train)
    channels = _channels(train)
    if not {len(mean), len(std)} <= {1, channels} or min(std) <= 0:
        raise BadData(f"mean and std have one number or {channels}, one a channel, std above 0; got {mean=} and {std=}")
    return {name: replace(split, mean=tuple(mean), std=tuple(std)) for name, split in splits.items()}


def _has_pixels(split: Split) -> bool:
    """Whether the inputs are uint8 images; of a Dataset the first example tells, a user's batches are left alone."""
    if isinstance(split.source, Batches):
        return False
    first = _first(split)
    return isinstance(first, Tensor) and first.dtype == torch.uint8 and first.dim() == 3


def _channels(split: Split) -> int:
    return int(_first(split).shape[0])


def _first(split: Split) -> Any:
    return split.source.inputs[0] if isinstance(split.source, InMemory) else split.source.dataset[0][0]  # type: ignore[union-attr]


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images, for pixels in [0, 1]; exact, by histogram."""
    if isinstance(split.source, Examples):
        split = split.take(_ENOUGH_FOR_STATISTICS)
    histogram: Tensor | int = 0
    for images, _ in replace(split, mean=None, std=None).batches(4096):
        histogram = histogram + torch.stack(
            [images[:, c].flatten().bincount(minlength=256) for c in range(images.shape[1])]
        )
    assert isinstance(histogram, Tensor)
    chances = histogram.double() / histogram.sum(1, keepdim=True)
    levels = torch.linspace(0, 1, 256, dtype=torch.float64)
    mean = chances @ levels
    variance = (chances * (levels - mean[:, None]) ** 2).sum(1)
    std = variance.sqrt().clamp(min=1 / 255)  # a constant channel stays finite
    return tuple(mean.tolist()), tuple(std.tolist())
