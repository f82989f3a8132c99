"""A study scores no architecture twice, obeys the budget, and goes on from its storage, alone or among others."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from study_worker import started
from toys import data, network

import tas
import tas.timing
from tas import cost
from tas.errors import BadRecipe
from tas.methods import SearchResult, front, optuna_study, study
from tas.methods.baselines import uniform
from tas.space import Factor, LayerCost, Term

DATA = data()
SMALL: dict[str, Any] = {"candidates": 8, "startup": 2, "images": 48, "calibration_images": 48}


@pytest.fixture(scope="module")
def source() -> tas.Traced:
    return tas.trace(network(), torch.zeros(2, 1, 8, 8))


def searched(source: tas.Traced, ratio: float = 0.6, seed: int = 0, **options: Any) -> SearchResult:
    budget = cost.budget(source.space, macs=ratio)
    return tas.search(source, DATA, budget, "optuna", seed=seed, **{**SMALL, **options})


def trials(path: Path, name: str = "tas") -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    return optuna.load_study(study_name=name, storage=storage).get_trials()


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_every_sampler_scores_distinct_architectures_within_the_budget(source: tas.Traced, sampler: str) -> None:
    found = searched(source, sampler=sampler, candidates=12 if sampler == "tpe" else 6)
    assert len({scored.architecture for scored in found.candidates}) == len(found.candidates)
    assert len(found.candidates) == (12 if sampler == "tpe" else 6)
    limit = 0.6 * cost.macs(source.space, source.space.largest())
    assert all(cost.macs(source.space, scored.architecture) <= limit for scored in found.candidates)
    assert found.architecture == found.candidates[0].architecture
    assert found.candidates[0].recalibrated == max(scored.recalibrated for scored in found.candidates)
    assert [row["step"] for row in found.course] == list(range(1, len(found.candidates) + 1))


def test_the_scores_are_those_of_tas_score(source: tas.Traced) -> None:
    found = searched(source, candidates=3, raw=True)
    architectures = [scored.architecture for scored in found.candidates]
    images = {"images": 48, "calibration_images": 48}
    assert list(found.candidates) == tas.score(source, architectures, DATA, merge=True, **images)


def test_the_study_starts_with_uniform_widths_and_what_it_is_given(source: tas.Traced, tmp_path: Path) -> None:
    space = source.space
    budget = cost.budget(space, macs=0.6)
    given = tas.sample(space, torch.Generator().manual_seed(5), budget)
    searched(source, candidates=3, warm_start=(given, space.largest()), storage=f"journal:{tmp_path / 'j'}")
    first = [trial.user_attrs["architecture"] for trial in trials(tmp_path / "j")[:3]]
    assert first[:2] == [dict(uniform(space, budget)), dict(given)]
    assert first[2] != dict(space.largest())  # projected onto the budget
    assert cost.macs(space, first[2]) <= dict(budget.limits)["macs"]
    with pytest.raises(BadRecipe, match=r"search\.warm_start: .*takes one of"):
        searched(source, warm_start=({**given, "conv": 99},))


def test_what_exceeds_the_budget_is_told_by_its_constraint_and_never_scored(source: tas.Traced, tmp_path: Path) -> None:
    searched(source, ratio=0.25, storage=f"journal:{tmp_path / 'j'}", sampler="random")
    over = [trial for trial in trials(tmp_path / "j") if max(trial.constraints.values(), default=0) > 0]
    assert over
    assert all(trial.state == optuna.trial.TrialState.PRUNED for trial in over)
    assert not any("score" in trial.user_attrs for trial in over)


def test_a_limit_in_milliseconds_is_kept_to_the_last_digit(source: tas.Traced) -> None:
    width = next(choice for choice in source.space.choices if choice.kind == "width")
    points = tuple((size, size / width.size) for size in width.candidates)
    slow = LayerCost("conv", "latency_ms", (Term(1.0, (Factor(width.name, "curve", 0, points),)),))
    timed = replace(source, space=replace(source.space, costs=(*source.space.costs, slow)))
    budget = tas.budget(timed.space, latency_ms=0.6)
    found = tas.search(timed, DATA, budget, "optuna", sampler="random", **SMALL)
    assert max(cost.of(timed.space, each.architecture, "latency_ms") for each in found.candidates) <= 0.6


def test_several_measures_make_a_front(source: tas.Traced, tmp_path: Path) -> None:
    found = searched(source, sampler="nsga2", measures=("macs",), storage=f"journal:{tmp_path / 'j'}")
    done = [trial for trial in trials(tmp_path / "j") if "score" in trial.user_attrs]
    for trial in done:
        macs = cost.macs(source.space, trial.user_attrs["architecture"])
        assert trial.values == [trial.user_attrs["score"]["recalibrated"], macs]
    best = front(source.space, found.candidates)
    assert best[-1] == found.candidates[0]
    costs = [cost.macs(source.space, scored.architecture) for scored in best]
    assert costs == sorted(set(costs))


def test_latency_is_measured_beside_the_largest_architecture(source: tas.Traced, monkeypatch: Any) -> None:
    asked: list[Any] = []

    def timed(networks: Any, inputs: Any, device: Any, repeats: int) -> Any:
        sizes = [sum(parameter.numel() for parameter in each.parameters()) for each in networks]
        asked.append((sizes, len(inputs), repeats))
        return [tas.timing.Latency(size, 0, 0) for size in sizes]

    monkeypatch.setattr(study, "interleaved", timed)
    found = searched(source, sampler="nsga2", measures=("macs", "latency"), latency_batch=7, latency_repeats=3)
    largest = sum(parameter.numel() for parameter in source.network.parameters())
    by_architecture = {tas.Architecture.of(row["architecture"]): row for row in found.course}
    assert set(by_architecture) == {scored.architecture for scored in found.candidates}
    for architecture, row in by_architecture.items():
        own = sum(parameter.numel() for parameter in tas.extract(source, architecture).parameters())
        assert row["latency"] == own / largest
        assert row["macs"] == cost.macs(source.space, architecture)
    assert {(sizes[1], batch, repeats) for sizes, batch, repeats in asked} == {(largest, 7, 3)}


def test_a_measured_latency_is_a_part(source: tas.Traced) -> None:
    found = searched(source, measures=("latency",), candidates=2, latency_repeats=3)
    assert all(0 < row["latency"] < float("inf") for row in found.course)  # a part of the largest; a busy machine adds


def test_latency_needs_no_batch_norm_and_as_many_images_as_its_batch() -> None:
    plain = network()
    for name in [name for name, module in plain.named_modules() if isinstance(module, torch.nn.BatchNorm2d)]:
        plain.set_submodule(name, torch.nn.Identity())
    source = tas.trace(plain, torch.zeros(2, 1, 8, 8))
    options = {"measures": ("latency",), "candidates": 1, "latency_repeats": 2}
    assert searched(source, latency_batch=128, **options).course[0]["latency"] > 0
    with pytest.raises(BadRecipe, match=r"search\.latency_batch needs .* got 129 of which there are 128"):
        searched(source, latency_batch=129, **options)


def test_warm_starts_come_from_files_of_runs(source: tas.Traced, tmp_path: Path) -> None:
    budget = cost.budget(source.space, macs=0.6)
    images = {"images": 48, "calibration_images": 48}
    learned = tas.search(source, DATA, budget, epochs=1, batch=64, candidates=3, evolve=0, **images)
    rows = [{"architecture": dict(scored.architecture), "macs": 1} for scored in learned.candidates]
    (tmp_path / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    storage = f"journal:{tmp_path / 'j'}"
    searched(
        source, warm_start=(str(tmp_path / "candidates.jsonl"),), with_uniform=False, storage=storage, candidates=3
    )
    first = [trial.user_attrs["architecture"] for trial in trials(tmp_path / "j")[:3]]
    assert first == [row["architecture"] for row in rows]
    with pytest.raises(BadRecipe, match="cannot read architectures from"):
        searched(source, warm_start=(str(tmp_path / "none.json"),))


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_an_interrupted_study_goes_on_to_the_same_result(source: tas.Traced, tmp_path: Path, sampler: str) -> None:
    whole = searched(source, sampler=sampler)

    def stop(row: dict[str, Any]) -> None:
        if row["step"] == 5:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "search.pt"
    with pytest.raises(KeyboardInterrupt):
        searched(source, sampler=sampler, checkpoint=checkpoint, on_row=stop)
    rows: list[dict[str, Any]] = []
    assert searched(source, sampler=sampler, checkpoint=checkpoint, on_row=rows.append) == whole
    assert [row["step"] for row in rows] == [6, 7, 8]
    assert searched(source, sampler=sampler, checkpoint=checkpoint, on_row=rows.append) == whole
    assert len(rows) == 3


def test_sqlite_keeps_a_study_too(source: tas.Traced, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 's.db'}"
    first = searched(source, storage=storage, candidates=3)
    more = searched(source, storage=storage, candidates=4)
    assert set(first.candidates) < set(more.candidates)


def test_a_study_of_another_search_and_a_storage_out_of_reach_are_refused(source: tas.Traced, tmp_path: Path) -> None:
    storage = f"journal:{tmp_path / 'j'}"
    searched(source, candidates=1, storage=storage)
    with pytest.raises(BadRecipe, match=r"\['budget'\] differ"):
        searched(source, ratio=0.5, storage=storage)
    with pytest.raises(BadRecipe, match=r"\['images'\] differ"):
        searched(source, storage=storage, images=32)
    (tmp_path / "file").write_text("")
    for unreachable in (f"sqlite:///{tmp_path}/none/s.db", f"journal:{tmp_path}/file/j", "nonsense://host/x"):
        with pytest.raises(BadRecipe, match="must be reachable"):
            searched(source, storage=unreachable)


def test_an_exhausted_space_ends_the_study(source: tas.Traced) -> None:
    names = [choice.name for choice in source.space.choices if choice.kind == "width"]
    tiny = tas.trace(network(), torch.zeros(2, 1, 8, 8), tas.tracing.Rules(fix=tuple(names)))
    found = searched(tiny, ratio=0.9, candidates=50)
    (depth,) = tiny.space.choices
    assert len(found.candidates) == len(depth.candidates) - 1


def test_a_score_that_is_no_number_is_counted_and_not_asked_again(
    source: tas.Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = study.judged, []

    def lossy(*arguments: Any, **named: Any) -> Any:
        score, statistics = real(*arguments, **named)
        calls.append(score.architecture)
        lost = tas.Score(score.architecture, float("nan"), None, float("nan"), score.images)
        return (lost if len(calls) == 2 else score), statistics

    monkeypatch.setattr(study, "judged", lossy)
    found = searched(source)
    assert len(set(calls)) == len(calls) == len(found.candidates) == 8
    assert [row["lost"] for row in found.course] == [0] + [1] * 7
    assert found.candidates[-1].architecture == calls[1]


def test_processes_share_a_study_without_scoring_anything_twice(source: tas.Traced, tmp_path: Path) -> None:
    storage = f"journal:{tmp_path / 'j'}"
    workers = [started(storage, 16, 60, 0) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    done = [trial for trial in trials(tmp_path / "j") if "score" in trial.user_attrs]
    assert 16 <= len(done) <= 17
    assert len({tuple(trial.params.items()) for trial in done}) == len(done)
    options = {"candidates": 16, "startup": 4, "storage": storage, "sampler": "random"}
    assert len(searched(source, **options).candidates) == len(done)


def test_a_gaussian_process_without_scipy_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optuna_study, "find_spec", lambda name: None)
    with pytest.raises(BadRecipe, match="needs SciPy, which is not installed"):
        optuna_study.Settings(sampler="gp")


def test_settings_are_checked() -> None:
    for options, message in (
        ({"candidates": 0}, "search.candidates is at least 1"),
        ({"sampler": "grid"}, "search.sampler is one of tpe, nsga2, gp, random, got 'grid'$"),
        ({"sampler": "nsga"}, "got 'nsga'; did you mean 'nsga2'"),
        ({"measures": ("latancy",)}, "search.measures is one of macs, params, latency.*did you mean 'latency'"),
        ({"stale_after": 0.0}, "search.stale_after is above 0 seconds"),
        ({"latency_repeats": 1}, "search.latency_repeats is at least 2"),
        ({"storage": "file"}, "search.storage is journal:PATH"),
    ):
        with pytest.raises(BadRecipe, match=message):
            optuna_study.Settings(**options)
