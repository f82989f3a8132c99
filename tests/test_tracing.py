import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from adversarial import Basic, Net, conv, conv_bn, head, images
from torch import Tensor, nn

import tas
from search_spaces.cifar_resnet import resnet20
from tas.errors import BadNetwork
from tas.tracing import Rules


def sizes(network: nn.Module, inputs: Any = None, rules: Rules | None = None) -> dict[str, tuple[int, ...]]:
    space = tas.trace(network, images() if inputs is None else inputs, rules).space
    return {choice.name: choice.candidates for choice in space.choices}


def reasons(network: nn.Module, inputs: Any = None) -> dict[str, str]:
    space = tas.trace(network, images() if inputs is None else inputs).space
    return {kept.name: kept.reason for kept in space.kept}


def plain() -> nn.Sequential:
    return nn.Sequential(conv_bn(3, 20), nn.ReLU(), conv_bn(20, 10), nn.ReLU(), head(10))


# -- choices -----------------------------------------------------------------------------------------------------------


def test_choices_are_named_after_the_layer_that_makes_the_channels() -> None:
    assert list(sizes(plain())) == ["0.0", "2.0"]
    blocks = nn.Sequential(conv_bn(3, 8), nn.ReLU(), Basic(8, 8), Basic(8, 8), head(8))
    assert list(sizes(blocks)) == ["0.0", "2.conv1", "3.conv1", "2..3.depth"]


def test_candidates_are_the_papers_ratios_rounded_down() -> None:
    assert sizes(plain())["0.0"] == (6, 8, 10, 12, 14, 16, 18, 20)
    assert sizes(plain())["2.0"] == (3, 4, 5, 6, 7, 8, 9, 10)


def test_rules_choose_ratios_divisors_and_what_stays() -> None:
    found = sizes(plain(), rules=Rules(ratios=(0.25, 0.5), divisor=4))
    assert found == {"0.0": (4, 8, 20), "2.0": (4, 10)}
    assert list(sizes(plain(), rules=Rules(fix=("2*",)))) == ["0.0"]
    space = tas.trace(plain(), images(), Rules(fix=("2*",))).space
    assert {k.name: k.reason for k in space.kept}["2.0.weight[0]"] == "a rule fixes it"
    blocks = nn.Sequential(conv_bn(3, 8), nn.ReLU(), Basic(8, 8), head(8))
    assert not [name for name in sizes(blocks, rules=Rules(depth=False)) if "depth" in name]


def test_a_residual_stream_is_one_choice_and_a_run_of_blocks_one_depth() -> None:
    found = sizes(resnet20(), images(size=16))
    depths = {name: candidates[-1] for name, candidates in found.items() if name.endswith("depth")}
    assert depths == {"layer1.0..2.depth": 3, "layer2.1..2.depth": 2, "layer3.1..2.depth": 2}
    assert [name for name in found if name not in depths] == ["conv1"] + [
        f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(3)
    ]


def test_option_a_shortcuts_split_a_stream_into_passed_and_padded_channels() -> None:
    """The first 16 channels are one choice in all stages; what is added to zeros, 16 and 48 of them, stays."""
    traced = tas.trace(resnet20(shortcut="A"), images(size=16))
    assert dict(traced.space.largest())["conv1"] == 16
    kept = {k.name: (k.size, k.reason) for k in traced.space.kept}
    assert kept["layer2.0.conv2.weight[0]"][0] == 16
    assert kept["layer3.0.conv2.weight[0]"][0] == 48
    assert "add in layer2.0 (cifar_resnet.py:" in kept["layer2.0.conv2.weight[0]"][1]
    student: Any = tas.extract(traced, {**traced.space.largest(), "conv1": 4})
    assert [m.weight.shape[0] for m in (student.conv1, student.layer2[0].conv2, student.layer3[2].conv2)] == [4, 20, 52]


def test_grouped_convolutions_have_groups_and_widths_inside() -> None:
    net = nn.Sequential(conv_bn(3, 12), nn.ReLU(), conv_bn(12, 24, groups=3), nn.ReLU(), head(24))
    found = {name: candidates[-1] for name, candidates in sizes(net).items()}
    assert found == {"0.0.groups": 3, "0.0.inside": 4, "2.0.inside": 8}


