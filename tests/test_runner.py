"""A run leaves its whole folder, is taken up where it stopped, and refuses what does not fit before it writes."""

import json
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tiny_task import TinyNet, recipe_values, trained_weights, write_data

import tas
from tas import distillation, recipe
from tas.errors import BadData, BadNetwork, BadRecipe, Infeasible, TasError, Untraceable
from tas.folder import RunFolder, check_owner
from tas.methods.baselines import uniform
from tas.preparation import prepare
from tas.reporting.progress import Display
from tas.runner import run

QUIET = Display(Console(quiet=True))
TOO_FEW = "network={name: tiny_task:TinyNet, shape: [1, 1, 8, 8], kwargs: {classes: 2}}"


def values_of(folder: Path, *overrides: str) -> recipe.Recipe:
    return recipe.parse(recipe_values(folder), overrides)


def read(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with its default baselines, beside its data."""
    folder = tmp_path_factory.mktemp("finished")
    tas.run(values_of(folder), folder / "run", display=QUIET)
    return folder / "run"


def test_a_run_leaves_everything_that_was_promised(finished: Path) -> None:
    for name in ("recipe.yaml", "environment.json", "space.json", "search.jsonl", "candidates.jsonl"):
        assert (finished / name).stat().st_size > 0, name
    assert list((finished / "events").glob("events.out.tfevents.*"))
    assert not (finished / "checkpoints").exists()
    assert (finished / "report.html").read_text().count("<svg") == 3
    environment = read(finished / "environment.json")
    assert environment["torch"] == torch.__version__
    assert environment["seed"] == 0


def test_the_table_compares_student_and_uniform_widths_under_the_budget(finished: Path) -> None:
    metrics, space = read(finished / "metrics.json"), read(finished / "space.json")
    assert list(metrics) == ["original", "student", "uniform"]
    limit = space["budgets"]["60% of MACs"]["macs"]
    assert limit == pytest.approx(0.6 * metrics["original"]["macs"])
    for name in ("student", "uniform"):
        assert metrics[name]["macs"] <= limit
        assert 0 <= metrics[name]["top1"] <= 100
    assert metrics["original"]["top1"] > 60  # chance is 33: it has been trained


def test_the_saved_student_has_the_promised_size_and_metric(finished: Path) -> None:
    student = tas.load(TinyNet, finished / "student")
    row = read(finished / "metrics.json")["student"]
    assert sum(p.numel() for p in student.parameters()) == row["params"]
    known = read(finished / "student" / "student.json")
    assert known["architecture"] == read(finished / "architecture.json")
    assert known["metrics"]["top1"] == row["top1"]
    original = read(finished / "metrics.json")["original"]
    assert known["original"] == {key: original[key] for key in ("top1", "loss", "macs", "params")}
    assert f"| {original['macs']:,} | {original['params']:,} |" in (finished / "student" / "README.md").read_text()


def test_candidates_are_scored_and_one_is_chosen(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "candidates.jsonl").read_text().splitlines()]
    chosen = [row for row in rows if row["chosen"]]
    assert len(chosen) == 1
    assert chosen[0]["architecture"] == read(finished / "architecture.json")
    assert chosen[0]["recalibrated"] == max(row["recalibrated"] for row in rows)
    assert all({"raw", "images", "macs", "params"} <= row.keys() for row in rows)


def test_a_finished_run_is_not_run_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a finished stage was run again")

    for name in ("tas.stages.train", "tas.searching.search", "tas.teaching.distill"):
        monkeypatch.setattr(name, forbidden)
    again = run(values_of(finished.parent), finished, display=QUIET)
    assert again == read(finished / "metrics.json")
    run(values_of(finished.parent), finished, until="search", display=QUIET)
    assert read(finished / "metrics.json") == again  # asking for less takes nothing away


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("place", "spoil"),
    [
        ("student", lambda folder: cut_off(folder / "student.safetensors")),
        ("student", lambda folder: (folder / "student.safetensors").unlink()),
        ("student", lambda folder: cut_off(folder / "student.json")),
        ("baselines/uniform", shutil.rmtree),
    ],
)
def test_a_student_that_cannot_be_read_any_more_is_trained_again(
    finished: Path, tmp_path: Path, place: str, spoil: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, trained = shutil.copytree(finished, tmp_path / "run"), []

    def noted(student: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        trained.append(student)
        return distillation.distill(student, *args, **kwargs)

    monkeypatch.setattr("tas.teaching.distill", noted)
    spoil(folder / place)
    for _ in range(2):  # the second time there is nothing to do
        assert run(values_of(finished.parent), folder, display=QUIET) == read(finished / "metrics.json")
    assert len(trained) == 1
    again, before = (tas.load(TinyNet, each / place).state_dict() for each in (folder, finished))
    assert all(torch.equal(again[name], value) for name, value in before.items())
    (said,) = (each for each in read(folder / "run.json")["warnings"] if "trained again" in each)
    assert str(folder / place) in said


@pytest.mark.parametrize(
    ("lost", "error", "message"),
    [
        ("student/student.json", BadRecipe, "student holds something else: choose another place, or move it away"),
        ("original/student.safetensors", BadNetwork, "rests on this original: restore it"),
        ("architecture.json", BadRecipe, "architecture.json holds what the search found, and is gone: restore it"),
    ],
)
def test_what_is_lost_and_cannot_be_made_again_is_named_before_anything_is_trained(
    finished: Path, tmp_path: Path, lost: str, error: type[TasError], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / lost).unlink()
    monkeypatch.setattr("tas.training.checkpoint.write", None)  # no epoch is trained
    with pytest.raises(error, match=message):
        run(values_of(finished.parent), folder, display=QUIET)


def test_an_evaluation_that_is_interrupted_costs_no_training(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patched:
        interrupt_after(patched, "tas.stages.Run.judged", 1)
        with pytest.raises(KeyboardInterrupt):
            run(values_of(finished.parent), folder, until="original", display=QUIET)
    monkeypatch.setattr("tas.training.checkpoint.write", None)  # no epoch is trained again
    run(values_of(finished.parent), folder, until="original", display=QUIET)


def test_an_interrupted_run_ends_as_one_that_was_not(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, trained, searched = tmp_path / "run", "tas.training.checkpoint.write", "tas.methods.differentiable.save"
    # original, epoch 2; search, epoch 1; student, epochs 1 and 2; uniform, epoch 1
    for name, calls in ((trained, 2), (searched, 1), (trained, 1), (trained, 1), (trained, 1)):
        with monkeypatch.context() as patched:
            interrupt_after(patched, name, calls)
            with pytest.raises(KeyboardInterrupt):
                run(values_of(finished.parent), folder, display=QUIET)
    assert (folder / "student").exists()
    assert not (folder / "baselines").exists()
    assert run(values_of(finished.parent), folder, display=QUIET) == read(finished / "metrics.json")
    assert (folder / "search.jsonl").read_text() == (finished / "search.jsonl").read_text()


def test_another_recipe_may_not_use_the_folder(finished: Path) -> None:
    before = (finished / "recipe.yaml").read_text()
    with pytest.raises(BadRecipe, match=r"belongs to another recipe: distill\.epochs was 2, is 3.*original/student"):
        run(values_of(finished.parent, "distill.epochs=3"), finished, display=QUIET)
    assert (finished / "recipe.yaml").read_text() == before
    run(values_of(finished.parent, "machine.threads=1", "title=other"), finished, display=QUIET)


def test_the_folder_of_a_run_that_failed_before_it_came_to_anything_takes_a_corrected_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    RunFolder(folder, values_of(tmp_path, "seed=9"), "other", "loss", torch.device("cpu"))
    check_owner(folder, values_of(tmp_path))
    begun = RunFolder(folder, values_of(tmp_path), "t", "top1", torch.device("cpu"))
    assert (begun.state["title"], begun.state["metric"]) == ("t", "top1")

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("in the first epoch")

    with monkeypatch.context() as patch:
        patch.setattr("tas.stages.train", fails)
        with pytest.raises(RuntimeError, match="first epoch"):
            run(values_of(tmp_path, "seed=9"), tmp_path / "failed", display=QUIET)
    assert run(values_of(tmp_path), tmp_path / "failed", until="original", display=QUIET).keys() == {"original"}

    begun.stage("original", dict)
    with pytest.raises(BadRecipe, match="belongs to another recipe: seed was 0, is 9"):
        check_owner(folder, values_of(tmp_path, "seed=9"))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(BadRecipe, match="neither empty nor a run folder"):
        run(values_of(tmp_path), tmp_path / "run", display=QUIET)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_rivals_train_on_the_same_batches_and_repeats_on_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def noted(*args: Any, **kwargs: Any) -> Any:
        seeds.append(kwargs["generator"].initial_seed())
        return distillation.distill(*args, **kwargs)

    monkeypatch.setattr("tas.teaching.distill", noted)
    overrides = ("distill.epochs=1", "original.epochs=1", "report.repeats=2", "report.baselines=[uniform, random]")
    metrics = run(adaptive(tmp_path, *overrides), tmp_path / "run", display=QUIET)
    assert seeds == [1, 2] * 3
    assert list(metrics) == ["original", "student", "uniform", "random"]
    assert all(metrics[name]["n"] == 2 and metrics[name]["spread"] >= 0 for name in ("student", "uniform", "random"))
    assert "±" in (tmp_path / "run" / "report.html").read_text()


def adaptive(folder: Path, *overrides: str) -> recipe.Recipe:
    values = recipe_values(folder)
    values["search"] = {"method": "adaptive_bn", "candidates": 2, "images": 32, "calibration_images": 32}
    return recipe.parse(values, overrides)


def interrupt_after(patched: pytest.MonkeyPatch, name: str, calls: int) -> None:
    """Ctrl-C right after the `calls`-th checkpoint has been written."""
    original, count = pkgutil.resolve_name(name), iter(range(1, calls + 1))

    def interrupted(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        if next(count) == calls:
            raise KeyboardInterrupt

    patched.setattr(name, interrupted)


def test_students_of_a_search_network_with_its_own_rules_start_from_scratch(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"set initialize\.weights to scratch"):
        run(values_of(tmp_path, "network.supernet=a:b"), tmp_path / "run", display=QUIET)


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("budget.macs=100M", Infeasible, "must not exceed the original's"),
        ("budget.macs=1", Infeasible, "below the smallest architecture"),
        ("budget.macs=null", Infeasible, "needs at least one limit"),
        ("network.name=tiny_task", BadNetwork, "package.module:attribute"),
        ("network.name=tiny_task:Tinynet", BadNetwork, "no attribute 'Tinynet'"),
        ("network.name=tiny_task:not_a_module", BadNetwork, "gives a dict"),
        ("network.name=tiny_task:Nothing", Untraceable, "no choice is left to search"),
        ("network.name=tiny_task:frozen", BadNetwork, "no parameter of it requires gradients"),
        ("network.shape=[1, 3, 8, 8]", BadNetwork, "refuses an input of shape"),
        ("network.weights=absent.safetensors", BadNetwork, "there is none at"),
        ("network.kwargs.classes=2", BadData, "labels must lie in 0..1"),
        (TOO_FEW, BadData, "labels must lie in 0..1"),
        ("original=null", BadRecipe, "needs network.weights, or a section `original`"),
        ("data.root=absent.npz", BadData, "absent.npz"),
        ("search={method: optuna, warm_start: [absent.json]}", BadRecipe, "cannot read architectures from absent.json"),
        (
            "search={method: optuna, warm_start: [{stem.0: 3}]}",
            BadRecipe,
            "an architecture of search.warm_start must be",
        ),
        ("machine.device=abacus", BadRecipe, "machine.device must be a device of this machine"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tmp_path: Path, override: str, error: type[TasError], message: str
) -> None:
    with pytest.raises(error) as caught:
        run(values_of(tmp_path, override), tmp_path / "run", display=QUIET)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"train_labels": [0] * 192, "test_labels": [0] * 48}, "class"),
        ({"test_labels": [9] * 48}, r"labels of 3 classes must lie in 0\.\.2"),
        ({"train_images": np.empty((0, 8, 8)), "train_labels": []}, "needs at least one example"),
        ({"train_labels": [0] * 191}, "191"),
    ],
)
def test_bad_data_is_refused_before_anything_is_written(tmp_path: Path, replaced: dict[str, Any], message: str) -> None:
    arrays = {name: np.array(value, dtype=np.uint8) for name, value in replaced.items()}
    write_data(tmp_path / "data.npz", **arrays)
    with pytest.raises(BadData, match=message):
        run(values_of(tmp_path), tmp_path / "run", display=QUIET)
    assert not (tmp_path / "run").exists()


def test_a_run_tells_which_part_of_a_network_is_not_trained(tmp_path: Path) -> None:
    recipe = values_of(tmp_path, "network.name=tiny_task:frozen", "network.kwargs={but: head}")
    (said,) = (doubt for doubt in prepare(recipe).doubts if "gradients" in doubt)
    assert said.endswith("parameters of the network require no gradients: they are cut, but never trained.")


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = TinyNet().state_dict()
    del state["head.bias"]
    save_file({**state, "tail.bias": torch.ones(3)}, tmp_path / "w.safetensors")
    with pytest.raises(BadNetwork, match=r"missing head\.bias, unexpected tail\.bias"):
        run(values_of(tmp_path, f"network.weights={tmp_path / 'w.safetensors'}"), tmp_path / "run", display=QUIET)


@pytest.mark.parametrize("begun", [True, False])
def test_a_folder_in_which_another_process_runs_is_refused(tmp_path: Path, begun: bool) -> None:
    asked = recipe.parse(recipe_values(tmp_path))
    if begun:
        run(asked, tmp_path / "run", display=QUIET, until="original")
    else:  # nor is it taken for one that failed
        RunFolder(tmp_path / "run", values_of(tmp_path, "seed=9"), "other", "loss", torch.device("cpu"))
    before = [(tmp_path / "run" / name).read_bytes() for name in ("run.json", "recipe.yaml")]
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "file.truncate(0); file.write('4711'); file.flush(); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run" / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(BadRecipe, match=r"process 4711 does in .*run: wait for it"):
            run(asked, tmp_path / "run", display=QUIET)
        other.kill()  # as the system may do: the folder is free again
        other.wait()
    assert [(tmp_path / "run" / name).read_bytes() for name in ("run.json", "recipe.yaml")] == before
    run(asked, tmp_path / "run", display=QUIET, until="search")


def test_an_original_with_weights_is_not_trained(tmp_path: Path) -> None:
    weights = trained_weights(tmp_path / "w.safetensors")
    metrics = run(values_of(tmp_path, f"network.weights={weights}"), tmp_path / "run", until="original", display=QUIET)
    assert list(metrics) == ["original"]
    assert not (tmp_path / "run" / "original").exists()


def test_an_original_that_knows_the_images_by_heart_is_warned_about(tmp_path: Path) -> None:
    run(values_of(tmp_path, "original.epochs=12", "search.epochs=1"), tmp_path / "run", until="search", display=QUIET)
    (warning,) = read(tmp_path / "run" / "run.json")["warnings"]
    assert "has seen them" in warning
    assert warning in (tmp_path / "run" / "report.html").read_text()


def test_rows_that_learned_nothing_and_a_student_that_is_uniform_are_named(tmp_path: Path) -> None:
    values = values_of(tmp_path, "initialize.weights=scratch", "distill.lr=1e-12", "distill.epochs=1")
    even = uniform(prepare(values).space, prepare(values).budget)
    run(values, tmp_path / "run", architecture=even, display=QUIET)
    warnings = read(tmp_path / "run" / "run.json")["warnings"]
    assert any("'student' classifies" in each and "taught it nothing" in each for each in warnings), warnings
    assert any("the same network" in each for each in warnings), warnings


def test_an_architecture_above_the_budget_is_trained_with_a_warning(tmp_path: Path) -> None:
    values = values_of(tmp_path, "distill.epochs=1")
    run(values, tmp_path / "run", architecture=prepare(values).space.largest(), display=QUIET)
    said = "The architecture does not meet the recipe's budget; uniform widths beside it do."
    assert said in read(tmp_path / "run" / "run.json")["warnings"]


def test_a_student_that_learned_something_is_not(finished: Path) -> None:
    assert not [each for each in read(finished / "run.json")["warnings"] if "taught it nothing" in each]


def test_a_refused_command_leaves_what_a_finished_folder_says_of_its_run(finished: Path) -> None:
    before = (finished / "environment.json").read_text()
    given, space = read(finished / "architecture.json"), read(finished / "space.json")
    choice = space["choices"][0]
    other = {**given, choice["name"]: next(n for n in choice["candidates"] if n != given[choice["name"]])}
    (finished / "environment.json").write_text(before + " ")
    with pytest.raises(BadRecipe, match="another architecture"):
        tas.run(values_of(finished.parent), finished, architecture=other, display=QUIET)
    assert (finished / "environment.json").read_text() == before + " "


def test_a_student_that_draws_random_numbers_is_read_back(tmp_path: Path) -> None:
    metrics = run(values_of(tmp_path, "network.name=tiny_task:Noisy"), tmp_path / "run", display=QUIET)
    assert "student" in metrics


def test_a_student_that_is_not_the_same_when_read_back_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(BadNetwork, match="loaded again: what its forward reads must be in its state dict"):
        run(values_of(tmp_path, "network.name=tiny_task:Unsaved"), tmp_path / "run", display=QUIET)


def test_a_run_whose_record_is_broken_is_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"title": ')
    with pytest.raises(BadRecipe, match=r"run\.json must be JSON.*restore it"):
        RunFolder(tmp_path / "run", values_of(tmp_path), "t", "top1", torch.device("cpu"))
    (tmp_path / "run" / "recipe.yaml").write_text("seed: [")
    with pytest.raises(BadRecipe, match=r"recipe\.yaml, line 1 is not YAML"):
        check_owner(tmp_path / "run", values_of(tmp_path))
