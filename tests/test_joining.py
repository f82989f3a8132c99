"""Other processes take part in the study of a run, and what they cannot take part in is said with exit code 2."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_task import recipe_values

import tas
from tas.errors import BadRecipe
from tas.joining import join
from tas.recipe import parse

STUDY = {"candidates": 6, "startup": 2, "images": 64, "calibration_images": 64, "measures": ["macs"]}


def begun(folder: Path, search: dict[str, Any], until: Any = "original") -> Path:
    values = {**recipe_values(folder), "search": search, "original": {"epochs": 1, "batch": 32}}
    (folder / "r.yaml").write_text(yaml.safe_dump(values))
    tas.run(parse(values), folder / "run", until=until)
    return folder / "run"


def shell(*arguments: object) -> subprocess.CompletedProcess[str]:
    here = Path(__file__)
    environment = {**os.environ, "PYTHONPATH": f"{here.parent}:{here.parents[1]}"}
    command = [sys.executable, "-m", "tas", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_a_process_that_joins_works_at_the_study_of_the_run(tmp_path: Path) -> None:
    folder = begun(tmp_path, {"method": "optuna", **STUDY})
    done = shell("join", folder, "--json", "--set", "machine.threads=1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["trials"], found["of"]) == (6, 6)
    before = {path.name for path in folder.iterdir()}
    tas.run(tmp_path / "r.yaml", folder, until="search")  # finds the study complete
    assert {path.name for path in folder.iterdir()} >= before
    rows = [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    assert rows[0]["recalibrated"] == found["best"]
    assert join(folder)["trials"] == 0


def test_a_tuned_run_is_joined_too_and_reports_its_hyper_parameters(tmp_path: Path) -> None:
    search = {"method": "tuned", "trials": 2, "epochs": 1, "batch": 32, "candidates": 2, "images": 64}
    folder = begun(tmp_path, {**search, "calibration_images": 64, "ranges": {"architecture_lr": [0.01, 0.1]}})
    assert join(folder)["trials"] == 2
    tas.run(tmp_path / "r.yaml", folder, until="search")
    chosen = json.loads((folder / "hyperparameters.json").read_text())
    assert set(chosen) == {"architecture_lr"}
    course = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]
    assert chosen in [row["hyperparameters"] for row in course]
    page = (folder / "report.html").read_text()
    assert "architecture_lr" in page.partition("Recipe")[0]
    assert f"{chosen['architecture_lr']:.4g}" in page


def test_what_cannot_be_joined_exits_with_2(tmp_path: Path) -> None:
    for words, arguments in (
        ("has no recipe.yaml", (tmp_path / "none",)),
        ("only studies are shared", (begun(tmp_path, {"method": "adaptive_bn", "candidates": 2}),)),
        ("belongs to another recipe", (tmp_path / "run", "--set", "seed=5")),
    ):
        done = shell("join", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_an_original_that_is_not_trained_yet_is_waited_for_by_the_user(tmp_path: Path) -> None:
    folder = begun(tmp_path, {"method": "optuna", **STUDY})
    (folder / "original").rename(folder / "elsewhere")
    with pytest.raises(BadRecipe, match="trained original"):
        join(folder)


def test_bad_studies_in_recipes_exit_with_2_and_write_no_search(tmp_path: Path) -> None:
    folder = begun(tmp_path, {"method": "optuna", **STUDY}, until="search")
    recipe, out = tmp_path / "r.yaml", tmp_path / "other"
    journal = f"journal:{folder / 'checkpoints' / 'search.journal'}"
    for words, changes in (
        ("did you mean 'nsga2'", ["search.sampler=nsga"]),
        ("did you mean 'tuned'", ["search.method=tune"]),
        ("unknown key 'search.candidate' of method optuna; did you mean 'candidates'", ["search.candidate=3"]),
        ("must be reachable", ["search.storage=postgresql://127.0.0.1:1/none"]),
        ("must be reachable", ["search.storage=journal:/proc/tas.journal"]),
        ("['budget'] differ", [f"search.storage={journal}", "budget.macs=50%"]),
        ("'space'", [f"search.storage={journal}", "space.ratios=[0.5, 1.0]"]),
    ):
        done = shell("search", recipe, "--out", out, *(part for each in changes for part in ("--set", each)))
        assert done.returncode == 2, (changes, done.stderr)
        assert words in done.stderr
        assert "Traceback" not in done.stderr
        assert not (out / "architecture.json").exists()
        assert not (out / "original").exists() or "postgresql" not in changes[0]  # servers are tried before anything
        if out.exists():
            subprocess.run(["rm", "-r", str(out)], check=True)
