"""The cost formula against loops, enumerations of whole spaces and hand calculations."""

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import tas
from tas import cost
from tas.errors import BadRecipe, Infeasible
from tas.space import Architecture, Budget, Choice, Factor, LayerCost, SearchSpace, Term

CHOICES = (Choice("a", "width", (1, 2, 5)), Choice("b", "width", (3, 4)), Choice("d", "depth", (0, 1, 2)))


def power(name: str, number: int = 1) -> Factor:
    return Factor(name, "power", number)


MACS = LayerCost("one", "macs", (Term(7, (power("a", 2), Factor("d", "above", 0))), Term(3, (power("a"), power("b")))))
MORE = LayerCost("two", "macs", (Term(11), Term(5, (Factor("a", "equal", 2), Factor("b", "atmost", 3)))))
PARAMS = LayerCost("one", "params", (Term(2, (power("b", 3),)), Term(-1, (Factor("d", "above", 1),)), Term(40)))
SPACE = SearchSpace(CHOICES, (MACS, MORE, PARAMS))


def by_hand(a: int, b: int, d: int) -> dict[str, int]:
    return {
        "macs": 7 * a * a * (d > 0) + 3 * a * b + 11 + 5 * (a == 2) * (b <= 3),
        "params": 2 * b**3 - (d > 1) + 40,
    }


def everything() -> list[Architecture]:
    return [SPACE.architecture(i) for i in product(*(range(len(c.candidates)) for c in CHOICES))]


