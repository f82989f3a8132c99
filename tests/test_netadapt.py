"""NetAdapt: what it proposes, which proposal it takes, and where it ends."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_task import recipe_values
from toys import asked, data, network

import tas
from tas import cost
from tas.errors import BadData, BadRecipe, Diverged, Infeasible
from tas.methods import netadapt
from tas.methods.netadapt import Settings, _worth, proposals, proposed, taken_back
from tas.methods.result import Row
from tas.objectives import default_objective
from tas.planning import _adapting
from tas.preparation import prepare
from tas.recipe import parse
from tas.scoring import Score
from tas.space import Architecture, Budget, Choice, Factor, LayerCost, SearchSpace, Term
from tas.tracing import Traced


def search(*given: Any, **rest: Any) -> tas.SearchResult:
    return netadapt.search(asked(*given, **rest))


QUICK = Settings(reduction=0.15, decay=1.0, steps=2, batch=16, images=64, calibration_images=64)


@pytest.fixture(scope="module")
def traced() -> Traced:
    return tas.trace(network(), torch.randn(2, 1, 8, 8), tas.Rules(divisor=2))


def test_every_step_lowers_the_resource_in_one_choice_until_the_budget_is_met(traced: Traced) -> None:
    budget, rows = tas.budget(traced.space, macs=0.5), list[Row]()
    found = search(traced, data(), budget, QUICK, on_row=rows.append)
    assert rows == list(found.course)
    before, limit = traced.space.largest(), dict(budget.limits)["macs"]
    for row in found.course:
        now = Architecture.of(row["architecture"])
        changed = [name for name in now if now[name] != before[name]]
        assert changed == [row["choice"]]
        assert (before[row["choice"]], now[row["choice"]]) == (row["from"], row["to"])
        assert row["macs"] == cost.macs(traced.space, now) < cost.macs(traced.space, before)
        before = now
    assert before == found.architecture == found.candidates[0].architecture
    assert cost.macs(traced.space, found.architecture) <= limit < found.course[-2]["macs"]
    assert all(size % 2 == 0 for name, size in found.architecture.items() if not name.endswith("depth"))
    assert [row["step"] for row in found.course] == list(range(1, len(found.course) + 1))


def test_it_takes_the_measured_latency_as_its_resource(traced: Traced) -> None:
    """A latency that only the stem has: nothing else is ever lowered."""
    stem = traced.space.choices[0]
    points = tuple((size, 2.0 * size) for size in stem.candidates)
    priced = (
        *traced.space.costs,
        LayerCost("conv", "latency_ms", (Term(1.0, (Factor(stem.name, "curve", 0, points),)),)),
    )
    timed = replace(traced, space=replace(traced.space, costs=priced))
    found = search(timed, data(), tas.budget(timed.space, latency_ms=16.5), replace(QUICK, steps=0))
    assert {row["choice"] for row in found.course} == {stem.name}
    assert found.architecture[stem.name] == max(size for size in stem.candidates if 2 * size <= 16.5)
    assert found.course[-1]["latency_ms"] == 2 * found.architecture[stem.name]


def test_two_limits_are_both_met(traced: Traced) -> None:
    budget = tas.budget(traced.space, macs=0.8, params=0.5)
    found = search(traced, data(), budget, replace(QUICK, steps=0)).architecture
    assert tas.params(traced.space, found) <= dict(budget.limits)["params"] + 0.5
    assert tas.macs(traced.space, found) <= dict(budget.limits)["macs"] + 0.5


def test_a_proposal_is_the_largest_candidate_that_meets_the_target() -> None:
    space = SearchSpace(
        (Choice("a", "width", (1, 2, 3, 4)), Choice("b", "width", (1, 8)), Choice("c", "width", (5, 6))),
        (LayerCost("l", "macs", (Term(10, (Factor("a", "power", 1),)), Term(1, (Factor("b", "power", 1),)))),),
    )
    found = proposed(space, torch.tensor([3, 1, 1]), "macs", target=35)  # 4 x 10 + 8 = 48 now
    assert {column: indices.tolist() for column, indices in found.items()} == {
        0: [1, 1, 1],  # 28; 3 x 10 + 8 = 38 is too much
        1: [3, 0, 1],  # 41 does not reach the target: its smallest
    }  # c costs nothing, so it lowers nothing
    assert proposed(space, torch.tensor([0, 0, 1]), "macs", target=1) == {}


def test_the_ratio_prefers_what_loses_least_per_resource() -> None:
    def scored(value: float) -> Score:
        return Score(Architecture.of({}), value, None, 1.0, 10)

    up, before = default_objective(), scored(90.0)
    assert _worth(up, before, scored(88.0), 0.2) < _worth(up, before, scored(88.0), 0.1)
    assert _worth(up, before, scored(89.0), 0.1) < _worth(up, before, scored(88.0), 0.1)
    assert _worth(up, before, scored(math.nan), 0.1) == math.inf
    down = replace(up, higher_is_better=False)
    assert _worth(down, scored(1.0), scored(2.0), 0.1) > 0 > _worth(down, scored(1.0), scored(0.5), 0.1)


def test_short_training_comes_back_into_the_place_it_was_cut_from(traced: Traced) -> None:
    architecture = traced.space.uniform(0.5)
    student = tas.extract(traced, architecture).eval()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    back = taken_back(traced, architecture, student)
    x = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(tas.extract(back, architecture).eval()(x), student(x))
    ranked = tas.reorder(back, "l2")  # what was cut has become 0, so ranking again moves nothing into the prefix
    torch.testing.assert_close(tas.extract(ranked, architecture).eval()(x), student(x))
    untouched = tas.extract(traced, architecture).eval()(x)
    assert not torch.allclose(untouched, student(x))


def test_training_changes_what_the_scores_see_and_the_network_of_the_user_stays(traced: Traced) -> None:
    before = {name: tensor.clone() for name, tensor in traced.network.state_dict().items()}
    budget = tas.budget(traced.space, macs=0.7)
    plain, trained = (search(traced, data(), budget, replace(QUICK, steps=n, lr=0.05)) for n in (0, 4))
    assert plain.course[0]["loss"] != trained.course[0]["loss"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in traced.network.state_dict().items())


def test_an_interrupted_search_ends_as_if_it_had_not_been(traced: Traced, tmp_path: Path) -> None:
    budget, file = tas.budget(traced.space, macs=0.35), tmp_path / "search.pt"
    whole = search(traced, data(), budget, QUICK)

    def interrupt(row: Row) -> None:
        if row["step"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(traced, data(), budget, QUICK, checkpoint=file, on_row=interrupt)
    resumed = search(traced, data(), budget, QUICK, checkpoint=file)
    assert len(resumed.course) > 1
    assert resumed == whole
    assert resumed.course == whole.course
    with pytest.raises(BadRecipe, match="of this search"):
        search(traced, data(), budget, replace(QUICK, lr=0.1), checkpoint=file)
    other = copy.deepcopy(traced.network)
    with torch.no_grad():
        other.conv.weight.mul_(2)  # type: ignore[operator, union-attr]
    with pytest.raises(BadRecipe, match=r"\['weights'\] differ"):
        search(replace(traced, network=other), data(), budget, QUICK, checkpoint=file)
    with pytest.raises(BadRecipe, match=r"\['data'\] differ"):
        search(traced, data(64), budget, QUICK, checkpoint=file)


def test_a_search_with_nothing_left_to_do_keeps_its_candidates(traced: Traced, tmp_path: Path) -> None:
    budget, file = tas.budget(traced.space, macs=0.9), tmp_path / "search.pt"
    whole = search(traced, data(), budget, QUICK, checkpoint=file)
    assert len(whole.candidates) > 1
    assert search(traced, data(), budget, QUICK, checkpoint=file) == whole


def test_a_proposal_that_diverges_is_lost_and_never_chosen(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    budget, real = tas.budget(traced.space, macs=0.7), netadapt.train
    calls = iter(range(10_000))

    def first_diverges(*given: Any) -> Any:
        if next(calls) == 0:
            raise Diverged("the loss is no number")
        return real(*given)

    monkeypatch.setattr(netadapt, "train", first_diverges)
    found = search(traced, data(), budget, QUICK)
    assert [row["lost"] for row in found.course] == [1, *[0] * (len(found.course) - 1)]
    assert found.course[0]["choice"] != traced.space.choices[0].name
    assert all(score.valid for score in found.candidates)

    def all_diverge(*given: Any) -> Any:
        raise Diverged("the loss is no number")

    monkeypatch.setattr(netadapt, "train", all_diverge)
    with pytest.raises(BadData, match="needs a score that is a number"):
        search(traced, data(), budget, QUICK)


def test_several_budgets_and_options_through_the_one_call(traced: Traced) -> None:
    budgets = [tas.budget(traced.space, macs=ratio) for ratio in (0.8, 0.6)]
    options = {"reduction": 0.2, "decay": 1.0, "steps": 0, "images": 32, "calibration_images": 32, "batch": 16}
    larger, smaller = tas.search(traced, data(), budgets, method="netadapt", **options)
    assert tas.macs(traced.space, smaller.architecture) < tas.macs(traced.space, larger.architecture)
    with pytest.raises(BadRecipe, match="did you mean 'reduction'"):
        tas.search(traced, data(), budgets[0], method="netadapt", reductions=0.2)


@pytest.mark.parametrize(
    "wrong",
    [{"reduction": 0.0}, {"decay": 1.5}, {"steps": -1}, {"batch": 0}, {"lr": 0.0}, {"images": 0}, {"momentum": 1}],
)
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(BadRecipe, match=f"search.{next(iter(wrong))}"):
        Settings(**wrong)  # type: ignore[arg-type]


def test_what_cannot_be_reached_is_refused(traced: Traced) -> None:
    with pytest.raises(Infeasible, match="smallest reachable cost"):
        search(traced, data(), Budget((("macs", 1.0),)), QUICK)


@pytest.mark.parametrize("limits", [{"macs": 0.5}, {"macs": 0.25}, {"latency": 0.3}])
def test_a_plan_counts_about_as_many_proposals_as_a_search_makes(
    traced: Traced, monkeypatch: pytest.MonkeyPatch, limits: dict[str, float]
) -> None:
    """To 30 % of the milliseconds most widths have to be lowered to their smallest size."""
    widths = [choice for choice in traced.space.choices if choice.kind == "width"]
    points = ((0, 0.0), (widths[0].size, 1.0 * widths[0].size))
    priced = [LayerCost(w.name, "latency_ms", (Term(1.0, (Factor(w.name, "curve", 0, points),)),)) for w in widths]
    timed = replace(traced, space=replace(traced.space, costs=(*traced.space.costs, *priced)))
    made: list[Any] = []
    tried = netadapt._tried
    monkeypatch.setattr(netadapt, "_tried", lambda *given: made.append(given) or tried(*given))
    settings, budget = replace(QUICK, steps=0, reduction=0.1), tas.budget(timed.space, **limits)
    search(timed, data(), budget, settings)
    assert len(proposals(timed.space, budget, settings)) == pytest.approx(len(made), rel=0.35)


def test_a_plan_takes_the_time_of_networks_between_the_original_and_the_budget(tmp_path: Path) -> None:
    """With a second a multiply-accumulate."""
    settings = {"method": "netadapt", "steps": 3, "batch": 16, "images": 64, "calibration_images": 32}
    prepared = prepare(parse({**recipe_values(tmp_path), "search": settings}))
    space, budget = prepared.space, prepared.budget
    original, even = object(), tas.search(prepared.source, None, budget, "uniform").architecture
    most, least = (tas.macs(space, each) for each in (space.largest(), even))
    timer: Any = SimpleNamespace(
        **dict.fromkeys(("forward", "training"), lambda one: most if one is original else least)
    )
    tried = proposals(space, budget, prepared.recipe.search)
    together = float(cost.count(space, tried, "macs").double().sum()) * (64 + 32 + 3 * 16)
    networks: Any = (original, budget, even, object())
    assert _adapting(prepared, timer, *networks) == pytest.approx(together)
