"""Latency in recipes, runs and on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Shell
from tiny_task import recipe_values

import tas
from tas import recipe
from tas.errors import BadRecipe, Infeasible
from tas.latency import read
from tas.preparation import prepare

QUICK = {"points": 8, "rounds": 3}


def written(folder: Path, **sections: Any) -> Path:
    path = folder / "tiny.yaml"
    values = {**recipe_values(folder), "latency": {**QUICK, "table": str(folder / "table.json")}, **sections}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("search", ["differentiable", "adaptive_bn", "netadapt", "optuna"])
def test_a_run_under_a_latency_budget_ends_below_it_and_is_measured(
    tmp_path: Path, by_size: list[str], search: str
) -> None:
    options: dict[str, Any] = {"images": 32, "calibration_images": 32, "candidates": 3}
    more = {
        "differentiable": {"epochs": 1, "batch": 32, **options},
        "netadapt": {"steps": 1, "batch": 16, "reduction": 0.1, "images": 32, "calibration_images": 32},
    }
    path = written(
        tmp_path,
        budget={"latency": "70%"},
        search={"method": search, **more.get(search, options)},
        distill={"epochs": 1, "batch": 32},
        original={"epochs": 1, "batch": 32},
    )
    metrics = tas.run(path, tmp_path / "run")
    limit = 0.7 * metrics["original"]["latency_ms"]
    assert 0 < metrics["student"]["latency_ms"] <= limit + 1e-3  # shown in four digits
    assert metrics["uniform"]["latency_ms"] <= limit + 1e-3
    assert metrics["student"]["measured_ms"] == pytest.approx(metrics["student"]["latency_ms"], rel=0.02)
    assert metrics["original"]["measured_ms"] > metrics["student"]["measured_ms"]
    table = read(tmp_path / "run" / "latency.json")
    assert table == read(tmp_path / "table.json")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "measured, ms" in page
    timed = len(by_size)
    assert tas.run(path, tmp_path / "run") == metrics  # nothing is measured again
    assert len(by_size) == timed


def test_a_table_of_another_machine_serves_the_search_but_its_networks_are_not_measured_here(
    tmp_path: Path, by_size: list[str]
) -> None:
    path = written(tmp_path, budget={"latency": 0.8}, original={"epochs": 1, "batch": 32})
    prepare(recipe.read(path))
    table = json.loads((tmp_path / "table.json").read_text())
    table["machine"]["device"] = "a phone"
    (tmp_path / "table.json").write_text(json.dumps(table))
    metrics = tas.run(path, tmp_path / "run", until="search")
    assert "measured_ms" not in metrics["original"]
    assert any("a phone" in said for said in json.loads((tmp_path / "run" / "run.json").read_text())["warnings"])


@pytest.mark.parametrize(("spread", "noisy"), [(0.04, False), (0.06, True)])
def test_a_run_warns_of_a_table_that_is_too_noisy(
    tmp_path: Path, by_size: list[str], spread: float, noisy: bool
) -> None:
    path, file = written(tmp_path), tmp_path / "table.json"
    prepare(recipe.read(path))
    table = json.loads(file.read_text())
    for samples in (*table["samples"].values(), *(each["samples"] for each in table["whole"])):
        samples[:] = [samples[1] * factor for factor in (1 - 2 * spread, 1.0, 1 + 2 * spread)]  # quartiles: half way
    file.write_text(json.dumps(table))
    tas.run(path, tmp_path / "run", until="original")
    said = " ".join(json.loads((tmp_path / "run" / "run.json").read_text())["warnings"])
    page = (tmp_path / "run" / "report.html").read_text()
    for place in (said, page):
        assert ("half the distance of its quartiles is 6.0% of the median" in place) == noisy


def test_milliseconds_are_absolute_whatever_the_number(tmp_path: Path, by_size: list[str]) -> None:
    prepared = prepare(recipe.read(written(tmp_path, budget={"latency_ms": 2.0})))
    assert prepared.budget.limits == (("latency_ms", 2.0),)
    assert next(iter(prepared.budgets)).endswith("of latency")
    with pytest.raises(Infeasible, match="smallest architecture's"):
        prepare(recipe.read(written(tmp_path, budget={"latency_ms": 0.5})))


def test_a_section_latency_alone_shows_it_and_limits_nothing(tmp_path: Path, by_size: list[str]) -> None:
    prepared = prepare(recipe.read(written(tmp_path)))
    assert [measure for measure, _ in prepared.budget.limits] == ["macs"]
    assert prepared.latency is not None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("budget={latency: 2.5}", "budget.latency should be less than or equal to 1"),
        ("budget={latency: 150%}", "at most 100% of the original"),
        ("budget={latency_ms: 50%}", "budget.latency_ms should be a valid number"),
        ("budget={latency_ms: 0}", "budget.latency_ms should be greater than 0"),
        ("latency.runtime=tensorrt", "latency.runtime"),
        ("latency.thread=2", "did you mean 'threads'"),
        ("latency.batch=0", "latency.batch is at least 1"),
        ("latency.rounds=1", "at least 2 points and 3 rounds"),
        ("search={method: netadapt, reduction: 2}", "search.reduction lies above 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, override: str, said: str) -> None:
    path = written(tmp_path)
    with pytest.raises(BadRecipe) as caught:
        recipe.read(path, [override])
    assert said in str(caught.value)


def test_the_command_measures_shows_and_checks(shell: Shell, tmp_path: Path, by_size: list[str]) -> None:
    asked = ("latency", "tiny_task:TinyNet", "--shape", "1,1,8,8", "--set", "latency.rounds=3")
    code, out, _ = shell(*asked, "--check", "4")
    assert code == 0
    for expected in ("block.conv1", "between the layers", "eager on cpu, 1 thread, batch 1", "Spearman", "smallest"):
        assert expected in out, expected
    timed = len(by_size)
    (tmp_path / "a.json").write_text(json.dumps({"stem.0": 2, "block.conv1": 8, "block.depth": 1}))
    code, out, _ = shell(*asked, "--architecture", "a.json", "--json")
    found = json.loads(out)
    assert code == 0
    assert len(by_size) == timed  # the table is there
    assert Path(found["table"]).is_file()
    assert found["target"] == {"runtime": "eager", "device": "cpu", "batch": 1, "threads": 1}
    assert sum(row["of_latency"] for row in found["layers"]) == pytest.approx(1)
    assert {"ms_there", "macs_kept", "latency_kept", "idle"} <= found["layers"][0].keys()


def test_the_command_refuses_what_is_wrong(shell: Shell, tmp_path: Path) -> None:
    code, out, err = shell("latency", "tiny_task:TinyNet", "--shape", "1,1,8,8", "--set", "latency.runtime=fast")
    assert (code, out) == (2, "")
    assert "latency.runtime should be 'eager', 'compile' or 'onnxruntime', got 'fast'" in err
    (tmp_path / "a.json").write_text(json.dumps({"stem.0": 3}))
    code, _, err = shell("latency", "tiny_task:TinyNet", "--shape", "1,1,8,8", "--architecture", "a.json")
    assert code == 2
    assert "must be of this recipe's space" in err
    assert not (tmp_path / "runs").exists()
