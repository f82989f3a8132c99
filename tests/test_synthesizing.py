"""Synthesized images in a run: where they take the place of training images, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_task
import torch
from conftest import Shell
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tas
from tas import recipe, synthesizing
from tas.data import InMemory, load
from tas.errors import BadData, BadNetwork, BadRecipe, TasError
from tas.folder import RunFolder
from tas.preparation import prepare
from tas.stages import Run
from tas.synthesizing import from_run, synthesized

MADE = {"images": 48, "batch": 24, "steps": 10}


def values(folder: Path, **synthesize: Any) -> dict[str, Any]:
    """A recipe without training images: of the data, test images and their scale are left."""
    weights = folder / "weights.safetensors"
    if not weights.exists():
        tiny_task.trained_weights(weights)
    given = tiny_task.recipe_values(folder)
    given["network"]["weights"] = str(weights)
    given["data"] |= {"train": False, "mean": [0.3], "std": [0.25]}
    given["search"]["images"] = given["search"]["calibration_images"] = 16
    given.pop("original")
    return {**given, "synthesize": {**MADE, **synthesize}}


def parsed(folder: Path, *overrides: str, **synthesize: Any) -> recipe.Recipe:
    return recipe.parse(values(folder, **synthesize), overrides)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The data that students are distilled on."""
    from tas import teaching

    found: list[Any] = []
    distill = teaching.distill

    def noting(student: nn.Module, teacher: nn.Module, data: Any, *rest: Any, **options: Any) -> Any:
        found.append(data)
        return distill(student, teacher, data, *rest, **options)

    monkeypatch.setattr(teaching, "distill", noting)
    return found


def inputs(data: Any) -> Tensor:
    assert isinstance(data.train.source, InMemory)
    return data.train.source.inputs


def test_a_run_without_training_images_ends_with_a_student_distilled_on_synthesized_ones(
    tmp_path: Path, seen: list[Any]
) -> None:
    arrays = dict(np.load(tiny_task.write_data(tmp_path / "data.npz")))
    np.savez(tmp_path / "data.npz", **{name: each for name, each in arrays.items() if name.startswith("test")})
    found = tas.run(parsed(tmp_path), tmp_path / "run")
    assert set(found) == {"original", "student", "uniform"}
    assert len(seen) == 2
    made = np.concatenate([np.load(tmp_path / "run" / "synthetic" / f"batch-000{n}.npz")["images"] for n in (0, 1)])
    for data in seen:
        assert inputs(data).numpy().tolist() == made.tolist()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "agree with it" in page  # what the scores say
    rows = json.loads((tmp_path / "run" / "run.json").read_text())["stages"]["synthesize"]["rows"]
    assert [row["images"] for row in rows] == ["synthesized", "noise"]
    before = (tmp_path / "run" / "synthetic" / "batch-0000.npz").stat().st_mtime_ns
    assert tas.run(parsed(tmp_path), tmp_path / "run") == found
    assert (tmp_path / "run" / "synthetic" / "batch-0000.npz").stat().st_mtime_ns == before


def test_real_images_join_and_the_original_may_be_trained_on_them_first(tmp_path: Path, seen: list[Any]) -> None:
    given = {**tiny_task.recipe_values(tmp_path), "synthesize": {**MADE, "real_images": 30}}
    tas.run(recipe.parse(given), tmp_path / "run")
    assert [len(data.train) for data in seen] == [78, 78]
    real = load("npz", tmp_path / "data.npz").train.take(30)
    assert inputs(seen[0])[48:].equal(real.source.inputs)  # type: ignore[union-attr]


def test_the_command_makes_images_and_the_run_goes_on_with_them(tmp_path: Path, shell: Shell) -> None:
    (tmp_path / "r.yaml").write_text(recipe.dump(parsed(tmp_path)))
    code, out, _ = shell("synthesize", "r.yaml", "--out", "run")
    assert code == 0
    assert "distance of statistics" in out
    assert "run/synthetic/sheet.png" in out
    code, out, _ = shell("synthesize", "r.yaml", "--out", "run", "--json")
    assert code == 0
    assert [row["images"] for row in json.loads(out)["rows"]] == ["synthesized", "noise"]
    code, out, err = shell("score", "r.yaml", "--sample", "3")
    assert code == 2
    assert "make them first" in err
    code, out, err = shell("score", "r.yaml", "--sample", "3", "--out", "run", "--json")
    assert code == 0, err
    assert len(json.loads(out)["scores"]) == 3
    assert shell("run", "r.yaml", "--out", "run")[0] == 0
    code, out, _ = shell("run", "r.yaml", "--plan")
    assert "synthesize" in out
    code, _, err = shell("evaluate", "run/student", "--split", "train")
    assert code == 2
    assert "'train' was asked for" in err


def test_a_second_set_is_made_against_a_student(tmp_path: Path) -> None:
    tas.run(parsed(tmp_path), tmp_path / "first")
    synthesizing.make(parsed(tmp_path, against=str(tmp_path / "first" / "student")), tmp_path / "second")
    known = [json.loads((tmp_path / run / "synthetic/synthesis.json").read_text()) for run in ("first", "second")]
    assert known[0]["student"] is None
    assert known[1]["student"] is not None
    one, other = (np.load(tmp_path / run / "synthetic/batch-0000.npz")["images"] for run in ("first", "second"))
    assert (one != other).any()


