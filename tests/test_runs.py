"""One page about several runs: figures side by side, sizes where a space is shared, and in words what is not
comparable."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Shell
from test_reporting import run_folder

from tas.errors import BadRecipe
from tas.reporting import write_runs
from tas.reporting.differences import cautions, difference_rows
from tas.reporting.runs import points, result_rows, shared_sizes
from tas.reporting.seen import labels, seen

RECIPE: dict[str, Any] = {
    "network": {"name": "package:resnet20", "kwargs": {}, "weights": "a.safetensors"},
    "budget": {"macs": 0.5, "params": None},
    "distill": {"epochs": 6, "lr": 0.01},
    "synthesize": None,
    "seed": 0,
}


def finished(folder: Path, digest: str = "aa" * 32, choices: int = 12, **recipe: Any) -> Path:
    """A run as `run_folder` makes it, with a saved student that knows its data."""
    (folder / "student").mkdir(parents=True)
    run_folder(folder, choices)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **recipe}))
    (folder / "student" / "student.json").write_text(json.dumps({"provenance": {"data_digest": digest}}))
    return folder


def changed(file: Path, change: Any) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def said(*folders: Path) -> str:
    return " ".join(cautions(seen(folders)))


def test_runs_that_differ_in_their_search_alone_may_be_compared(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two", search={"method": "netadapt"})
    assert cautions(seen([one, two])) == []
    assert difference_rows(seen([one, two])) == (["key", "one", "two"], [])  # the other recipe has no such section
    three = finished(tmp_path / "three", search={"method": "optuna"})
    assert difference_rows(seen([two, three]))[1] == [["search.method", "netadapt", "optuna"]]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"digest": "bb" * 32}, "Other data (digests): aaaaaaaa in one; bbbbbbbb in two"),
        ({"distill": {"epochs": 3, "lr": 0.01}}, "distill.epochs 6 in one, 3 in two"),
        ({"synthesize": {"images": 100}}, "synthesize – in one, yes in two"),
        ({"choices": 9}, "Other spaces (choices): 12 in one; 9 in two"),
        ({"network": {"name": "package:resnet56"}}, "Other originals: package:resnet20, top1 91.73"),
    ],
)
def test_what_is_not_comparable_is_said(tmp_path: Path, other: dict[str, Any], words: str) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two", **other)
    assert words in said(one, two)
    assert words in re.sub(r"<[^>]+>", "", page_of(tmp_path, one, two))


def page_of(tmp_path: Path, *folders: Path) -> str:
    write_runs(folders, tmp_path / "page.html")
    return (tmp_path / "page.html").read_text()


def test_originals_of_one_kind_with_other_weights_are_other_originals(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two")
    changed(two / "metrics.json", lambda metrics: metrics["original"].update(top1=91.5))
    assert "top1 91.50, loss 0.3000, 40.55 M MACs in two" in said(one, two)


def test_a_single_training_an_unfinished_run_and_unknown_data_are_said(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two")
    changed(two / "metrics.json", lambda metrics: [row.pop("spread", None) for row in metrics.values()])
    assert "Each network of two was trained once" in said(one, two)
    (two / "student" / "student.json").unlink()
    assert "No saved student tells which data two had" in said(one, two)
    (two / "metrics.json").unlink()
    assert "two is not finished" in said(one, two)
    assert "90.90" in page_of(tmp_path, one, two)


def test_latency_of_other_targets_is_said(tmp_path: Path) -> None:
    folders = [finished(tmp_path / name) for name in ("one", "two")]
    for folder, batch in zip(folders, (1, 32), strict=True):
        target = {"runtime": "eager", "device": "cpu", "batch": batch, "threads": 1}
        machine = {"device": "a processor", "node": "here", "torch": "2.8.0"}
        (folder / "latency.json").write_text(json.dumps({"target": target, "machine": machine}))
    assert "eager on cpu, threads: 1, batch 32 (a processor, here, torch 2.8.0) in two" in said(*folders)


def test_rows_stand_by_network_and_equal_originals_are_one_row(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two")

    def measured(metrics: Any) -> None:
        metrics["student"] |= {"bytes": 1_234_567, "measured_ms": 1.4, "measured_low_ms": 1.305, "measured_high_ms": 2}

    changed(two / "metrics.json", measured)
    header, rows = result_rows(seen([one, two]))
    assert header[-3:] == ["on disk", "by table, ms", "measured, ms"]
    assert [row[:2] for row in rows] == [
        ["original", "one, two"],
        ["student", "one"],
        ["student", "two"],
        ["uniform", "one, two"],
    ]
    assert rows[2][2:] == ["90.90 ± 0.12", "-0.83", "20.00 M", "49.3%", "150.00 k", "1.23 MB", "–", "1.40 (1.30–2.00)"]


def test_sizes_stand_side_by_side_where_a_space_is_shared(tmp_path: Path) -> None:
    one, two, other = finished(tmp_path / "a"), finished(tmp_path / "b"), finished(tmp_path / "c", choices=9)
    changed(two / "architecture.json", lambda found: found.update({"layer1.0.conv1": 12}))
    (shared,) = shared_sizes(seen([one, two, other]))
    header, rows = shared["table"]
    assert header == ["choice", "kind", "original", "a", "b"]
    assert rows[0] == ["layer1.0.conv1", "width", "16", "4", "12"]
    assert shared["picture"].count("<svg") == 1
    assert shared_sizes(seen([one, other])) == []


def test_several_budgets_of_a_run_are_columns_and_points(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two")
    found = json.loads((one / "architecture.json").read_text())
    (one / "architecture.json").unlink()
    budgets = [{"budget": label, "architecture": found} for label in ("50% of MACs", "30% of MACs")]
    (one / "architectures.json").write_text(json.dumps(budgets))
    changed(one / "metrics.json", lambda m: m.update({f"student at {b['budget']}": m["student"] for b in budgets}))
    changed(one / "metrics.json", lambda m: m.pop("student"))
    (shared,) = shared_sizes(seen([one, two]))
    assert shared["table"][0][3:] == ["one, 50% of MACs", "one, 30% of MACs", "two"]
    drawn = [point for point in points(seen([one, two])) if point["network"] == "student"]
    assert [point["run"] for point in drawn] == ["one", "one", "two"]


def test_what_is_no_number_is_named_and_not_drawn(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two")
    changed(two / "metrics.json", lambda metrics: metrics["student"].update(top1=None, spread=None))
    assert "no number" in page_of(tmp_path, one, two)
    assert {point["run"] for point in points(seen([one, two])) if point["network"] == "student"} == {"one"}


def test_the_page_is_self_contained_and_tells_warnings_with_whose_they_are(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two")
    changed(two / "run.json", lambda run: run["warnings"].append("something <of> two"))
    page = page_of(tmp_path, one, two)
    assert not re.findall(r"(?:src|href)=\"[^\"#]+\"", page)
    assert "one, two: the original classifies" in page
    assert "two: something &lt;of&gt; two" in page
    assert page.count("<svg") == 2
    assert "prefers-color-scheme: dark" in page
    assert page == page_of(tmp_path, one, two)


def test_a_page_of_several_runs_is_printed_across(tmp_path: Path) -> None:
    assert "@page { size: landscape; }" in page_of(tmp_path, finished(tmp_path / "one"), finished(tmp_path / "two"))


def test_labels_are_as_long_as_they_must_be(tmp_path: Path) -> None:
    assert labels([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert labels([Path("/x/one/run"), Path("/x/two/run"), Path("/y/two/other")]) == ["one/run", "two/run", "two/other"]


def test_what_cannot_be_compared_at_all_is_refused(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two")
    for folders, words in (([one, one], "each folder once"), ([one, tmp_path], "has no run.json")):
        with pytest.raises(BadRecipe, match=words):
            write_runs(folders, tmp_path / "page.html")
    with pytest.raises(BadRecipe, match=r"page\.html cannot be written"):
        write_runs([one, two], one / "run.json" / "page.html")
    (two / "recipe.yaml").write_text("seed: 0\n")
    with pytest.raises(BadRecipe, match="names no network"):
        write_runs([one, two], tmp_path / "page.html")
    (two / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    changed(two / "run.json", lambda run: run.update(metric="iou"))
    with pytest.raises(BadRecipe, match=r"judged by one metric, got iou \(two\), top1 \(one\)"):
        write_runs([one, two], tmp_path / "page.html")
    (two / "run.json").write_text('{"title": ')
    with pytest.raises(BadRecipe, match=r"run\.json must be JSON"):
        write_runs([one, two], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_command_takes_several_runs(shell: Shell, tmp_path: Path) -> None:
    one, two = finished(tmp_path / "one"), finished(tmp_path / "two", digest="bb" * 32)
    code, out, _ = shell("report", one, two)
    assert code == 0
    assert out.startswith("Other data")
    assert (tmp_path / "runs.html").is_file()
    code, out, _ = shell("report", one, two, "--out", "page.html", "--json")
    assert (code, json.loads(out)["report"]) == (0, "page.html")
    code, _, err = shell("report", one, "--out", "page.html")
    assert (code, "--out is for a page about several runs" in err) == (2, True)
