"""A task that a run finishes in seconds: three classes of 8x8 pictures, told apart by where they are bright."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class TinyNet(nn.Module):
    """Two widths and, behind a residual block, one depth."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.block = Residual()
        self.head = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean(2).max(-1).values)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


class Anywhere(TinyNet):
    """Takes pictures of any size."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


class Noisy(TinyNet):
    """Draws random numbers in eval mode, too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.01 * torch.randn_like(x))


class Unsaved(TinyNet):
    """Reads what is not in its state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = float(torch.rand(()))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.offset


def no_number(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss that is not a number for networks whose stem has an even number of channels: the test sees to that."""
    return nn.functional.cross_entropy(outputs, targets) * (float("nan") if BROKEN[-1] else 1.0)


BROKEN = [False]
IMAGES = {"images": 64, "calibration_images": 64}


class Nothing(nn.Module):
    """Has no size that could be searched."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def frozen(but: str = "nothing") -> nn.Module:
    """No parameter of it is trained, but for those of one part."""
    network = TinyNet().requires_grad_(False)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(but))
    return network


def not_a_module() -> dict[str, int]:
    return {}


def write_data(path: Path, train: int = 192, test: int = 48, classes: int = 3, **replaced: Any) -> Path:
    """A .npz with the keys of MedMNIST; `replaced` arrays take the place of the good ones."""
    random = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % classes
        images = random.integers(0, 60, (count, 8, 8))
        for image, label in zip(images, labels, strict=True):
            image[:, 3 * (label % 3) : 3 * (label % 3) + 2] += 150
        arrays |= {f"{split}_images": images.astype(np.uint8), f"{split}_labels": labels.astype(np.uint8)}
    np.savez(path, **{**arrays, **replaced})
    return path


def recipe_values(folder: Path) -> dict[str, Any]:
    """A recipe as plain values, with its data in `folder`."""
    data = folder / "data.npz"
    if not data.exists():
        write_data(data)
    return {
        "title": "tiny",
        "network": {"name": "tiny_task:TinyNet"},
        "data": {"name": "npz", "root": str(data)},
        "budget": {"macs": "60%"},
        "original": {"epochs": 3, "batch": 32},
        "search": {
            "epochs": 2,
            "batch": 32,
            "candidates": 3,
            "evolve": 0,
            "images": 64,
            "calibration_images": 64,
            "rows": 1,
        },
        "choose": {"finalists": 0},  # two trainings more a run; see test_choosing.py
        "distill": {"epochs": 2, "batch": 32},
        "machine": {"threads": 1},
    }


def trained_weights(path: Path) -> Path:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    save_file(TinyNet().state_dict(), path)
    return path