def probabilities(seed: int = 0) -> Tensor:
    table = torch.rand(3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    table[1, 2] = 0
    return table / table.sum(1, keepdim=True)


def chance(architecture: Architecture, table: Tensor) -> Tensor:
    return torch.stack([table[row, k] for row, k in enumerate(SPACE.indices(architecture))]).prod()


@pytest.mark.parametrize("architecture", everything(), ids=lambda a: "-".join(map(str, a.values())))
def test_costs_are_the_formula_by_hand(architecture: Architecture) -> None:
    wanted = by_hand(**architecture)
    assert tas.macs(SPACE, architecture) == wanted["macs"]
    assert tas.params(SPACE, architecture) == wanted["params"]


def test_many_architectures_are_counted_at_once_in_any_shape() -> None:
    indices = torch.tensor([SPACE.indices(a) for a in everything()])
    wanted = torch.tensor([float(by_hand(**a)["macs"]) for a in everything()], dtype=torch.float64)
    assert torch.equal(cost.count(SPACE, indices), wanted)
    assert torch.equal(cost.count(SPACE, indices.reshape(2, 9, 3)), wanted.reshape(2, 9))
    assert cost.count(SPACE, indices[:0]).shape == (0,)


def test_counting_in_chunks_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    indices = torch.tensor([SPACE.indices(a) for a in everything()])
    whole = cost.count(SPACE, indices)
    monkeypatch.setattr(cost, "_ROWS_AT_ONCE", 30)
    assert torch.equal(cost.count(SPACE, indices), whole)


def test_layers_add_up_and_are_told_apart() -> None:
    for a in everything():
        layers = cost.by_layer(SPACE, a)
        assert layers == {"one": tas.macs(SPACE, a) - layers["two"], "two": 11 + 5 * (a["a"] == 2 and a["b"] == 3)}
        assert int(cost.count(SPACE, torch.tensor(SPACE.indices(a)), "macs", "two")) == layers["two"]


def test_counts_beyond_single_precision_are_exact() -> None:
    space = SearchSpace((Choice("a", "width", (1, 3)),), (LayerCost("l", "macs", (Term(10**15 + 1, (power("a"),)),)),))
    assert tas.macs(space, {"a": 3}) == 3 * (10**15 + 1)


@pytest.mark.parametrize("measure", ["macs", "params"])
def test_expected_cost_is_the_mean_over_all_architectures(measure: str) -> None:
    table = probabilities()
    wanted = sum(float(chance(a, table)) * by_hand(**a)[measure] for a in everything())
    assert float(cost.expected(SPACE, table, measure)) == pytest.approx(wanted, rel=1e-12)


def test_the_moment_of_a_square_is_not_the_square_of_the_mean() -> None:
    """Half of 2 and half of 10: E w^2 = 52, while (E w)^2 = 36."""
    choice = Choice("w", "width", (2, 10))
    space = SearchSpace((choice,), (LayerCost("square", "macs", (Term(1, (power("w", 2),)),)),))
    assert float(cost.expected(space, torch.tensor([[0.5, 0.5]]))) == 52


def test_expected_cost_has_the_gradient_of_the_enumeration() -> None:
    """By logits: only distributions that sum to 1 mean anything."""
    logits = probabilities().log().requires_grad_()
    table = logits.softmax(-1)
    (ours,) = torch.autograd.grad(cost.expected(SPACE, table), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(sum(chance(a, table) * by_hand(**a)["macs"] for a in everything()), logits)
    assert torch.allclose(ours, theirs, rtol=1e-9)
    assert float(ours.abs().max()) > 1


def test_a_space_without_choices_has_one_cost() -> None:
    space = SearchSpace((), (LayerCost("l", "macs", (Term(5), Term(6))),))
    assert tas.macs(space, {}) == 11
    assert cost.count(space, torch.zeros(4, 0, dtype=torch.long)).tolist() == [11] * 4
    assert float(cost.expected(space, torch.zeros(0, 1))) == 11


def test_macs_and_params_of_a_network_by_hand() -> None:
    """8x8 images; 3x3 convolutions without padding: 6x6, then 4x4 positions; BN has 2 parameters a channel."""
    net = nn.Sequential(
        nn.Conv2d(3, 10, 3, bias=False), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, 20, 3), nn.Flatten()
    )
    net.append(nn.Linear(20 * 16, 7))
    space = tas.trace(net, torch.randn(2, 3, 8, 8)).space
    for a, b in product(space.choices[0].candidates, space.choices[1].candidates):
        architecture = dict(zip([c.name for c in space.choices], (a, b), strict=True))
        assert tas.macs(space, architecture) == 36 * 9 * 3 * a + 16 * 9 * a * b + 7 * 16 * b
        assert tas.params(space, architecture) == 27 * a + 2 * a + 9 * a * b + b + 7 * 16 * b + 7
        layers = cost.by_layer(space, architecture)
        assert layers == {"0": 972 * a, "3": 144 * a * b, "5": 112 * b}


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_ratios_are_of_the_largest_and_numbers_absolute() -> None:
    largest = tas.macs(SPACE, SPACE.largest())
    assert cost.budget(SPACE, macs=0.5) == Budget((("macs", largest * 0.5),), 0.05)
    assert cost.budget(SPACE, slack=0.1, macs=100, params=1.0).limits == (("macs", 100.0), ("params", 167.0))
    assert cost.budget(SPACE, macs=float(largest)).limits == (("macs", float(largest)),)
    assert cost.budget(SPACE, macs=100, params=None).limits == (("macs", 100.0),)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"macs": 247}, "must not exceed the original's 246, got 247"),
        ({"macs": 19}, "below the smallest architecture's 20"),
        ({"macs": 0.05}, r"12 \(5.0% of the original\) is below"),
        ({"macs": 0}, "above 0, got 0"),
        ({"macs": -5}, "above 0, got -5"),
        ({"flops": 10}, r"one of \['macs', 'params'\], got 'flops'"),
        ({}, "at least one limit"),
        ({"macs": None}, "at least one limit"),
    ],
)
def test_impossible_budgets_say_which_bound(limits: dict[str, float], message: str) -> None:
    with pytest.raises(Infeasible, match=message):
        cost.budget(SPACE, **limits)


def test_a_percentage_without_its_sign_is_guessed() -> None:
    large = SearchSpace(CHOICES, (LayerCost("one", "macs", (Term(10**6, (power("a"),)),)),))
    with pytest.raises(Infeasible, match=r"at least that \(or for 0.5, in a recipe 50%, of the original\)"):
        cost.budget(large, macs=50)