def test_depthwise_convolutions_follow_their_input() -> None:
    net = nn.Sequential(conv_bn(3, 12), nn.ReLU(), conv_bn(12, 12, groups=12), nn.ReLU(), conv_bn(12, 6, 1), head(6))
    assert list(sizes(net)) == ["0.0", "4.0"]


def test_blocks_are_a_run_only_where_one_feeds_the_next() -> None:
    layers = [conv_bn(3, 8), nn.ReLU(), Basic(8, 8), Basic(8, 8), nn.MaxPool2d(2), Basic(8, 8), Basic(8, 12), head(12)]
    depths = {n: c for n, c in sizes(nn.Sequential(*layers)).items() if n.endswith("depth")}
    assert depths == {"2..3.depth": (0, 1, 2), "5.depth": (0, 1)}


def test_of_a_block_that_is_not_the_identity_without_its_branch_the_branch_is_left_out() -> None:
    class Block(Basic):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(x) * 0.5

    layers = [conv_bn(3, 8), nn.ReLU(), Block(8, 8), Basic(8, 8), head(8)]
    assert [n for n in sizes(nn.Sequential(*layers)) if n.endswith("depth")] == ["2.conv2.depth", "3.depth"]


# -- what is kept, and why ---------------------------------------------------------------------------------------------


def test_reasons_name_operator_module_and_line() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        x = m.a(x)
        x = torch.roll(x, 1, 1)
        return m.head(x)

    line = run.__code__.co_firstlineno + 2
    why = reasons(Net(run, a=conv_bn(3, 8), head=head(8)))
    assert why["a.0.weight[0]"] == f"positions change places: roll in the network (test_tracing.py:{line})"


def test_inputs_outputs_and_unread_parameters_are_kept_as_such() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.relu(m.a(x))
        m.dead(x)
        return m.b(x)

    why = reasons(Net(run, a=conv(3, 8), dead=conv(8, 4), spare=conv(5, 6), b=conv(8, 6)))
    assert why["b.weight[0]"] == "it is an output of the network"
    assert why["dead.weight[0]"] == "no output of the network depends on it"
    assert why["spare.weight[0]"] == "the forward never reads it"
    assert "a.weight[0]" not in why
    assert why["a.weight[1]"].startswith("it meets a size that cannot change: convolution in a (")


def test_hard_coded_sizes_are_kept_with_what_the_code_wanted() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.fc(torch.relu(m.a(x)).mean((2, 3)).view(-1, 8))

    why = reasons(Net(run, a=conv(3, 8), fc=nn.Linear(8, 3)))["a.weight[0]"]
    assert why.startswith("the code does not follow its size: ")
    assert "view in the network (test_tracing.py:" in why


def test_operators_without_a_handler_keep_what_reaches_them() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        x = torch.fft.fft(m.a(x), dim=1).real
        return m.head(m.b(x))

    net = Net(run, a=conv(3, 8), b=conv(8, 6), head=head(6))
    assert "a.weight[0]" in reasons(net)
    assert list(sizes(net)) == ["b"]


def test_what_cannot_be_mixed_is_kept() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return torch.einsum("bc,oc->bo", [torch.relu(m.a(x)), m.a.weight.t()])  # in a list

    why = reasons(Net(run, a=nn.Linear(6, 8)), torch.randn(2, 6))
    assert why["a.weight[0]"].startswith("no parameter of its own takes its factor when candidates are mixed: ")


@pytest.mark.parametrize("network", [nn.Flatten(), nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), nn.ReLU()])
def test_networks_without_a_choice_have_an_empty_space(network: nn.Module) -> None:
    traced = tas.trace(network, images())
    assert traced.space.choices == ()
    assert tas.macs(traced.space, {}) == sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Linear))
    assert torch.equal(tas.extract(traced, {})(images()), network(images()))


# -- the network and its inputs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (2, 3), (2, 3, 1, 1)])
def test_shapes_that_the_network_refuses_raise_in_one_line(shape: tuple[int, ...]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 3))
    with pytest.raises(BadNetwork) as error:
        tas.trace(net, torch.randn(shape))
    assert "\n" not in str(error.value)
    assert f"must run on the example inputs {shape}" in str(error.value)


def test_errors_of_the_forward_are_told() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        raise KeyError("no such thing")

    with pytest.raises(BadNetwork, match="KeyError: 'no such thing'"):
        tas.trace(Net(run), images())


