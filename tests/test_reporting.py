"""Tables and the page say what the run folder says, whichever stages have run, and need nothing from outside."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tas.errors import BadRecipe
from tas.reporting import numbers, pictures, tables, write_report
from tas.reporting.progress import Display


def run_folder(folder: Path, choices: int = 12) -> Path:
    """A finished run as the runner writes it, with invented numbers."""
    names = [f"layer{index // 4 + 1}.{index % 4}.conv1" for index in range(choices - 1)] + ["layer1.depth"]
    described = [{"name": n, "kind": "width", "candidates": [4, 8, 12, 16]} for n in names[:-1]]
    described.append({"name": "layer1.depth", "kind": "depth", "candidates": [1, 2, 3]})
    space = {
        "choices": described,
        "kept": [{"name": "fc", "size": 10, "reason": "an output <of> the network"}],
        "notes": [],
        "feasibility": {
            "smallest": {"macs": 4_000_000, "params": 30_000},
            "uniform": {"macs": 19_900_000, "params": 131_000},
            "largest": {"macs": 40_551_040, "params": 269_722},
        },
        "budgets": {"50% of MACs": {"macs": 20_000_000.0}},
    }
    metrics = {
        "original": {"top1": 91.73, "loss": 0.3, "macs": 40_551_040, "params": 269_722},
        "student": {"top1": 90.9, "spread": 0.12, "n": 3, "macs": 19_999_000, "params": 150_000},
        "uniform": {"top1": 90.31, "spread": 0.2, "n": 3, "macs": 19_900_000, "params": 131_000},
    }
    architecture = {c["name"]: c["candidates"][index % len(c["candidates"])] for index, c in enumerate(described)}
    scores = [
        {"recalibrated": 80 - i, "raw": 40 - 2 * i, "loss": 1.0, "images": 2000, "macs": (20 - i / 5) * 1e6}
        | {"params": 150_000 + 100 * i, "chosen": i == 0, "architecture": architecture}
        for i in range(8)
    ]
    course = [{"step": s, "macs_expected": (30 - s / 10) * 1e6, "entropy": 2 - s / 60} for s in range(0, 100, 5)]
    run = {
        "title": "CIFAR-10, ResNet-20, 20 M MACs",
        "metric": "top1",
        "stages": {"original": {"seconds": 75.0}, "search": {"seconds": 600.0}, "distill": {"seconds": 4000.0}},
        "warnings": ["the original classifies 100.0 % of the held-out training images: the ranking is weak"],
    }
    values: dict[str, Any] = {"run": run, "space": space, "metrics": metrics, "architecture": architecture}
    values["environment"] = {"torch": "2.8.0", "device": "cpu", "commit": "0123abc"}
    for name, value in values.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    (folder / "candidates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    (folder / "search.jsonl").write_text("".join(json.dumps(row) + "\n" for row in course))
    (folder / "recipe.yaml").write_text("seed: 0\n")
    return folder


def test_the_page_holds_results_pictures_warnings_and_reasons(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path)).read_text()
    for expected in ("90.90 ± 0.12", "-0.83", "20.00 M", "49.3%", "1 min 15 s", "1 h 17 min", "the ranking is weak"):
        assert expected in page, expected
    assert page.count("<svg") == 3
    assert "an output &lt;of&gt; the network" in page


def test_the_page_is_self_contained_and_takes_its_colours_from_the_page(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path)).read_text()
    links = set(re.findall(r"(?:src|href)=\"([^\"#]+)\"", page))
    assert not links
    assert "#01020" not in page
    assert "var(--main)" in page
    assert "prefers-color-scheme: dark" in page


def test_on_paper_nothing_is_cut_off_closed_or_dark(tmp_path: Path) -> None:
    page = write_report(run_folder(tmp_path)).read_text()
    screen, paper = page[: page.index("</style>")].split("@media print {")
    for rule in (
        "overflow: visible",
        "details::details-content { content-visibility: visible; }",
        "white-space: normal",
    ):
        assert rule in paper
    assert "overflow-x: auto" not in paper
    assert re.findall(r"@media ([^{]*)dark\) ", page) == ["screen and (prefers-color-scheme: "]  # not on paper
    assert "<details>" in page  # what the rules above undo
    assert "overflow-x: auto" in screen


def test_a_marker_at_the_edge_of_a_picture_is_whole() -> None:
    space = {"choices": [{"name": "depth", "candidates": [0, 1, 2]}, {"name": "width", "candidates": [4, 8]}]}
    found = pictures.beside(space, {"one": {"depth": 0, "width": 8}, "two": {"depth": 2, "width": 4}})
    markers = re.findall(r"<g[^>]*>\s*<use [^>]*style=\"fill: var\(--(?:main|other)", found)
    assert len(markers) >= 2
    assert not [each for each in markers if "clip-path" in each]


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run_folder(tmp_path)
    assert write_report(tmp_path).read_text() == write_report(tmp_path).read_text()


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    run_folder(tmp_path)
    for name in ("metrics.json", "architecture.json", "candidates.jsonl", "search.jsonl", "space.json"):
        (tmp_path / name).unlink()
    page = write_report(tmp_path).read_text()
    assert "No student of this folder is finished" in page
    assert "<svg" not in page


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match=r"no run\.json"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (22_440_000, "22.44 M"), (1_814_000_000, "1.81 G"), (1500, "1.50 k")]
)
def test_costs_are_short(number: int, text: str) -> None:
    assert numbers.short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.4, "3 s"), (75, "1 min 15 s"), (119.9, "2 min 0 s"), (7290, "2 h 1 min")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert numbers.duration(seconds) == text


def test_the_console_shows_the_same_rows(tmp_path: Path) -> None:
    metrics = json.loads((run_folder(tmp_path) / "metrics.json").read_text())
    console = Console(width=100)
    with console.capture() as captured:
        console.print(tables.console(tables.result_rows(metrics, "top1"), "Result"))
    assert "student" in captured.get()
    assert "90.90 ± 0.12" in captured.get()


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 6.0, 7.0, 40.0])
    monkeypatch.setattr("tas.reporting.progress.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    with Display(Console(file=stream, width=200)).bar("search") as bar:
        for step in (10, 60, 70, 160):
            bar(step, 260, "loss 1.0")
    assert stream.getvalue().splitlines() == [
        "search: step 60 of 260, about 24 s left, loss 1.0",
        "search: step 160 of 260, about 27 s left, loss 1.0",
    ]


def test_another_number_of_steps_is_reckoned_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 200.0, 300.0, 300.0, 310.0])
    monkeypatch.setattr("tas.reporting.progress.time.monotonic", lambda: next(clock))
    stream = io.StringIO()
    with Display(Console(file=stream, width=200)).bar("search") as bar:
        for step, steps in ((10, 20), (20, 20), (1, 24), (6, 24)):
            bar(step, steps, "")
    assert stream.getvalue().splitlines()[-1] == "search: step 6 of 24, about 36 s left"


@pytest.mark.parametrize(
    ("values", "form"),
    [
        ([98.3, 4.2], ".2f"),
        ([0.8371, 0.84], ".4f"),
        ([0.05, None], ".5f"),
        ([4.2e-7, 1e-9], ".3e"),
        ([1234.5], ".2f"),
        ([0.0], ".2f"),
        ([None, float("nan")], ".2f"),
        ([-3.25], ".3f"),
    ],
)
def test_a_column_of_metrics_has_four_figures_and_two_decimals_at_least(values: list[float | None], form: str) -> None:
    assert numbers.figures(values) == form


def test_errors_that_are_small_are_told_apart() -> None:
    costs = {"macs": 1000, "params": 10, "loss": 1.0}
    metrics = {"original": {"mse": 0.000412, **costs}, "student": {"mse": 0.000437, "spread": 0.00002, "n": 2, **costs}}
    rows = tables.result_rows(metrics, "mse")[1]
    assert rows[0][1] == "0.0004120"
    assert rows[1][1:3] == ["0.0004370 ± 0.0000200", "+0.0000250"]
