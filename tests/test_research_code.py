"""Networks as research code is written: sizes are followed wherever they come from; what has a fixed place keeps it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import tas
from tas.testing import check_space
from tas.tracing import Traced


def checked(network: nn.Module, inputs: Any, below: float) -> Traced:
    """The trace of a network for which the laws hold and which can be cut to less than this share of its MACs."""
    check_space(network, inputs, architectures=2)
    traced = tas.trace(network, inputs)
    share = tas.macs(traced.space, traced.space.smallest()) / tas.macs(traced.space, traced.space.largest())
    assert share < below, [f"{k.name}: {k.reason}" for k in traced.space.kept]
    return traced


class Grouped(nn.Module):
    """Queries, and fewer keys and values, in one layer: it is split into products of three numbers."""

    def __init__(self, fewer: int) -> None:
        super().__init__()
        self.heads, self.fewer, self.size = 4, fewer, 12
        self.qkv, self.out = nn.Linear(24, (4 + 2 * fewer) * 12), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        parts = [count * self.size for count in (self.heads, self.fewer, self.fewer)]
        q, k, v = (part.view(n, length, -1, self.size) for part in self.qkv(x).split(parts, dim=-1))
        k, v = (part.repeat_interleave(self.heads // self.fewer, 2) for part in (k, v))
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        x = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        return self.out(x.transpose(1, 2).reshape(n, length, self.heads * self.size))


@pytest.mark.parametrize("fewer", [1, 2])
def test_a_split_into_products_of_attributes_follows_each(fewer: int) -> None:
    traced = checked(nn.Sequential(nn.Linear(6, 24), nn.ReLU(), Grouped(fewer)), torch.randn(2, 5, 6), 0.25)
    student = tas.extract(traced, traced.space.smallest())[2]
    assert (student.size, student.heads < 4, student.fewer) == (3, True, fewer)


class Transformed(nn.Module):
    """PointNet's transform of features: a matrix that starts as the identity, whose rows are columns' twins."""

    def __init__(self) -> None:
        super().__init__()
        self.k = 8
        self.stem, self.matrix, self.head = nn.Linear(3, 8), nn.Linear(8, 64), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        one = torch.eye(self.k, dtype=x.dtype).view(1, self.k * self.k).repeat(len(x), 1)
        return self.head(x @ (self.matrix(x.amax(1)) + one).view(-1, self.k, self.k))


def test_the_ones_of_an_identity_stay_on_the_diagonal() -> None:
    checked(Transformed(), torch.randn(2, 6, 3), 1.01)


class Timed(nn.Module):
    """Sines of frequencies that the forward numbers: the first ones may be kept, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.half = 8
        self.embed, self.stem, self.head = nn.Linear(16, 12), nn.Linear(3, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        angles = time[:, None] * torch.exp(-torch.arange(self.half, dtype=x.dtype))
        return self.head((self.stem(x) + self.embed(torch.cat([angles.sin(), angles.cos()], -1))).relu())


def test_numbered_positions_change_no_places() -> None:
    traced = checked(Timed(), (torch.randn(2, 3), torch.tensor([1.0, 4.0])), 0.9)
    assert traced.ordered


class Masked(nn.Module):
    """Some tokens are gathered in an order that noise sorts; their running sums are read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        x = self.stem(x)
        order = noise.argsort(1)[:, :3]
        x = x.gather(1, order.unsqueeze(-1).repeat(1, 1, x.shape[-1]))
        return self.head(self.mix(x).relu().cumsum(1))


def test_picked_tokens_and_running_sums_leave_channels_free() -> None:
    checked(Masked(), (torch.randn(2, 5, 6), torch.rand(2, 5)), 0.25)


class Shifting(nn.Module):
    """A fourth of the channels goes a step on in time, another one back (TSM)."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = 4
        self.stem, self.conv, self.head = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 16, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        share, moved = x.shape[1] // self.parts, torch.zeros_like(x)
        moved[:, :share, :-1] = x[:, :share, 1:]
        moved[:, share : 2 * share, 1:] = x[:, share : 2 * share, :-1]
        moved[:, 2 * share :] = x[:, 2 * share :]
        return self.head(self.conv(moved).relu().mean(2))


def test_shares_of_a_width_keep_their_ratios() -> None:
    checked(Shifting(), torch.randn(2, 3, 6), 0.25)


class Encoded(nn.Module):
    def __init__(self, encoding: nn.Module, width: int) -> None:
        super().__init__()
        self.encoding, self.conv = encoding, nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x + self.encoding(x)).relu()


