"""In a run: which weights a student starts from, who teaches it, and what its modules are drawn to."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from tiny_task import TinyNet, recipe_values, trained_weights
from torch import nn
from typer.testing import CliRunner

import tas
from tas import distillation, recipe, teaching
from tas.cli import app
from tas.data import InMemory, Split
from tas.errors import BadNetwork, BadRecipe, Diverged
from tas.preparation import prepare
from tas.reporting.progress import Display
from tas.runner import run
from tas.stages import rewound, weighted

QUIET = Display(Console(quiet=True))


def values_of(folder: Path, *overrides: str) -> recipe.Recipe:
    """A recipe whose original is given and whose search is short."""
    values = recipe_values(folder)
    values["network"]["weights"] = str(trained_weights(folder / "weights.safetensors"))
    values["search"] = {"method": "adaptive_bn", "candidates": 2, "images": 32, "calibration_images": 32}
    values["report"] = {"baselines": []}
    del values["original"]
    return recipe.parse(values, overrides)


def noted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What every distillation is called with, its student as it was before."""
    calls: list[dict[str, Any]] = []

    def note(student: nn.Module, teacher: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append({"student": copy.deepcopy(student), "teacher": teacher, **kwargs})
        return distillation.distill(student, teacher, *args, **kwargs)

    monkeypatch.setattr("tas.teaching.distill", note)
    return calls


def early_weights(path: Path) -> Path:
    torch.manual_seed(5)
    save_file(TinyNet().state_dict(), path)
    return path


def test_rewound_weights_are_the_early_ones_of_the_channels_that_the_trained_original_ranks_highest(
    tmp_path: Path,
) -> None:
    early = early_weights(tmp_path / "early.safetensors")
    prepared = prepare(values_of(tmp_path, "initialize.weights=rewind", f"initialize.checkpoint={early}"))
    source = rewound(prepared, prepared.original)
    late = weighted(prepared, prepared.original)
    torch.manual_seed(5)
    first = TinyNet().eval()
    x = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(source.network.eval()(x), first(x))
    # channels of the stem move inside conv1's weights too, so sums tell its filters apart, and not tensors
    trained, moved, start, got = (
        net.block.conv1.weight.detach().abs().sum((1, 2, 3))
        for net in (prepared.original, late.network, first, source.network)
    )
    places = (moved[:, None] - trained).abs().argmin(1)
    assert sorted(places.tolist()) == list(range(8))
    assert places.tolist() != list(range(8))
    torch.testing.assert_close(got, start[places])


def test_a_run_rewinds_its_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    early = early_weights(tmp_path / "early.safetensors")
    calls = noted(monkeypatch)
    asked = values_of(tmp_path, "initialize.weights=rewind", f"initialize.checkpoint={early}")
    run(asked, tmp_path / "run", display=QUIET)
    prepared = prepare(asked)
    architecture = json.loads((tmp_path / "run" / "architecture.json").read_text())
    expected = tas.extract(rewound(prepared, prepared.original), architecture)
    for name, tensor in calls[0]["student"].state_dict().items():
        assert tensor.equal(expected.state_dict()[name]), name


@pytest.mark.parametrize("weights", ["inherit", "merge", "scratch"])
def test_statistics_are_taken_anew_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str) -> None:
    calls = noted(monkeypatch)
    for again in ("false", "true"):
        asked = values_of(tmp_path, f"initialize.weights={weights}", f"initialize.recalibrate={again}")
        run(asked, tmp_path / again, display=QUIET)
    before, after = (call["student"] for call in calls)
    assert after.stem[0].weight.equal(before.stem[0].weight)
    assert not after.stem[1].running_mean.allclose(before.stem[1].running_mean, atol=1e-3)
    inputs, _ = next(prepare(asked).data.train.take(32).batches(128))
    with torch.no_grad():
        mean = after.stem[0](inputs).mean((0, 2, 3))
    torch.testing.assert_close(after.stem[1].running_mean, mean)


