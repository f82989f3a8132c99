from typing import Any

import adversarial_layers
import adversarial_streams
import adversarial_wiring
import pytest
import torch
from adversarial import Basic, Net, conv, conv_bn, head, images
from torch import Tensor, nn

import tas
from tas.distribution import Pick, one_hot
from tas.elastic import extension_mask
from tas.supernet import Supernet


def blocks() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(conv_bn(3, 8), nn.ReLU(), Basic(8, 8), Basic(8, 8), head(8))


def supernet() -> Supernet:
    return tas.Supernet(tas.trace(blocks(), images()))


def statistics(module: nn.Module) -> Tensor:
    assert isinstance(module.running_mean, Tensor)
    return module.running_mean.clone()


def test_channel_factor_sums_the_weights_of_wider_candidates() -> None:
    factor = extension_mask((2, 3, 5), torch.tensor([0.2, 0.3, 0.5]))
    assert torch.allclose(factor, torch.tensor([1.0, 1.0, 0.8, 0.5, 0.5]))


@pytest.mark.parametrize("norm", [False, True])
def test_masked_layers_take_the_factor_once_with_what_they_are_given(norm: bool) -> None:
    """Worked out by hand, since what laws compare with knows the same places of factors."""
    torch.manual_seed(0)
    network, x = adversarial_layers.PrunedBlocks(norm).eval(), torch.randn(4, 5)
    net = tas.Supernet(tas.trace(network, x)).eval()
    (stream,) = net.space.choices
    factor = extension_mask((3, 8), torch.tensor([0.4, 0.6]))
    y = network.stem(x).sigmoid()
    y = network.norm(y + network.first(y * factor).relu())
    wanted = network.head((y + network.second(y * factor).relu()) * factor)
    got = net(x, {stream.name: Pick((3, 8), torch.tensor([0.4, 0.6]))})
    assert torch.allclose(got, wanted, atol=1e-6)


def test_layers_with_computed_weights_take_the_factor_once_at_every_call() -> None:
    torch.manual_seed(0)
    network, x = adversarial_layers.one_layer_of_computed_weights_called_with_and_without_the_factor()
    network: Any = network.eval()
    net = tas.Supernet(tas.trace(network, x)).eval()
    stem = next(choice for choice in net.space.choices if choice.size == 8)
    factor = extension_mask((3, 8), torch.tensor([0.4, 0.6]))
    y = network.stem(x).sigmoid()
    parts = network.twice.parametrizations.weight
    size = parts[0]._u @ (parts.original @ (parts[0]._v * factor))  # the spectral norm sums over these channels, too
    both = [nn.functional.linear(given * factor, parts.original / size) for given in (y, network.norm(y))]
    wanted = network.head(both[0] + both[1] + 2 * network.twice.bias)
    draw = one_hot(net.space.largest()) | {stem.name: Pick((3, 8), torch.tensor([0.4, 0.6]))}
    assert torch.allclose(net(x, draw), wanted, atol=1e-6)


def test_an_architecture_is_a_draw_of_single_picks() -> None:
    net = supernet().eval()
    a = net.space.smallest()
    assert torch.equal(net(images(), a), net(images(), one_hot(a)))


def test_foreign_architectures_are_refused() -> None:
    net = supernet()
    with pytest.raises(ValueError, match="takes one of"):
        net(images(), {**net.space.largest(), "0.0": 7.5})
    with pytest.raises(ValueError, match="missing"):
        net(images(), {"0.0": 8})


def test_prefixes_are_views_whose_statistics_write_through() -> None:
    net = supernet().train()
    norm: Any = net.network[0][1]
    before = statistics(norm)
    net(images() + 1, {**net.space.largest(), "0.0": 4})
    assert (statistics(norm)[:4] != before[:4]).all()
    assert torch.equal(statistics(norm)[4:], before[4:])


def test_gathered_statistics_are_written_back_where_they_came_from() -> None:
    """Behind a concatenation, the channels that an architecture keeps are two prefixes of two segments."""
    case = adversarial_wiring.concatenation_behind_norms()
    net = tas.Supernet(tas.trace(case.network, case.inputs)).train()
    before = statistics(net.network.bn)
    net(case.inputs, {**net.space.largest(), "left": 2, "right": 1})
    changed = (statistics(net.network.bn) != before).nonzero().flatten().tolist()
    assert changed == [0, 1, 6]


class Masked(nn.Conv2d):
    """Its mask is no parameter, and counts how often it was used in train mode."""

    mask: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.register_buffer("mask", torch.ones_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mask += 1
        return nn.functional.conv2d(x, self.weight * self.mask, self.bias, padding=1)


def test_buffers_cut_along_several_dimensions_are_written_back() -> None:
    """Of the outputs, halves of a gate, two prefixes of two segments are kept; of the inputs one prefix."""
    torch.manual_seed(0)
    gated = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), Masked(4, 12), nn.GLU(1), head(6))
    net = tas.Supernet(tas.trace(gated, images())).train()
    architecture = {choice.name: choice.candidates[0] for choice in net.space.choices}
    outputs, inputs = architecture["2"], architecture["0"]
    net(images(), architecture)
    mask: Any = net.network[2].mask
    written = torch.ones(12, 4)
    for half in (0, 6):
        written[half : half + outputs, :inputs] = 2
    assert torch.equal(mask[:, :, 0, 0], written)


