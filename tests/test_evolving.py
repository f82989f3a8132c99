"""Candidates that are small changes of the best ones."""

import pytest
import torch
from test_methods import DATA, OPTIONS, chain
from toys import network

import tas
from tas import cost
from tas.errors import BadRecipe
from tas.methods import evolving
from tas.methods.baselines import random, uniform
from tas.scoring import Score

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


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> tuple[Planted, tas.Budget]:
    space = chain(10)
    budget = cost.budget(space, macs=RATIO)
    best = space.architecture([2, 6, 4, 8, 3, 7, 1, 5, 4, 6, 3])
    assert cost.macs(space, best) <= dict(budget.limits)["macs"]
    monkeypatch.setattr(evolving, "judged", lambda judge, architecture: judge.score(architecture))
    return Planted(space, best), budget


def first(judge: Planted, budget: tas.Budget, count: int = 6) -> list[Score]:
    return [judge.score(each)[0] for each in random(judge.space, budget, torch.Generator().manual_seed(1), count)]


def test_candidates_come_nearer_to_what_is_best_than_as_many_random_ones(planted: tuple[Planted, tas.Budget]) -> None:
    judge, budget = planted
    start = first(judge, budget)
    blind = first(judge, budget, 66)
    found = evolving.evolved(judge, budget, start, 60, torch.Generator().manual_seed(0))
    assert found[0].recalibrated > max(score.recalibrated for score in blind) + 5
    assert found[0].recalibrated == max(score.recalibrated for score in found)


class Diminishing(Planted):
    """Every choice is worth more the larger it is, less so the larger it is, and each another weight."""

    def score(self, architecture: tas.Architecture) -> tuple[Score, None]:
        loss = sum((1 + place) * (1 - size / 10) ** 2 for place, size in enumerate(architecture.values()))
        return Score(architecture, 100.0 - loss, None, 1.0, 10), None


def test_the_most_promising_child_of_many_saves_scores(
    planted: tuple[Planted, tas.Budget], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, budget = Diminishing(planted[0].space, planted[0].best), planted[1]
    start = first(judge, budget)

    def best(seed: int, count: int) -> float:
        found = evolving.evolved(judge, budget, start, count, torch.Generator().manual_seed(seed))
        return found[0].recalibrated

    chosen = [best(seed, 25) for seed in range(5)]
    monkeypatch.setattr(evolving, "_BROOD", 1)  # nothing to choose from
    blind = [best(seed, 50) for seed in range(5)]
    assert sum(chosen) > sum(blind)


def test_children_are_new_meet_the_budget_and_follow_their_seed(planted: tuple[Planted, tas.Budget]) -> None:
    judge, budget = planted
    start = first(judge, budget)
    judge.asked.clear()
    found = evolving.evolved(judge, budget, start, 20, torch.Generator().manual_seed(0))
    assert len(judge.asked) == 20
    assert judge.asked[0] == uniform(judge.space, budget)
    assert len({score.architecture for score in found}) == len(found) == len(start) + 20
    assert all(cost.macs(judge.space, each) <= dict(budget.limits)["macs"] for each in judge.asked)
    again = list(judge.asked)
    judge.asked.clear()
    evolving.evolved(judge, budget, start, 20, torch.Generator().manual_seed(0))
    assert judge.asked == again


def test_uniform_widths_are_not_scored_twice(planted: tuple[Planted, tas.Budget]) -> None:
    judge, budget = planted
    even = judge.score(uniform(judge.space, budget))[0]
    judge.asked.clear()
    evolving.evolved(judge, budget, [even], 5, torch.Generator().manual_seed(0))
    assert even.architecture not in judge.asked
    assert len(judge.asked) == 5


def test_a_space_without_more_architectures_ends_it(planted: tuple[Planted, tas.Budget]) -> None:
    judge, _ = planted
    space = tas.SearchSpace(judge.space.choices[:1], ())
    alone, few = Planted(space, space.largest()), tas.Budget((("macs", 1.0),))
    found = evolving.evolved(alone, few, [], 20, torch.Generator().manual_seed(0))
    assert [score.architecture for score in found] == [space.largest()]  # costs nothing, so all is filled up


def test_scores_that_are_no_numbers_have_no_children(planted: tuple[Planted, tas.Budget]) -> None:
    judge, budget = planted
    lost = Score(uniform(judge.space, budget), float("nan"), None, float("nan"), 10)
    good = judge.score(judge.best)[0]
    judge.asked.clear()
    found = evolving.evolved(judge, budget, [lost, good], 3, torch.Generator().manual_seed(0))
    assert len(judge.asked) == 3
    assert found[-1] is lost


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


def test_a_negative_number_is_refused() -> None:
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    for method in ("differentiable", "adaptive_bn"):
        with pytest.raises(BadRecipe, match="evolve"):
            tas.search(source, DATA, cost.budget(source.space, macs=0.5), method, evolve=-1)
