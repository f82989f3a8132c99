"""Every command: help, tables for people, one JSON object for machines, and one clear line with exit code 2."""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml
from conftest import Shell
from tiny_task import TinyNet, recipe_values

import tas
from tas import cli

COMMANDS = [
    "init",
    "space",
    "latency",
    "run",
    "search",
    "distill",
    "synthesize",
    "score",
    "compare",
    "join",
    "evaluate",
    "export",
    "report",
]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, and `run`, which it was run in."""
    folder = tmp_path_factory.mktemp("task")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe_values(folder)))
    tas.run(folder / "tiny.yaml", folder / "run")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_json(shell: Shell, command: str) -> None:
    code, out, _ = shell(command, "--help")
    assert code == 0
    assert "--json" in out
    assert "Usage" in out


def test_the_commands_are_these(shell: Shell) -> None:
    assert sorted(COMMANDS) == sorted(
        command.callback.__name__ for command in cli.app.registered_commands if command.callback
    )


def test_space_shows_choices_kept_sizes_and_feasibility(shell: Shell) -> None:
    code, out, _ = shell("space", "tiny_task:TinyNet", "--shape", "1,1,8,8")
    assert code == 0
    for expected in ("stem.0", "block.conv1", "depth", "it is an output of the network", "smallest", "largest"):
        assert expected in out, expected


def test_space_json_is_one_object_that_agrees_with_the_library(shell: Shell, tmp_path: Path) -> None:
    code, out, err = shell("space", "tiny_task:TinyNet", "--shape", "1,1,8,8", "--json", "--out", "space.json")
    import torch

    space = tas.trace(TinyNet(), torch.zeros(2, 1, 8, 8)).space
    described = json.loads(out)
    assert (code, err) == (0, "")
    assert [choice["name"] for choice in described["choices"]] == [choice.name for choice in space.choices]
    assert described["feasibility"]["largest"]["macs"] == tas.macs(space, space.largest())
    assert json.loads((tmp_path / "space.json").read_text()) == described


def test_space_of_a_recipe_takes_its_rules_and_budget(shell: Shell, task: Path) -> None:
    code, out, _ = shell("space", task / "tiny.yaml", "--set", "space.depth=false", "--json")
    described = json.loads(out)
    assert code == 0
    assert {choice["kind"] for choice in described["choices"]} == {"width"}
    assert described["budgets"]["60% of MACs"]["macs"] == pytest.approx(
        0.6 * described["feasibility"]["largest"]["macs"]
    )


def test_init_writes_a_recipe_once(shell: Shell, tmp_path: Path) -> None:
    code, out, _ = shell("init", "tiny_task:TinyNet", "--shape", "1,1,8,8", "--out", "mine.yaml")
    assert code == 0
    assert "mine.yaml" in out
    text = (tmp_path / "mine.yaml").read_text()
    assert yaml.safe_load(text)["network"] == {"name": "tiny_task:TinyNet", "shape": [1, 1, 8, 8]}
    code, _, err = shell("init", "tiny_task:TinyNet", "--shape", "1,1,8,8", "--out", "mine.yaml")
    assert code == 2
    assert "is there already" in err
    assert (tmp_path / "mine.yaml").read_text() == text


def test_plan_estimates_and_writes_nothing(shell: Shell, task: Path, tmp_path: Path) -> None:
    code, out, _ = shell("run", task / "tiny.yaml", "--plan", "--json")
    found = json.loads(out)
    assert code == 0
    assert list(found["seconds"]) == ["original", "search", "distill", "together"]
    assert found["seconds"]["together"] == pytest.approx(sum(found["seconds"].values()) / 2)
    assert found["megabytes"] > 0
    assert list(found["feasibility"]) == ["smallest", "smallest, with all blocks", "uniform", "largest"]
    assert not list(tmp_path.iterdir())


def test_run_shows_the_table_and_the_paths(shell: Shell, task: Path) -> None:
    code, out, _ = shell("run", task / "tiny.yaml", "--out", task / "run")
    assert code == 0
    for expected in ("original", "student", "uniform", "top1", "100.0%", "report.html"):
        assert expected in out, expected


def test_run_json_is_the_table(shell: Shell, task: Path) -> None:
    code, out, _ = shell("run", task / "tiny.yaml", "--out", task / "run", "--json")
    metrics = json.loads((task / "run" / "metrics.json").read_text())
    assert code == 0
    architecture = json.loads((task / "run" / "architecture.json").read_text())
    assert json.loads(out) == {**metrics, "architecture": architecture, "folder": str(task / "run")}


def test_search_then_distill_go_on_in_the_same_folder(shell: Shell, task: Path, tmp_path: Path) -> None:
    code, out, _ = shell("search", task / "tiny.yaml", "--set", "distill.epochs=1")
    folder = tmp_path / "runs" / "tiny"
    assert code == 0
    assert "block.conv1" in out
    assert (folder / "architecture.json").is_file()
    assert not (folder / "student").exists()
    assert shell("distill", task / "tiny.yaml", "--set", "distill.epochs=1")[0] == 0
    assert (folder / "student").is_dir()


def test_distill_takes_a_given_architecture(shell: Shell, task: Path, tmp_path: Path) -> None:
    space = json.loads((task / "run" / "space.json").read_text())
    given = {choice["name"]: choice["candidates"][-1] for choice in space["choices"]}
    (tmp_path / "given.json").write_text(json.dumps(given))
    code, out, _ = shell("distill", task / "tiny.yaml", "--architecture", "given.json", "--out", "run", "--json")
    assert code == 0
    row = json.loads(out)
    assert row["student"]["macs"] == row["original"]["macs"]
    code, _, err = shell(
        "distill", task / "tiny.yaml", "--architecture", task / "run" / "architecture.json", "--out", "run"
    )
    assert code == 2
    assert "another architecture" in err


def test_score_repeats_the_scores_of_the_run(shell: Shell, task: Path) -> None:
    arguments = ("--architectures", task / "run" / "candidates.jsonl", "--out", task / "run", "--json")
    code, out, _ = shell("score", task / "tiny.yaml", *arguments)
    found = json.loads(out)
    known = [json.loads(line) for line in (task / "run" / "candidates.jsonl").read_text().splitlines()]
    assert code == 0
    assert found["metric"] == "top1"
    for mine, theirs in zip(found["scores"], known, strict=True):
        for name in ("architecture", "recalibrated", "loss", "images", "macs"):
            assert mine[name] == theirs[name], name
    assert not any(row["chosen"] for row in found["scores"])  # that was the run's part


def test_score_draws_by_rates_or_from_what_a_run_learned(shell: Shell, task: Path) -> None:
    limits = json.loads((task / "run" / "space.json").read_text())["budgets"]["60% of MACs"]
    for source in (("--sample", 2, "--out", task / "run"), ("--sample", 2, "--from", task / "run")):
        code, out, _ = shell("score", task / "tiny.yaml", *source, "--json")
        found = json.loads(out)
        assert code == 0
        assert found["weights"] == "original"
        assert len(found["scores"]) == 2
        assert all(row["macs"] <= limits["macs"] for row in found["scores"])
    code, out, _ = shell("score", task / "tiny.yaml", "--sample", 1, "--from", task / "run")
    assert code == 0
    assert "Scored with the original's weights" in out


@pytest.mark.parametrize(
    ("given", "count"),
    [(["--correlate"], 24), (["--correlate", "--epochs", "2"], 24), (["--correlate", "5"], 5), (["--correlate=7"], 7)],
)
def test_correlate_without_a_number_means_24(
    shell: Shell, task: Path, monkeypatch: pytest.MonkeyPatch, given: list[str], count: int
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("tas.commands.correlate", lambda recipe, folder, count, *rest: asked.append(count))
    assert shell("score", task / "tiny.yaml", *given)[0] == 0
    assert asked[0] == count
    assert shell("score", task / "tiny.yaml", "--correlate", "2")[0] == 2
    assert shell("space", "--correlate")[0] == 2


def test_score_correlates_in_the_folder_of_the_run(shell: Shell, task: Path) -> None:
    code, out, _ = shell("score", task / "tiny.yaml", "--correlate", 3, "--out", task / "run")
    assert code == 0
    for expected in ("Kendall", "recalibrated", "raw", "1 epoch on", "the original's weights", "correlation.svg"):
        assert expected in out, expected
    assert json.loads((task / "run" / "run.json").read_text())["stages"]["original"]["done"]


def test_compare_shows_a_table_a_budget_and_the_paths(shell: Shell, task: Path) -> None:
    arguments = ("compare", task / "tiny.yaml", "--out", task / "run", "--set", "compare.methods=[adaptive_bn]")
    arguments += ("--set", "compare.seeds=[0]", "--set", "compare.latency_repeats=2")
    code, out, _ = shell(*arguments)
    assert code == 0
    for expected in ("60% of MACs", "magnitude", "scratch-B", "ms, batch 32", "comparison.html"):
        assert expected in out, expected
    code, out, _ = shell(*arguments, "--json")
    found = json.loads(out)
    assert code == 0
    assert [row["row"] for row in found["rows"]][:2] == ["adaptive_bn", "uniform"]
    assert found["folder"] == str(task / "run")
    page = task / "run" / "compare" / "comparison.html"
    assert 'href="compare/comparison.html"' in (task / "run" / "report.html").read_text()
    page.unlink()
    code, out, _ = shell("report", task / "run")
    assert (code, out.split()) == (0, [str(task / "run" / "report.html"), str(page)])
    assert page.is_file()
    assert json.loads(shell("report", task / "run", "--json")[1])["comparison"] == str(page)
    code, out, _ = shell(*arguments, "--forgetting")
    assert code == 0
    for expected in ("What did pruning forget?", "exemplars need 5 networks", "forgetting.json", "One seed"):
        assert expected in out, expected


def test_evaluate_repeats_what_the_run_measured(shell: Shell, task: Path) -> None:
    metrics = json.loads((task / "run" / "metrics.json").read_text())
    for name, folder in (("student", "student"), ("original", "original"), ("uniform", "baselines/uniform")):
        code, out, _ = shell("evaluate", task / "run" / folder, "--json")
        found = json.loads(out)
        assert code == 0
        assert found["top1"] == metrics[name]["top1"]
        assert found["params"] == metrics[name]["params"]
        assert found["images"] == 48


def test_evaluate_a_network_by_import_path(shell: Shell, task: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    original = tas.load(TinyNet, task / "run" / "original")
    save_file(original.state_dict(), tmp_path / "w.safetensors")
    where = ("--data", "npz", "--root", task / "data.npz", "--weights", "w.safetensors")
    code, out, _ = shell("evaluate", "tiny_task:TinyNet", *where, "--split", "train", "--json", "--out", "found.json")
    assert code == 0
    assert json.loads(out)["images"] == 192
    assert json.loads((tmp_path / "found.json").read_text()) == json.loads(out)


def test_export_writes_into_the_students_folder_and_its_card(shell: Shell, task: Path) -> None:
    code, out, _ = shell("export", task / "run" / "student", "--format", "torch", "--fold", "--images", "6", "--json")
    found = json.loads(out)
    path = task / "run" / "student" / "student.pt2"
    assert code == 0
    assert found["path"] == str(path)
    assert found["bytes"] == path.stat().st_size
    assert found["images"] == 6
    assert found["largest_difference"] <= found["allowed"]
    card = (task / "run" / "student" / "README.md").read_text()
    assert "| student.pt2 | torch |" in card
    assert "| `recipe_digest` |" in card
    assert "| original |" in card


def test_an_export_that_disagrees_exits_with_1(shell: Shell, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> None:
        raise tas.exporting.Mismatch("outputs differ by 3")

    monkeypatch.setattr("tas.judging.export", wrong)
    code, out, err = shell("export", task / "run" / "student", "--out", "a.onnx")
    assert (code, out) == (1, "")
    assert err == "error: outputs differ by 3\n"


def test_report_is_written_again(shell: Shell, task: Path) -> None:
    (task / "run" / "report.html").unlink()
    code, out, _ = shell("report", task / "run")
    assert code == 0
    assert out.split()[0] == str(task / "run" / "report.html")
    assert (task / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "absent.yaml"), "cannot read the recipe absent.yaml"),
        (("run", "{task}/tiny.yaml", "--set", "serch.epochs=1"), "did you mean 'search'?"),
        (("run", "{task}/tiny.yaml", "--set", "budget.macs=1X"), "must be a number such as"),
        (("run", "{task}/tiny.yaml", "--set", "budget.macs=1G"), "must not exceed the original's"),
        (("run", "{task}/tiny.yaml", "--plan", "--set", "budget.macs=1"), "below the smallest"),
        (("space", "tiny_task:TinyNet"), "give --shape"),
        (("latency", "tiny_task:TinyNet"), "give --shape"),
        (("space", "tiny_task:TinyNet", "--shape", "1,x"), "--shape takes sizes"),
        (("run", "tiny_task:TinyNet"), "a recipe is a file that ends in .yaml"),
        (("run", "tiny_task.py", "--plan"), "a recipe is a file that ends in .yaml"),
        (("score", "{task}", "--sample", "2"), "a recipe is a file that ends in .yaml"),
        (("run", "{task}/tiny.yaml", "--out", "{task}/tiny.yaml/run"), "recipe.yaml cannot be written"),
        (("init", "tiny_task:TinyNet", "--shape", "1,1,8,8", "--out", "{task}/tiny.yaml/a.yaml"), "cannot be written"),
        (("evaluate", "tiny_task:TinyNet", "--weights", "{task}/run/original/student.safetensors"), "name some with"),
        (("space", "tiny_task:TinyNet", "--shape", "1,3,8,8"), "refuses an input of shape"),
        (("space", "tiny_task:Nothing", "--shape", "1,1,8,8"), "no choice is left to search"),
        (("space", "tiny_task:not_a_module", "--shape", "1,1,8,8"), "gives a dict"),
        (("init", "tiny_task:TinyNet"), "the shape of an input is needed: give --shape"),
        (("init", "tiny_task:TinyNet", "--shape", "a=1,1,8,8", "--shape", "1,5"), "inputs have names, all of them"),
        (("init", "tiny_task:TinyNet", "--shape", "1,64:int64:0-9"), "refuses an input of shape [1, 64] int64"),
        (("init", "absent:net", "--shape", "1,1,8,8"), "cannot import 'absent'"),
        (("evaluate", "tiny_task:TinyNet"), "names no weights"),
        (("evaluate", "{task}"), "must be a student folder"),
        (("evaluate", "{task}/run/student", "--split", "exam"), "exam"),
        (("evaluate", "{task}/run/student", "--weights", "other.safetensors"), "--weights is for networks without"),
        (("score", "{task}/tiny.yaml", "--architectures", "absent.json"), "cannot read architectures"),
        (("score", "{task}/tiny.yaml", "--architectures", "{task}/run/metrics.json"), "must map names of choices"),
        (("score", "{task}/tiny.yaml", "--architectures", "{task}/run/architecture.json"), "need a trained original"),
        (("score", "{task}/tiny.yaml"), "name what is to be scored"),
        (("score", "{task}/tiny.yaml", "--architectures", "x.json", "--sample", "2"), "or are drawn"),
        (("score", "{task}/tiny.yaml", "--architectures", "x.json", "--correlate", "3"), "leave out --architectures"),
        (("score", "{task}/tiny.yaml", "--from", "{task}"), "keeps no distribution.json"),
        (("compare", "{task}/tiny.yaml", "--set", "compare.seeds=[1, 1]"), "must be distinct"),
        (
            ("distill", "{task}/tiny.yaml", "--architecture", "{task}/wrong.json"),
            "names every choice of its space once; missing",
        ),
        (("export", "{task}"), "must be a student folder"),
        (("export", "tiny_task:TinyNet"), "name the file with --out"),
        (("export", "tiny_task:TinyNet", "--out", "a.onnx"), "names no weights"),
        (("export", "{task}/run/student", "--format", "tflite"), "onnx or torch"),
        (("report", "{task}"), "has no run.json"),
    ],
)
def test_wrong_input_takes_one_line_and_exit_code_2(
    shell: Shell, task: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    (task / "wrong.json").write_text('{"stem.0": 3}')
    code, out, err = shell(*(argument.format(task=task) for argument in arguments))
    assert code == 2
    assert message in err
    assert out == ""
    assert len(err.splitlines()) <= 2
    assert not list(tmp_path.iterdir())


def test_unknown_options_and_commands_exit_with_2(shell: Shell) -> None:
    assert shell("run", "x.yaml", "--budget", "1")[0] == 2
    assert shell("prune")[0] == 2


@pytest.mark.parametrize("command", ["export", "evaluate"])
def test_a_run_folder_in_place_of_a_student_names_the_networks_in_it(shell: Shell, task: Path, command: str) -> None:
    run = task / "run"
    code, out, err = shell(command, run)
    assert (code, out) == (2, "")
    assert f"{run} is a run: name one in it, {run / 'student'}, {run / 'original'}, {run / 'baselines/uniform'}" in err
    assert not list(run.glob("*.onnx"))


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "tas", "report", "/nowhere"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: a report is made of a run folder")


def interrupted(*_: object, checkpoint: Path | None = None, **__: object) -> None:
    if checkpoint is not None:  # an epoch was finished
        checkpoint.touch()
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("tas.runner.prepare", "interrupted before anything was written to mine; the same command begins anew"),
        ("tas.runner.original", "interrupted; mine keeps no stage yet: the same command goes on there"),
        ("tas.runner.searched", "interrupted; mine keeps original: the same command goes on there"),
        ("tas.teaching.distill", "interrupted; mine keeps original, search, the finished part of what was under way: "),
    ],
)
def test_ctrl_c_exits_with_130_and_says_what_is_kept_and_how_to_go_on(
    shell: Shell, task: Path, monkeypatch: pytest.MonkeyPatch, place: str, told: str
) -> None:
    monkeypatch.setattr(place, interrupted)
    code, out, err = shell("run", task / "tiny.yaml", "--out", "mine")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith(told)
    assert (Path("mine") / "run.json").exists() == ("before" not in told)


def test_ctrl_c_where_nothing_is_kept_is_one_line(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tas.parts.source_of", interrupted)
    code, out, err = shell("space", "tiny_task:TinyNet", "--shape", "1,1,8,8")
    assert (code, out, err) == (130, "", "interrupted before anything new was kept: run the same command again\n")


def test_ctrl_c_in_a_latency_table_names_the_file_that_keeps_it(
    shell: Shell, by_size: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[int] = []

    def twice(*_: object) -> None:
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("tas.reporting.progress.Display.bar", lambda *_: nullcontext(twice))
    told = ("latency", "tiny_task:TinyNet", "--shape", "2,1,8,8", "--set", "latency={table: t.json, rounds: 3}")
    code, out, err = shell(*told)
    assert (code, out) == (130, "")
    assert err == "interrupted; t.json keeps the finished rounds: the same command goes on with them\n"
    assert shell(*told)[0] == 0


def test_a_failed_run_exits_with_1(shell: Shell, task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("tas.runner.run", failing)
    with pytest.raises(RuntimeError):  # Python prints the traceback and exits with 1
        shell("run", task / "tiny.yaml")
