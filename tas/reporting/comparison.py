"""What people read of a comparison: its table, its curves, and `compare/comparison.html`, one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tas.errors import BadRecipe
from tas.files import write_text
from tas.reporting import pictures
from tas.reporting.page import read_json, write_page
from tas.reporting.tables import short

Table = tuple[list[str], list[list[str]]]

_STARTS = {
    "inherit": "the original's most important channels",
    "merge": "the original's most important channels, the others merged in",
    "scratch": "fresh weights",
}
_FACTS = {"epochs": "{} epochs", "data": "other data", "lr": "learning rate {}", "start": "starts from {}"}


def write_comparison(folder: str | Path) -> Path:
    """Write page and curves of a run folder's comparison again; returns the page. `BadRecipe` where there is none."""
    place = Path(folder) / "compare"
    found = read_json(place / "comparison.json")
    if found is None:
        raise BadRecipe(f"{folder} holds no comparison; `tas compare` makes one")
    curves = pictures.curves(found["rows"], found["original"], found["metric"])
    write_text(place / "curves.svg", pictures.standalone(curves))
    content = {
        "title": f"{found['title']}: comparison",
        "summary": protocol(found),
        "tables": {budget: comparison_rows(found, budget) for budget in found["budgets"] if _of(found, budget)},
        "curves": curves,
        "seeds": seed_rows(found),
        "environment": found["environment"],
        "recipe": found["recipe"],
    }
    write_page(place / "comparison.html", "comparison.html.jinja", content)
    return place / "comparison.html"


def comparison_rows(found: Mapping[str, Any], budget: str) -> Table:
    """Header and rows of one budget, the original first."""
    metric, original, rows = found["metric"], found["original"], _of(found, budget)
    batches = list(next((row["latency"] for row in rows if row["latency"]), {}))
    tops = [metric, *(["top5"] if "top5" in original else [])]
    header = ["network", *tops, "to original", "MACs", "speed-up", "compression"]
    header += [f"ms, batch {batch}" for batch in batches] + ["seeds", "remarks"]
    shown = [
        ["original", *(f"{original[name]:.2f}" for name in tops), "", short(original["macs"]), "1.00", "1.00"]
        + [_milliseconds(found["latency"].get("original", {}), batch) for batch in batches]
        + ["1", ""]
    ]
    for row in rows:
        cells = [row["row"], *(_mean(row[name]) for name in tops), f"{row[metric]['mean'] - original[metric]:+.2f}"]
        cells += [short(row["macs"]), f"{row['speedup']:.2f}", f"{row['compression']:.2f}"]
        cells += [_milliseconds(row["latency"], batch) for batch in batches]
        shown.append([*cells, str(len(row["seeds"])), _remarks(row)])
    return header, shown


def seed_rows(found: Mapping[str, Any]) -> Table:
    """Every cell: what one seed gave."""
    metric = found["metric"]
    header = ["budget", "network", "seed", metric, "MACs", "params"]
    rows = [
        [cell["budget"], cell["row"], str(cell["seed"]), f"{cell[metric]:.2f}", short(cell["macs"])]
        + [short(cell["params"])]
        for cell in found["cells"]
    ]
    return header, rows


def protocol(found: Mapping[str, Any]) -> str:
    """What the rows share, and how the words of the table are meant."""
    how, images = found["distill"], found["images"]
    seeds = ", ".join(map(str, found["seeds"]))
    done = "" if found["latency"] else " Not finished: rows and seeds are missing."
    return (
        f"Mean ± standard deviation over the seeds {seeds} on {images['test']:,} test images. Unless a remark says "
        f"otherwise: {how['epochs']} epochs on {images['train']:,} images, learning rate {how['lr']:g}, {how['loss']} "
        f"from the original (alpha {how['alpha']:g}, T {how['temperature']:g}), start: {_STARTS[found['start']]}. "
        "Within noise: no further from the best row than the pooled standard deviation. Speed-up: MACs of the original "
        "over MACs; compression: the same of parameters. Milliseconds: median and quartiles of one eager forward, all "
        f"networks in turns, on {found['environment']['device']}, threads: {found['environment']['threads']}.{done}"
    )


def _of(found: Mapping[str, Any], budget: str) -> list[dict[str, Any]]:
    return [row for row in found["rows"] if row["budget"] == budget]


def _remarks(row: Mapping[str, Any]) -> str:
    other = [_FACTS.get(name, "{}").format(value) for name, value in row["differs"].items()]
    return "; ".join([*([row["verdict"]] if row["verdict"] else []), *other])


def _mean(value: Mapping[str, Any]) -> str:
    return f"{value['mean']:.2f}" + ("" if value["sd"] is None else f" ± {value['sd']:.2f}")


def _milliseconds(latency: Mapping[str, Any], batch: str) -> str:
    if batch not in latency:
        return "–"
    value = latency[batch]
    digits = 2 if value["median"] < 100 else 0
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f}–{value['high']:.{digits}f})"
