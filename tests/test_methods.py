import re
from typing import Any

import pytest
import torch
from toys import asked, data, network

import tas
from tas import cost
from tas.errors import BadRecipe, Infeasible
from tas.methods import METHODS, adaptive_bn
from tas.methods.baselines import random, uniform
from tas.space import Budget, Choice, Factor, LayerCost, SearchSpace, Term

DATA = data()
OPTIONS = {  # as little work as shows that a method works
    "differentiable": {"epochs": 1, "batch": 64, "candidates": 3, "evolve": 2, "images": 50},
    "adaptive_bn": {"candidates": 3, "evolve": 2, "images": 50},
    "optuna": {"candidates": 4, "startup": 1, "images": 50},
    "tuned": {"trials": 2, "ranges": {"epochs": (1, 2)}, "batch": 64, "candidates": 3, "evolve": 2, "images": 50},
}


def chain(widths: int = 4, size: int = 40) -> SearchSpace:
    """A chain of layers of one size, and a depth over the last ones' work."""
    names = [f"w{index}" for index in range(widths)]
    choices = [Choice(name, "width", tuple(range(4, size + 1, 4))) for name in names]
    layers = [
        LayerCost(a + b, "macs", (Term(10, (Factor(a, "power", 1), Factor(b, "power", 1))),))
        for a, b in zip(names, names[1:], strict=False)
    ]
    for block in range(3):
        term = Term(100, (Factor(names[0], "power", 1), Factor("d", "above", block)))
        layers.append(LayerCost(f"block{block}", "macs", (term,)))
    return SearchSpace((*choices, Choice("d", "depth", (0, 1, 2, 3))), tuple(layers))


def test_uniform_widths_have_one_ratio_where_that_meets_the_budget_exactly():
    space = chain()
    budget = Budget((("macs", float(cost.macs(space, space.uniform(0.5)))),))
    assert uniform(space, budget) == space.uniform(0.5)


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.35, 0.5, 0.77, 1.0])
def test_uniform_widths_end_where_no_width_can_be_raised_and_stay_even(ratio):
    space = chain()
    limit = ratio * cost.macs(space, space.largest())
    found = uniform(space, Budget((("macs", limit),)))
    assert cost.macs(space, found) <= limit
    for choice in space.choices:
        if choice.kind == "width" and found[choice.name] < choice.size:
            assert cost.macs(space, {**found, choice.name: found[choice.name] + 4}) > limit
    widths = [found[choice.name] for choice in space.choices if choice.kind == "width"]
    assert max(widths) - min(widths) <= 8
    assert found["d"] == 3


def test_depth_shrinks_only_where_the_smallest_widths_do_not_fit():
    space = chain()
    smallest_full_depth = cost.macs(space, {**space.smallest(), "d": 3})
    assert uniform(space, Budget((("macs", float(smallest_full_depth)),)))["d"] == 3
    assert uniform(space, Budget((("macs", smallest_full_depth - 1.0),)))["d"] == 2
    with pytest.raises(Infeasible):
        uniform(space, Budget((("macs", 479.0),)))


def test_random_widths_lie_in_the_band_and_follow_their_seed():
    space = chain()
    budget = cost.budget(space, macs=0.5)
    found = random(space, budget, torch.Generator().manual_seed(1), 20)
    assert found == random(space, budget, torch.Generator().manual_seed(1), 20)
    assert len(set(found)) > 15
    original = cost.macs(space, space.largest())
    assert all(0.45 <= cost.macs(space, one) / original <= 0.5 for one in found)


