"""Candidates that are small changes of the best ones."""

from dataclasses import replace

import pytest
import torch
from test_methods import DATA, OPTIONS, chain
from torch.nn.functional import mse_loss
from toys import network

import tas
from tas import cost
from tas.errors import BadData, BadRecipe
from tas.methods import evolving
from tas.methods.baselines import random, uniform
from tas.objectives import Objective
from tas.scoring import Score, ranked

RATIO = 0.4


class Planted:
    """In the place of a judge: the nearer to `best`, the higher the score."""

    objective = None

    def __init__(self, space: tas.SearchSpace, best: tas.Architecture) -> None:
        self.source, self.best = self, best
        self.space = space
        self.asked: list[tas.Architecture] = []

    def score(self, architecture: tas.Architecture) -> tuple[Score, None]:
        self.asked.append(architecture)
        distance = sum(abs(architecture[name] - size) for name, size in self.best.items())
        return Score(architecture, 100.0 - distance, None, 1.0, 10), None


class Diminishing(Planted):
    """Every choice is worth more the larger it is, ever less so, and each another weight."""

    def score(self, architecture: tas.Architecture) -> tuple[Score, None]:
        self.asked.append(architecture)
        parts = [architecture[choice.name] / choice.size for choice in self.space.choices]
        loss = sum((1 + place) * (1 - part) ** 2 for place, part in enumerate(parts))
        return Score(architecture, 100.0 - loss, None, 1.0, 10), None


class Falling(Diminishing):
    """The same as an error, where lower is better."""

    objective = Objective(mse_loss, mse_loss, "error", higher_is_better=False)

    def score(self, architecture: tas.Architecture) -> tuple[Score, None]:
        found = super().score(architecture)[0]
        return replace(found, recalibrated=-found.recalibrated), None


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> tuple[Planted, tas.Budget]:
    space = chain(10)
    budget = cost.budget(space, macs=RATIO)
    best = space.architecture([2, 6, 4, 8, 3, 7, 1, 5, 4, 6, 3])
    assert cost.macs(space, best) <= dict(budget.limits)["macs"]
    monkeypatch.setattr(evolving, "judged", lambda judge, architecture, raw: judge.score(architecture))
    return Planted(space, best), budget


def evolved(judge: Planted, budget: tas.Budget, scores: list[Score], count: int, seed: int = 0) -> list[Score]:
    """All scores, best first."""
    generator = torch.Generator().manual_seed(seed)
    return ranked([*scores, *evolving.evolved(judge, budget, scores, count, generator)], judge.objective)


def first(judge: Planted, budget: tas.Budget, count: int = 6) -> list[Score]:
    return [judge.score(each)[0] for each in random(judge.space, budget, torch.Generator().manual_seed(1), count)]


def test_candidates_come_nearer_to_what_is_best_than_as_many_random_ones(planted: tuple[Planted, tas.Budget]) -> None:
    judge, budget = planted
    start = first(judge, budget)
    blind = first(judge, budget, 66)
    found = evolved(judge, budget, start, 60)
    assert found[0].recalibrated > max(score.recalibrated for score in blind) + 5
    assert found[0].recalibrated == max(score.recalibrated for score in found)


@pytest.mark.parametrize("kind", [Diminishing, Falling])
def test_the_most_promising_child_of_many_is_better_than_any(
    planted: tuple[Planted, tas.Budget], monkeypatch: pytest.MonkeyPatch, kind: type[Planted]
) -> None:
    judge, budget = kind(planted[0].space, planted[0].best), planted[1]
    start = first(judge, budget)
    sign = 1 if kind is Diminishing else -1

    def reached() -> float:
        return sum(sign * evolved(judge, budget, start, 25, seed)[0].recalibrated for seed in range(5)) / 5

    chosen = reached()
    monkeypatch.setattr(evolving, "_BROOD", 1)  # nothing to choose from
    assert chosen > reached() + 0.2


def test_children_are_new_meet_the_budget_and_follow_their_seed(planted: tuple[Planted, tas.Budget]) -> None:
    judge, budget = planted
    start = first(judge, budget)
    judge.asked.clear()
    found = evolved(judge, budget, start, 20)
    assert len(judge.asked) == 20
    assert judge.asked[0] == uniform(judge.space, budget)
    assert len({score.architecture for score in found}) == len(found) == len(start) + 20
    assert all(cost.macs(judge.space, each) <= dict(budget.limits)["macs"] for each in judge.asked)
    again = list(judge.asked)
    judge.asked.clear()
    evolved(judge, budget, start, 20)
    assert judge.asked == again


def test_uniform_widths_are_not_scored_twice(planted: tuple[Planted, tas.Budget]) -> None:
    judge, budget = planted
    even = judge.score(uniform(judge.space, budget))[0]
    judge.asked.clear()
    evolved(judge, budget, [even], 5)
    assert even.architecture not in judge.asked
    assert len(judge.asked) == 5


