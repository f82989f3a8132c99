"""Widths whose factor no parameter takes are mixed by what modules and functions are given."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import tas
from tas import feeding
from tas.distribution import Pick
from tas.errors import BadNetwork
from tas.feeding import times
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


class OtherFunctionInTraining(TiedAutoencoder):
    def forward(self, x: Tensor) -> Tensor:
        code = torch.sigmoid(self.encode(x))
        if self.training:
            return code @ self.encode.weight + self.shift
        return functional.linear(code, self.encode.weight.t(), self.shift)


class OtherModuleInTraining(nn.Module):
    """Only eval mode applies the computed weight."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode, self.classify = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(8, 6)
        self.classify.weight = self.decode.weight

    def forward(self, x: Tensor) -> Tensor:
        code = torch.sigmoid(self.encode(x))
        if self.training:
            return self.classify(code)
        return functional.linear(code, self.decode.weight.tanh())


class BothWays(nn.Module):
    """One module, called once to encode and once to decode."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 6))

        def forward(self, x: Tensor, back: bool = False) -> Tensor:
            if back:
                return functional.linear(x, self.weight.t())
            return functional.linear(x, self.weight)

    def __init__(self) -> None:
        super().__init__()
        self.tied = self.Tied()

    def forward(self, x: Tensor) -> Tensor:
        return self.tied(torch.sigmoid(self.tied(x)), back=True)


class TwiceGiven(nn.Module):
    """One tensor is both arguments of a function."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(6, 8)
        self.weight = nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        code = torch.sigmoid(self.encode(x))
        return functional.bilinear(code, code, self.weight.tanh())


class Modulated(nn.Module):
    """Every picture has a weight of its own, and all are convolved at once (as in StyleGAN 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.style = nn.Conv2d(3, 8, 1), nn.Linear(3, 8)
        self.weight = nn.Parameter(torch.randn(6, 8, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        pictures, _, height, width = x.shape
        weight = self.weight * self.style(x.mean((2, 3)))[:, None, :, None, None]
        side_by_side = torch.sigmoid(self.stem(x)).reshape(1, -1, height, width)
        y = functional.conv2d(side_by_side, weight.flatten(0, 1), padding=1, groups=pictures)
        return y.reshape(pictures, -1, height, width)


class SumOfAll(nn.Module):
    """Channels are summed together with pixels, or with pictures and pixels."""

    def __init__(self, first: int = 1) -> None:
        super().__init__()
        self.first = first
        self.stem = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.stem(x)).flatten(self.first).sum(-1, keepdim=True)


class Einsums(nn.Module):
    """Two lines with `einsum`, which torch has a function of Python around."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bi,ij->bj", torch.sigmoid(self.a(x)), self.a.weight)
        return y + torch.einsum("bi,ij->bj", torch.sigmoid(self.b(x)), self.b.weight)


class Block(nn.Module):
    def __init__(self, spectral: bool) -> None:
        super().__init__()
        self.turns = 1 if spectral else 2
        self.a, self.b, self.c = nn.Linear(8, 12), nn.Linear(12, 10), nn.Linear(10, 8)
        self.last = nn.utils.parametrizations.spectral_norm(nn.Linear(12, 8)) if spectral else nn.Identity()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.a(x))
        for layer in () if self.turns == 1 else (self.b, self.c):
            y = torch.sigmoid(functional.linear(y, layer.weight.tanh(), layer.bias))
        return x + self.norm(self.last(y))


class AddedInPlace(TiedAutoencoder):
    def forward(self, x: Tensor) -> Tensor:
        return self.shift.repeat(len(x), 1).addmm_(torch.sigmoid(self.encode(x)), self.encode.weight)


class GivesUp(TiedAutoencoder):
    """A module raises, and the network goes on without it."""

    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self.better = self.Raises()

    def forward(self, x: Tensor) -> Tensor:
        with suppress(NotImplementedError):
            x = self.better(x)
        return super().forward(x)


