"""Adversarial networks: what Python does with tensors between layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from adversarial import Basic, Case, Net, conv, conv_bn, head, images
from torch import Tensor, nn


def parameter_without_gradient() -> Case:
    net = nn.Sequential(conv_bn(3, 8), nn.ReLU(), conv_bn(8, 6), nn.ReLU(), head(6))
    net[0].requires_grad_(False)
    return Case(net, images())


def parameter_never_read() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.relu(m.a(x)))

    return Case(Net(run, a=conv_bn(3, 8), spare=conv(8, 8), lone=nn.Parameter(torch.ones(4)), head=head(8)), images())


def unused_branch() -> Case:
    """A layer runs, and nobody reads what it makes."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.a(x))
        m.dead(x)
        return m.head(x)

    return Case(Net(run, a=conv_bn(3, 8), dead=conv_bn(8, 10), head=head(8)), images())


def several_outputs() -> Case:
    def run(m: Any, x: Tensor) -> Any:
        x = torch.relu(m.a(x))
        y = torch.relu(m.b(x))
        return {"logits": m.head(y), "extras": [m.aux(x), (y.mean((2, 3)),)], "note": "text", "none": None}

    return Case(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 6), aux=head(8), head=head(6)), images())


def tuple_of_feature_maps() -> Case:
    def run(m: Any, x: Tensor) -> Any:
        x = torch.relu(m.a(x))
        return x, m.head(torch.relu(m.b(x)))

    return Case(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 6), head=head(6)), images())


def several_inputs() -> Case:
    def run(m: Any, x: Tensor, y: Tensor, *, scale: Tensor) -> Tensor:
        z = torch.relu(m.a(x)) + torch.relu(m.b(y)) * scale
        return m.head(z)

    inputs = {"x": images(3), "y": images(2), "scale": torch.rand(2, 1, 1, 1)}
    return Case(Net(run, a=conv_bn(3, 8), b=conv_bn(2, 8), head=head(8)), inputs)


def concatenation_with_itself() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.a(x))
        return m.head(torch.relu(m.b(torch.cat([x, x, -x], 1))))

    return Case(Net(run, a=conv_bn(3, 4), b=conv_bn(12, 6), head=head(6)), images())


