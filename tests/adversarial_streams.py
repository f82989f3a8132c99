"""Adversarial networks: residual streams, ties, sharing, blocks that can or cannot be left out."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from adversarial import Basic, Case, Net, conv, conv_bn, head, images
from torch import Tensor, nn


def tied_square_conv_used_twice() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.bn(m.stem(x)))
        x = torch.relu(m.square(x))
        return m.head(torch.relu(m.square(x)))

    return Case(Net(run, stem=conv(3, 8), bn=nn.BatchNorm2d(8), square=conv(8, 8, bias=True), head=head(8)), images())


def square_conv_in_a_stream() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.stem(x))
        x = x + m.a(x)
        x = x + m.b(torch.relu(x))
        return m.head(x)

    return Case(Net(run, stem=conv_bn(3, 8), a=conv_bn(8, 8), b=conv(8, 8, bias=True), head=head(8)), images())


def in_place_adds_and_relus() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = F.relu_(m.stem(x))
        y = m.a(x)
        y += x
        y.relu_()
        z = m.b(y)
        z.add_(y).clamp_(min=0)
        z.mul_(0.5)
        return m.head(z)

    return Case(Net(run, stem=conv_bn(3, 8), a=conv_bn(8, 8), b=conv_bn(8, 8), head=head(8)), images())


def out_arguments() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.stem(x))
        y = m.a(x)
        if not y.requires_grad:
            out = torch.empty_like(y)
            torch.add(x, y, out=out)
            return m.head(torch.relu(out))
        return m.head(torch.relu(x + y))

    return Case(Net(run, stem=conv_bn(3, 8), a=conv_bn(8, 8), head=head(8)), images())


def block_used_twice() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.block(torch.relu(m.stem(x)))
        return m.head(m.last(m.block(x)))

    return Case(Net(run, stem=conv_bn(3, 8), block=Basic(8, 8), last=Basic(8, 8), head=head(8)), images())


def one_norm_after_two_convs() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.bn(m.a(x)))
        return m.head(torch.relu(m.bn(m.b(x))))

    return Case(Net(run, a=conv(3, 8), b=conv(8, 8), bn=nn.BatchNorm2d(8), head=head(8)), images())


def weights_shared_by_two_blocks() -> Case:
    first, second = Basic(8, 8), Basic(8, 8)
    second.conv1.weight = first.conv1.weight
    second.bn2.weight = first.bn2.weight
    return Case(nn.Sequential(conv_bn(3, 8), nn.ReLU(), first, second, Basic(8, 8), head(8)), images())


def weight_shared_with_transposed_use() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        hidden = torch.relu(m.encode(x))
        return F.linear(hidden, m.encode.weight.t())

    return Case(Net(run, encode=nn.Linear(12, 10)), torch.randn(3, 12))


class PreActivation(nn.Module):
    """x + f(relu(bn(x))); where sizes differ the shortcut is a raw projection of the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, stride=stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else conv(inputs, outputs, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(x))
        short = x if self.shortcut is None else self.shortcut(y)
        return short + self.conv2(torch.relu(self.bn2(self.conv1(y))))


def pre_activation() -> Case:
    blocks = [PreActivation(6, 8), PreActivation(8, 8), PreActivation(8, 10, 2), PreActivation(10, 10)]
    return Case(nn.Sequential(conv(3, 6), *blocks, nn.BatchNorm2d(10), nn.ReLU(), head(10)), images())


class Unrectified(nn.Module):
    """relu(x + f(x)) behind an input that is not rectified: leaving it out is not the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f = conv_bn(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.f(x))


def unrectified_trunk() -> Case:
    return Case(nn.Sequential(conv_bn(3, 8), Unrectified(8), head(8)), images())


class Scaled(nn.Module):
    """2 x + f(x): leaving it out is not the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f = conv_bn(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + self.f(x)


def scaled_shortcut() -> Case:
    return Case(nn.Sequential(conv_bn(3, 8), nn.ReLU(), Scaled(8), head(8)), images())


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))))


class Mobile(nn.Module):
    """Inverted residual with depthwise convolution and squeeze and excitation; the last norm is not rectified."""

    def __init__(self, channels: int, wide: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(conv_bn(channels, wide, 1), nn.Hardswish(), conv_bn(wide, wide, groups=wide), nn.ReLU6()),
            *(SqueezeExcite(wide, 4), conv_bn(wide, channels, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def squeeze_and_excite() -> Case:
    return Case(nn.Sequential(conv_bn(3, 8), nn.ReLU(), Mobile(8, 12), Mobile(8, 16), head(8)), images())


class ExcitedBlock(nn.Module):
    """A gate on the branch, behind the norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f, self.gate = conv_bn(channels, channels), SqueezeExcite(channels, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.gate(self.f(x)))


def excited_branch() -> Case:
    return Case(nn.Sequential(conv_bn(3, 8), nn.ReLU(), ExcitedBlock(8), ExcitedBlock(8), head(8)), images())


class Noisy(nn.Module):
    """Dropout in the branch, and a drop path over it that acts in train mode only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f = nn.Sequential(conv_bn(channels, channels), nn.ReLU(), nn.Dropout(0.1), conv_bn(channels, channels))
        self.drop_path = StochasticDepth()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.drop_path(self.f(x)))


class StochasticDepth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.8)).to(x) if self.training else x