def test_a_space_without_more_architectures_ends_it(planted: tuple[Planted, tas.Budget]) -> None:
    judge, _ = planted
    space = tas.SearchSpace(judge.space.choices[:1], ())
    alone, few = Planted(space, space.largest()), tas.Budget((("macs", 1.0),))
    found = evolved(alone, few, [], 20)
    assert [score.architecture for score in found] == [space.largest()]  # costs nothing, so all is filled up
    fixed = replace(space, choices=(replace(space.choices[0], candidates=space.choices[0].candidates[-1:]),))
    found = evolved(Planted(fixed, fixed.largest()), few, [], 20)
    assert [score.architecture for score in found] == [fixed.largest()]  # nothing can be moved


def test_scores_that_are_no_numbers_have_no_children(
    planted: tuple[Planted, tas.Budget], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, budget = planted
    lost = Score(uniform(judge.space, budget), float("nan"), None, float("nan"), 10)
    good = judge.score(judge.best)[0]
    parents, moved = [], evolving._moved
    monkeypatch.setattr(
        evolving, "_moved", lambda s, parent, g: parents.append(tuple(parent.tolist())) or moved(s, parent, g)
    )
    judge.asked.clear()
    evolved(judge, budget, [lost, good], 1)
    assert set(parents) == {judge.space.indices(judge.best)}
    assert len(judge.asked) == 1
    judge.asked.clear()
    with pytest.raises(BadData):  # of `ranked`: no parent, so no child
        evolved(judge, budget, [lost], 3)
    assert judge.asked == []
    other = replace(lost, architecture=judge.space.architecture([0] * len(judge.space.choices)))
    assert len(evolved(judge, budget, [other], 3)) == 4  # uniform widths come first, whatever was lost
    assert judge.asked[0] == lost.architecture


def test_children_of_a_budget_descend_from_what_meets_it(
    planted: tuple[Planted, tas.Budget], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, budget = planted
    tight = cost.budget(judge.space, macs=RATIO / 2)
    start = first(judge, budget)
    parents, moved = [], evolving._moved
    monkeypatch.setattr(evolving, "_moved", lambda s, parent, g: parents.append(parent) or moved(s, parent, g))
    judge.asked.clear()
    evolved(judge, tight, start, 5)
    assert parents
    for indices in [*parents, *(torch.tensor(judge.space.indices(each)) for each in judge.asked)]:
        assert bool(cost.feasible(judge.space, indices, tight))


@pytest.mark.parametrize("method", ["differentiable", "adaptive_bn"])
def test_every_budget_of_a_search_has_its_own_children(method: str) -> None:
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    budgets = [cost.budget(source.space, macs=ratio) for ratio in (0.8, 0.4)]
    options = {**OPTIONS.get(method, {}), "candidates": 2}
    before, after = (tas.search(source, DATA, budgets, method, **{**options, "evolve": count}) for count in (0, 6))
    for one, other, budget in zip(before, after, budgets, strict=True):
        assert len(other.candidates) > len(one.candidates)
        assert uniform(source.space, budget) in {score.architecture for score in other.candidates}
        assert other.candidates[0].recalibrated >= one.candidates[0].recalibrated
        assert other.architecture == other.candidates[0].architecture


def test_it_is_told_how_many_candidates_are_scored() -> None:
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    told: list[tuple[int, int]] = []
    options = {**OPTIONS["differentiable"], "candidates": 3, "evolve": 2}
    tas.search(source, DATA, cost.budget(source.space, macs=0.5), on_score=lambda *at: told.append(at), **options)
    assert told == [(1, 3), (2, 3), (3, 3), (1, 2), (2, 2)]


def test_searches_score_the_originals_weights_merged_at_every_budget() -> None:
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    budgets = [cost.budget(source.space, macs=ratio) for ratio in (0.8, 0.4)]
    images = {"images": 64, "calibration_images": 64}
    options = {**OPTIONS["differentiable"], **images, "candidates": 4, "evolve": 2}
    for found in tas.search(source, DATA, budgets, **options):
        again = tas.score(source, [score.architecture for score in found.candidates], DATA, merge=True, **images)
        assert [score.loss for score in found.candidates] == [score.loss for score in again]
    scratch = tas.search(source, DATA, budgets[0], warm_start=False, **options)
    again = tas.score(scratch.supernet, [score.architecture for score in scratch.candidates], DATA, **images)
    assert [score.loss for score in scratch.candidates] == [score.loss for score in again]


def test_raw_scores_are_given_to_all_candidates_or_none() -> None:
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    budget = cost.budget(source.space, macs=0.5)
    for raw in (True, False):
        found = tas.search(source, DATA, budget, "adaptive_bn", candidates=2, evolve=2, raw=raw)
        assert {score.raw is not None for score in found.candidates} == {raw}


@pytest.mark.parametrize("method", ["differentiable", "adaptive_bn", "uniform"])
def test_a_space_without_choices_is_refused(method: str) -> None:
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8), rules=tas.Rules(fix=("*",)))
    with pytest.raises(BadRecipe, match="at least two candidates"):
        tas.search(source, DATA, cost.budget(source.space, macs=1.0), method)


def test_a_negative_number_is_refused() -> None:
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    for method in ("differentiable", "adaptive_bn"):
        with pytest.raises(BadRecipe, match="evolve"):
            tas.search(source, DATA, cost.budget(source.space, macs=0.5), method, evolve=-1)
