"""Numbers as people write them, and the tables of the console and the page from the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

Rows = Mapping[str, Mapping[str, Any]]


def short(number: float) -> str:
    """22440000 -> "22.44 M"."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """75.2 -> "1 min 15 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def result_rows(metrics: Rows, metric: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table that a run ends with; `metric` names the key that decides."""
    original = metrics["original"]
    header = ["network", metric, "difference", "MACs", "params", "of MACs"]
    rows = []
    for name, row in metrics.items():
        spread = f" ± {row['spread']:.2f}" if row.get("spread") is not None else ""
        difference = "" if name == "original" else f"{row[metric] - original[metric]:+.2f}"
        share = f"{row['macs'] / original['macs']:.1%}"
        rows.append([name, f"{row[metric]:.2f}{spread}", difference, short(row["macs"]), short(row["params"]), share])
    return header, rows


def feasibility_rows(feasibility: Rows) -> tuple[list[str], list[list[str]]]:
    """Smallest, uniform and largest architecture of a space, before any training."""
    largest = feasibility["largest"]
    header = ["architecture", "MACs", "params", "of MACs", "of params"]
    rows = [
        [name, short(row["macs"]), short(row["params"])]
        + [f"{row[measure] / largest[measure]:.1%}" for measure in ("macs", "params")]
        for name, row in feasibility.items()
    ]
    return header, rows


def choice_rows(space: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The choices of `SearchSpace.to_dict()`."""
    rows = [[c["name"], c["kind"], _candidates(c["candidates"]), str(c["candidates"][-1])] for c in space["choices"]]
    return ["choice", "kind", "candidates", "original"], rows


def size_rows(space: Mapping[str, Any], architecture: Mapping[str, int]) -> tuple[list[str], list[list[str]]]:
    """What an architecture keeps of each size."""
    sizes = [(c["name"], c["kind"], c["candidates"][-1], architecture[c["name"]]) for c in space["choices"]]
    return ["choice", "kind", "original", "student"], [[n, k, str(full), str(kept)] for n, k, full, kept in sizes]


def kept_rows(space: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """What is not searched, and why."""
    return ["kept", "size", "reason"], [[k["name"], str(k["size"]), k["reason"]] for k in space["kept"]]


def score_rows(scores: Sequence[Mapping[str, Any]], metric: str) -> tuple[list[str], list[list[str]]]:
    """Candidates as `candidates.jsonl` has them."""
    header = ["", f"{metric}, recalibrated", "raw", "images", "MACs", "params"]
    rows = [
        ["chosen" if s.get("chosen") else str(number), f"{s['recalibrated']:.2f}"]
        + ["–" if s["raw"] is None else f"{s['raw']:.2f}", str(s["images"]), short(s["macs"]), short(s["params"])]
        for number, s in enumerate(scores, 1)
    ]
    return header, rows


def space_tables(described: Mapping[str, Any]) -> list[Any]:
    """All of `tas space`: choices, kept sizes, feasibility, notes."""
    kept = [kept_rows(described)] if described["kept"] else []
    return [choice_rows(described), *kept, feasibility_rows(described["feasibility"]), *described["notes"]]


def plan_tables(found: Mapping[str, Any]) -> list[Any]:
    """All of `tas run --plan`: what is feasible, and what it takes."""
    times = [[stage, duration(seconds)] for stage, seconds in found["seconds"].items()]
    memory = f"About {found['megabytes']:,.0f} MB for a training step of the original, besides the data."
    return [feasibility_rows(found["feasibility"]), (["stage", "about"], times), memory]


def console(table: tuple[list[str], list[list[str]]], title: str = "") -> Table:
    """Header and rows for rich; columns of numbers are aligned to the right."""
    header, rows = table
    drawn = Table(title=title or None, title_justify="left", header_style="bold")
    for index, name in enumerate(header):
        numeric = bool(rows) and all(row[index][:1] in "0123456789+-" for row in rows)
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    return drawn


def _candidates(sizes: Sequence[int]) -> str:
    """All of a few; the ends and the step of many."""
    if len(sizes) <= 10:
        return " ".join(map(str, sizes))
    return f"{sizes[0]} {sizes[1]} … {sizes[-1]} ({len(sizes)})"