def test_a_comparison_trains_on_them_too(tmp_path: Path, seen: list[Any]) -> None:
    from tas.comparing import compare

    given = values(tmp_path)
    given["compare"] = {"methods": ["differentiable"], "seeds": [0], "latency_repeats": 2}
    found = compare(recipe.parse(given), tmp_path / "run")
    assert found["images"]["train"] == 48
    assert {len(data.train) for data in seen} == {48}


def test_commands_beside_a_run_want_all_of_its_images(tmp_path: Path) -> None:
    asked = parsed(tmp_path)
    synthesizing.make(asked, tmp_path / "run")
    prepared = prepare(asked)
    assert len(from_run(prepared, prepared.original, tmp_path / "run").data.train) == 48
    (tmp_path / "run" / "synthetic" / "batch-0001.npz").unlink()
    with pytest.raises(BadRecipe, match="make them first"):
        from_run(prepared, prepared.original, tmp_path / "run")


def test_a_recipe_without_the_section_keeps_its_data(tmp_path: Path) -> None:
    prepared = prepare(recipe.parse(tiny_task.recipe_values(tmp_path)))
    folder = RunFolder(tmp_path / "run", prepared.recipe, "t", "top1", prepared.device)
    current = Run(prepared, folder, None, None)  # type: ignore[arg-type]
    assert synthesized(current, prepared.original) is current


def floats() -> dict[str, Any]:
    examples = TensorDataset(torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
    return {"train": examples, "test": examples}


class NoNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


class Fixed(tiny_task.TinyNet):
    """Takes one size only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(-1, 1, 8, 8)) if x.shape[-1] == 8 else super().forward(x.reshape(-1, 1, 9, 9))


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (["synthesize=null"], BadRecipe, "needs network.weights, and a section `synthesize`"),
        (["network.weights=null", "original.epochs=1"], BadRecipe, "needs network.weights, and a section"),
        (["data.mean=null", "data.std=null"], BadData, "needs a test or val split, and mean and std"),
        (["synthesize.real_images=5"], BadRecipe, "there are no 5 synthesize.real_images"),
        (["synthesize.real_images=-1"], BadRecipe, "real_images must be at least 0, got -1"),
        (["synthesize.images=2"], BadRecipe, "raise synthesize.images, 2 for 3 classes"),
        (["synthesize.steps=0"], BadRecipe, "steps must be at least 1, got 0"),
        (["synthesize.step=3"], BadRecipe, "unknown key 'synthesize.step'; did you mean 'steps'"),
        (["synthesize.batch=47"], BadRecipe, "leave one"),
        (["objective.name=hits"], BadRecipe, "class labels, cross-entropy and top-1"),
        (["network.name=test_synthesizing:NoNorm", "network.weights=null"], BadRecipe, "needs network.weights"),
        (["network.name=test_synthesizing:Fixed", "synthesize.coarse_steps=5"], BadRecipe, "coarse_steps must be 0"),
        (["synthesize.against=nowhere"], BadNetwork, "nowhere must be a student folder"),
    ],
)
def test_bad_recipes_are_refused_before_anything_is_written(
    tmp_path: Path, overrides: list[str], error: type[TasError], message: str
) -> None:
    with pytest.raises(error, match=message):
        tas.run(parsed(tmp_path, *overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_networks_without_batch_norm_and_data_without_pixels_are_refused(tmp_path: Path) -> None:
    given = {**tiny_task.recipe_values(tmp_path), "synthesize": MADE}
    with pytest.raises(BadNetwork, match="batch norms, this network has none"):
        prepare(recipe.parse(given, ["network.name=test_synthesizing:NoNorm"]))
    arrays = dict(np.load(tmp_path / "data.npz"))
    floats = {name: each / np.float32(255) if "images" in name else each for name, each in arrays.items()}
    np.savez(tmp_path / "data.npz", **floats)
    with pytest.raises(BadData, match="must be uint8 images"):
        prepare(recipe.parse(given))


def test_what_would_judge_on_training_images_is_refused(tmp_path: Path) -> None:
    from tas.comparing import compare
    from tas.correlating import correlate

    with pytest.raises(BadRecipe, match="synthesized ones cannot tell"):
        correlate(parsed(tmp_path), tmp_path / "run")
    with pytest.raises(BadRecipe, match="makes images of one"):
        compare(parsed(tmp_path, "compare.forgetting=true"), tmp_path / "run")
    with pytest.raises(BadRecipe, match="needs a section `synthesize`"):
        synthesizing.make(recipe.parse(tiny_task.recipe_values(tmp_path)), tmp_path / "run")


def test_without_training_images_noise_stands_in_that_is_no_training_split(tmp_path: Path) -> None:
    path = tiny_task.write_data(tmp_path / "data.npz")
    data = load("npz", path, mean=(0.3,), std=(0.2,), train=False)
    assert not data.has_training
    assert data.classes == 3
    with pytest.raises(BadData, match="'train' was asked for"):
        data.split("train")
    with pytest.raises(BadData, match="training images can only be left out of uint8"):
        load("test_synthesizing:floats", train=False, mean=(0.3,), std=(0.2,))