def test_the_network_is_unchanged() -> None:
    net = plain().train()
    net[0][1].eval()  # frozen statistics
    net[2][0].weight.requires_grad_(False)
    before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    traced = tas.trace(net, images())
    assert all(torch.equal(a, before[name]) for name, a in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes == [m.training for m in traced.network.modules()]
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in net.modules())
    assert all(p.grad is None for p in net.parameters())
    assert traced.network is not net
    assert torch.is_grad_enabled()


def test_inputs_may_be_a_tensor_a_tuple_or_a_dict() -> None:
    def run(m: Any, x: Tensor, y: Tensor) -> Tensor:
        return m.head(torch.relu(m.a(x) + m.b(y)))

    net = Net(run, a=conv(3, 8), b=conv(2, 8), head=head(8))
    for inputs in ((images(3), images(2)), [images(3), images(2)], {"y": images(2), "x": images(3)}):
        assert list(sizes(net, inputs)) == ["a"]


def test_tracing_is_deterministic() -> None:
    one, other = (tas.trace(resnet20(), images(size=16)).space for _ in range(2))
    assert one == other
    assert one.kept == other.kept


def test_the_batch_is_no_size() -> None:
    """The same space, and MACs of one example, whatever the batch, also where it equals numbers of channels."""
    spaces = [tas.trace(plain(), images(batch=n)).space for n in (2, 3, 10, 20)]
    assert all(space == spaces[0] for space in spaces)


def test_cross_channel_operators_are_noted() -> None:
    net = nn.Sequential(conv(3, 8), nn.GroupNorm(1, 8), nn.ReLU(), head(8))
    assert any("norm over channels" in note for note in tas.trace(net, images()).space.notes)
    assert tas.trace(plain(), images()).space.notes == ()


@dataclass(slots=True)
class Unknown:
    """What torch does not look into."""

    features: Tensor
    others: list[Tensor]


def test_tensors_in_objects_beside_an_output_are_outputs_too() -> None:
    def run(m: Any, x: Tensor) -> Any:
        first = m.a(x)
        second = m.b(first)
        return m.h(m.c(second)), Unknown(first, [second])

    network = Net(run, a=conv_bn(3, 8), b=conv_bn(8, 8), c=conv_bn(8, 8), h=head(8))
    assert [choice.name for choice in tas.trace(network, images()).space.choices] == ["c.0"]


def test_the_reason_of_an_output_says_which_one_it_is() -> None:
    """A decoder's keys, kept for the next token, keep its heads: that is not seen in the code."""

    def run(m: Any, x: Tensor) -> Any:
        keys = m.b(m.a(x))
        return {"logits": m.h(m.c(keys)), "cache": [Unknown(x, [keys])]}

    network = Net(run, a=conv_bn(3, 8), b=conv_bn(8, 8), c=conv_bn(8, 8), h=head(8))
    why = reasons(network)
    assert why["b.0.weight[0]"] == "it is an output of the network (cache[0].others[0])"
    assert why["h.2.weight[0]"] == "it is an output of the network (logits)"
    assert reasons(Net(lambda m, x: (run(m, x)["logits"],), **dict(network.named_children())))["h.2.weight[0]"] == (
        "it is an output of the network (output[0])"
    )


def test_a_tensor_that_is_no_buffer_is_named_where_it_keeps_a_size() -> None:
    """Nothing cuts it: neither a state dict nor a student has it."""
    scaled = Net(lambda m, x: m.h(m.b(m.a(x) * m.scales[0].view(1, -1, 1, 1))), scales=[torch.ones(8)])
    network = nn.Sequential(scaled)
    scaled.a, scaled.b, scaled.h = conv_bn(3, 8), conv_bn(8, 8), head(8)
    why = reasons(network)["0.a.0.weight[0]"]
    assert "scales.0 of 0, which is no buffer (register it as one): mul in 0 " in why


def test_what_ties_all_positions_to_one_unit_is_named() -> None:
    network = Net(lambda m, x: m.b((m.a(x)[:, 1:] + m.a(x)[:, :-1]).relu()), a=nn.Linear(5, 21), b=nn.Linear(20, 3))
    why = reasons(network, torch.randn(2, 5))["a.weight[0]"]
    told = "its 21 positions are one unit, which alone cannot shrink; the first are tied by: add in the network ("
    assert why.startswith(told)
