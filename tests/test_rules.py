"""What users decide about a space: every rule's space obeys the laws, and wrong rules are told in one line."""

import re
from itertools import product
from typing import Any

import pytest
import torch
from adversarial import Basic, Net, conv, conv_bn, head, images
from test_counts import Heads
from torch import Tensor, nn

import tas
from tas.errors import BadRecipe
from tas.merging import Merging
from tas.space import SearchSpace
from tas.testing import check_space
from tas.tracing import Rules, Traced


def plain() -> nn.Sequential:
    return nn.Sequential(conv_bn(3, 20), nn.ReLU(), conv_bn(20, 10), nn.ReLU(), head(10))


def blocks() -> nn.Sequential:
    return nn.Sequential(conv_bn(3, 16), nn.ReLU(), Basic(16, 16), Basic(16, 16), Basic(16, 16), head(16))


def grouped() -> nn.Sequential:
    return nn.Sequential(conv_bn(3, 32), nn.ReLU(), conv_bn(32, 32, groups=8), nn.ReLU(), head(32))


class Attention(nn.Module):
    """Six heads of four."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 24)
        self.attention = nn.MultiheadAttention(24, 6, batch_first=True)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.attention(x, x, x)[0].mean(1))


def sizes(space: SearchSpace) -> dict[str, tuple[int, ...]]:
    return {choice.name: choice.candidates for choice in space.choices}


def checked(network: nn.Module, rules: Rules, inputs: Tensor | None = None) -> Traced:
    return check_space(network, images() if inputs is None else inputs, rules, architectures=1)


def found(network: nn.Module, **rules: Any) -> dict[str, tuple[int, ...]]:
    return sizes(tas.trace(network, images(), Rules(**rules)).space)


def refused(network: nn.Module, **rules: Any) -> str:
    with pytest.raises(BadRecipe) as problem:
        tas.trace(network, images(), Rules(**rules))
    return str(problem.value)


# -- fix, minimum, bound -----------------------------------------------------------------------------------------------


def test_depths_can_be_fixed_by_name() -> None:
    space = checked(blocks(), Rules(fix=("*.depth",))).space
    assert not [choice for choice in space.choices if choice.kind == "depth"]
    assert ("2..4.depth", 3, "a rule fixes it") in [(k.name, k.size, k.reason) for k in space.kept]


def test_a_minimum_holds_for_widths_and_depths() -> None:
    assert sizes(checked(blocks(), Rules(minimum=0.6)).space) == {
        **dict.fromkeys(["0.0", "2.conv1", "3.conv1", "4.conv1"], (11, 12, 14, 16)),  # 0.6 x 16 = 9.6 is above 9
        "2..4.depth": (2, 3),
    }


def test_the_last_glob_that_matches_counts() -> None:
    by_glob = found(plain(), minimum={"*": 0.5, "2*": 0.8}, divisor={"*": 2, "0*": 5})
    assert by_glob == {"0.0": (10, 15, 20), "2.0": (8, 10)}


def test_bounds_are_units_or_fractions_and_the_upper_end_is_a_candidate() -> None:
    bounds = {"0.0": (0.25, 0.55), "2.0": (5, 8)}
    assert found(plain(), bound=bounds) == {"0.0": (6, 8, 10, 11), "2.0": (5, 6, 7, 8)}
    assert found(plain(), bound={"0.0": (7, 7)})["0.0"] == (7,)
    assert found(plain(), bound={"0.0": (1, 64)})["0.0"][-1] == 20


def test_below_an_upper_bound_the_original_still_is_what_ratios_refer_to() -> None:
    traced = checked(blocks(), Rules(bound={"0.0": (8, 12), "2..4.depth": (1, 2)}))
    space = traced.space
    assert (sizes(space)["0.0"], sizes(space)["2..4.depth"]) == ((8, 9, 11, 12), (1, 2))
    assert dict(space.original()) == {**space.largest(), "0.0": 16, "2..4.depth": 3}
    assert not space.contains(space.original())
    whole = tas.macs(tas.trace(blocks(), images()).space, tas.trace(blocks(), images()).space.largest())
    assert tas.budget(space, macs=0.2).limits == (("macs", 0.2 * whole),)
    assert [c.get("original") for c in space.to_dict()["choices"] if c["name"] == "0.0"] == [16]


def test_merging_reads_the_original_where_bounds_leave_it_out() -> None:
    traced = tas.trace(plain(), images(), Rules(bound={"0.0": (8, 12)}))
    student = Merging(traced, [images(batch=8)]).student(traced.space.largest())
    assert student(images()).shape == (2, 5)


# -- divisor -----------------------------------------------------------------------------------------------------------


def test_of_grouped_channels_the_product_obeys_the_divisor() -> None:
    space = checked(grouped(), Rules(divisor=8)).space
    groups, inside, out = (sizes(space)[n] for n in ("0.0.groups", "0.0.inside", "2.0.inside"))
    assert len(groups) * len(inside) * len(out) > 1
    assert all(g * i % 8 == 0 and g * o % 8 == 0 for g in groups for i in inside for o in out)


@pytest.mark.parametrize(("divisor", "heads"), [(1, (1, 2, 3, 4, 5, 6)), (4, (1, 2, 3, 4, 5, 6)), (8, (2, 4, 6))])
def test_heads_are_free_where_their_size_makes_the_product_a_multiple(divisor: int, heads: tuple[int, ...]) -> None:
    rules = Rules(divisor=divisor, fix=("attention.inside",))
    assert sizes(checked(Attention(), rules, torch.randn(2, 4, 7)).space)["attention.groups"] == heads


@pytest.mark.parametrize(("divisor", "combinations"), [(2, 6), (4, 3), (6, 2)])
def test_a_width_that_the_code_computes_from_others_is_a_multiple(divisor: int, combinations: int) -> None:
    """The stream is heads x head size, 3 x 4. With 6, two sizes that are equal must not be taken for free ones because
    few candidates agreed by chance when the trace was proved."""
    traced = check_space(Heads(), torch.randn(2, 7, 6), Rules(divisor=divisor, depth=False), architectures=1)
    names, candidates = zip(*sizes(traced.space).items(), strict=True)
    (stream,) = (group for group in traced.groups.values() if len(group.choices) > 1)
    widths = [stream.kept(dict(zip(names, values, strict=True))) for values in product(*candidates)]
    assert len(widths) == combinations
    assert all(width % divisor == 0 for width in widths)


def test_a_divisor_of_one_factor_is_its_own() -> None:
    found = sizes(checked(grouped(), Rules(divisor={"*.inside": 2})).space)
    assert (found["0.0.inside"], found["2.0.inside"], found["0.0.groups"][0]) == ((2, 4), (2, 4), 2)


# -- tie ---------------------------------------------------------------------------------------------------------------


def test_tied_choices_have_one_size_and_different_units() -> None:
    traced = checked(blocks(), Rules(tie=(("2.conv1", "3.conv1"),), depth=False))
    assert list(sizes(traced.space)) == ["0.0", "2.conv1", "4.conv1"]
    architecture = {**traced.space.largest(), "2.conv1": 8}
    student: Any = tas.extract(traced, architecture, keep={"2.conv1": range(8), "3.conv1": range(8, 16)})
    assert [student[n].conv1.out_channels for n in (2, 3, 4)] == [8, 8, 16]
    assert torch.equal(student[3].conv1.weight, traced.network[3].conv1.weight[8:])  # type: ignore[index, union-attr]


def test_tied_choices_obey_the_rules_of_each() -> None:
    rules = Rules(tie=(("*.conv1",),), bound={"2.conv1": (0.5, 1.0)}, minimum={"3.conv1": 0.7}, divisor={"4*": 2})
    assert sizes(checked(blocks(), rules).space)["2.conv1"] == (12, 14, 16)


# -- protect and free --------------------------------------------------------------------------------------------------


def test_a_protected_layer_keeps_its_parameters_in_every_architecture() -> None:
    traced = checked(blocks(), Rules(protect=("3",)))
    student = tas.extract(traced, traced.space.smallest())
    inside = {name: tensor.shape for name, tensor in traced.network.get_submodule("3").named_parameters()}
    assert {name: tensor.shape for name, tensor in student.get_submodule("3").named_parameters()} == inside
    assert {n: c for n, c in sizes(traced.space).items() if "depth" in n} == {"2.depth": (0, 1), "4.depth": (0, 1)}
    reasons = {kept.reason for kept in traced.space.kept}
    assert {"a rule protects 3.conv1", "a rule protects it"} <= reasons


def test_a_protected_parent_protects_what_is_inside() -> None:
    space = checked(
        nn.Sequential(nn.Sequential(conv_bn(3, 8), nn.ReLU()), conv_bn(8, 8), head(8)), Rules(protect=("0",))
    )
    assert list(sizes(space.space)) == ["1.0"]


def test_freed_outputs_are_searched_and_keep_their_order() -> None:
    traced = checked(plain(), Rules(free=("4.*",)))
    assert sizes(traced.space)["4.2"] == (1, 2, 3, 4, 5)
    student = tas.extract(traced, {**traced.space.largest(), "4.2": 3})
    assert torch.allclose(student.eval()(images().double()), traced.network.eval()(images().double())[:, :3])
    assert "as wide as a choice" in traced.space.notes[0]


def test_only_the_named_output_is_freed() -> None:
    def run(m: Any, x: Tensor) -> Any:
        features = m.a(x)
        return features, m.b(torch.relu(features))

    net = Net(run, a=conv(3, 8), b=head(8))
    assert list(sizes(checked(net, Rules(free=("a",))).space)) == ["a"]
    assert list(sizes(checked(net, Rules(free=("b.2",))).space)) == ["b.2"]


def test_an_output_of_a_residual_stream_can_be_freed() -> None:
    net = nn.Sequential(conv_bn(3, 12), nn.ReLU(), Basic(12, 12))
    assert list(sizes(checked(net, Rules(free=("2.conv2",))).space)) == ["0.0", "2.conv1", "2.depth"]


# -- what is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"fix": "stem"}, "space.fix takes a list of names, got 'stem'"),
        ({"tie": ("a", "b")}, "space.tie takes a list of lists of names"),
        ({"divisor": 0}, "space.divisor is a whole number from 1, got 0"),
        ({"minimum": {"*": 1.5}}, "space.minimum is a fraction of the original from 0 to 1, got 1.5"),
        ({"ratios": (0.5, 1.5)}, "space.ratios lie above 0 and up to 1, got 1.5"),
        ({"bound": {"a": (8, 4)}}, "low up to high, got (8, 4) for 'a'"),
        ({"bound": {"a": (0.5, 3.0)}}, "fractions of the original from 0 to 1, got (0.5, 3.0) for 'a'"),
        ({"fix": ("a*",), "free": ("a*",)}, "space.fix and space.free contradict each other about 'a*'"),
    ],
)
def test_values_out_of_range_are_refused(rules: dict[str, Any], told: str) -> None:
    with pytest.raises(BadRecipe, match=re.escape(told)):
        Rules(**rules)


@pytest.mark.parametrize("rule", ["fix", "free", "protect"])
def test_a_glob_that_matches_nothing_names_the_nearest(rule: str) -> None:
    told = refused(plain(), **{rule: ("5.0",)})
    assert f"space.{rule} names '5.0', which matches nothing; the nearest names: " in told
    assert ("'4.2'" if rule == "free" else "'2.0'") in told


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"bound": {"stem*": (1, 2)}}, "space.bound names 'stem*', which matches nothing"),
        ({"minimum": {"9": 0.5}}, "space.minimum names '9', which matches nothing"),
        ({"divisor": {"9": 2}}, "space.divisor names '9', which matches nothing"),
        ({"tie": (("0.0", "9"),)}, "space.tie names '9', which matches nothing"),
        ({"tie": (("0.0", "2.0"),)}, "space.tie takes choices of one size, ['0.0', '2.0'] matches 0.0 20, 2.0 10"),
        ({"tie": (("0.0",),)}, "space.tie takes two width choices or more"),
        ({"fix": ("0.0",), "tie": (("0.0", "2.0"),)}, "space.fix and space.tie contradict each other about '0.0'"),
        ({"fix": ("4.2",), "free": ("4*",)}, "space.fix and space.free contradict each other about '4.2'"),
        ({"bound": {"0.0": (0.0, 0.01)}}, "space.bound leaves '0.0' 0 of 20 units, below 1"),
        ({"bound": {"0.0": (30, 40)}}, "space.bound wants at least 30 units of '0.0', which has 20"),
        ({"bound": {"0.0": (1, 5)}, "minimum": 0.5}, "space.minimum wants at least 10 units of '0.0'"),
        ({"bound": {"0.0": (5, 7)}, "divisor": 8}, "leave no size for '0.0': at least 5, at most 7, in multiples of 8"),
    ],
)
def test_contradictions_are_refused(rules: dict[str, Any], told: str) -> None:
    assert told in refused(plain(), **rules)
