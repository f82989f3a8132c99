"""A recipe with several budgets: one architecture and one student each, the front, and what is said of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_task import recipe_values

import tas
from tas import recipe
from tas.commands import finish
from tas.correlating import correlate
from tas.describing import budgets_of
from tas.errors import BadRecipe
from tas.judging import quick_scores
from tas.planning import _evolving, _scored_images, estimate
from tas.preparation import prepare
from tas.recipe import Differentiable, NetAdapt, Recipe, parse
from tas.recipe.searches import AdaptiveBN
from tas.reporting.progress import Display
from tas.runner import run

QUIET = Display(Console(quiet=True))
BUDGETS = ["60%", "40%", {"macs": "80%", "params": "90%"}]
LABELS = ["60% of MACs", "40% of MACs", "80% of MACs, 90% of parameters"]
SAMPLED = {"method": "adaptive_bn", "candidates": 6, "images": 64, "calibration_images": 64, "rungs": 1}


def values_of(folder: Path, **changed: Any) -> Recipe:
    return parse({**recipe_values(folder), "budget": BUDGETS, **changed})


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module", params=["differentiable", "adaptive_bn"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    chosen = values_of(folder, **({"search": SAMPLED} if request.param == "adaptive_bn" else {}))
    run(chosen, folder / "run", display=QUIET)
    return chosen, folder / "run"


def test_every_budget_has_an_architecture_a_student_and_its_baselines(finished: tuple[Recipe, Path]) -> None:
    chosen, folder = finished
    budgets = prepare(chosen).budgets
    rows = json.loads((folder / "architectures.json").read_text())
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [row["budget"] for row in rows] == list(budgets) == LABELS
    assert list(metrics) == ["original", *(f"{name} at {label}" for label in LABELS for name in ("student", "uniform"))]
    for row, budget in zip(rows, budgets.values(), strict=True):
        for measure, limit in budget.limits:
            assert row[measure] == metrics[f"student at {row['budget']}"][measure] <= limit
            assert metrics[f"uniform at {row['budget']}"][measure] <= limit
    held = json.loads((folder / "students" / "80-of-macs-90-of-parameters" / "student.json").read_text())
    assert held["architecture"] == rows[2]["architecture"]
    assert sorted(path.name for path in (folder / "students").iterdir()) == [
        "40-of-macs",
        "60-of-macs",
        "80-of-macs-90-of-parameters",
    ]
    assert not (folder / "architecture.json").exists()
    assert not (folder / "checkpoints").exists()


def test_budgets_that_chose_one_architecture_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = values_of(tmp_path)
    smallest, largest = (found() for found in (prepare(chosen).space.smallest, prepare(chosen).space.largest))
    for number, architectures in enumerate([(smallest, largest, smallest), (smallest,) * 3]):
        found = dict(zip(LABELS, architectures, strict=True))
        monkeypatch.setattr("tas.runner.searched", lambda *_, found=found: found)
        run(chosen, tmp_path / str(number), until="search", display=QUIET)
        told = json.loads((tmp_path / str(number) / "run.json").read_text())["warnings"]
        (same,) = [each for each in told if "The same architecture" in each]
        assert f"{LABELS[0]} and for {'' if number == 0 else f'{LABELS[1]} and for '}{LABELS[2]}:" in same


def test_candidates_say_what_they_were_chosen_for_and_the_front_is_one(finished: tuple[Recipe, Path]) -> None:
    folder = finished[1]
    rows, chosen = lines(folder / "candidates.jsonl"), json.loads((folder / "architectures.json").read_text())
    assert len({json.dumps(row["architecture"]) for row in rows}) == len(rows)
    for label, each in zip(LABELS, chosen, strict=True):
        (row,) = [row for row in rows if label in row["chosen_for"]]
        assert row["chosen"]
        assert row["architecture"] == each["architecture"]
    assert all(bool(row["chosen_for"]) == row["chosen"] for row in rows)
    best = sorted((row for row in rows if row["front"]), key=lambda row: row["macs"])
    assert best
    for row in rows:  # by definition, from the rows alone
        key = (row["recalibrated"], -row["loss"])
        beaten = any(
            (other["recalibrated"], -other["loss"]) > key and other["macs"] <= row["macs"]
            for other in rows
            if other["images"] == row["images"]
        )
        assert not (row["front"] and beaten)
        if not row["front"]:
            assert beaten or any(other["macs"] <= row["macs"] for other in best)


def test_a_finished_run_of_several_budgets_is_not_run_again(
    finished: tuple[Recipe, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, folder = finished
    monkeypatch.setattr("tas.searching.search", lambda *_, **__: pytest.fail("searched again"))
    monkeypatch.setattr("tas.teaching.distill", lambda *_, **__: pytest.fail("trained again"))
    assert run(chosen, folder, display=QUIET) == json.loads((folder / "metrics.json").read_text())


def test_the_page_and_the_command_show_all_budgets_and_the_front(
    finished: tuple[Recipe, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen, folder = finished
    page = (folder / "report.html").read_text()
    assert "The students keep" in page
    assert "Scores that nothing cheaper reaches" in page
    assert all(f"<th>{label}</th>" in page and f"chosen at {label}" in page for label in LABELS)
    assert page.count('class="student"') == 3
    monkeypatch.setenv("COLUMNS", "200")
    finish(chosen, folder, False)
    shown = capsys.readouterr().out
    assert "Scores that nothing cheaper reaches" in shown
    assert all(f"student at {label}" in shown for label in LABELS)
    finish(chosen, folder, True)
    found = json.loads(capsys.readouterr().out)
    assert found["architectures"] == json.loads((folder / "architectures.json").read_text())
    assert found["front"] == [row for row in lines(folder / "candidates.jsonl") if row["front"]]


def test_the_file_of_architectures_can_be_scored_and_each_budget_is_drawn_for(finished: tuple[Recipe, Path]) -> None:
    chosen, folder = finished
    rows = json.loads((folder / "architectures.json").read_text())
    found = quick_scores(chosen, [row["architecture"] for row in rows], folder)
    assert {json.dumps(row["architecture"]) for row in found["scores"]} == {
        json.dumps(row["architecture"]) for row in rows
    }
    drawn = quick_scores(chosen, 2, folder)["scores"]
    limits = [dict(budget.limits)["macs"] for budget in prepare(chosen).budgets.values()]
    assert 2 < len(drawn) <= 6
    assert all(row["macs"] <= max(limits) for row in drawn)
    assert any(row["macs"] > min(limits) for row in drawn)


def test_the_plan_counts_a_student_a_budget(tmp_path: Path) -> None:
    found = estimate(prepare(values_of(tmp_path)))
    assert [name for name in found["feasibility"] if name.startswith("uniform")] == [f"uniform at {x}" for x in LABELS]
    assert list(found["budgets"]) == LABELS


def test_a_budget_is_a_section_an_amount_or_a_list_of_them(tmp_path: Path) -> None:
    space = prepare(values_of(tmp_path)).space
    section, bare, listed = (values_of(tmp_path, budget=budget) for budget in ({"macs": "50%"}, "50%", [{"macs": 0.5}]))
    assert budgets_of(space, section.budgets) == budgets_of(space, bare.budgets) == budgets_of(space, listed.budgets)
    assert list(budgets_of(space, values_of(tmp_path).budgets)) == LABELS
    assert parse(recipe_values(tmp_path), ["budget=[50%, 30%]"]).budgets[1].macs == 0.3
    (tmp_path / "again.yaml").write_text(recipe.dump(values_of(tmp_path)))
    assert recipe.read(tmp_path / "again.yaml") == values_of(tmp_path)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ([], "budget holds 1 or more, got"),
        (["50%", "0.50"], "differ by 0.1 % of the original at least, two are 50% of MACs"),
        (["50%", "1X"], r"budget\.1\.macs must be a number such as"),
        ([{"mac": 0.5}], r"unknown key 'budget\.0\.mac'; did you mean 'macs'"),
    ],
)
def test_wrong_lists_of_budgets_are_refused(tmp_path: Path, budget: Any, message: str) -> None:
    with pytest.raises(BadRecipe, match=message):
        prepare(values_of(tmp_path, budget=budget))


def test_what_is_made_at_one_budget_refuses_several(tmp_path: Path) -> None:
    chosen = values_of(tmp_path)
    with pytest.raises(BadRecipe, match=r"at one budget.*a folder for it alone"):
        correlate(chosen, tmp_path / "run", 3)
    with pytest.raises(BadRecipe, match="at one budget"):
        tas.run(chosen, tmp_path / "run", architecture=prepare(chosen).space.smallest())
    assert not (tmp_path / "run").exists()


def test_a_plan_counts_the_images_that_candidates_see() -> None:
    """Raw scores are another pass; without batch norm there are none, and nothing is calibrated."""
    numbers = {"images": 100, "calibration_images": 300}

    def images(search: Any, scores: int, evolving: int = 0, adapts: bool = True, train: int = 1000) -> float:
        return _scored_images(search, train, scores, evolving, adapts)

    plain, raw = Differentiable(**numbers), AdaptiveBN(**numbers, rungs=1, raw=True)
    assert images(plain, 2) == 2 * (300 + 100)
    assert images(plain, 2, evolving=5) == 7 * (300 + 100)
    assert images(raw, 2, evolving=5) == 7 * (300 + 2 * 100)
    assert images(raw, 2, evolving=5, adapts=False) == images(plain, 2, evolving=5, adapts=False) == 7 * 100
    assert images(NetAdapt(**numbers), 2) == 2 * (300 + 100)
    assert images(NetAdapt(**numbers), 1, train=400) == 200 + 100  # a half has no more


def test_a_plan_counts_what_evolves_where_something_does(tmp_path: Path) -> None:
    def evolving(budget: Any, **search: Any) -> int:
        return _evolving(prepare(recipe.parse({**recipe_values(tmp_path), "budget": budget, "search": search})))

    assert evolving("50%", method="differentiable", evolve=7, candidates=2) == 7
    assert evolving("50%", method="differentiable", evolve=7, candidates=1) == 0
    assert evolving(["50%", "40%"], method="differentiable", evolve=7, candidates=1) == 7
    assert evolving("50%", method="adaptive_bn", evolve=7, candidates=1) == 7
    assert evolving("50%", method="optuna") == 0