def dropout_and_stochastic_depth() -> Case:
    return Case(nn.Sequential(conv_bn(3, 8), nn.ReLU(), Noisy(8), Noisy(8), nn.Dropout2d(0.1), head(8)), images())


class WithArguments(nn.Module):
    """Its blocks take a second positional, and a keyword argument."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(3, 8), head(8)
        self.blocks = nn.ModuleList([Basic(8, 8), Basic(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = self.blocks[0](x, 0.5)
        return self.head(self.blocks[1](x, scale=0.5))


def blocks_with_arguments() -> Case:
    return Case(WithArguments(), images())


class Listed(nn.Module):
    """Blocks called in a list comprehension, all their outputs used by the next stage."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8), nn.ReLU())
        self.branches = nn.Sequential(nn.Sequential(Basic(8, 8), Basic(8, 8)), nn.Sequential(Basic(8, 8)))
        self.head = head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat([branch(x) for branch in self.branches], 1))


def blocks_in_a_comprehension() -> Case:
    return Case(Listed(), images())


def zero_initialised_branches() -> Case:
    blocks = [Basic(8, 8), Basic(8, 8)]
    for block in blocks:
        nn.init.zeros_(block.bn2.weight)
    return Case(nn.Sequential(conv_bn(3, 8), nn.ReLU(), *blocks, head(8)), images())


class LayerScaled(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.f = nn.Sequential(conv_bn(channels, 12), nn.GELU(), conv(12, channels, 1, bias=True))
        self.layer_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer_scale * self.f(x)


def layer_scale() -> Case:
    return Case(nn.Sequential(conv_bn(3, 8), LayerScaled(8), LayerScaled(8), head(8)), images())


def stages_with_projections() -> Case:
    blocks = [Basic(8, 8), Basic(8, 12, 2), Basic(12, 12), Basic(12, 12)]
    return Case(nn.Sequential(conv_bn(3, 8), nn.ReLU(), *blocks, head(12)), images(size=8))


class OptionA(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.f, self.more = conv_bn(inputs, outputs, stride=2), outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return torch.relu(short + self.f(x))


def option_a() -> Case:
    return Case(nn.Sequential(conv_bn(3, 8), nn.ReLU(), Basic(8, 8), OptionA(8, 14), Basic(14, 14), head(14)), images())


def parallel_blocks() -> Case:
    """Two blocks read the same input: neither may be mistaken for a run with the other."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.stem(x))
        return m.head(m.a(x) + m.b(x))

    return Case(Net(run, stem=conv_bn(3, 8), a=Basic(8, 8), b=Basic(8, 8), head=head(8)), images())


def run_with_a_reader_in_between() -> Case:
    """A second reader sees the middle of a run of blocks."""

    def run(m: Any, x: Tensor) -> Any:
        x = m.a(torch.relu(m.stem(x)))
        return m.head(m.b(x)), m.early(x)

    members = {"stem": conv_bn(3, 8), "a": Basic(8, 8), "b": Basic(8, 8), "head": head(8), "early": head(8)}
    return Case(Net(run, **members), images())


def block_fed_by_a_dead_block_of_another_run() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(torch.relu(m.stem(x)))
        x = F.max_pool2d(x, 2)
        return m.head(m.c(m.b(x)))

    return Case(Net(run, stem=conv_bn(3, 8), a=Basic(8, 8), b=Basic(8, 8), c=Basic(8, 8), head=head(8)), images())


def one_block_has_an_inner_stream() -> Case:
    """A residual block whose branch is itself a run of residual blocks."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(Basic(8, 8), Basic(8, 8))
            self.last = conv_bn(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.last(self.inner(x)))

    return Case(nn.Sequential(conv_bn(3, 8), nn.ReLU(), Outer(), Outer(), head(8)), images())


def conv_shared_by_blocks_of_two_runs() -> Case:
    """A layer lives while one of the two blocks does."""
    first, second, third = Basic(8, 8), Basic(8, 8), Basic(8, 8)
    second.conv1 = third.conv1 = first.conv1
    layers = [conv_bn(3, 8), nn.ReLU(), Basic(8, 8), first, nn.MaxPool2d(2), second, third, head(8)]
    return Case(nn.Sequential(*layers), images())


def readers_behind_and_before_an_operator() -> Case:
    """One reader sees a stream as it is, others see it shifted, squashed, and side by side with itself."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.stem(x))
        y = m.a(x) + m.b(x - x.mean((1, 2, 3), keepdim=True)) + m.c(torch.sigmoid(x))
        y = y + m.d(torch.cat([x, torch.tanh(x) + 0.5], 1)) + m.e(x * torch.sigmoid(x)) + m.f(x + m.shift)
        return m.head(torch.relu(y))

    members = {name: conv(8, 6) for name in "abcef"}
    shift = nn.Parameter(torch.ones(1))
    return Case(Net(run, stem=conv_bn(3, 8), **members, d=conv(16, 6), shift=shift, head=head(6)), images())


def one_layer_reads_with_and_without_the_factor() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.stem(x))
        return m.head(torch.relu(m.a(x) + m.a(torch.sigmoid(x))))

    return Case(Net(run, stem=conv_bn(3, 8), a=conv(8, 6), head=head(6)), images())