def test_an_integer_one_is_absolute() -> None:
    with pytest.raises(Infeasible, match="below the smallest"):
        cost.budget(SPACE, macs=1)


def test_feasible_means_every_limit() -> None:
    indices = torch.tensor([SPACE.indices(a) for a in everything()])
    limits = cost.budget(SPACE, macs=60, params=100)
    wanted = [by_hand(**a)["macs"] <= 60 and by_hand(**a)["params"] <= 100 for a in everything()]
    assert cost.feasible(SPACE, indices, limits).tolist() == wanted
    assert 0 < sum(wanted) < len(wanted)


def test_the_largest_meets_a_ratio_of_one_and_the_smallest_its_own_cost() -> None:
    for limits, a in ((cost.budget(SPACE, macs=1.0), SPACE.largest()), (cost.budget(SPACE, macs=20), SPACE.smallest())):
        assert bool(cost.feasible(SPACE, torch.tensor(SPACE.indices(a)), limits))


# -- penalty -----------------------------------------------------------------------------------------------------------


def peaked(a: Architecture) -> Tensor:
    """Most of the probability at an architecture, the rest anywhere."""
    table = probabilities() * 0.2
    for row, k in enumerate(SPACE.indices(a)):
        table[row, k] += 0.8
    return table


@pytest.mark.parametrize(
    ("limit", "sign"),
    [(90, 1), (105, 1), (106, 0), (110, 0), (118, 0), (119, -1), (200, -1)],
)
def test_penalty_pushes_down_above_the_limit_up_below_the_band_and_not_inside(limit: int, sign: int) -> None:
    """The mode costs 7 * 4 + 3 * 2 * 4 + 11 = 63; the band is 5 % of the original's 246, so 12.3 wide."""
    mode = Architecture.of({"a": 2, "b": 4, "d": 1})
    shifted = limit - 106 + 63
    table = peaked(mode)
    expected = float(cost.expected(SPACE, table))
    got = float(cost.penalty(SPACE, Budget((("macs", float(shifted)),)), table))
    assert got == pytest.approx(sign * math.log(expected / 1e6), abs=1e-12)


def test_penalty_has_the_gradient_of_finite_differences() -> None:
    table = peaked(SPACE.largest()).requires_grad_()
    limits = Budget((("macs", 100.0), ("params", 60.0)))
    cost.penalty(SPACE, limits, table).backward()
    assert table.grad is not None
    direction = torch.rand(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        up, down = (float(cost.penalty(SPACE, limits, table + s * 1e-6 * direction)) for s in (1, -1))
    assert float((table.grad * direction).sum()) == pytest.approx((up - down) / 2e-6, rel=1e-6)


def test_penalties_of_several_limits_add() -> None:
    table = peaked(SPACE.largest())
    one, two = (Budget((limit,)) for limit in (("macs", 100.0), ("params", 60.0)))
    both = Budget((("macs", 100.0), ("params", 60.0)))
    total = cost.penalty(SPACE, one, table) + cost.penalty(SPACE, two, table)
    assert float(cost.penalty(SPACE, both, table)) == pytest.approx(float(total))


def test_below_the_band_of_one_limit_is_fine_while_another_binds() -> None:
    table = peaked(SPACE.largest())
    macs = float(cost.macs(SPACE, SPACE.largest()))
    binds, idle = ("macs", macs), ("params", 1e9)
    assert float(cost.penalty(SPACE, Budget((idle,), slack=0.0), table)) != 0
    assert float(cost.penalty(SPACE, Budget((binds, idle), slack=0.0), table)) == 0


def test_limits_that_are_no_numbers_are_refused() -> None:
    space = SearchSpace((), (LayerCost("a", "macs", (Term(10),)),))
    with pytest.raises(BadRecipe, match=r"a budget's macs is a number, such as 0\.5 .* got '50%'"):
        cost.budget(space, macs="50%")  # type: ignore[arg-type]
