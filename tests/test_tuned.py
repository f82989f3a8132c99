"""A study of whole searches: equal weights and images for all scores, pruned on the way, resumable, honest about it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from test_optuna_study import trials
from toys import data, network

import tas
from tas import cost
from tas.errors import BadRecipe
from tas.methods import SearchResult, bilevel, differentiable, tuned, tuning
from tas.methods.baselines import uniform

DATA = data()
SMALL: dict[str, Any] = {"trials": 4, "startup": 2, "batch": 64, "candidates": 3, "evolve": 0, "rows": 1}
IMAGES = {"images": 48, "calibration_images": 48}
RANGES = {"epochs": (1, 3), "penalty_weight": (0.5, 8.0), "architecture_lr": (0.01, 0.5)}


@pytest.fixture(scope="module")
def source() -> tas.Traced:
    return tas.trace(network(), torch.zeros(2, 1, 8, 8))


def searched(source: Any, **options: Any) -> SearchResult:
    budget = cost.budget(source.space, macs=0.6)
    return tas.search(source, DATA, budget, "tuned", **{**SMALL, **IMAGES, "ranges": RANGES, "epochs": 2, **options})


def test_every_score_is_that_of_the_originals_weights_on_the_same_images(source: tas.Traced) -> None:
    before = {name: value.clone() for name, value in source.network.state_dict().items()}
    found = searched(source)
    architectures = [scored.architecture for scored in found.candidates]
    assert len(set(architectures)) == len(architectures) > 4
    again = tas.score(source, architectures, DATA, raw=False, merge=True, **IMAGES)
    assert list(found.candidates) == again
    limit = 0.6 * cost.macs(source.space, source.space.largest())
    assert all(cost.macs(source.space, each) <= limit for each in architectures)
    assert found.architecture == architectures[0]
    assert all(torch.equal(value, before[name]) for name, value in source.network.state_dict().items())


def test_a_trial_is_the_differentiable_search_with_its_hyper_parameters(source: tas.Traced, tmp_path: Path) -> None:
    searched(source, trials=2, pruner="none", storage=f"journal:{tmp_path / 'j'}")
    for trial in trials(tmp_path / "j"):
        own = {**trial.params, "candidates": 3, "evolve": 0, "batch": 64, **IMAGES}
        alone = tas.search(source, DATA, cost.budget(source.space, macs=0.6), **own)
        assert {name: tuple(row) for name, row in trial.user_attrs["probabilities"].items()} == alone.probabilities
        assert sorted(trial.intermediate_values) == list(range(1, trial.params["epochs"] + 1))
        scores = {tas.Architecture.of(row["architecture"]): row["recalibrated"] for row in trial.user_attrs["scores"]}
        assert {scored.architecture for scored in alone.candidates} <= set(scores)
        assert trial.value == max(scores[scored.architecture] for scored in alone.candidates)


def test_the_first_trial_has_the_settings_own_values_and_all_lie_in_their_ranges(source: tas.Traced) -> None:
    ranges = {**RANGES, "weight_lr": (0.05, 0.1)}  # does not hold its own, 0.02
    found = searched(source, ranges=ranges, penalty_weight=3.0)
    first = found.course[0]["hyperparameters"]
    assert (first["epochs"], first["penalty_weight"], first["architecture_lr"]) == (2, 3.0, 0.02)
    for row in found.course:
        assert set(row["hyperparameters"]) == set(ranges)
        assert all(low <= row["hyperparameters"][name] <= high for name, (low, high) in ranges.items())
    assert len({tuple(row["hyperparameters"].items()) for row in found.course}) == len(found.course) == 4


def test_the_result_names_the_hyper_parameters_that_found_it(source: tas.Traced, tmp_path: Path) -> None:
    found = searched(source, storage=f"journal:{tmp_path / 'j'}")
    tried = [
        trial
        for trial in trials(tmp_path / "j")
        if any(row["architecture"] == dict(found.architecture) for row in trial.user_attrs["scores"])
    ]
    assert found.hyperparameters == tried[0].params
    assert [row["step"] for row in found.course] == [1, 2, 3, 4]
    best = max(row["recalibrated"] for row in found.course)
    assert found.candidates[0].recalibrated == best


@pytest.mark.parametrize("pruner", ["median", "hyperband"])
def test_pruners_end_searches_early_and_their_scores_still_compete(
    source: tas.Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pruner: Any
) -> None:
    real, worse = tuning.judged, iter(range(1000))

    def falling(*arguments: Any, **named: Any) -> Any:  # every score is below all earlier ones
        score, statistics = real(*arguments, **named)
        return replace(score, recalibrated=50.0 - next(worse)), statistics

    monkeypatch.setattr(tuning, "judged", falling)
    storage = f"journal:{tmp_path / 'j'}"
    options = {"epochs": 4, "trials": 8, "startup": 1, "ranges": {"architecture_lr": (0.1, 0.9)}}
    found = searched(source, pruner=pruner, storage=storage, **options)
    pruned = [trial for trial in trials(tmp_path / "j") if trial.state == optuna.trial.TrialState.PRUNED]
    assert pruned
    assert all(0 < len(trial.intermediate_values) < 4 for trial in pruned)
    assert sum(row["pruned"] for row in found.course) == len(pruned)
    of_pruned = {tas.Architecture.of(row["architecture"]) for trial in pruned for row in trial.user_attrs["scores"]}
    assert of_pruned <= {scored.architecture for scored in found.candidates}


def test_a_search_that_diverges_is_a_bad_trial_and_not_the_end(source: tas.Traced, tmp_path: Path) -> None:
    storage = f"journal:{tmp_path / 'j'}"
    ranges = {"weight_lr": (0.02, 1e30)}
    found = searched(source, ranges=ranges, storage=storage, trials=5, seed=1)
    assert any(row["diverged"] for row in found.course)
    assert not found.course[0]["diverged"]  # its own learning rate
    with pytest.raises(BadRecipe, match=r"none of 2 trials gave a score.*weight_lr"):
        searched(source, ranges={"weight_lr": (1e29, 1e30)}, trials=2, storage=storage, study="hopeless")


def test_an_interrupted_trial_goes_on_from_its_epoch_to_the_same_result(
    source: tas.Traced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"ranges": {"architecture_lr": (0.01, 0.5)}, "epochs": 3, "trials": 2, "pruner": "none"}
    whole = searched(source, **options)
    train_epoch, epochs = differentiable.train_epoch, []

    def counted(run: bilevel.Run) -> None:
        epochs.append((run.settings.architecture_lr, run.epoch))
        if len(epochs) == 6:  # the last epoch of the second trial
            raise KeyboardInterrupt
        train_epoch(run)

    monkeypatch.setattr(differentiable, "train_epoch", counted)
    checkpoint = tmp_path / "search.pt"
    with pytest.raises(KeyboardInterrupt):
        searched(source, checkpoint=checkpoint, **options)
    assert len(list(tmp_path.glob("search-*.pt"))) == 1
    found = searched(source, checkpoint=checkpoint, **options)
    assert epochs[6:] == [epochs[5]]  # one epoch, the one that was interrupted, with the same rate
    assert found.candidates == whole.candidates
    assert found.probabilities == whole.probabilities
    assert found.hyperparameters == whole.hyperparameters
    assert not list(tmp_path.glob("search-*.pt"))
    assert searched(source, checkpoint=checkpoint, **options) == found  # a complete study is only read
    assert len(epochs) == 7


def test_a_study_of_other_ranges_or_another_method_is_refused(source: tas.Traced, tmp_path: Path) -> None:
    storage = f"journal:{tmp_path / 'j'}"
    searched(source, trials=1, storage=storage)
    searched(source, trials=1, storage=storage, pruner="none", sampler="random")  # these may change
    for options in ({"ranges": {**RANGES, "epochs": (1, 4)}}, {"batch": 32}):
        with pytest.raises(BadRecipe, match=r"\['search'\] differ"):
            searched(source, storage=storage, **options)
    with pytest.raises(BadRecipe, match=r"differ: choose another search\.study"):
        tas.search(source, DATA, cost.budget(source.space, macs=0.6), "optuna", storage=storage, **IMAGES)


def test_a_supernet_is_searched_on_copies(source: tas.Traced) -> None:
    supernet = tas.Supernet(source)
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    found = searched(supernet, trials=2)
    assert all(torch.equal(value, before[name]) for name, value in supernet.state_dict().items())
    assert len(found.course) == 2


def test_the_candidates_of_all_trials_evolve_together(source: tas.Traced) -> None:
    budget = cost.budget(source.space, macs=0.6)
    before, found = (searched(source, trials=2, evolve=count) for count in (0, 5))
    assert {each.architecture for each in before.candidates} < {each.architecture for each in found.candidates}
    assert uniform(source.space, budget) in {scored.architecture for scored in found.candidates}
    assert found.candidates[0].recalibrated >= before.candidates[0].recalibrated
    assert found.course == before.course


def test_several_budgets_are_tilted_from_the_best_trial(source: tas.Traced) -> None:
    budgets = [cost.budget(source.space, macs=ratio) for ratio in (0.5, 0.7)]
    half, more = tas.search(source, DATA, budgets, "tuned", **{**SMALL, **IMAGES, "ranges": RANGES, "trials": 2})
    assert half.probabilities == more.probabilities
    assert more.candidates[0].recalibrated >= half.candidates[0].recalibrated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trials": 0}, "search.trials is at least 1"),
        ({"ranges": {}}, "search.ranges names what is to be tuned"),
        ({"ranges": {"weight_rl": (0.1, 1.0)}}, "got 'weight_rl'; did you mean 'weight_lr'"),
        ({"ranges": {"weight_lr": (0.2, 0.1)}}, r"search.ranges.weight_lr is \[low, high\]"),
        ({"ranges": {"weight_lr": (0.0, 0.1)}}, r"with 0 < low <= high"),
        ({"ranges": {"weight_lr": (0.1, math.nan)}}, r"with 0 < low <= high"),
        ({"ranges": {"epochs": (1.5, 3)}}, "search.ranges.epochs is of whole numbers"),
        ({"ranges": {"momentum": (0.5, 1.5)}}, "search.momentum"),
        ({"pruner": "medan"}, "search.pruner is one of median, hyperband, none, got 'medan'; did you mean 'median'"),
        ({"sampler": "tp"}, "did you mean 'tpe'"),
        ({"storage": "file"}, "search.storage is journal:PATH"),
        ({"epochs": 0}, "search.epochs is at least 1"),
    ],
)
def test_settings_are_checked(options: Any, message: str) -> None:
    with pytest.raises(BadRecipe, match=message):
        tuned.Settings(**options)