def concatenation_behind_norms() -> Case:
    """Fire module: two branches side by side, then a norm over both."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.squeeze(x))
        x = torch.cat([torch.relu(m.left(x)), torch.relu(m.right(x))], -3)
        return m.head(torch.relu(m.b(torch.relu(m.bn(x)))))

    members = {"squeeze": conv(3, 5, bias=True), "left": conv(5, 6), "right": conv(5, 4), "bn": nn.BatchNorm2d(10)}
    return Case(Net(run, **members, b=conv(10, 6), head=head(6)), images())


def dense_block() -> Case:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = conv(3, 6)
            self.layers = nn.ModuleList(
                nn.Sequential(nn.BatchNorm2d(6 + 4 * i), nn.ReLU(), conv(6 + 4 * i, 4)) for i in range(3)
            )
            self.last, self.head = nn.BatchNorm2d(18), head(18)

        def forward(self, x: Tensor) -> Tensor:
            features = [self.stem(x)]
            for layer in self.layers:
                features.append(layer(torch.cat(features, 1)))
            return self.head(torch.relu(self.last(torch.cat(features, 1))))

    return Case(Dense(), images())


def channel_slices() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.a(x))
        return m.head(torch.relu(m.b(x[:, :4])) + torch.relu(m.c(x[:, 4:])))

    return Case(Net(run, a=conv_bn(3, 10), b=conv_bn(4, 6), c=conv_bn(6, 6), head=head(6)), images())


def chunk() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        left, right = torch.relu(m.a(x)).chunk(2, 1)
        return m.head(torch.relu(m.b(left)) + torch.relu(m.c(right)))

    return Case(Net(run, a=conv_bn(3, 12), b=conv_bn(6, 6), c=conv_bn(6, 6), head=head(6)), images())


def split_with_listed_sizes() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        left, right = torch.split(torch.relu(m.a(x)), [4, 8], 1)
        return m.head(torch.cat([torch.relu(m.b(right)), left], 1))

    return Case(Net(run, a=conv_bn(3, 12), b=conv_bn(8, 6), head=head(10)), images())


def gated_linear_unit() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = F.glu(m.a(x), 1)
        left, right = m.b(x).chunk(2, dim=1)
        return m.head(left * torch.sigmoid(right))

    return Case(Net(run, a=conv_bn(3, 12), b=conv(6, 16, bias=True), head=head(8)), images())


def product_of_two_branches() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(m.a(x) * m.b(x))

    return Case(Net(run, a=conv_bn(3, 8), b=conv_bn(3, 8), head=head(8)), images())


def maximum_and_where() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        y = torch.max(m.a(x), m.b(x))
        z = torch.where(y > 0.2, m.c(x), torch.zeros_like(y))
        return m.head(torch.maximum(y, z) * 2)

    return Case(Net(run, a=conv_bn(3, 8), b=conv_bn(3, 8), c=conv_bn(3, 8), head=head(8)), images())


def negative_dims() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.a(x))
        x = torch.cat([x, torch.relu(m.b(x))], dim=-3).transpose(-1, -3).transpose(-3, -1)
        return m.fc(x.flatten(-2).mean(-1).unsqueeze(-1).squeeze(-1))

    return Case(Net(run, a=conv_bn(3, 4), b=conv_bn(4, 6), fc=nn.Linear(10, 3)), images())


def decoder() -> Case:
    """A small U-Net: skip connections concatenated to an upsampled path."""

    def run(m: Any, x: Tensor) -> Tensor:
        a = torch.relu(m.a(x))
        b = torch.relu(m.b(F.max_pool2d(a, 2)))
        up = F.interpolate(b, scale_factor=2, mode="bilinear", align_corners=False)
        up = torch.cat([F.interpolate(up, size=a.shape[2:]), a], 1)
        return m.last(torch.relu(m.c(up)))

    return Case(Net(run, a=conv_bn(3, 6), b=conv_bn(6, 8), c=conv_bn(14, 6), last=conv(6, 3, 1)), images())


def channel_shuffle() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.a(x))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        return m.head(torch.relu(m.b(x)))

    return Case(Net(run, a=conv_bn(3, 12), b=conv_bn(12, 6, groups=3), head=head(6)), images())


def shuffle_of_two_halves() -> Case:
    """ShuffleNet v2: one half passes, the other is convolved, then both are interleaved."""

    class Unit(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Sequential(conv_bn(6, 6, 1), nn.ReLU(), conv_bn(6, 6, groups=6), conv_bn(6, 6, 1), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            left, right = x.chunk(2, 1)
            y = torch.cat((left, self.f(right)), 1)
            n, c, h, w = y.shape
            return y.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)

    return Case(nn.Sequential(conv_bn(3, 12), nn.ReLU(), Unit(), Unit(), conv_bn(12, 8), nn.ReLU(), head(8)), images())


def pixel_shuffle() -> Case:
    layers = [conv_bn(3, 8), nn.ReLU(), nn.PixelUnshuffle(2), conv_bn(32, 16), nn.ReLU(), nn.PixelShuffle(2)]
    return Case(nn.Sequential(*layers, conv(4, 3)), images())


def modules_in_a_plain_list() -> Case:
    """Layers that are reached through a Python list: what is registered is not what is called."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = conv_bn(3, 8), Basic(8, 8), Basic(8, 8)
            self.order = [self.a, nn.ReLU(), self.b, self.c]
            self.head = head(8)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.order:
                x = layer(x)
            return self.head(x)

    return Case(Plain(), images())


def unregistered_layers() -> Case:
    """Layers that no module knows: they are no parameters of the network, and stay as they are."""

    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.head = conv_bn(3, 8), head(6)
            self.secret = [conv(8, 6).double()]

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.secret[0](torch.relu(self.a(x)))))

    return Case(Hidden(), images().double())


def lambda_layers() -> Case:
    class Lambda(nn.Module):
        def __init__(self, f: Any) -> None:
            super().__init__()
            self.f = f

        def forward(self, x: Tensor) -> Tensor:
            return self.f(x)

    layers = [conv_bn(3, 8), Lambda(lambda x: x.relu() * 0.5), Lambda(lambda x: F.pad(x, (1, 0, 1, 0))), conv_bn(8, 6)]
    return Case(nn.Sequential(*layers, Lambda(lambda x: x.clamp(min=0)), head(6)), images())


def loops_and_slice_assignment() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.a(x))
        buffer = x.new_zeros(x.shape)
        for row in range(x.shape[2]):
            buffer[:, :, row] = x[:, :, row] * (row + 1)
        buffer[:, :, 0, 0] += 1.0
        return m.head(torch.relu(m.b(buffer)))

    return Case(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 6), head=head(6)), images())


def channel_slice_assignment() -> Case:
    """Halves written into a buffer of the code's own width."""

    def run(m: Any, x: Tensor) -> Tensor:
        left, right = torch.relu(m.a(x)), torch.relu(m.b(x))
        both = x.new_zeros(len(x), 10, *x.shape[2:])
        both[:, :4] = left
        both[:, 4:] = right
        return m.head(torch.relu(m.c(both)))

    return Case(Net(run, a=conv_bn(3, 4), b=conv_bn(3, 6), c=conv_bn(10, 6), head=head(6)), images())


