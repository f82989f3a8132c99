"""The best candidates of a search are trained shortly, and the best of them is chosen."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from test_teaching import values_of
from tiny_task import recipe_values
from torch import nn

from tas import choosing, recipe, teaching
from tas.comparing import compare
from tas.errors import BadRecipe
from tas.methods.standing import meets
from tas.planning import estimate
from tas.preparation import prepare
from tas.reporting.progress import Display
from tas.reporting.tables import score_rows
from tas.runner import run
from tas.scoring import search_splits
from tas.space import Architecture
from tas.teaching import best_of

QUIET = Display(Console(quiet=True))
SIX = ("search.candidates=6", "search.aim=reject", "budget.slack=0.5", "choose.finalists=3")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "candidates.jsonl").read_text().splitlines()]


def architecture(folder: Path) -> Architecture:
    return Architecture.of(json.loads((folder / "architecture.json").read_text()))


def promised(monkeypatch: pytest.MonkeyPatch, metrics: list[float], module: Any = choosing) -> list[Architecture]:
    """Trainings of finalists do nothing, and the n-th of them reaches the n-th metric; whom they were asked for."""
    asked: list[Architecture] = []

    def untrained(current: Any, stage: str, architecture: Any, *_: Any, **__: Any) -> dict[str, float]:
        asked.append(Architecture.of(architecture))
        return {"top1": metrics[len(asked) - 1], "loss": 1.0}

    monkeypatch.setattr(module, "briefly", untrained)
    return asked


def test_what_reaches_most_after_the_training_is_chosen_over_the_better_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = promised(monkeypatch, [50.0, 70.0, 60.0])
    run(values_of(tmp_path, *SIX), tmp_path / "run", until="search", display=QUIET)
    found = lines(tmp_path / "run")
    ahead = [Architecture.of(line["architecture"]) for line in found]
    assert asked == ahead[:3]
    assert architecture(tmp_path / "run") == ahead[1]
    assert [line["reached"] for line in found] == [50.0, 70.0, 60.0] + [None] * (len(found) - 3)
    assert [line["chosen"] for line in found] == [place == 1 for place in range(len(found))]
    header, rows = score_rows(found, "top1")
    assert [row[header.index("top1, trained shortly")] for row in rows[:4]] == ["50.00", "70.00", "60.00", "–"]


def test_equal_metrics_are_told_apart_by_the_loss_and_numbers_come_before_what_is_none() -> None:
    class Error:
        name, higher_is_better = "error", False

    rows = [{"error": None, "loss": 0.1}, {"error": 0.2, "loss": 3.0}, {"error": 0.2, "loss": 2.0}]
    assert best_of([*rows, {"error": 0.3, "loss": 1.0}, {"error": 0.1, "loss": math.nan}], Error) == rows[2]


def test_finalists_train_on_the_weights_half_and_are_judged_on_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, judged = [], []
    taught, evaluate = teaching.taught, teaching.evaluate

    def noting(*args: Any, data: Any = None, how: Any = None, **rest: Any) -> nn.Module:
        if data is not None:
            trained.append((data, how.epochs))
        return taught(*args, data=data, how=how, **rest)

    monkeypatch.setattr(teaching, "taught", noting)
    monkeypatch.setattr(teaching, "evaluate", lambda net, on, *a, **k: judged.append(on) or evaluate(net, on, *a, **k))
    asked = values_of(tmp_path, *SIX, "choose.epochs=2")
    run(asked, tmp_path / "run", until="search", display=QUIET)
    weights, held_out = search_splits(prepare(asked).data, asked.seed)
    assert [epochs for _, epochs in trained] == [2, 2, 2]
    for data, _ in trained:
        assert data.train.source.inputs.equal(weights.source.inputs)
        assert data.val is None
        assert data.test is None
    assert len(judged) == 3
    for split in judged:
        assert len(split) == len(held_out)
        assert torch.sort(split.source.targets).values.equal(torch.sort(held_out.source.targets).values)
    stages = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]
    assert stages["finalist 1 of 3"]["trained_on"] == len(weights) == 96


def test_an_interruption_keeps_the_finalists_that_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = values_of(tmp_path, *SIX)
    run(whole, tmp_path / "whole", until="search", display=QUIET)
    briefly, begun = choosing.briefly, []

    def stopping(current: Any, stage: str, *args: Any, **kwargs: Any) -> dict[str, float]:
        begun.append(stage)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return briefly(current, stage, *args, **kwargs)

    monkeypatch.setattr(choosing, "briefly", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(whole, tmp_path / "parts", until="search", display=QUIET)
    run(whole, tmp_path / "parts", until="search", display=QUIET)
    assert begun == [f"finalist {n} of 3" for n in (1, 2, 2, 3)]
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert architecture(tmp_path / "parts") == architecture(tmp_path / "whole")


def test_what_diverges_is_named_and_never_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = promised(monkeypatch, [math.nan, 20.0, 10.0])
    run(values_of(tmp_path, *SIX), tmp_path / "run", until="search", display=QUIET)
    assert architecture(tmp_path / "run") == asked[1]
    assert any("1 of 3 finalists diverged" in said for said in warnings_of(tmp_path / "run"))
    promised(monkeypatch, [math.nan] * 3)
    run(values_of(tmp_path, *SIX), tmp_path / "all", until="search", display=QUIET)
    assert architecture(tmp_path / "all") == asked[0]
    assert any("3 of 3 finalists diverged" in said for said in warnings_of(tmp_path / "all"))


def warnings_of(folder: Path) -> list[str]:
    return json.loads((folder / "run.json").read_text())["warnings"]


@pytest.mark.parametrize("number", [0, 1])
def test_fewer_than_two_finalists_are_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    asked = promised(monkeypatch, [])
    run(values_of(tmp_path, *SIX[:-1], f"choose.finalists={number}"), tmp_path / "run", until="search", display=QUIET)
    found = lines(tmp_path / "run")
    assert not asked
    assert "reached" not in found[0]
    assert architecture(tmp_path / "run") == Architecture.of(found[0]["architecture"])


def test_every_budget_chooses_among_finalists_that_meet_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = promised(monkeypatch, [*map(float, range(100))])
    budgets = recipe.parse({**values_of(tmp_path, *SIX).model_dump(mode="json"), "budget": ["60%", "40%"]})
    run(budgets, tmp_path / "run", until="search", display=QUIET)
    prepared, found = prepare(budgets), lines(tmp_path / "run")
    rows = json.loads((tmp_path / "run" / "architectures.json").read_text())
    assert len(set(asked)) == len(asked)
    for row, (label, budget) in zip(rows, prepared.budgets.items(), strict=True):
        mine = [line for line in found if meets(prepared.space, budget, Architecture.of(line["architecture"]))][:3]
        best = max(mine, key=lambda line: line["reached"])
        assert best["architecture"] == row["architecture"]
        assert label in best["chosen_for"]


def test_a_comparison_lets_its_searches_choose_likewise_and_trains_no_finalist_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {**recipe_values(tmp_path), "choose": {"finalists": 3}, "distill": {"epochs": 1, "batch": 64}}
    values["search"] = {"method": "adaptive_bn", "candidates": 6, "images": 64, "calibration_images": 64}
    again = {**values["search"], "candidates": 7}
    values["compare"] = {"methods": [values["search"], again], "seeds": [0], "latency_repeats": 2}
    asked = promised(monkeypatch, [50.0, 70.0, 60.0, *[10.0] * 9])
    found = compare(recipe.parse(values), tmp_path / "run")
    first = [cell for cell in found["cells"] if cell["row"] == "adaptive_bn"]
    assert [Architecture.of(cell["architecture"]) for cell in first] == [asked[1]]
    assert len(set(asked)) == len(asked)
    before = len(asked)
    compare(recipe.parse(values), tmp_path / "run")
    assert len(asked) == before


def test_a_plan_counts_them(tmp_path: Path) -> None:
    def choose(*asked: str) -> float:
        return estimate(prepare(values_of(tmp_path, *asked)))["seconds"].get("choose", 0.0)

    assert choose(*SIX, "choose.finalists=0") == 0
    assert choose(*SIX) > 0
    alone = ("search.candidates=1", "search.evolve=0", "choose.finalists=4")
    assert choose(*alone) == 0
    assert choose(*alone, "search.evolve=5") > 0  # those that evolve are finalists too


def test_bad_numbers_are_refused(tmp_path: Path) -> None:
    for bad in ("finalists=-1", "epochs=0", "finalist=2"):
        with pytest.raises(BadRecipe, match="choose"):
            values_of(tmp_path, f"choose.{bad}")


def test_an_answer_that_was_not_scored_is_a_finalist_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one candidate of a first budget is taken unseen; those of smaller budgets meet it as well."""
    asked = promised(monkeypatch, [90.0, *[10.0] * 20])
    values = {**recipe_values(tmp_path), "budget": ["80%", "50%"], "choose": {"finalists": 2}}
    values["search"] |= {"candidates": 1}
    run(recipe.parse(values), tmp_path / "run", until="search", display=QUIET)
    rows = json.loads((tmp_path / "run" / "architectures.json").read_text())
    assert len(asked) == 2
    assert rows[0]["architecture"] == dict(asked[0])
    assert rows[0]["macs"] > rows[1]["macs"]


