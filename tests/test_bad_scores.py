"""What scores say of images, candidates and originals that are no good; exit code 2 where it is the user's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_task
import yaml
from conftest import Shell
from rich.console import Console
from tiny_task import recipe_values, trained_weights

from tas import scoring
from tas.preparation import prepare
from tas.recipe import parse
from tas.reporting.progress import Display
from tas.reporting.tables import ONLY_MIXED
from tas.runner import run

QUIET = Display(Console(quiet=True))
Score = Callable[..., tuple[int, str, str]]


@pytest.fixture
def score(shell: Shell, tmp_path: Path) -> Score:
    """`tas score` of a recipe with weights, and these arguments: exit code, stdout, stderr."""

    def call(values: dict[str, Any], *arguments: object) -> tuple[int, str, str]:
        weights = trained_weights(tmp_path / "w.safetensors")
        values = {**values, "network": {**values["network"], "weights": str(weights)}}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
        return shell("score", tmp_path / "tiny.yaml", *arguments)

    return call


def strict(text: str) -> Any:
    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stem.0": 99}, r"'stem.0' takes one of (2, 3, 4, 5, 6, 7, 8), got 99"),
        ({"stem.1": 4}, "once; unknown ['stem.1']"),
    ],
)
def test_an_architecture_of_another_space_is_named_with_what_it_may_be(
    score: Score, tmp_path: Path, changed: dict[str, int], message: str
) -> None:
    values = recipe_values(tmp_path)
    good = dict(prepare(parse(values)).space.largest())
    (tmp_path / "two.json").write_text(json.dumps([good, {**good, **changed}]))
    code, out, err = score(values, "--architectures", tmp_path / "two.json")
    assert (code, out) == (2, "")
    assert err.startswith("error: architecture 2 of 2 must be of this recipe's space")
    assert message in err


def test_fewer_images_than_asked_for_are_said_with_the_score(score: Score, tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values["search"] |= {"images": 500, "calibration_images": 64}
    code, out, err = score(values, "--sample", 2, "--json")
    found = strict(out)
    assert code == 0
    said = "search.images asks for 500 images; all 96 of the architecture half of the training images are used."
    assert said in found["remarks"]
    assert f"warning: {said}" in err
    assert {row["images"] for row in found["scores"]} == {96}
    assert not any("calibration" in remark for remark in found["remarks"])


def test_a_class_without_a_held_out_image_is_said(score: Score, tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values["search"] |= {"images": 2}
    found = strict(score(values, "--sample", 2, "--json")[1])
    assert any("blind to classes" in remark for remark in found["remarks"])


def test_the_original_is_judged_on_the_images_of_the_scores_and_chance_is_said(score: Score, tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    found = strict(score(values, "--sample", 1, "--json")[1])  # random weights
    assert any("three standard errors of guessing" in remark for remark in found["remarks"])
    largest = prepare(parse(values)).space.largest()
    (tmp_path / "one.json").write_text(json.dumps(dict(largest)))
    found = strict(score(values, "--architectures", tmp_path / "one.json", "--raw", "--json")[1])
    assert found["original"]["top1"] == pytest.approx(found["scores"][0]["raw"])


def test_a_run_with_an_original_at_chance_level_warns_and_one_above_does_not(tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    del values["original"]
    values["network"] |= {"weights": str(trained_weights(tmp_path / "w.safetensors"))}
    run(parse(values), tmp_path / "bad", display=QUIET, until="search")
    run(parse(recipe_values(tmp_path)), tmp_path / "good", display=QUIET, until="original")
    warned = [json.loads((tmp_path / name / "run.json").read_text())["warnings"] for name in ("bad", "good")]
    assert [any("three standard errors of guessing" in said for said in each) for each in warned] == [True, False]


def test_a_candidate_without_a_number_is_counted_and_null_in_json(
    score: Score, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored = scoring.judged

    def judged(chosen: Any, architecture: Any, *rest: Any, **options: Any) -> Any:
        tiny_task.BROKEN.append(architecture["stem.0"] == 8)
        return scored(chosen, architecture, *rest, **options)

    monkeypatch.setattr(scoring, "judged", judged)
    values = {**recipe_values(tmp_path), "objective": {"loss": "tiny_task:no_number"}}
    largest = dict(prepare(parse(values)).space.largest())
    (tmp_path / "two.json").write_text(json.dumps([largest, {**largest, "stem.0": 4}]))
    code, out, err = score(values, "--architectures", tmp_path / "two.json", "--json")
    found = strict(out)
    assert code == 0
    assert [row["loss"] is None for row in found["scores"]] == [False, True]
    assert [row["chosen"] for row in found["scores"]] == [False, False]
    assert "1 of 2 candidates: metric or loss is no number" in err
    assert "no number" in score(values, "--architectures", tmp_path / "two.json")[1]
    (tmp_path / "one.json").write_text(json.dumps(largest))
    code, out, err = score(values, "--architectures", tmp_path / "one.json")
    assert (code, out) == (2, "")
    assert "all are NaN" in err
    tiny_task.BROKEN[:] = [False]


def test_data_of_another_size_than_the_shape_is_refused(score: Score, tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    values["network"] = {"name": "tiny_task:Anywhere", "shape": [1, 1, 16, 16]}
    code, out, err = score(values, "--sample", 1)
    assert (code, out) == (2, "")
    assert "network.shape is that of the data's inputs, [1, 1, 8, 8], got [1, 1, 16, 16]" in err
    values["network"]["shape"] = [1, 1, 8, 8]
    assert score(values, "--sample", 1)[0] == 0


def test_raw_scores_cost_a_pass_that_is_made_only_where_asked_for(score: Score, tmp_path: Path) -> None:
    values = recipe_values(tmp_path)
    assert strict(score(values, "--sample", 1, "--json")[1])["scores"][0]["raw"] is None
    assert strict(score(values, "--sample", 1, "--raw", "--json")[1])["scores"][0]["raw"] is not None


def test_notes_of_a_space_are_one_warning_a_kind_and_all_of_them_in_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    notes = ("a norm over channels: x", "a norm over channels: y", "an output is wide")
    prepared = prepare(parse(recipe_values(tmp_path)))
    source = replace(prepared.source, space=replace(prepared.space, notes=notes))
    monkeypatch.setattr("tas.runner.prepare", lambda recipe: replace(prepared, source=source))
    run(prepared.recipe, tmp_path / "run", display=QUIET, until="original")
    warnings = json.loads((tmp_path / "run" / "run.json").read_text())["warnings"]
    assert warnings == [f"a norm over channels, in 2 places: x, and 1 more ({ONLY_MIXED})", "an output is wide"]
    assert json.loads((tmp_path / "run" / "space.json").read_text())["notes"] == list(notes)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("a norm over channels") == 1
