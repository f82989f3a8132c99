"""Where no attribute follows a size, identities give way: exactly those concerned, with operator, module and line."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tas.tracing
from tas.testing import check_space
from tas.tracing import trace
from tas.tracing.proof import prove


class HardCoded(nn.Module):
    """One layer whose code knows the number 12, and one that is free."""

    def __init__(self) -> None:
        super().__init__()
        self.bound, self.free, self.head = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bound(x).view(-1, 3, 4).transpose(1, 2).reshape(-1, 12)
        return self.head(self.free(x).relu())


class OneNumber(nn.Module):
    """One attribute is the head size of two projections of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = 4
        self.q, self.v, self.head = nn.Linear(6, 12), nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, v = self.q(x).unflatten(-1, (-1, self.dim)), self.v(x).unflatten(-1, (-1, self.dim))
        return self.head((v * q.relu().sum((-2, -1), keepdim=True)).flatten(-2))


class Turned(nn.Module):
    """A part of the channels is turned in pairs, as many as there are frequencies: all of them, the rest is empty."""

    def __init__(self) -> None:
        super().__init__()
        self.bound, self.head = nn.Linear(6, 12), nn.Linear(12, 5)
        self.register_buffer("frequencies", torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        x, size = self.bound(x), 2 * self.frequencies.shape[0]
        some, rest = x[..., :size], x[..., size:]
        one, other = some.chunk(2, -1)
        turned = torch.cat([-other, one], -1) * torch.cat([self.frequencies, self.frequencies])
        return self.head(torch.cat([some + turned, rest], -1).relu())


class EmptyRest(nn.Module):
    """What lies behind the first 12 of 12 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.bound, self.head = nn.Linear(6, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bound(x)
        return self.head(torch.cat([x[..., :12], x[..., 12:]], -1))


def test_what_is_taken_whole_and_an_empty_rest_of_it_follow() -> None:
    traced = check_space(Turned(), torch.randn(2, 6))
    assert [choice.size for choice in traced.space.choices] == [6]


def test_an_empty_part_is_no_fraction_of_a_width() -> None:
    check_space(EmptyRest(), torch.randn(2, 6))


def test_a_hard_coded_size_is_kept_with_operator_and_line_and_the_rest_is_free() -> None:
    traced = check_space(HardCoded(), torch.randn(2, 6))
    assert [choice.name for choice in traced.space.choices] == ["free"]
    (kept,) = (kept for kept in traced.space.kept if kept.name == "bound.weight[0]")
    assert "view" in kept.reason
    assert "test_repair.py:" in kept.reason


@pytest.mark.parametrize("split", [lambda x: x.unflatten(-1, (-1, 4)), nn.Unflatten(-1, (-1, 4))])
def test_a_hard_coded_head_size_leaves_the_heads_free(split: Callable[[Tensor], Tensor]) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.out = (nn.Linear(*sizes) for sizes in [(6, 12)] * 3 + [(12, 3)])

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (split(layer(x)).transpose(1, 2) for layer in (self.q, self.k, self.v))
            return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    traced = check_space(Attention(), torch.randn(2, 5, 6))
    assert [(choice.name, choice.candidates) for choice in traced.space.choices] == [("q", (1, 2, 3))]


def test_literal_sizes_in_a_module_leave_what_is_around_it_free() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner, self.head = nn.Linear(6, 12), Attention(), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            return self.head(x + self.inner(x))

    traced = check_space(Block(), torch.randn(2, 5, 6))
    assert "embed" in [choice.name for choice in traced.space.choices]


def test_one_attribute_for_two_sizes_makes_them_equal_in_number() -> None:
    traced = check_space(OneNumber(), torch.randn(2, 6))
    assert [rule.key[0] for rule in traced.attribute_rules] == ["dim"]
    dims = [group for group in traced.groups.values() if group.size == 4]
    assert len({group.choices for group in dims}) == 1


class Halved(nn.Module):
    """Attention of two streams with as many heads, of a size and of half of it, which the code computes."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.size, self.width = 4, 12, 48
        self.qkv, self.out = nn.ModuleList(nn.Linear(48, 48) for _ in range(3)), nn.Linear(48, 48)
        self.less, self.last = nn.ModuleList(nn.Linear(24, 24) for _ in range(3)), nn.Linear(24, 24)

    def split(self, x: Tensor, share: int = 1) -> Tensor:
        return x.view(*x.shape[:-1], self.heads, self.size // share).transpose(1, 2)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (self.split(layer(x)) for layer in self.qkv)
        p, r, w = (self.split(layer(y), 2) for layer in self.less)
        maps = (q @ k.mT + p @ r.mT).softmax(-1)
        one, other = (maps @ v).transpose(1, 2), (maps @ w).transpose(1, 2)
        x = x + self.out(one.reshape(*x.shape[:2], self.width))
        return x, y + self.last(other.reshape(*y.shape[:2], self.width // 2))


class TwoStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.y, self.blocks = nn.Linear(8, 48), nn.Linear(8, 24), nn.ModuleList([Halved(), Halved()])
        self.head = nn.Linear(72, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, y = self.x(x), self.y(x)
        for block in self.blocks:
            x, y = block(x, y)
        return self.head(torch.cat([x, y], -1))


def test_units_that_became_one_are_kept_with_what_ties_them() -> None:
    traced = trace(TwoStreams(), torch.randn(2, 6, 8))
    reasons = [kept.reason for kept in traced.space.kept if "cannot shrink" in kept.reason]
    assert reasons
    assert all("test_repair.py:" in reason for reason in reasons)


def test_what_one_module_needs_is_done_for_all_of_its_class_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    proofs = []
    monkeypatch.setattr(tas.tracing, "prove", lambda *given: proofs.append(prove(*given)) or proofs[-1])
    modules = [nn.Sequential(OneNumber(), nn.Linear(5, 6)) for _ in range(5)]
    traced = trace(nn.Sequential(*modules), torch.randn(2, 6))
    assert proofs == [False, True]
    assert len({group.choices for group in traced.groups.values() if group.size == 4}) == 5


class Windows(nn.Module):
    """Attention in windows of four tokens, which are shifted and filled up where that is needed."""

    def __init__(self, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.heads, self.shift = heads, shift
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        x, missing = x.roll(-self.shift, 1) if self.shift else x, -length % 4
        windows = F.pad(x, (0, 0, 0, missing)) if missing else x
        qkv = self.qkv(windows).reshape(-1, 4, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(n, length + missing, width))[:, :length]
        return x.roll(self.shift, 1) if self.shift else x


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.merge, self.head = nn.Linear(6, 12), nn.Linear(24, 24), nn.Linear(24, 5)
        self.early = nn.ModuleList([Windows(12, 3, 0), Windows(12, 3, 2)])
        self.late = nn.ModuleList([Windows(24, 6, 0), Windows(24, 6, 2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.early:
            x = x + block(x)
        x = self.merge(x.unflatten(1, (-1, 2)).flatten(-2))
        for block in self.late:
            x = x + block(x)
        return self.head(x.mean(1))


def test_modules_that_do_something_more_before_are_done_at_once_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    proofs = []
    monkeypatch.setattr(tas.tracing, "prove", lambda *given: proofs.append(prove(*given)) or proofs[-1])
    network, x = Stages(), torch.randn(2, 12, 6)
    traced = trace(network, x)
    assert proofs == [False, True]
    assert not [kept for kept in traced.space.kept if "does not follow" in kept.reason]
    check_space(network, x)


def test_a_trace_changes_nothing_of_the_network() -> None:
    network = HardCoded()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trace(network, torch.randn(2, 6))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert network.bound.out_features == 12
