import pytest
import torch
from test_cifar_resnet import PUBLISHED_RESNET20, counted_macs
from torch import Tensor

from search_spaces.cifar_resnet import CifarResNet, from_widths, resnet20, resnet56, resnet110, resnet164
from search_spaces.cifar_resnet_space import (
    depth_candidates,
    published_estimate,
    search_space,
    student,
    width_candidates,
)
from tas import cost
from tas.distribution import ArchitectureDistribution
from tas.errors import BadNetwork
from tas.space import SearchSpace

NETWORKS = {
    "resnet20": resnet20(shortcut="tas"),
    "resnet56": resnet56(shortcut="tas"),
    "bottlenecks": from_widths(16, [[[16, 16, 16]] * 2, [[8, 8, 40]] * 4, [[9, 12, 40]] * 3], 100, in_channels=1),
}


def random_logits(space: SearchSpace, seed: int = 0) -> ArchitectureDistribution:
    return ArchitectureDistribution(space, torch.Generator().manual_seed(seed), std=1.0).double()


def test_width_candidates_are_truncated_products() -> None:
    assert width_candidates(16) == (4, 6, 8, 9, 11, 12, 14, 16)
    assert width_candidates(32) == (9, 12, 16, 19, 22, 25, 28, 32)
    assert width_candidates(64) == (19, 25, 32, 38, 44, 51, 57, 64)
    assert width_candidates(4) == (1, 2, 3, 4)


def test_depth_candidates_are_odd_beyond_three_blocks() -> None:
    wanted = {1: (1,), 2: (1, 2), 3: (1, 2, 3), 4: (1, 3, 4), 5: (1, 3, 5), 9: (1, 3, 5, 7, 9)}
    assert {blocks: depth_candidates(blocks) for blocks in wanted} == wanted
    assert depth_candidates(18) == (1, 3, 5, 7, 9, 11, 13, 15, 17, 18)


@pytest.mark.parametrize(("network", "convolutions"), [(resnet20, 19), (resnet110, 109), (resnet164, 163)])
def test_every_convolution_has_a_choice_and_every_stage_a_depth(network: type, convolutions: int) -> None:
    space = search_space(network(shortcut="tas"))
    assert sum(choice.kind == "width" for choice in space.choices) == convolutions
    assert sum(choice.kind == "depth" for choice in space.choices) == 3
    assert cost.macs(space, space.largest()) == counted_macs(network(shortcut="tas"))


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_equal_independent_counts_of_the_built_student(name: str) -> None:
    network = NETWORKS[name]
    space = search_space(network)
    drawn = random_logits(space).sample(torch.Generator().manual_seed(1), 12)
    for architecture in [space.smallest(), space.largest(), space.uniform(0.5), *map(space.architecture, drawn)]:
        small = student(network, architecture)
        assert cost.macs(space, architecture) == counted_macs(small, in_channels=network.conv1.in_channels)
        assert cost.params(space, architecture) == sum(parameter.numel() for parameter in small.parameters())


def test_the_published_resnet20_is_in_the_space_and_costs_its_22_44_million() -> None:
    space = search_space(NETWORKS["resnet20"])
    values = {"conv1": 16, **{f"layer{s}.depth": 3 for s in (1, 2, 3)}}
    for s, stage in enumerate(PUBLISHED_RESNET20):
        for b, block in enumerate(stage):
            values |= {f"layer{s + 1}.{b}.conv{i + 1}": width for i, width in enumerate(block)}
    assert cost.macs(space, values) == 22_444_472


@pytest.mark.parametrize("name", ["resnet20", "bottlenecks"])
def test_expected_macs_are_the_mean_over_samples(name: str) -> None:
    space = search_space(NETWORKS[name])
    distribution = random_logits(space)
    counts = cost.count(space, distribution.sample(torch.Generator().manual_seed(1), 60_000))
    expected = float(cost.expected(space, distribution.probabilities()).detach())
    assert abs(expected - float(counts.mean())) < 4 * float(counts.std()) / len(counts) ** 0.5
    assert float(counts.std()) > 0.05 * expected


def test_expected_macs_have_the_gradient_of_finite_differences() -> None:
    space = search_space(NETWORKS["bottlenecks"])
    distribution = random_logits(space)
    cost.expected(space, distribution.probabilities()).backward()
    gradient, step = distribution.logits.grad, 1e-4
    with torch.no_grad():
        for row in range(0, len(space.choices), 3):
            distribution.logits[row, 0] += step
            above = cost.expected(space, distribution.probabilities())
            distribution.logits[row, 0] -= 2 * step
            below = cost.expected(space, distribution.probabilities())
            distribution.logits[row, 0] += step
            assert float(gradient[row, 0]) == pytest.approx(float(above - below) / (2 * step), rel=1e-5, abs=1e-3)


def estimate_by_hand(network: CifarResNet, space: SearchSpace, p: Tensor) -> float:
    """The paper's E for basic blocks, layer by layer."""

    def mean(name: str) -> float:
        choice = space.choices[space.position[name]]
        return sum(
            float(chance) * size for chance, size in zip(p[space.position[name]], choice.candidates, strict=False)
        )

    before = mean("conv1")
    total = 9 * 32 * 32 * 3 * before
    for s, stage in enumerate(network.stages(), start=1):
        pixels = (64 >> s) ** 2
        depth = space.choices[space.position[f"layer{s}.depth"]]
        for b in range(len(stage)):
            kept = sum(
                float(chance)
                for chance, d in zip(p[space.position[depth.name]], depth.candidates, strict=False)
                if d > b
            )
            inner, after = mean(f"layer{s}.{b}.conv1"), mean(f"layer{s}.{b}.conv2")
            total += kept * pixels * (9 * before * inner + 9 * inner * after)
            if s > 1 and b == 0:
                total += kept * pixels * before * after
            before = after
    return total + before * network.linear.out_features


@pytest.mark.parametrize("name", ["resnet20", "resnet56"])
def test_the_published_estimate_is_the_paper_s_product_of_expectations(name: str) -> None:
    network = NETWORKS[name]
    space, estimate = search_space(network), published_estimate(network)
    p = random_logits(space).probabilities().detach()
    assert float(cost.expected(estimate, p)) == pytest.approx(estimate_by_hand(network, space, p), rel=1e-12)
    assert float(cost.expected(estimate, p)) < float(cost.expected(space, p))
    assert cost.macs(estimate, space.largest()) == cost.macs(space, space.largest())


def test_the_published_estimate_counts_the_projection_that_the_full_network_has() -> None:
    network = resnet164(shortcut="tas")
    estimate = published_estimate(network)
    assert cost.macs(estimate, estimate.largest()) == counted_macs(network)


def test_networks_with_other_shortcuts_are_refused() -> None:
    with pytest.raises(BadNetwork, match="got 'A'; build the network with shortcut=\"tas\""):
        search_space(resnet20())