def in_place_on_a_slice_of_channels() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        x[:, :3] = x[:, :3].relu()
        return m.head(torch.relu(m.b(x)))

    return Case(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 6), head=head(6)), images())


def shift_of_channels() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.relu(m.b(torch.roll(torch.relu(m.a(x)), 2, 1))))

    return Case(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 6), head=head(6)), images())


def constant_from_outside() -> Case:
    """A table of the code's own width is added: the width must stay."""
    table = torch.randn(8, 1, 1, dtype=torch.float64)

    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.relu(m.b(torch.relu(m.a(x)) + table)))

    return Case(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 6), head=head(6)), images())


def buffer_table() -> Case:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 6), head(6)
            self.register_buffer("table", torch.randn(1, 8, 1, 1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.b(torch.relu(self.a(x)) + self.table)))

    return Case(Table(), images())


def dot_with_data() -> Case:
    """The input image itself, three channels wide, is added to a stream."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(torch.relu(m.b(torch.relu(m.a(x)) + x)))

    return Case(Net(run, a=conv_bn(4, 4), b=conv_bn(4, 6), head=head(6)), images(4))


def width_from_a_hard_coded_number() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.fc(torch.relu(m.b(torch.relu(m.a(x)))).mean((2, 3)).view(-1, 6))

    return Case(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 6), fc=nn.Linear(6, 3)), images())


def normalised_features() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.fc(F.normalize(torch.relu(m.a(x)).mean((2, 3)), dim=1))

    return Case(Net(run, a=conv_bn(3, 8), fc=nn.Linear(8, 3)), images())


def mean_over_channels() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.a(x))
        attention = torch.sigmoid(m.spatial(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))
        return m.head(torch.relu(m.b(x * attention)))

    return Case(Net(run, a=conv_bn(3, 8), spatial=conv(2, 1), b=conv_bn(8, 6), head=head(6)), images())


def sum_over_channels() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        return torch.relu(m.a(x)).sum(1).flatten(1)

    return Case(Net(run, a=conv_bn(3, 8)), images())


def maxout() -> Case:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.head(m.b(x.view(len(x), 4, 3, *x.shape[2:]).amax(2)))

    return Case(Net(run, a=conv_bn(3, 12), b=conv_bn(4, 6), head=head(6)), images())


def stack_and_mix() -> Case:
    """Selective kernels: branches stacked, weighted by a softmax over branches."""

    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.stem(x))
        both = torch.stack([torch.relu(m.a(x)), torch.relu(m.b(x))], 1)
        weight = m.up(torch.relu(m.down(both.sum(1).mean((2, 3))))).view(len(x), 2, -1).softmax(1)
        return m.head((both * weight[..., None, None]).sum(1))

    members = {"a": conv_bn(6, 8), "b": conv_bn(6, 8), "down": nn.Linear(8, 4), "up": nn.Linear(4, 16)}
    return Case(Net(run, stem=conv_bn(3, 6), **members, head=head(8)), images())


def nothing_to_search() -> Case:
    return Case(nn.Sequential(nn.Flatten(), nn.Linear(27, 3)), images(3, 3))


def relative_positions() -> Case:
    """Content and place both meet the query, with a bias of its own each: the factor of the head size comes with the
    keys (Transformer-XL)."""

    def forward(net: Net, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, -1)) for layer in (net.q, net.k, net.v))
        r = net.r(net.places).unflatten(-1, (2, -1))
        content, place = (torch.einsum("bihd,bjhd->bhij", q + net.u, k), torch.einsum("bihd,jhd->bhij", q + net.w, r))
        return net.head(torch.einsum("bhij,bjhd->bihd", (content + place).softmax(-1), v).flatten(2))

    layers = {name: nn.Linear(6, 8) for name in "qkvr"}
    net = Net(forward, **layers, head=nn.Linear(8, 3))
    net.u, net.w, net.places = (nn.Parameter(torch.randn(*size)) for size in ((2, 4), (2, 4), (5, 6)))
    return Case(net, torch.randn(2, 5, 6))


def attention_by_einsum() -> Case:
    """Parameters with dimensions of their own for heads and head size, which `einsum` joins."""

    def forward(net: Net, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btm,mhd->bthd", x, getattr(net, name)) for name in "qkv")
        mixed = torch.einsum("bhts,bshd->bthd", torch.einsum("bthd,bshd->bhts", q, k).softmax(-1), v + net.bias)
        return net.head(torch.einsum("bthd,hdm->btm", mixed, net.o))

    net = Net(forward, head=nn.Linear(6, 3))
    for name in "qkv":
        net.register_parameter(name, nn.Parameter(torch.randn(5, 3, 4)))
    net.o, net.bias = nn.Parameter(torch.randn(3, 4, 6)), nn.Parameter(torch.randn(3, 4))
    return Case(net, torch.randn(2, 7, 5))