class Sharing(nn.Module):
    """A depthwise layer of the network that its blocks hold as well (CoaT)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encoding = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.blocks = nn.Sequential(Encoded(self.encoding, 12), Encoded(self.encoding, 12))
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def test_a_grouped_layer_with_several_names_follows() -> None:
    traced = checked(Sharing(), torch.randn(2, 3, 6, 6), 0.25)
    student = tas.extract(traced, traced.space.smallest())
    assert student.encoding.groups == student.stem.out_channels == 3
    assert student.blocks[0].encoding is student.encoding


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = 4, nn.Linear(48, 144), nn.Linear(48, 48)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1) * 0.3).softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, length, width))


class Products(nn.Module):
    """One stream is 8 groups of 6 channels and, by a width // heads, 4 heads of 12."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Linear(3, 48), Heads()
        self.grouped, self.head = nn.Conv1d(48, 48, 1, groups=8), nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.attention(x)
        return self.head(self.grouped(x.transpose(1, 2)).relu().mean(2))


def test_two_products_that_must_be_equal_become_multiples_of_one() -> None:
    traced = checked(Products(), torch.randn(2, 5, 3), 0.25)
    student = tas.extract(traced, {**traced.space.smallest(), "attention.depth": 1})
    assert student.stem.out_features % student.attention.heads == 0
    assert student.stem.out_features % student.grouped.groups == 0


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.stem(x).relu()).relu())


def test_a_graph_module_has_students_that_are_graph_modules(tmp_path: Path) -> None:
    traced = checked(fx.symbolic_trace(Plain()), torch.randn(3, 6), 0.25)
    student = tas.extract(traced, traced.space.smallest())
    tas.save(student, tmp_path)
    x = torch.randn(3, 6)
    assert isinstance(student, fx.GraphModule)
    assert torch.equal(tas.load(lambda: fx.symbolic_trace(Plain()), tmp_path)(x), student.eval()(x))


class Crossing(nn.Module):
    """torch splits the weight of queries, keys and values where these are not all of one tensor."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(6, 32), nn.LayerNorm(32), nn.Linear(32, 4)
        self.attention = nn.MultiheadAttention(32, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        query = self.norm(x)
        return self.head(query + self.attention(query, x, x)[0])


@pytest.mark.parametrize("heads", [1, 4])
def test_parts_of_one_weight_take_a_factor_together(heads: int) -> None:
    traced = checked(Crossing(heads), torch.randn(2, 5, 6), 0.25)
    assert tas.extract(traced, traced.space.smallest()).attention.head_dim < 32 // heads


class Scoring(nn.Module):
    """An item is scored by its row of the table that the sequence was read from, behind a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.items, self.mix, self.last = nn.Embedding(20, 24), nn.Linear(24, 24), nn.LayerNorm(24)

    def forward(self, sequence: Tensor, items: Tensor) -> Tensor:
        x = self.items(sequence)
        x = x + self.mix(x)
        return (self.last(x) * self.items(items)).sum(-1)


def test_a_table_read_twice_does_not_bring_its_factor_to_both_sides_of_a_product() -> None:
    traced = checked(Scoring(), (torch.arange(10).view(2, 5), torch.arange(10, 20).view(2, 5)), 0.25)
    assert [kept.name for kept in traced.space.kept] == ["items.weight[0]"]


class Divided(nn.Module):
    """Its weight is divided by its norm in place, at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 12), nn.Linear(12, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.data.div_(self.a.weight.data.norm())
        return self.head(self.b(self.a(x).relu()).relu())


def test_a_weight_that_a_forward_writes_is_that_of_the_whole_network() -> None:
    network, x = Divided(), torch.randn(2, 6)
    traced = tas.trace(network, x)
    network(x)
    assert torch.allclose(traced.network.a.weight, network.a.weight)  # type: ignore[union-attr, arg-type]
    check_space(network, x)
