"""What a forward does in train mode only, or in its first call only: auxiliary heads, caches, hooks, versions."""

import copy
from collections.abc import Callable
from functools import lru_cache
from operator import attrgetter
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from adversarial import Net, conv, conv_bn, head, images
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tas
from tas.errors import BadNetwork
from tas.originals import load_weights
from tas.testing import check_space


def with_auxiliary_head(reads: str) -> Net:
    """In train mode, a second classifier reads what the first block makes."""

    def run(m: Any, x: Tensor) -> Any:
        first = m.a(x)
        logits = m.h(m.b(first))
        return (logits, m.aux(m.narrow(first if reads == "first" else m.b(first)))) if m.training else logits

    auxiliary = nn.Sequential(nn.Dropout(0.3), head(6))
    return Net(run, a=conv_bn(3, 8), b=conv_bn(8, 8), h=head(8), narrow=conv_bn(8, 6), aux=auxiliary)


@pytest.mark.parametrize("reads", ["first", "second"])
def test_auxiliary_heads_follow_what_they_read(reads: str) -> None:
    traced = check_space(with_auxiliary_head(reads), images())
    assert [choice.name for choice in traced.space.choices] == ["a.0", "b.0"]
    told = {size.name: size.reason for size in traced.space.kept}
    assert told["narrow.0.weight[0]"] == "the forward never reads it"
    smallest = tas.extract(traced, traced.space.smallest())
    assert smallest.narrow[0].weight.shape[1] == traced.space.smallest()["a.0" if reads == "first" else "b.0"]


def test_a_sum_in_train_mode_alone_ties_what_it_adds() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        first = m.a(x)
        second = m.b(first)
        return m.h(first + second if m.training else second)

    traced = check_space(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 8), h=head(8)), images())
    assert [choice.name for choice in traced.space.choices] == ["a.0"]
    tas.extract(traced, traced.space.smallest()).train()(images().double())


def test_following_train_mode_leaves_no_mark() -> None:
    network = with_auxiliary_head("first")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = torch.get_rng_state()
    traced = tas.trace(network, images())
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in traced.network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert traced.space.costs == tas.trace(network.eval(), images()).space.costs


def test_a_train_mode_that_refuses_the_inputs_leaves_the_trace_of_eval_mode() -> None:
    def run(m: Any, x: Tensor, target: Tensor | None = None) -> Tensor:
        logits = m.h(m.a(x))
        return m.aux(logits) - target if m.training else logits

    network = Net(run, a=conv_bn(3, 8), h=head(8), aux=nn.Linear(10, 10))
    assert [choice.name for choice in tas.trace(network, images()).space.choices] == ["a.0"]


def table_by_process() -> Callable[[int], Tensor]:
    @lru_cache
    def table(size: int) -> Tensor:
        return (torch.arange(size)[:, None] - torch.arange(size)[None, :]).abs().float().softmax(0)

    return table


def test_what_a_process_keeps_of_its_first_forward() -> None:
    table = table_by_process()
    run: Callable[..., Tensor] = lambda m, x: m.h(m.b(m.a(x) @ table(x.shape[-1]).to(x)))  # noqa: E731
    check_space(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 8), h=head(8)), images())


def test_results_with_gradients_that_a_forward_keeps_in_eval_mode() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        if m.training:
            return m.h(m.a(x) + m.bias[:, m.index])
        if "table" not in m.cache:
            m.cache["table"] = m.bias[:, m.index]
        return m.h(m.a(x) + m.cache["table"])

    network = Net(run, a=conv_bn(3, 8), h=head(8))
    network.bias = nn.Parameter(torch.randn(1, 3))
    network.register_buffer("index", torch.tensor([0, 2, 1, 1, 0, 2]))
    network.cache = {}
    check_space(network, images())
    assert not network.cache


def test_hooks_that_a_forward_hangs_on_modules() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        m.a.register_forward_hook(lambda _, __, out: seen.append(out))
        return m.h(m.b(m.a(x)) + seen[-1])

    network = Net(run, a=conv_bn(3, 8), b=conv_bn(8, 8), h=head(8))
    check_space(network, images())
    assert not network.a._forward_hooks


