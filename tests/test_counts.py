"""Numbers that the code needs equal are equal by a formula; the units themselves stay free of one another."""

import pytest
import torch
from torch import Tensor, nn

from tas.distribution import Pick, multiplied
from tas.testing import check_space
from tas.tracing import trace


class Chunked(nn.Module):
    """The halves of a layer go different ways: one through a layer more."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.more, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 12, 1), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).relu().chunk(2, dim=1)
        return self.head(torch.cat([a, self.more(b).relu()], 1).mean((2, 3)))


class Heads(nn.Module):
    """A stream whose width the code divides by the number of heads (Swin, BEiT, PVT); two blocks."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.blocks = nn.ModuleList(HeadsBlock(width, heads) for _ in range(2))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))


class HeadsBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)).softmax(-1)
        return self.out((scores @ v).transpose(1, 2).reshape(n, length, width))


class Mixed(nn.Module):
    """The width that is divided by the number of heads is that of a tensor made in the same forward."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.stem, self.mix, self.head = 3, nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 5)
        self.q, self.k, self.out = (nn.Linear(12, 12) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.stem(x).relu())
        n, length, width = x.shape
        q, k = (f(x).view(n, length, self.heads, width // self.heads).transpose(1, 2) for f in (self.q, self.k))
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ k
        return self.head((x + self.out(y.transpose(1, 2).reshape(n, length, width))).mean(1))


class Taken(nn.Module):
    """Parts as large as the width of the input: of a split into listed sizes, of a split into equal ones, of slices."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.made, self.out = how, nn.Linear(12, 36 if how == "equal" else 27), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        width, y = x.shape[-1], self.made(x)
        if self.how == "listed":
            a, b, gates = y.split((width, width, 3), -1)
        elif self.how == "equal":
            a, b, gates = y.split(width, -1)
        else:
            a, b, gates = y[..., :width], y[..., width : 2 * width], y[..., 2 * width :]
        return x + self.out(a * b * gates.sum(-1, keepdim=True))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 12), nn.Linear(12, 5)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head((x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


NETWORKS = {"chunk": (Chunked, (2, 3, 8, 8)), "heads": (Heads, (2, 7, 6)), "packed": (Packed, (2, 7, 6))}


@pytest.mark.parametrize("name", NETWORKS)
def test_laws_hold_where_sizes_are_products_of_choices(name: str) -> None:
    network, shape = NETWORKS[name]
    check_space(network(), torch.randn(shape))


def test_the_halves_of_a_chunk_keep_equally_many_but_not_the_same_units() -> None:
    traced = trace(Chunked(), torch.randn(2, 3, 8, 8))
    names = [choice.name for choice in traced.space.choices]
    assert len(names) == 2
    assert len(traced.groups) == 3
    halves = [group for group in traced.groups.values() if group.size == 8]
    assert halves[0].choices == halves[1].choices


def test_the_width_of_a_stream_is_heads_times_head_size_and_its_units_are_its_own() -> None:
    traced = trace(Heads(), torch.randn(2, 7, 6))
    assert sorted(choice.size for choice in traced.space.choices if choice.kind == "width") == [3, 4]
    (stream,) = (group for group in traced.groups.values() if group.size == 12)
    assert sum(power for _, power in stream.choices) == 2
    assert len(traced.groups) == 1 + 2 * 2  # the stream; heads and head size in each block


def test_a_width_that_is_read_from_a_tensor_made_before_is_tied_and_not_that_of_another() -> None:
    traced = check_space(Mixed(), torch.randn(2, 7, 6))
    assert sorted(choice.size for choice in traced.space.choices if choice.kind == "width") == [3, 4, 12]
    assert traced.groups["stem"].choices == (("stem", 1),)


@pytest.mark.parametrize("how", ["listed", "equal", "sliced"])
def test_parts_as_large_as_a_width_that_the_code_reads_keep_as_many_as_it(how: str) -> None:
    traced = check_space(nn.Sequential(nn.Linear(6, 12), Taken(how), nn.Linear(12, 5)), torch.randn(2, 5, 6))
    widths = [choice.size for choice in traced.space.choices if choice.kind == "width"]
    assert widths == ([12, 3] if how == "sliced" else [12])
    assert len([group for group in traced.groups.values() if group.size == 12]) == (3 if how == "equal" else 2)


def test_the_pick_of_a_product_weighs_every_combination() -> None:
    half = torch.tensor([0.25, 0.75])
    pick = multiplied([(Pick((2, 3), half), 1), (Pick((2, 3), half), 1), (Pick((5,)), 2)], 2)
    assert pick.values == (200, 300, 450)
    assert pick.weights is not None
    assert pick.weights.tolist() == [0.0625, 0.375, 0.5625]
    assert multiplied([(Pick((3,)), 1)], 4) == Pick((12,))