def test_once_a_student_is_trained_nothing_is_decided_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(values_of(tmp_path, *SIX[:-1], "choose.finalists=0"), tmp_path / "run", display=QUIET)
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    (tmp_path / "run" / "recipe.yaml").write_text(text.replace("finalists: 0", "finalists: 3"))  # as by another version
    before = architecture(tmp_path / "run"), lines(tmp_path / "run")
    asked = promised(monkeypatch, [])
    run(values_of(tmp_path, *SIX), tmp_path / "run", display=QUIET)
    assert not asked
    assert (architecture(tmp_path / "run"), lines(tmp_path / "run")) == before


def test_a_repeated_search_decides_the_same_without_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = promised(monkeypatch, [50.0, 60.0, 70.0])
    for _ in range(2):
        run(values_of(tmp_path, *SIX), tmp_path / "run", until="search", display=QUIET)
        assert architecture(tmp_path / "run") == asked[2]
    assert len(asked) == 3
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_students_from_fresh_weights_have_no_finalists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = promised(monkeypatch, [])
    fresh = values_of(tmp_path, *SIX, "initialize.weights=scratch")
    run(fresh, tmp_path / "run", until="search", display=QUIET)
    assert not asked
    assert "choose" not in estimate(prepare(fresh))["seconds"]
