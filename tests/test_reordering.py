from typing import Any

import adversarial_layers
import adversarial_wiring
import pytest
import torch
from adversarial import Basic, Case, conv_bn, head, images
from torch import nn

import tas
from tas.reordering import permute
from tas.testing import randomize
from tas.tracing import Traced


def traced(case: Case) -> Traced:
    randomize(case.network, torch.Generator().manual_seed(0))
    return tas.trace(case.network.double(), case.inputs.double())


def blocks() -> Case:
    return Case(nn.Sequential(conv_bn(3, 8), nn.ReLU(), Basic(8, 8), nn.Conv2d(8, 5, 1), head(5)), images())


def reversed_orders(t: Traced) -> dict[str, list[int]]:
    return {name: list(range(size))[::-1] for name, size in t.sizes.items()}


def test_units_move_as_told_and_all_their_places_with_them() -> None:
    t = traced(blocks())
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    old, new = (n.state_dict() for n in (t.network, permute(t, {"2.conv1": order}).network))
    assert torch.equal(new["2.conv1.weight"], old["2.conv1.weight"][order])
    assert torch.equal(new["2.bn1.running_var"], old["2.bn1.running_var"][order])
    assert torch.equal(new["2.conv2.weight"], old["2.conv2.weight"][:, order])
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved == {f"2.bn1.{k}" for k in ("weight", "bias", "running_mean", "running_var")} | {
        "2.conv1.weight",
        "2.conv2.weight",
    }


@pytest.mark.parametrize(
    "build",
    [
        blocks,
        adversarial_layers.flatten_with_spatial,
        adversarial_layers.grouped,
        adversarial_wiring.dense_block,
        adversarial_wiring.shuffle_of_two_halves,
        adversarial_wiring.concatenation_with_itself,
    ],
)
def test_the_function_stays_whatever_the_order(build: Any) -> None:
    case = build()
    t = traced(case)
    wanted = t.network.eval()(case.inputs.double())
    permuted = permute(t, reversed_orders(t))
    changed = [n for n, p in permuted.network.named_parameters() if not torch.equal(p, t.network.get_parameter(n))]
    assert changed
    assert torch.allclose(permuted.network.eval()(case.inputs.double()), wanted, rtol=1e-10)


def test_orders_compose_and_undo() -> None:
    t = traced(blocks())
    again = permute(permute(t, reversed_orders(t)), reversed_orders(t))
    assert all(torch.equal(a, b) for a, b in zip(again.network.parameters(), t.network.parameters(), strict=True))
    assert t.space is again.space


def test_the_trace_that_came_in_stays() -> None:
    t = traced(blocks())
    before = {name: tensor.clone() for name, tensor in t.network.state_dict().items()}
    permute(t, reversed_orders(t))
    assert all(torch.equal(tensor, before[name]) for name, tensor in t.network.state_dict().items())


def test_choices_without_an_order_stay() -> None:
    t = traced(blocks())
    assert all(
        torch.equal(a, b) for a, b in zip(permute(t, {}).network.parameters(), t.network.parameters(), strict=True)
    )


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7, 8], []])
def test_what_is_no_permutation_is_refused(order: list[int]) -> None:
    t = traced(blocks())
    with pytest.raises(ValueError, match="an order permutes the units"):
        permute(t, {"2.conv1": order})


@pytest.mark.parametrize("name", ["nonsense", "2.depth"])
def test_orders_are_of_width_choices(name: str) -> None:
    with pytest.raises(ValueError, match=f"for '{name}'"):
        permute(traced(blocks()), {name: [0]})


def test_shared_parameters_move_once() -> None:
    case = blocks()
    case.network[2].bn1.weight = case.network[2].bn1.weight
    case.network.append(nn.Identity())
    case.network[5].register_parameter("alias", case.network[2].conv1.weight)
    t = traced(case)
    order = [3, 0, 7, 1, 2, 6, 5, 4]
    permuted: Any = permute(t, {"2.conv1": order}).network
    assert permuted[5].alias is permuted[2].conv1.weight
    assert torch.equal(permuted[2].conv1.weight, t.network[2].conv1.weight[order])