def test_auto_tries_each_start_on_training_images_and_all_students_get_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, asked = (
        noted(monkeypatch),
        values_of(
            tmp_path, "initialize.weights=auto", "initialize.among=[scratch, inherit]", "report.baselines=[uniform]"
        ),
    )
    folder = tmp_path / "run"
    run(asked, folder, display=QUIET)
    decided = json.loads((folder / "run.json").read_text())["stages"]["initialize"]
    assert [row["weights"] for row in decided["rows"]] == ["scratch", "inherit"]
    assert (decided["epochs"], decided["trained_on"], decided["judged_on"]) == (1, 96, 32)
    best = max(decided["rows"], key=lambda row: (row["top1"], -row["loss"]))
    assert decided["chosen"] == best["weights"]
    assert len(calls) == 4  # two tries, student, uniform
    prepared = prepare(asked)
    source = weighted(prepared, prepared.original)
    found = json.loads((folder / "architecture.json").read_text())
    for call, architecture in zip(calls[2:], (found, decided["architecture"]), strict=True):
        expected = tas.extract(source, architecture).stem[0].weight
        assert call["student"].stem[0].weight.equal(expected) == (decided["chosen"] == "inherit")
    page = (folder / "report.html").read_text()
    assert "Start of the students" in page
    assert f"<td>{decided['chosen']}*</td>" in page
    calls.clear()
    run(asked, folder, display=QUIET)
    assert calls == []  # decided and trained once


def test_a_start_that_diverges_is_named_and_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = teaching.taught

    def lossy(*args: Any, weights: Any = None, **rest: Any) -> Any:
        if weights == "scratch" and rest.get("data") is not None:
            raise Diverged("the loss is no number")
        return taught(*args, weights=weights, **rest)

    monkeypatch.setattr(teaching, "taught", lossy)
    asked = values_of(tmp_path, "initialize.weights=auto", "initialize.among=[scratch, inherit]")
    run(asked, tmp_path / "run", display=QUIET)
    state = json.loads((tmp_path / "run" / "run.json").read_text())
    assert state["stages"]["initialize"]["chosen"] == "inherit"
    assert any("start scratch diverged" in said for said in state["warnings"])
    assert "<td>scratch</td>" in (tmp_path / "run" / "report.html").read_text()


def test_auto_is_shown_and_is_in_the_json(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.dump(values_of(tmp_path, "initialize.weights=auto", "distill.epochs=1")))
    shown = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "run")])
    assert shown.exit_code == 0
    assert "start of the weights" in shown.stdout
    assert "judged on 32 others" in " ".join(shown.stdout.split())
    answer = CliRunner().invoke(app, ["run", str(path), "--out", str(tmp_path / "run"), "--json"])
    found = json.loads(answer.stdout)["initialize"]
    assert found["chosen"] in ("inherit", "merge")
    assert len(found["rows"]) == 2


class Watched(Split):
    """Says who reads it."""

    def batches(self, *args: Any, **kwargs: Any) -> Any:
        READ.append(self.name)
        return super().batches(*args, **kwargs)


READ: list[str] = []


def test_until_a_network_is_finished_nobody_looks_at_the_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Original first, then students: between lie the search, the choice of a start and the training."""
    asked = values_of(tmp_path, "initialize.weights=auto", "distill.taps=[stem]", "report.baselines=[uniform]")
    load = prepare(asked).data

    def watched(source: object) -> Any:
        parts = {name: Watched(name, split.source, split.mean, split.std) for name, split in splits.items()}
        return replace(load, **parts)

    splits = {"train": load.train, "test": load.test}
    assert isinstance(load.test.source, InMemory)
    monkeypatch.setattr("tas.preparation.data_of", watched)
    READ.clear()
    judged: list[int] = []
    original = tas.stages.Run.judged

    def counted(self: Any, network: nn.Module) -> Any:
        judged.append(1)
        return original(self, network)

    monkeypatch.setattr(tas.stages.Run, "judged", counted)
    run(asked, tmp_path / "run", display=QUIET)
    saved = 2  # of the two students the saved one is read again and compared on four images
    assert len(judged) == 3  # original, student, uniform
    assert READ.count("test") == len(judged) + saved


def test_taps_reach_the_training_and_missing_twins_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = noted(monkeypatch)
    asked = values_of(tmp_path, "distill.taps=[stem, block]", "distill.tap_weight=0.5")
    prepared = prepare(asked)
    shallow = next(choice.name for choice in prepared.space.choices if choice.kind == "depth")
    architecture = {**prepared.space.smallest(), shallow: 0}
    run(asked, tmp_path / "run", architecture=architecture, display=QUIET)
    taps = calls[0]["taps"]
    assert list(taps.kept) == ["stem"]
    assert calls[0]["teacher"] is taps.original  # the same function in the student's order: it runs once a batch
    assert calls[0]["tap_weight"] == 0.5
    warnings = json.loads((tmp_path / "run" / "run.json").read_text())["warnings"]
    assert any("no tap at block" in said and "the student leaves it out" in said for said in warnings)


class Classes(TinyNet):
    def __init__(self) -> None:
        super().__init__(classes=5)


class Flat(nn.Module):
    """For pictures of 7 x 7."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(49, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.flatten(1))


