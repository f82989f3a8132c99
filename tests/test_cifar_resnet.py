from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search_spaces import cifar_resnet
from search_spaces.cifar_resnet import CifarResNet, from_widths, resnet20, resnet56, resnet164, widths
from tas.errors import BadNetwork

PUBLISHED_RESNET20 = [  # Dong & Yang 2019, CIFAR-10, 22.44 M MACs
    [[6, 4], [4, 4], [4, 4]],
    [[32, 32], [12, 19], [32, 28]],
    [[64, 64], [64, 64], [64, 44]],
]


def counted_macs(network: nn.Module, image: int = 32, in_channels: int = 3) -> int:
    total = 0

    def count(module: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += module.weight.numel() * (output.shape[2] * output.shape[3] if output.ndim == 4 else 1)

    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        network.eval()(torch.zeros(1, in_channels, image, image))
    for handle in handles:
        handle.remove()
    return total


@pytest.mark.parametrize(
    ("name", "shortcut", "macs"),
    [
        ("resnet20", "A", 40_551_040),
        ("resnet56", "A", 125_485_696),
        ("resnet20", "tas", 40_813_184),
        ("resnet32", "tas", 69_124_736),
        ("resnet56", "tas", 125_747_840),
        ("resnet110", "tas", 253_149_824),
        ("resnet164", "tas", 247_646_720),
        ("resnet20", "B", 40_813_184),
    ],
)
def test_networks_count_their_published_macs(name: str, shortcut: str, macs: int) -> None:
    build: Callable[..., CifarResNet] = getattr(cifar_resnet, name)
    assert counted_macs(build(shortcut=shortcut)) == macs


def test_from_widths_builds_the_published_resnet20() -> None:
    network = from_widths(16, PUBLISHED_RESNET20)
    assert counted_macs(network) == 22_444_472
    assert sum(parameter.numel() for parameter in network.parameters()) == 228_130


def test_option_a_has_the_parameter_names_of_the_shared_weights_and_no_others() -> None:
    layers = [f"layer{s}.{b}.{layer}" for s in (1, 2, 3) for b in range(3) for layer in ("conv1", "conv2")]
    norms = [name.replace("conv", "bn") for name in (*layers, "conv1")]
    expected = {f"{name}.weight" for name in (*layers, "conv1", *norms, "linear")}
    expected |= {f"{name}.bias" for name in (*norms, "linear")}
    assert {name for name, _ in resnet20().named_parameters()} == expected


def test_option_a_subsamples_and_pads_a_quarter_of_zeros_on_both_sides() -> None:
    network = resnet20().eval()
    block, x = network.layer2[0], torch.randn(2, 16, 8, 8)
    zeros = torch.zeros(2, 8, 4, 4)
    torch.testing.assert_close(block.shortcut(x), torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1))


def test_shortcuts_of_unequal_widths_follow_the_paper() -> None:
    basic = from_widths(16, [[[4, 16], [4, 8]], [[4, 8], [4, 8]], [[4, 4]]])
    kinds = [[type(module) for module in block.shortcut.modules()][1:] for stage in basic.stages() for block in stage]
    assert kinds == [[], [nn.Conv2d, nn.BatchNorm2d], [nn.AvgPool2d, nn.Conv2d], [], [nn.AvgPool2d, nn.Conv2d]]
    bottleneck = from_widths(16, [[[4, 4, 32], [4, 4, 24]], [[4, 4, 8]], [[4, 4, 8]]])
    kinds = [[type(module) for module in block.shortcut.modules()][1:] for block in bottleneck.layer1]
    assert kinds == [[nn.Conv2d], [nn.Conv2d]]


@pytest.mark.parametrize("shortcut", ["A", "B", "tas"])
def test_a_block_is_the_rectified_sum_of_branch_and_shortcut(shortcut: str) -> None:
    network, x = resnet20(shortcut=shortcut).eval(), torch.randn(2, 16, 8, 8)
    block = network.layer2[0]
    branch = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), F.relu(branch + block.shortcut(x)))


def test_bottlenecks_run_with_every_shortcut() -> None:
    for shortcut in ("A", "B", "tas"):
        assert resnet164(100, shortcut=shortcut, in_channels=1)(torch.randn(2, 1, 8, 8)).shape == (2, 100)


def test_widths_are_what_from_widths_was_given() -> None:
    network = from_widths(11, PUBLISHED_RESNET20)
    assert widths(network) == (11, PUBLISHED_RESNET20)
    network.layer2[2] = nn.Identity()  # what a student has for a dropped block
    assert widths(network)[1][1] == PUBLISHED_RESNET20[1][:2]


def test_weights_start_as_in_the_paper() -> None:
    network = resnet56(shortcut="tas")
    conv = network.layer3[4].conv1.weight
    assert float(conv.detach().std()) == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert float(network.linear.weight.detach().std()) == pytest.approx(0.01, rel=0.15)
    assert not network.linear.bias.any()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([[[4, 4]], [[4, 4]]], "has 3 stages, got 2"),
        ([[[4, 4]], [], [[4, 4]]], r"stages\[1\] is \[\]"),
        ([[[4, 4]], [[4]], [[4, 4]]], r"stages\[1\]\[0\] is \[4\]"),
        ([[[4, 4]], [[4, 0]], [[4, 4]]], r"stages\[1\]\[0\] is \[4, 0\]"),
        ([[[4, 4]], [4, 4], [[4, 4]]], r"stages\[1\]\[0\] is 4"),
        ([[[4, 4]], [[4, 4.0]], [[4, 4]]], r"stages\[1\]\[0\] is \[4, 4.0\]"),
        ([[[4, 4]], [[4, 4, 4]], [[4, 4]]], "stages.0..0. has 2, but stages.1..0. has 3"),
    ],
)
def test_malformed_stages_are_refused_with_their_place(stages: list, message: str) -> None:
    with pytest.raises(BadNetwork, match=message):
        from_widths(16, stages)


def test_unknown_shortcuts_and_stems_are_refused() -> None:
    with pytest.raises(BadNetwork, match="'A', 'B' or 'tas', got 'C'"):
        resnet20(shortcut="C")
    with pytest.raises(BadNetwork, match="stem width must be a whole number from 1, got 0"):
        from_widths(0, PUBLISHED_RESNET20)
