"""Several runs on one self-contained page: what they reached side by side, and where they are not comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tas.files import is_number
from tas.reporting import numbers, pictures, tables
from tas.reporting.differences import cautions, difference_rows, listed
from tas.reporting.page import write_page
from tas.reporting.seen import Seen, seen
from tas.reporting.tables import Table


def write_runs(folders: Sequence[str | Path], page: str | Path) -> list[str]:
    """Write one page about several run folders; returns what it says against comparing them.

    `BadRecipe` where one of them is no run folder or stands twice, where they have different metrics, or where the page
    cannot be written.
    """
    runs = seen([Path(folder) for folder in folders])
    content = _content(runs)
    write_page(Path(page), "runs.html.jinja", content)
    said: list[str] = content["cautions"]
    return said


def _content(runs: Sequence[Seen]) -> dict[str, Any]:
    finished = [run for run in runs if run.finished]
    facts = [[run.label, run.state["title"], run.network, run.commit] for run in runs]
    return {
        "title": f"{len(runs)} runs beside each other",
        "runs": (["run", "title", "network", "commit"], facts),
        "cautions": cautions(runs),
        "result": result_rows(runs) if any(run.metrics for run in runs) else None,
        "targets": listed(dict.fromkeys(run.target for run in runs if run.target)) if _timed(runs) else "",
        "curve": pictures.runs(points(finished), runs[0].state["metric"]) if finished else "",
        "sizes": shared_sizes(runs),
        "differences": difference_rows(runs),
        "warnings": _warnings(runs),
        "timing": _timing(runs),
    }


def result_rows(runs: Sequence[Seen]) -> Table:
    """Networks of one name below each other; rows that agree in every figure, such as a common original, are one."""
    metric, timed = runs[0].state["metric"], _timed(runs)
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    rows: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(names, key=_rank):
        for run in runs:
            if name in run.metrics:
                rows.setdefault((name, *_cells(run, name, metric, timed)), []).append(run.label)
    header = ["network", "run", metric, "to original", "MACs", "of MACs", "params", "on disk"]
    header += ["by table, ms", "measured, ms"] if timed else []
    return header, [[name, ", ".join(labels), *cells] for (name, *cells), labels in rows.items()]


def _cells(run: Seen, name: str, metric: str, timed: bool) -> list[str]:
    header, rows = tables.result_rows(run.metrics, metric)
    shown = dict(zip(header, rows[list(run.metrics).index(name)], strict=True))
    row = run.metrics[name]
    return [
        *(shown[column] for column in (metric, "difference", "MACs", "of MACs", "params")),
        numbers.size_on_disk(row),
        *(numbers.milliseconds(row, key) for key in ("latency_ms", "measured_ms") if timed),
    ]


def points(runs: Sequence[Seen]) -> list[dict[str, Any]]:
    """Every network of the finished runs, for the curve: "run", "network" (without its budget), "macs", "value",
    "spread". Those whose metric is no number are left out."""
    metric = runs[0].state["metric"]
    return [
        {"run": run.label, "network": name.partition(" ")[0], "macs": row["macs"], "value": row[metric]}
        | {"spread": row.get("spread") or 0.0}
        for run in runs
        for name, row in run.metrics.items()
        if is_number(row[metric])
    ]


def shared_sizes(runs: Sequence[Seen]) -> list[dict[str, Any]]:
    """For every space that at least two students share: their sizes side by side, and a picture of them."""
    spaces: list[tuple[Mapping[str, Any], dict[str, Mapping[str, int]]]] = []
    for run in runs:
        space = next((columns for known, columns in spaces if known["choices"] == run.space["choices"]), None)
        if space is None:
            spaces.append((run.space, space := {}))
        space |= {run.student(name): found for name, found in run.students.items()}
    return [
        {"table": tables.size_rows(space, columns), "picture": pictures.beside(space, columns)}
        for space, columns in spaces
        if len(columns) > 1
    ]


def _timed(runs: Sequence[Seen]) -> bool:
    return any("latency_ms" in row or "measured_ms" in row for run in runs for row in run.metrics.values())


def _rank(name: str) -> int:
    """The original first, then students; baselines as they come."""
    return {"original": 0, "student": 1}.get(name.partition(" ")[0], 2)


def _warnings(runs: Sequence[Seen]) -> list[str]:
    """Those of the runs, each once, with whose they are."""
    found: dict[str, list[str]] = {}
    for run in runs:
        for text in run.state["warnings"]:
            found.setdefault(text, []).append(run.label)
    return [f"{', '.join(names)}: {text}" for text, names in found.items()]


def _timing(runs: Sequence[Seen]) -> Table:
    """Seconds of every stage, a column a run."""
    stages = dict.fromkeys(stage for run in runs for stage in run.state["stages"])
    took = [{name: stage["seconds"] for name, stage in run.state["stages"].items()} for run in runs]
    rows = [[stage, *(numbers.duration(t[stage]) if stage in t else "–" for t in took)] for stage in stages]
    rows.append(["together", *(numbers.duration(sum(each.values())) for each in took)])
    return ["stage", *(run.label for run in runs)], rows
