"""`tas score --correlate`: what is trained on which images, that it goes on where it stopped, and what it says."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import recipe_values
from toys import data as toy_data

import tas
from tas import correlating, teaching
from tas.correlating import correlate, depth
from tas.data import Data, InMemory, Split
from tas.errors import BadRecipe
from tas.judging import drawn
from tas.preparation import prepare
from tas.recipe import Distillation, Recipe, parse
from tas.scoring import judge, search_splits, unseen
from tas.teaching import in_epochs

COUNT = 11


def recipe_in(folder: Path, **changed: Any) -> Recipe:
    """Many architectures of both depths lie in this band."""
    return parse({**recipe_values(folder), "budget": {"macs": "80%", "slack": 0.79}, **changed})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("correlated")
    recipe = recipe_in(folder)
    return recipe, folder / "run", correlate(recipe, folder / "run", COUNT)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / correlating.LINES).read_text().splitlines()]


def trainings(monkeypatch: pytest.MonkeyPatch, stop_before: int | None = None) -> list[dict[str, int]]:
    """The architectures that are trained from now on; Ctrl-C before training number `stop_before`."""
    seen: list[dict[str, int]] = []
    briefly = correlating.briefly

    def noting(current: Any, stage: str, architecture: Any, *rest: Any, **options: Any) -> Any:
        if stop_before == len(seen):
            raise KeyboardInterrupt
        seen.append(dict(architecture))
        return briefly(current, stage, architecture, *rest, **options)

    monkeypatch.setattr(correlating, "briefly", noting)
    return seen


def test_every_candidate_is_scored_twice_trained_and_kept(done: tuple[Recipe, Path, dict[str, Any]]) -> None:
    recipe, folder, found = done
    prepared = prepare(recipe)
    rows = lines(folder)
    assert len({json.dumps(row["architecture"]) for row in rows}) == COUNT
    for row in rows:
        assert row["macs"] == tas.macs(prepared.space, row["architecture"]) <= prepared.budget.limits[0][1]
        assert row["depth"] == depth(prepared.space, row["architecture"])
        assert {row[key] for key in ("epochs", "images", "reached_images")} == {1, 64, 96}
    assert {row["raw"] for row in rows} != {row["recalibrated"] for row in rows}
    assert len({row["depth"] for row in rows}) == 2
    reached = [row["reached"] for row in found["candidates"]]
    assert reached == sorted(reached, reverse=True)
    assert json.loads((folder / correlating.RESULT).read_text()) == found


def test_coefficients_are_of_all_and_within_and_across_depths(done: tuple[Recipe, Path, dict[str, Any]]) -> None:
    found = done[2]
    for name in ("recalibrated", "raw"):
        parts = found["correlations"][name]
        assert list(parts) == ["all", "within", "across"]
        assert all(list(part) == ["pearson", "spearman", "kendall"] for part in parts.values())
        assert parts["within"]["kendall"]["count"] + parts["across"]["kendall"]["count"] == COUNT * (COUNT - 1) / 2
        columns = torch.tensor([[row[name], row["reached"]] for row in found["candidates"]]).double().T
        value = float(torch.corrcoef(columns)[0, 1])
        assert parts["all"]["pearson"]["value"] == (None if math.isnan(value) else pytest.approx(value, abs=1e-4))


def test_the_folder_has_a_picture_of_its_own_and_one_in_the_report(done: tuple[Recipe, Path, dict[str, Any]]) -> None:
    folder = done[1]
    picture, page = (folder / correlating.PICTURE).read_text(), (folder / "report.html").read_text()
    assert picture.startswith("<svg")
    assert "var(" not in picture
    assert "recalibrated score" in picture
    assert "Scores against what is reached" in page
    assert "recalibrated score" in page
    assert "among them those of the scores" in page


def test_it_goes_on_where_it_was_interrupted(
    done: tuple[Recipe, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, _, whole = done
    first = trainings(monkeypatch, stop_before=3)
    with pytest.raises(KeyboardInterrupt):
        correlate(recipe, tmp_path / "run", COUNT)
    assert [row["architecture"] for row in lines(tmp_path / "run")] == first
    monkeypatch.undo()
    rest = trainings(monkeypatch)
    again = correlate(recipe, tmp_path / "run", COUNT)
    assert len(first) == 3
    assert len(rest) == COUNT - 3

    def timeless(found: dict[str, Any]) -> dict[str, Any]:
        return {**found, "candidates": [{**row, "seconds": 0} for row in found["candidates"]]}

    assert timeless(again) == timeless(whole)


def test_more_candidates_reuse_those_that_are_there_and_other_epochs_do_not(
    done: tuple[Recipe, Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder, _ = done
    before = lines(folder)
    seen = trainings(monkeypatch)
    assert len(correlate(recipe, folder, COUNT + 1)["candidates"]) == COUNT + 1
    assert len(seen) == 1
    found = correlate(recipe, folder, 3, epochs=2)
    assert len(seen) == 4
    assert {row["epochs"] for row in found["candidates"]} == {2}
    assert lines(folder)[:COUNT] == before


def test_candidates_train_on_the_weights_half_alone(
    done: tuple[Recipe, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, given = done[0], []
    taught = teaching.taught

    def noting(*arguments: Any, **options: Any) -> Any:
        given.append(options["data"])
        return taught(*arguments, **options)

    monkeypatch.setattr(teaching, "taught", noting)
    correlate(recipe, tmp_path / "run", 3)
    weights, _ = search_splits(prepare(recipe).data, recipe.seed)
    assert {used.train.digest for used in given} == {weights.digest}
    assert all(used.val is None and used.test is None for used in given)


def test_images_unseen_by_scores_are_the_rest_of_their_half() -> None:
    pictures = torch.arange(400).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).float()
    data = Data("numbered", Split("train", InMemory(pictures, torch.arange(400) % 5)), classes=5)
    scored = judge(tas.trace(torch.nn.Conv2d(1, 2, 3), torch.zeros(2, 1, 8, 8)), data, images=120)

    def numbers(batches: Any) -> set[int]:
        return {int(value) for inputs, _ in batches for value in inputs[:, 0, 0, 0]}

    used, rest = numbers(scored.held_out), unseen(data, 120)
    assert rest is not None
    left, half = numbers(rest.batches(50)), numbers(search_splits(data)[1].batches(50))
    assert len(used) == 120
    assert not used & left
    assert used | left == half
    assert unseen(data, 200) is None
    assert unseen(toy_data(), 10**6) is None


def test_a_learned_distribution_decides_what_is_drawn(tmp_path: Path) -> None:
    space, run = prepare(recipe_in(tmp_path)).space, tmp_path / "searched"
    run.mkdir()
    wanted = space.uniform(0.5)
    budget = tas.budget(space, macs=round(1.01 * tas.macs(space, wanted)))
    sure = {
        c.name: [0.9 if size == wanted[c.name] else 0.1 / (len(c.candidates) - 1) for size in c.candidates]
        for c in space.choices
    }
    (run / "distribution.json").write_text(json.dumps(sure))
    found = drawn(space, budget, 4, 0, run)
    assert found[0] == wanted
    assert found != drawn(space, budget, 4, 0)
    assert drawn(space, budget, 3, 0, run) == found[:3]
    assert all(tas.macs(space, one) <= budget.limits[0][1] for one in found)
    (run / "distribution.json").write_text(json.dumps({**sure, space.choices[0].name: [1.0]}))
    with pytest.raises(BadRecipe, match="same space"):
        drawn(space, budget, 6, 0, run)
    with pytest.raises(BadRecipe, match=r"no distribution\.json"):
        drawn(space, budget, 6, 0, tmp_path)


def test_a_shorter_training_keeps_the_share_of_its_warm_up() -> None:
    assert in_epochs(Distillation(epochs=20, warmup_epochs=5.0), 2) == Distillation(epochs=2, warmup_epochs=0.5)


def test_too_few_architectures_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, budget={"macs": "60%"}, space={"ratios": [0.5, 1.0], "fix": ["stem*"]})
    with pytest.raises(BadRecipe, match="at least"):
        correlate(recipe, tmp_path / "run", 2)
    with pytest.raises(BadRecipe, match="raise the budget"):
        correlate(recipe, tmp_path / "run", 8)
    assert not (tmp_path / "run").exists()


def test_scores_of_other_weights_are_not_taken_for_these(
    done: tuple[Recipe, Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = done[0]
    correlate(recipe, tmp_path / "run", 3)
    path = tmp_path / "run" / correlating.LINES
    rows = [{**row, "merged": not row["merged"]} for row in lines(tmp_path / "run")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen = trainings(monkeypatch)
    correlate(recipe, tmp_path / "run", 3)
    assert len(seen) == 3
