"""Widths whose factor no parameter takes are mixed by what modules and functions are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tas
from tas.distribution import Pick
from tas.errors import BadNetwork
from tas.supernet import Supernet
from tas.testing import check_space
from tas.tracing.records import CallSite


class TiedAutoencoder(nn.Module):
    """Its decoder is the encoder's transposed weight, which has no column of its own for the code's factor."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 8)
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(torch.sigmoid(self.encode(x)), self.encode.weight.t(), self.shift)


class Standardised(nn.Module):
    """Convolutions of a list, whose standardised weights one line of the network's own forward applies, in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.head = nn.Linear(8, 4)

    def apply_standardised(self, layer: nn.Conv2d, x: Tensor) -> Tensor:
        weight = layer.weight - layer.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(x, weight / weight.std((1, 2, 3), keepdim=True), layer.bias, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer, norm in zip(self.body, self.norms, strict=True):
            x = x + torch.relu(norm(self.apply_standardised(layer, torch.sigmoid(x))))  # type: ignore[arg-type]
        return self.head(x.mean((2, 3)))


class Bottlenecks(nn.Module):
    """Layers of several widths, which one line applies."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = 2
        self.layers = nn.ModuleList(nn.Linear(*sizes) for sizes in ((3, 12), (12, 10), (10, 4)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.layers[0](x.mean((2, 3))))
        for layer in list(self.layers)[1 : 1 + self.turns]:
            x = torch.sigmoid(functional.linear(x, layer.weight.tanh(), layer.bias))  # type: ignore[operator, arg-type]
        return x


class OneByOne(TiedAutoencoder):
    def forward(self, x: Tensor) -> Tensor:
        codes = [torch.sigmoid(self.encode(one)) for one in x]
        return torch.stack([functional.linear(code, self.encode.weight.t(), self.shift) for code in codes])


class TiedPyramid(nn.Module):
    """One square weight convolves on the way down, and transposed on the way up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.both = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        down = torch.relu(self.both(functional.avg_pool2d(x, 2)))
        return self.head(functional.conv_transpose2d(functional.interpolate(down, scale_factor=2.0), self.both.weight))


class SquaredNorm(nn.Module):
    """Channels are divided by the root of the sum of their squares (as SSD's first map is)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x / (x.pow(2).sum(1, keepdim=True) + 0.1).sqrt())


class OtherwiseInTraining(TiedAutoencoder):
    def forward(self, x: Tensor) -> Tensor:
        code = torch.sigmoid(self.encode(x))
        if self.training:
            return functional.linear(code, self.encode.weight.t(), self.shift)
        return functional.linear(code, self.encode.weight.t(), self.shift)


PICTURES = torch.randn(2, 3, 8, 8)


def test_a_tied_decoder_is_mixed_by_what_it_is_given() -> None:
    network, x = TiedAutoencoder(), torch.randn(5, 6)
    traced = tas.trace(network, x)
    assert [c.name for c in traced.space.choices] == ["encode"]
    (feed,) = traced.folds["encode"].feeds
    assert isinstance(feed.to, CallSite)
    assert (feed.to.module, feed.to.function, feed.argument) == ("", "linear", 0)

    weights = torch.tensor([0.5, 0.3, 0.2])
    draw = {"encode": Pick((2, 5, 8), weights)}
    mixed = torch.tensor([1.0] * 2 + [0.5] * 3 + [0.2] * 3) * torch.sigmoid(network.encode(x))
    expected = mixed @ network.encode.weight + network.shift
    assert torch.allclose(Supernet(traced)(x, draw), expected, atol=1e-6)


def test_the_gradient_of_a_mixture_reaches_the_picks() -> None:
    network, x = TiedAutoencoder(), torch.randn(5, 6)
    weights = torch.tensor([0.4, 0.6], requires_grad=True)
    output = Supernet(tas.trace(network, x))(x, {"encode": Pick((3, 8), weights)})
    (gradient,) = torch.autograd.grad(output.sum(), weights)
    code, to_sum = torch.sigmoid(network.encode(x)), network.encode.weight.sum(1)
    assert torch.allclose(gradient, torch.stack([(code[:, :n] @ to_sum[:n]).sum() for n in (3, 8)]), rtol=1e-4)


@pytest.mark.parametrize("kind", [TiedAutoencoder, Standardised, TiedPyramid, SquaredNorm])
def test_the_laws_hold_where_functions_are_fed(kind: type[nn.Module]) -> None:
    network, x = kind(), torch.randn(2, 6) if kind is TiedAutoencoder else PICTURES
    traced = tas.trace(network, x)
    assert any(isinstance(feed.to, CallSite) for fold in traced.folds.values() for feed in fold.feeds)
    smallest = tas.macs(traced.space, traced.space.smallest()) / tas.macs(traced.space, traced.space.largest())
    assert smallest < 0.4
    check_space(network, x)


def test_calls_at_one_line_are_told_apart_where_they_must_be() -> None:
    def fed(network: nn.Module) -> list[tuple[Any, tuple[int, int] | None]]:
        folds = tas.trace(network, PICTURES).folds
        return [(feed.to.line, feed.call) for fold in folds.values() for feed in fold.feeds]  # type: ignore[union-attr]

    ((_, call),) = fed(Standardised())  # one stream
    assert call is None
    lines, calls = zip(*fed(Bottlenecks()), strict=True)
    assert len(set(lines)) == 1
    assert sorted(calls) == [(0, 2), (1, 2)]
    check_space(Bottlenecks(), PICTURES)


def test_a_loop_over_pictures_is_fed_at_every_turn() -> None:
    torch.manual_seed(0)
    network, draw = OneByOne(), {"encode": Pick((4, 8), torch.tensor([0.5, 0.5]))}
    supernet, x = Supernet(tas.trace(network, torch.randn(2, 6))), torch.randn(5, 6)
    separate = torch.cat([supernet(torch.stack([one, one]), draw)[:1] for one in x])
    assert torch.allclose(supernet(x, draw), separate, atol=1e-6)
    assert not torch.allclose(separate, network(x), atol=1e-2)


def test_other_numbers_of_calls_than_when_traced_are_refused() -> None:
    supernet = Supernet(tas.trace(Bottlenecks(), PICTURES))
    draw = {
        c.name: Pick(c.candidates, torch.full([len(c.candidates)], 1 / len(c.candidates)))
        for c in supernet.space.choices
    }
    supernet.network.turns = 1
    with pytest.raises(BadNetwork, match="which a forward called 1 times, 2 when it was traced"):
        supernet(PICTURES, draw)


def test_a_forward_that_goes_another_way_than_the_traced_one_is_refused() -> None:
    supernet, x = Supernet(tas.trace(OtherwiseInTraining(), torch.randn(2, 6))), torch.randn(2, 6)
    draw = {"encode": Pick((4, 8), torch.tensor([0.5, 0.5]))}
    supernet.eval()(x, draw)
    with pytest.raises(
        BadNetwork, match=r"at linear in the network \(.*test_feeding.py:\d+\), which a forward called at other lines"
    ):
        supernet.train()(x, draw)
    supernet.train()(x, {"encode": 4})  # nothing is mixed