class Versioned(nn.Sequential):
    """Refuses a state dict that does not say which version wrote it."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        if metadata.get("version") not in (1, 2):
            raise ValueError(f"version should be 1 or 2, is {metadata.get('version')}")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_networks_that_ask_for_the_version_of_a_file(tmp_path: Any) -> None:
    torch.manual_seed(0)
    network = Versioned(conv_bn(3, 8), nn.ReLU(), conv(8, 8), head(8))
    check_space(network, images())
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    other = Versioned(conv_bn(3, 8), nn.ReLU(), conv(8, 8), head(8))
    load_weights(other, tmp_path / "weights.safetensors")
    torch.testing.assert_close(other.eval()(images()), network.eval()(images()))


class Recombining(nn.Module):
    """Takes another operator where one head is left, as torch's own linear layers do."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        mixed = (x.transpose(1, -1) @ self.mix).transpose(1, -1)
        return mixed.neg().neg() if self.mix.shape[0] == 1 else mixed


class Talking(nn.Module):
    """Attention-like: heads are mixed by another module, then the code computes a head size that must be noticed."""

    def __init__(self, heads: int = 4, size: int = 6) -> None:
        super().__init__()
        self.heads = heads
        self.inner, self.outer = nn.Linear(24, heads * size), nn.Linear(heads * size, 24)
        self.mix = Recombining()

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        split = self.inner(x).view(batch, tokens, self.heads, -1).transpose(1, 2)
        return x + self.outer(self.mix(split).transpose(1, 2).reshape(batch, tokens, -1))


def test_a_module_that_takes_other_operators_at_a_size_of_one_does_not_hide_the_next_module() -> None:
    network = nn.Sequential(nn.Linear(8, 24), Talking(), Talking(), nn.Linear(24, 5))
    traced = check_space(network, torch.randn(2, 3, 8))
    assert [choice.name for choice in traced.space.choices if choice.kind == "width"] == [
        "0",
        *("1.inner.groups", "1.inner.inside", "1.outer.in1.groups"),
        *("2.inner.groups", "2.inner.inside", "2.outer.in1.groups"),
    ]


def test_constants_that_meet_a_layer_are_no_choice() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.h(m.a(x) + m.second(torch.relu(m.first(m.coordinates))).mean(0)[None, :, None, None])

    network = Net(run, a=conv_bn(3, 8), first=nn.Linear(2, 6), second=nn.Linear(6, 8), h=head(8))
    network.register_buffer("coordinates", torch.randn(9, 2))
    traced = check_space(network, images())
    assert [choice.name for choice in traced.space.choices] == ["a.0", "first"]
    told = {size.name: size.reason for size in traced.space.kept}
    assert told["first.weight[1]"] == "coordinates holds it, and no parameter makes it"


def test_buffers_that_were_expanded_are_not_written() -> None:
    network = Net(lambda m, x: m.h(m.b(m.a(x)) * m.scale), a=conv_bn(3, 8), b=conv_bn(8, 8), h=head(8))
    network.register_buffer("scale", torch.full((1,), 2.0).expand(6))
    check_space(network, images(), architectures=1)


def test_dropout_inside_torchs_own_attention() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.2, batch_first=True)
    check_space(nn.Sequential(nn.Linear(5, 16), layer, nn.Linear(16, 3)), torch.randn(2, 6, 5), architectures=1)


def test_noise_of_train_mode_ties_what_it_meets() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        hidden = torch.relu(m.e(x))
        mean, spread = m.mean(hidden), m.spread(hidden)
        return m.d(mean + torch.randn_like(mean) * spread.exp() if m.training else mean)

    network = Net(run, e=nn.Linear(4, 8), mean=nn.Linear(8, 6), spread=nn.Linear(8, 6), d=nn.Linear(6, 4))
    traced = check_space(network, torch.randn(3, 4))
    student = tas.extract(traced, traced.space.smallest()).train()
    assert student.mean.out_features == student.spread.out_features < 6
    assert student(torch.randn(3, 4, dtype=torch.float64)).shape == (3, 4)