def test_a_buffer_that_a_forward_only_reads_is_not_written() -> None:
    net = tas.Supernet(tas.trace(nn.Sequential(conv(3, 4), Masked(4, 12), nn.GLU(1), head(6)), images())).train()
    mask: Any = net.network[1].eval().mask
    written = mask._version
    net(images(), net.space.smallest())
    assert mask._version == written


def test_eval_mode_writes_nothing() -> None:
    net = supernet().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net(images(), net.space.smallest())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_the_module_is_put_back_after_a_forward_and_after_an_error() -> None:
    net = supernet().eval()
    modules = dict(net.network.named_modules())
    channels = net.network[0][0].out_channels
    net(images(), net.space.smallest())
    with pytest.raises(RuntimeError):
        net(torch.randn(2, 4, 6, 6), net.space.smallest())
    assert dict(net.network.named_modules()) == modules
    assert net.network[0][0].out_channels == channels == 8
    assert all(isinstance(p, nn.Parameter) for p in net.network.parameters())


def test_weights_of_unused_channels_and_blocks_get_no_gradient() -> None:
    net = supernet()
    net(images(), {**net.space.largest(), "0.0": 4, "2..3.depth": 1}).square().sum().backward()
    weight: Any = net.network[0][0].weight
    assert weight.grad[:4].abs().sum() > 0
    assert weight.grad[4:].abs().sum() == 0
    assert net.network[3].conv1.weight.grad is None


def test_frozen_weights_leave_only_the_gradient_of_the_draw() -> None:
    net = supernet()
    net.network[0][0].weight.requires_grad_(False)
    logits = torch.zeros(2, requires_grad=True)
    draw = {**one_hot(net.space.largest()), "0.0": Pick((4, 8), logits.softmax(0))}
    with net.frozen_weights():
        net(images(), draw).square().sum().backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.weight_parameters())
    assert [p.requires_grad for p in net.weight_parameters()].count(False) == 1


def test_frozen_weights_are_freed_after_an_error() -> None:
    net = supernet()
    with pytest.raises(ZeroDivisionError), net.frozen_weights():
        raise ZeroDivisionError
    assert all(p.requires_grad for p in net.weight_parameters())


def test_the_original_is_not_touched() -> None:
    traced = tas.trace(blocks(), images())
    before = {name: tensor.clone() for name, tensor in traced.network.state_dict().items()}
    net = tas.Supernet(traced).train()
    with torch.no_grad():
        net(images(), net.space.smallest())
        for p in net.weight_parameters():
            p.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in traced.network.state_dict().items())


def test_the_current_trace_has_the_trained_weights() -> None:
    net = supernet()
    with torch.no_grad():
        net.network[0][0].weight.add_(1)
    assert torch.equal(net.current().network[0][0].weight, net.network[0][0].weight)


@pytest.mark.parametrize(
    "case",
    [
        adversarial_streams.weights_shared_by_two_blocks,
        adversarial_streams.conv_shared_by_blocks_of_two_runs,
        adversarial_streams.block_used_twice,
    ],
)
def test_shared_parameters_stay_shared(case: Any) -> None:
    network, inputs = case()
    net = tas.Supernet(tas.trace(network, inputs))
    for a in (net.space.smallest(), net.space.uniform(0.5), net.space.largest()):
        net(inputs, a)
        student = tas.extract(net, a)
        assert len(list(student.parameters())) <= len(list(net.parameters()))
    assert len(list(net.network.parameters())) == len(list(network.parameters()))
    assert [p.shape for p in net.network.parameters()] == [p.shape for p in network.parameters()]


def test_a_supernet_may_move_and_change_type() -> None:
    net = supernet().eval()
    a = net.space.uniform(0.5)
    wanted = net(images(), a)
    net.double()
    assert torch.allclose(net(images().double(), a).float(), wanted, atol=1e-5)
    net.to("meta")
    assert net(images().to("meta"), a).shape == wanted.shape


def test_weights_loaded_into_a_supernet_count() -> None:
    one, other = supernet().eval(), supernet().eval()
    with torch.no_grad():
        for p in other.weight_parameters():
            p.mul_(1.1)
    a = one.space.uniform(0.5)
    assert not torch.equal(one(images(), a), other(images(), a))
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(images(), a), other(images(), a))


def test_many_architectures_are_not_all_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tas.supernet._REMEMBERED", 3)
    net = supernet().eval()
    for width in net.space.choices[0].candidates:
        for depth in (0, 1, 2):
            net(images(), {**net.space.largest(), "0.0": width, "2..3.depth": depth})
    assert len(net._plans) <= 3
    assert len(net._slots) <= 3


def test_several_inputs_and_outputs_pass_through() -> None:
    def run(m: Any, x: Tensor, *, y: Tensor) -> Any:
        z = torch.relu(m.a(x) + m.b(y))
        return {"logits": m.head(z), "mean": [z.mean()]}

    inputs = {"x": images(3), "y": images(2)}
    net = tas.Supernet(tas.trace(Net(run, a=conv_bn(3, 8), b=conv_bn(2, 8), head=head(8)), inputs)).eval()
    out = net(inputs, net.space.smallest())
    assert out["logits"].shape == (2, 5)
    assert out["mean"][0].shape == ()