class GivesUpBefore(GivesUp):
    """A hook of the module raises before it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.better = nn.Linear(6, 6)
        self.better.register_forward_pre_hook(self.Raises.forward)


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


ON_VECTORS = [TiedAutoencoder, AddedInPlace, BothWays, TwiceGiven, Einsums, GivesUp, GivesUpBefore]


@pytest.mark.parametrize("kind", [*ON_VECTORS, Standardised, TiedPyramid, SquaredNorm, Modulated])
def test_the_laws_hold_where_functions_are_fed(kind: type[nn.Module]) -> None:
    network, x = kind(), torch.randn(2, 6) if kind in ON_VECTORS else PICTURES
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


@pytest.mark.parametrize("kind", [OtherFunctionInTraining, OtherModuleInTraining])
def test_so_is_one_in_which_another_function_stands_for_the_traced_one(kind: type[nn.Module]) -> None:
    supernet, x = Supernet(tas.trace(kind(), torch.randn(2, 6))), torch.randn(2, 6)
    draw = {"encode": Pick((4, 8), torch.tensor([0.5, 0.5]))}
    supernet.eval()(x, draw)
    with pytest.raises(BadNetwork, match="called at other lines"):
        supernet.train()(x, draw)


def test_lines_are_those_of_the_network_and_not_of_torch() -> None:
    folds = tas.trace(Einsums(), torch.randn(2, 6)).folds
    feeds = [feed for fold in folds.values() for feed in fold.feeds]
    assert len({feed.to.line for feed in feeds}) == 2  # type: ignore[union-attr]
    assert {feed.call for feed in feeds} == {None}


def test_a_tensor_given_twice_has_its_factor_twice() -> None:
    network, x = TwiceGiven(), torch.randn(3, 6)
    traced = tas.trace(network, x)
    (choice,) = traced.space.choices
    code = torch.tensor([1.0] * 4 + [0.5] * 4) * torch.sigmoid(network.encode(x))
    expected = functional.bilinear(code, code, network.weight.tanh())
    mixed = Supernet(traced)(x, {choice.name: Pick((4, 8), torch.tensor([0.5, 0.5]))})
    assert torch.allclose(mixed, expected, atol=1e-5)


@pytest.mark.parametrize("network", [Modulated(), SumOfAll()])
def test_channels_joined_with_a_batch_or_with_pixels_are_mixed_whatever_the_numbers_of_these(
    network: nn.Module,
) -> None:
    (choice,) = (c for c in tas.trace(network, PICTURES).space.choices if c.candidates[-1] == 8)
    draw, x = {choice.name: Pick((3, 8), torch.tensor([0.4, 0.6]))}, torch.randn(5, 3, 4, 6)
    supernet, as_given = (Supernet(tas.trace(network, example)) for example in (PICTURES, x))
    assert torch.allclose(supernet(x, draw), as_given(x, draw), atol=1e-5)
    assert torch.allclose(supernet(x[:1], draw), as_given(x, draw)[:1], atol=1e-5)
    assert not torch.allclose(supernet(x, draw), network(x), atol=1e-2)


def test_channels_joined_with_a_batch_and_with_pixels_are_kept() -> None:
    """Other inputs change either number: which of them cannot be told from their product."""
    (stem,) = (kept for kept in tas.trace(SumOfAll(0), PICTURES).space.kept if kept.name == "stem.weight[0]")
    assert stem.reason.startswith("no parameter of its own takes its factor when candidates are mixed: sum in ")


def test_a_call_without_the_argument_that_takes_the_factor_is_refused() -> None:
    class ByName(TiedAutoencoder):
        def forward(self, x: Tensor) -> Tensor:
            code = torch.sigmoid(self.encode(x))
            given: Any = ((), {"input": code}) if self.training else ((code,), {})
            return functional.linear(*given[0], **given[1], weight=self.encode.weight.t())

    supernet = Supernet(tas.trace(ByName(), torch.randn(2, 6)))
    with pytest.raises(
        BadNetwork, match=r"by argument 0 of linear in the network \(.*, which a forward called without it"
    ):
        supernet.train()(torch.randn(2, 6), {"encode": Pick((4, 8), torch.tensor([0.5, 0.5]))})


class OwnCall(OtherFunctionInTraining):
    """Its hooks are not run."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)


def test_a_network_whose_class_has_its_own_call_is_refused_alike() -> None:
    supernet, x = Supernet(tas.trace(OwnCall(), torch.randn(2, 6))), torch.randn(2, 6)
    draw = {"encode": Pick((4, 8), torch.tensor([0.5, 0.5]))}
    supernet.eval()(x, draw)
    with pytest.raises(BadNetwork, match="called at other lines"):
        supernet.train()(x, draw)