def test_results_with_gradients_on_modules_are_copied_as_numbers() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        m.features = [torch.relu(m.a(x))]
        return m.b(m.features[0])

    network, x = Net(run, a=nn.Linear(4, 8), b=nn.Linear(8, 3), features=[]), torch.randn(2, 4)
    network(x)
    traced = check_space(network, x)
    supernet = tas.Supernet(traced).train()
    supernet(x.double(), traced.space.largest()).sum().backward()
    assert tas.extract(supernet, traced.space.smallest()).features[0].grad_fn is None


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_that_an_old_norm_computes() -> None:
    normed = nn.utils.weight_norm
    network = nn.Sequential(normed(nn.Conv1d(3, 8, 3)), nn.ReLU(), normed(nn.Conv1d(8, 8, 3)), nn.Flatten())
    traced = check_space(network.append(nn.Linear(8 * 6, 4)), torch.randn(2, 3, 10))
    assert [choice.name for choice in traced.space.choices] == ["0", "2"]


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_search_refuses_checkpointed_modules(reentrant: bool) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.h(checkpoint(m.b, m.a(x), use_reentrant=reentrant) if m.training else m.b(m.a(x)))

    traced = tas.trace(Net(run, a=conv_bn(3, 8), b=conv_bn(8, 8), h=head(8)), images())
    supernet = tas.Supernet(traced).train()
    with pytest.raises(BadNetwork, match="switch gradient checkpointing off"):
        supernet(images(), traced.space.smallest())
    student = tas.extract(traced, traced.space.smallest()).train()
    student(images()).sum().backward()  # by itself it may
    assert student.a[0].weight.grad is not None


def test_sizes_that_are_only_averaged_over_are_kept() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.o(torch.relu(m.latents + m.i(x)[:, None]).mean(1))

    network = Net(run, i=nn.Linear(3, 16), o=nn.Linear(16, 5))
    network.latents = nn.Parameter(torch.randn(4, 16))
    traced = check_space(network, torch.randn(2, 3))
    assert [choice.name for choice in traced.space.choices] == ["latents.in1"]
    told = {size.name: size.reason for size in traced.space.kept}
    assert told["latents[0]"].startswith("it is never summed over")


def test_norms_that_compute_in_single_precision_are_held_to_that() -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            y = x.float()
            return self.weight * (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)

    check_space(nn.Sequential(nn.Linear(4, 8), Norm(), nn.Linear(8, 8), Norm(), nn.Linear(8, 3)), torch.randn(2, 4))


def test_views_in_place_and_quotients_of_numbers() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        mask = m.a(x).transpose_(1, 2).unsqueeze_(1).squeeze_(1).transpose(1, 2)
        return m.b(mask / torch.div(6, 2, rounding_mode="floor"))

    traced = check_space(Net(run, a=nn.Linear(4, 8), b=nn.Linear(8, 3)), torch.randn(2, 5, 4))
    assert [choice.name for choice in traced.space.choices] == ["a"]


class _Child(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.conv(x))


class _Told(Net):
    """Keeps by itself what mode it is in, in three places."""

    noisy = False
    beside = SimpleNamespace(noisy=False)

    def train(self, mode: bool = True) -> "_Told":
        self.noisy = self.beside.noisy = mode
        self.flag.fill_(float(mode))
        return super().train(mode)


@pytest.mark.parametrize(
    ("asks", "kind"),
    [
        (lambda m: m.training, Net),
        (lambda m: m.child.drop.training, Net),
        (lambda m: vars(m)["training"], Net),
        (lambda m: attrgetter("training")(m), Net),
        (lambda m: copy.copy(m.child).training, Net),
        (lambda m: m.noisy, _Told),
        (lambda m: m.beside.noisy, _Told),
        (lambda m: bool(m.flag), _Told),
    ],
)
def test_what_train_mode_adds_is_followed_however_code_asks_for_the_mode(
    asks: Callable[[Any], bool], kind: type[Net]
) -> None:
    """In train mode the features of both ends are summed, so they must lose the same channels."""

    def run(m: Any, x: Tensor) -> Tensor:
        first = m.first(x)
        last = m.last(m.child(first))
        return m.head(last + first if asks(m) else last)

    layers = {"first": conv(3, 8), "child": _Child(), "last": conv(8, 8), "head": head(8)}
    assert _ends(kind(run, **layers, flag=torch.zeros(()))) == 1


