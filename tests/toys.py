"""A small network and a small data set that tests of searches share; a search of them takes seconds."""

from typing import Any

import torch
from torch import Tensor, nn

from tas.data import Data, InMemory, Split, as_data
from tas.methods.asked import Asked
from tas.space import Budget


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


class Net(nn.Module):
    """Residual classifier of 8 x 8 images into 4 classes: 4 widths (stem, three blocks) and a depth."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 12, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(12)
        self.blocks = nn.Sequential(*(Block(12) for _ in range(3)))
        self.linear = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.blocks(torch.relu(self.bn(self.conv(x)))).mean((2, 3)))


def network() -> Net:
    """With weights and statistics that are not the initial ones, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.running_mean, -0.3, 0.3)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
        return net.eval()


def data(count: int = 256) -> Data:
    """Images of one bright quadrant, its place the class, under noise."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.arange(count) % 4
    images = torch.randint(0, 120, (count, 1, 8, 8), generator=generator)
    for index, target in enumerate(targets.tolist()):
        row, column = 4 * (target // 2), 4 * (target % 2)
        images[index, :, row : row + 4, column : column + 4] += 100
    train = Split("train", InMemory(images.to(torch.uint8), targets), mean=(0.3,), std=(0.25,))
    return Data("quadrants", train, classes=4)


def asked(source: Any, given: Any, budget: Budget, settings: Any, **rest: Any) -> Asked[Any]:
    """What the `search` of a method's own file takes, at one budget."""
    return Asked(source, as_data(given), (budget,), settings, **rest)