class Sharing(nn.Module):
    """A residual block; several apply one layer at their end."""

    class Last(nn.Module):
        def __init__(self, whole: bool) -> None:
            super().__init__()
            self.whole, self.weight = whole, nn.Parameter(torch.randn(8, 12))

        def forward(self, x: Tensor) -> Tensor:
            y = functional.linear(x, self.weight.tanh())
            return y if self.whole else y + 0 * x.mean()  # then only the function can take the factor

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.a, self.last, self.norm = nn.Linear(8, 12), last, nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.last(torch.sigmoid(self.a(x))))


@pytest.mark.parametrize("whole", [True, False])
def test_a_layer_that_is_left_out_in_one_place_is_fed_in_another(whole: bool) -> None:
    shared = Sharing.Last(whole)
    stages = (nn.Sequential(Sharing(Sharing.Last(True)), Sharing(shared)) for _ in range(2))
    network = nn.Sequential(nn.Linear(6, 8), next(stages), nn.Linear(8, 8), next(stages), nn.Linear(8, 3))
    supernet, x = Supernet(tas.trace(network, torch.randn(4, 6))).eval(), torch.randn(4, 6)
    widths, depths = ([c for c in supernet.space.choices if c.kind == kind] for kind in ("width", "depth"))
    assert [c.name for c in depths] == ["1.0..1.depth", "3.0..1.depth"]
    alive = {depths[0].name: Pick((1,)), depths[1].name: Pick((2,))}
    narrow = {c.name: Pick(c.candidates[:1]) for c in widths}
    mixed = {c.name: Pick((c.candidates[0], c.candidates[-1]), torch.tensor([1.0, 0.0])) for c in widths}
    assert torch.allclose(supernet(x, alive | mixed), supernet(x, alive | narrow), atol=1e-5)


@pytest.mark.parametrize("wrong", [lambda x, *_: x, lambda x, f, d: times(times(x, f, d), f, d)])
def test_a_factor_that_is_missing_or_there_twice_fails_the_laws(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., Tensor]
) -> None:
    monkeypatch.setattr(feeding, "times", wrong)
    with pytest.raises(AssertionError, match="law 8"):
        check_space(TiedAutoencoder(), torch.randn(2, 6))


@pytest.mark.parametrize("spectral", [False, True])
def test_what_is_left_out_is_not_fed(spectral: bool) -> None:
    network, x = nn.Sequential(nn.Linear(6, 8), Block(spectral), Block(spectral), nn.Linear(8, 3)), torch.randn(2, 6)
    supernet = Supernet(tas.trace(network, x))
    halves = torch.full([2], 0.5)
    draw = {c.name: Pick((c.candidates[0], c.candidates[-1]), halves) for c in supernet.space.choices}
    (depth,) = (c.name for c in supernet.space.choices if c.kind == "depth")
    both, one = (supernet(x, draw | {depth: Pick(values, halves)}) for values in ((0, 2), (0, 1)))
    assert not torch.allclose(both, one, atol=1e-4)


def test_a_graph_of_torch_fx_has_the_same_lines_in_a_copy() -> None:
    network, x = TiedAutoencoder(), torch.randn(3, 6)
    draw = {"encode": Pick((4, 8), torch.tensor([0.5, 0.5]))}
    supernets = [Supernet(tas.trace(n, x)) for n in (network, fx.symbolic_trace(network))]
    assert torch.allclose(*(supernet(x, draw) for supernet in supernets))


def test_functions_inside_vmap_are_let_pass() -> None:
    class Mapped(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](torch.vmap(lambda row: torch.relu(row) * 2)(self[0](x)))

    traced = tas.trace(Mapped(nn.Linear(6, 8), nn.Linear(8, 3)), torch.randn(2, 6))
    assert [choice.name for choice in traced.space.choices] == ["0"]


def test_what_has_a_backward_of_its_own_is_not_fed_inside() -> None:
    class Rounded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
            ctx.save_for_backward(x, weight)
            return functional.linear(x, weight.round())

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
            x, weight = ctx.saved_tensors
            return gradients[0] @ weight.round(), gradients[0].t() @ x

    class Quantised(TiedAutoencoder):
        def forward(self, x: Tensor) -> Tensor:
            return Rounded.apply(torch.sigmoid(self.encode(x)), self.encode.weight.t())  # type: ignore[no-untyped-call]

    space = tas.trace(Quantised(), torch.randn(2, 6)).space
    assert not space.choices
    assert any("no parameter of its own takes its factor" in kept.reason for kept in space.kept)