def _ends(network: nn.Module) -> int:
    choices = tas.trace(network.eval(), images()).space.choices
    return sum("first" in choice.name or "last" in choice.name for choice in choices)


def test_a_train_method_of_one_instance_is_heard() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        first = m.first(x)
        last = m.last(first)
        return m.head(last + first if m.noisy else last)

    def train(self: Any, mode: bool = True) -> Any:
        self.noisy = mode
        return nn.Module.train(self, mode)

    network: Any = Net(run, first=conv(3, 8), last=conv(8, 8), head=head(8), noisy=False)
    assert _ends(network) == 2
    network.train = MethodType(train, network)
    assert _ends(network) == 1


def test_a_first_call_does_not_hide_what_train_mode_adds() -> None:
    """The first call makes a sum for a table, train mode one of features: as many operators."""
    table: list[Tensor] = []

    def run(m: Any, x: Tensor) -> Tensor:
        first = m.first(x)
        last = m.last(first)
        if not table:
            table.append(x + x)
        return m.head(last + first if m.training else last)

    assert _ends(Net(run, first=conv(3, 8), last=conv(8, 8), head=head(8))) == 1


class _Folds(nn.Module):
    """Adds low-rank weights to the whole one where its mode says so, as adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Linear(8, 8)
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))
        self.folded = False

    def train(self, mode: bool = True) -> "_Folds":
        if mode == self.folded:
            self.whole.weight.data += (-1 if mode else 1) * (self.up @ self.down).data
            self.folded = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.whole(x) if self.folded else self.whole(x) + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("training", [True, False])
def test_weights_that_a_change_of_mode_folds_are_left_as_they_were(training: bool) -> None:
    network: Any = nn.Sequential(nn.Linear(4, 8), _Folds(), nn.ReLU(), nn.Linear(8, 3)).train(training)
    x = torch.randn(2, 4)
    before, wanted = network[1].whole.weight.clone(), network(x)
    traced = tas.trace(network, x)
    assert torch.equal(network[1].whole.weight, before)
    assert torch.equal(traced.network.get_parameter("1.whole.weight"), before)
    for mode in (training, not training):
        student = tas.extract(traced, traced.space.largest()).train(mode)
        assert torch.allclose(student(x), wanted, atol=1e-5)


def _rebinds(average: nn.Parameter, weight: Tensor) -> None:
    average.data = average.data * 0.9 + weight.data * 0.1


def _writes_data(average: nn.Parameter, weight: Tensor) -> None:
    average.data.mul_(0.9).add_(weight, alpha=0.1)


def _writes(average: nn.Parameter, weight: Tensor) -> None:
    average.mul_(0.9).add_(weight, alpha=0.1)


@pytest.mark.parametrize("average", [_rebinds, _writes_data, _writes])
@pytest.mark.parametrize("training", [True, False])
def test_weights_that_train_mode_averages_are_left_as_they_were(
    average: Callable[[nn.Parameter, Tensor], None], training: bool
) -> None:
    """A momentum encoder: its weights follow those of another in every forward of train mode."""

    @torch.no_grad()
    def momentum(m: Any, x: Tensor) -> Tensor:
        for mine, other in zip(m.slow.parameters(), m.fast.parameters(), strict=True):
            if m.training:
                average(mine, other)
        return m.slow(x)

    def encoder() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 6))

    network = Net(lambda m, x: (m.fast(x) * momentum(m, x)).sum(1), fast=encoder(), slow=encoder()).train(training)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    traced = tas.trace(network, torch.randn(3, 4))
    student = tas.extract(traced, traced.space.largest())
    for name, tensor in before.items():
        for each in (network, traced.network, student):
            assert torch.equal(each.state_dict()[name], tensor), name
    assert traced.space.choices