def test_adaptive_bn_races_distinct_candidates_and_keeps_the_best():
    source, rows = tas.trace(network(), torch.zeros(2, 1, 8, 8)), []
    budget = cost.budget(source.space, macs=0.5)
    settings = adaptive_bn.Settings(candidates=12, evolve=0, images=100, keep=0.5)
    found = adaptive_bn.search(asked(source, DATA, budget, settings, on_row=rows.append))[0]
    count = len(found.candidates)
    assert len({scored.architecture for scored in found.candidates}) == count > 5
    finalists = [scored for scored in found.candidates if scored.images == 100]
    assert len(finalists) == -(-count // 2)
    assert {scored.images for scored in found.candidates[len(finalists) :]} == {50}
    assert found.architecture == found.candidates[0].architecture
    assert found.candidates[0].recalibrated == max(scored.recalibrated for scored in finalists)
    assert [row["step"] for row in rows] == list(range(1, rows[0]["steps"] + 1))
    assert [row["images"] for row in rows] == [50] * count + [100] * len(finalists)
    assert rows == list(found.course)


def test_several_budgets_of_adaptive_bn_are_as_good_as_a_run_each():
    source, rows = tas.trace(network(), torch.zeros(2, 1, 8, 8)), []
    budgets = [cost.budget(source.space, macs=ratio) for ratio in (0.7, 0.3, 0.5)]
    options = {"candidates": 8, "evolve": 0, "images": 64, "seed": 1}
    together = tas.search(source, DATA, budgets, "adaptive_bn", on_row=rows.append, **options)
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert sum(len(found.course) for found in together) == len(rows) == rows[0]["steps"]
    for budget, found in zip(budgets, together, strict=True):
        alone = tas.search(source, DATA, budget, "adaptive_bn", **options)
        assert cost.macs(source.space, found.architecture) <= dict(budget.limits)["macs"]
        assert set(alone.candidates) <= set(found.candidates)
        assert found.candidates[0].recalibrated >= alone.candidates[0].recalibrated
    scores = [found.candidates[0].recalibrated for found in together]
    assert scores[1] <= scores[2] <= scores[0]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_several_budgets(method):
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    budgets = [cost.budget(source.space, macs=ratio) for ratio in (0.4, 0.8)]
    found = tas.search(source, DATA, budgets, method, **OPTIONS.get(method, {}))
    assert [type(one) for one in found] == [tas.SearchResult] * 2
    for one, budget in zip(found, budgets, strict=True):
        assert cost.macs(source.space, one.architecture) <= dict(budget.limits)["macs"] + 0.5
    with pytest.raises(Infeasible, match="smallest reachable cost"):
        tas.search(source, DATA, [budgets[0], Budget((("macs", 1.0),))], method)


def test_a_differentiable_search_lets_candidates_of_later_budgets_compete_for_the_first():
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    budgets = [cost.budget(source.space, macs=ratio) for ratio in (0.8, 0.3, 0.5)]
    found = tas.search(source, DATA, budgets, "differentiable", **OPTIONS["differentiable"])
    smaller = {score.architecture for one in found[1:] for score in one.candidates}
    assert smaller <= {score.architecture for score in found[0].candidates}
    assert found[0].architecture == found[0].candidates[0].architecture
    scores = [one.candidates[0].recalibrated for one in found]
    assert scores[1] <= scores[2] <= scores[0]
    for one in found:
        assert len({score.architecture for score in one.candidates}) == len(one.candidates)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ratio", [0.15, 0.6])
def test_every_method_meets_the_budget_and_repeats_itself(method, ratio):
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    budget = cost.budget(source.space, macs=ratio, params=0.7)
    first, second = (tas.search(source, DATA, budget, method, seed=2, **OPTIONS.get(method, {})) for _ in range(2))
    assert first == second
    assert source.space.contains(first.architecture)
    limits = dict(budget.limits)
    assert cost.macs(source.space, first.architecture) <= limits["macs"] + 0.5
    assert cost.params(source.space, first.architecture) <= limits["params"] + 0.5


@pytest.mark.parametrize("method", METHODS)
def test_no_method_accepts_an_infeasible_budget(method):
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    with pytest.raises(Infeasible, match="smallest reachable cost"):
        tas.search(source, DATA, Budget((("macs", 1.0),)), method)


def test_unknown_methods_and_options_are_refused_with_the_nearest_name():
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    budget = cost.budget(source.space, macs=0.5)
    with pytest.raises(BadRecipe, match="method is one of"):
        tas.search(source, DATA, budget, "evolution")
    with pytest.raises(BadRecipe, match=r"'epoch'; did you mean 'epochs'"):
        tas.search(source, DATA, budget, epoch=3)
    with pytest.raises(BadRecipe, match="unknown search option 'candidates'"):
        tas.search(source, DATA, budget, "uniform", candidates=3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"evolve": "x"}, "search.evolve is a whole number, got 'x'"),
        ({"evolve": 1.5}, "search.evolve is a whole number, got 1.5"),
        ({"candidates": True}, "search.candidates is a whole number, got True"),
        ({"merge": "no"}, "search.merge is true or false, got 'no'"),
        ({"merge": None}, "search.merge is true or false, got None"),
    ],
)
@pytest.mark.parametrize("method", ["differentiable", "adaptive_bn", "optuna"])
def test_options_of_another_kind_are_refused_before_anything_runs(
    method: str, options: dict[str, Any], said: str
) -> None:
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    options = {"candidates": 3, **options}
    if method == "optuna" and "evolve" in options:
        said = "unknown search option 'evolve'"
    with pytest.raises(BadRecipe, match=re.escape(said)):
        tas.search(source, DATA, cost.budget(source.space, macs=0.5), method, **options)


@pytest.mark.parametrize("budget", [0.5, [0.5], None, "50%"])
def test_a_budget_that_is_none_is_refused(budget: Any) -> None:
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    with pytest.raises(BadRecipe, match=r"tas\.budget"):
        tas.search(source, DATA, budget)