def saved(network: nn.Module, path: Path) -> Path:
    save_file(network.state_dict(), path)
    return path


def test_other_teachers_teach_beside_the_original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = noted(monkeypatch)
    file = early_weights(tmp_path / "other.safetensors")
    other = f"{{name: 'tiny_task:TinyNet', weights: {file}}}"
    for asked, count in ((other, 1), (f"[{other}, {{name: original}}]", 2)):
        run(values_of(tmp_path, f"distill.teacher={asked}"), tmp_path / str(count), display=QUIET)
    torch.manual_seed(5)
    expected = TinyNet().head.weight
    assert calls[0]["teacher"].head.weight.equal(expected)
    assert calls[1]["teacher"][0].head.weight.equal(expected)
    torch.manual_seed(0)
    assert calls[1]["teacher"][1].head.weight.equal(TinyNet().head.weight)


def test_what_does_not_fit_is_told_before_anything_is_written(tmp_path: Path) -> None:
    classes = saved(Classes(), tmp_path / "classes.safetensors")
    flat = saved(Flat(), tmp_path / "flat.safetensors")
    for override, error, said in (
        (
            f"distill.teacher={{name: 'test_teaching:Classes', weights: {classes}}}",
            BadNetwork,
            r"\[2, 3\] and \[2, 5\]",
        ),
        (f"distill.teacher={{name: 'test_teaching:Flat', weights: {flat}}}", BadNetwork, "but Flat refuses them"),
        (f"distill.teacher={{name: 'tiny_task:TinyNet', weights: {classes}}}", BadNetwork, "'head.bias' must be"),
        (
            "distill.teacher={name: 'tiny_task:TinyNet', weights: no.pt}",
            BadNetwork,
            "distill.teacher.weights must name",
        ),
        ("distill.teacher={name: 'tiny_task:Tiny', weights: no.pt}", BadNetwork, "has no attribute 'Tiny'"),
        ("distill.taps=[stemm]", BadRecipe, "'stemm' matches none; the nearest names: 'stem'"),
        ("initialize={weights: rewind, checkpoint: no.pt}", BadNetwork, "initialize.checkpoint must name a file"),
    ):
        with pytest.raises(error, match=said):
            run(values_of(tmp_path, override), tmp_path / "run", display=QUIET)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("initialize.weights=rewind", "name its file as initialize.checkpoint"),
        ("initialize.checkpoint=early.pt", "set initialize.weights to rewind"),
        ("initialize={weights: auto, among: [rewind, inherit]}", "name its file as initialize.checkpoint"),
        ("initialize={weights: auto, among: [inherit]}", "initialize.among"),
        ("initialize={weights: auto, among: [inherit, inherit]}", "names each start once"),
        ("initialize.weights=inherits", "did you mean 'inherit'?"),
        ("distill.teacher={name: 'a:b'}", "needs name and weights, or the name original alone"),
        ("distill.teacher={name: original, weights: x.pt}", "with the weights 'x.pt'"),
        ("distill.teacher={name: 'a:b', weigths: x.pt}", "did you mean 'weights'?"),
        ("distill.tap_weight=-1", "distill.tap_weight is at least 0"),
        ("distill.mixup=-1", "distill.mixup must be at least 0"),
        ("distill.mixupp=1", "did you mean 'mixup'?"),
    ],
)
def test_wrong_options_are_told_in_one_line(tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(BadRecipe) as caught:
        values_of(tmp_path, override)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", ["original", "distill"])
def test_a_training_that_diverges_names_the_keys_of_its_own_section(tmp_path: Path, section: str) -> None:
    overrides = [f"{section}.{key}" for key in ("epochs=1", "batch=32", "lr=1e30")]
    if section == "original":
        overrides.append("network.weights=null")
    with pytest.raises(Diverged, match=rf"Lower {section}\.lr \(1e\+30\), or set {section}\.clip"):
        run(values_of(tmp_path, *overrides), tmp_path / "run", display=QUIET)


def test_the_schema_explains_every_option_of_training_and_start() -> None:
    schema = recipe.Recipe.model_json_schema()["$defs"]
    explained = schema["Distillation"]["description"] + schema["OriginalPlan"]["description"]
    for name in schema["Distillation"]["properties"]:
        assert name in explained, name
    for name in schema["Initialize"]["properties"]:
        assert name in schema["Initialize"]["description"] or name in ("weights", "importance"), name
    assert set(schema["Teacher"]["properties"]) == {"name", "kwargs", "weights"}
