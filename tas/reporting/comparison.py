"""What people read of a comparison: its table, its curves, and `compare/comparison.html`, one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tas.errors import BadRecipe
from tas.files import json_text, read_json, write_text
from tas.reporting import pictures
from tas.reporting.forgetting import forgetting_parts
from tas.reporting.numbers import decimal, epochs, figures, short
from tas.reporting.page import COMPARED, COMPARISON, write_page
from tas.reporting.tables import Table

_STARTS = {
    "inherit": "the original's most important channels",
    "merge": "the original's most important channels, the others merged in",
    "rewind": "the original's most important channels, at an early state of it",
    "scratch": "fresh weights",
}
_USED = 0.95  # of a budget; rows below it are cheaper than the others
_BESIDE = {"best": "verdict", "original": "beside_original"}
_FACTS = {
    "data": "other data",
    "lr": "learning rate {}",
    "start": "starts from {}",
    "original": "other originals",
}


def write_comparison(folder: str | Path) -> Path:
    """Write page and curves of a run folder's comparison again; returns the page. `BadRecipe` where there is none."""
    page, found = Path(folder) / COMPARED, read_json(Path(folder) / COMPARISON)
    if found is None:
        raise BadRecipe(f"{folder} holds no comparison; `tas compare` makes one")
    curves = pictures.curves(found["rows"], found["original"], found["metric"])
    write_text(page.with_name("curves.svg"), pictures.standalone(curves))
    content = {
        "title": f"{found['title']}: comparison",
        "summary": protocol(found),
        "tables": {budget: comparison_rows(found, budget) for budget in found["budgets"] if _of(found, budget)},
        "cautions": cautions(found),
        "curves": curves,
        "forgetting": forgetting_parts(page.parent) if found["forgetting"] else None,
        "seeds": seed_rows(found),
        "environment": found["environment"],
        "recipe": found["recipe"],
    }
    write_page(page, "comparison.html.jinja", content)
    return page


def comparison_rows(found: Mapping[str, Any], budget: str) -> Table:
    """Header and rows of one budget, the original first."""
    metric, original, rows = found["metric"], found["original"], _of(found, budget)
    batches = list(next((row["latency"] for row in rows if row["latency"]), {}))
    tops = [metric, *(["top5"] if "top5" in original else [])]
    header = ["network", *tops, "to original", "MACs", "MACs ratio", "compression"]
    header += [f"ms, batch {batch}" for batch in batches] + ["n", "remarks"]
    spreads = original["spread"]
    forms = {top: figures(group[top]["mean"] for group in [spreads, *rows]) for top in tops}
    shown = [
        [
            "original",
            *(_mean(spreads[name], form) for name, form in forms.items()),
            "",
            short(original["macs"]),
            "1.00",
            "1.00",
        ]
        + [_milliseconds(found["latency"].get("original", {}), batch) for batch in batches]
        + [str(len(spreads[metric]["values"])), ""]
    ]
    for row in rows:
        cells = [row["row"], *(_mean(row[name], form) for name, form in forms.items())]
        cells += [_beyond(row[metric]["mean"], original[metric], forms[metric])]
        cells += [short(row["macs"]), f"{row['speedup']:.2f}", f"{row['compression']:.2f}"]
        cells += [_milliseconds(row["latency"], batch) for batch in batches]
        shown.append([*cells, str(len(row["seeds"])), _remarks(row, metric, found["budgets"][budget])])
    return header, shown


def seed_rows(found: Mapping[str, Any]) -> Table:
    """Every cell: what one seed gave."""
    metric = found["metric"]
    form = figures(cell[metric] for cell in found["cells"])
    header = ["budget", "network", "seed", metric, "MACs", "params"]
    rows = [
        [cell["budget"], cell["row"], str(cell["seed"]), decimal(cell[metric], form), short(cell["macs"])]
        + [short(cell["params"])]
        for cell in found["cells"]
    ]
    return header, rows


def protocol(found: Mapping[str, Any]) -> str:
    """What the rows share, and how the words of the table are meant."""
    how, images = found["distill"], found["images"]
    seeds = ", ".join(map(str, found["seeds"]))
    own = ", every seed with an original of its own," if found["forgetting"] else ""
    return (
        f"Mean ± standard deviation over the seeds {seeds}{own} on {images['test']:,} test images, n networks. Unless "
        f"a remark says otherwise: {epochs(how['epochs'])} on {images['train']:,} images, learning rate {how['lr']:g}, "
        f"{how['loss']} from {_teachers(how)} (alpha {how['alpha']:g}, T {how['temperature']:g}), start: "
        f"{_STARTS[found['start']]}.{_finals(found)} "
        "Within noise: Welch's t-test of the means against the best row, or the original, "
        "does not reach p < 0.05. Speed-up: MACs of the original over MACs; compression: the same of parameters. "
        "Milliseconds: median and quartiles of one eager forward, all networks in turns, on "
        f"{found['environment']['device']}, threads: {found['environment']['threads']}."
    )


def _finals(found: Mapping[str, Any]) -> str:
    """How searches chose among their best candidates."""
    choose = found.get("choose", {"finalists": 0})
    if not choose["finalists"]:
        return ""
    return (
        f" Of each search's best candidates {choose['finalists']} were trained for {epochs(choose['epochs'])} on one "
        "half of the training images, and judged on the other; the best of them is its row."
    )


def _teachers(how: Mapping[str, Any]) -> str:
    names = [each["name"] for each in how["teacher"]] or ["original"]
    return " and ".join("the original" if name == "original" else name for name in names)


def cautions(found: Mapping[str, Any]) -> list[str]:
    """What this comparison cannot say, or not well."""
    seeds, said = len(found["seeds"]), []
    if not found["latency"]:
        said.append("Not finished: rows and seeds are missing.")
    if seeds == 1:
        said.append("One seed has no spread: no difference can be told from noise. Three seeds are the least.")
    if seeds == 2:
        said.append("Two seeds say little about the spread: three are the least.")
    if len(found["budgets"]) == 1:
        said.append("One budget: at others the order may be another.")
    if not found["traced"]:
        said.append("No row magnitude: the network's own rules name no layers whose channels could be compared.")
    if found["start"] != "scratch":
        said.append(
            f"The rows scratch train fresh weights at the learning rate of the others, {found['distill']['lr']:g}: "
            "where that was chosen for inherited weights, they would reach more at a larger one."
        )
    return said + _shared(found)


def _shared(found: Mapping[str, Any]) -> list[str]:
    """Which rows are one and the same network, trained once, at which budget and seeds."""
    networks: dict[tuple[str, int, str], dict[str, None]] = {}
    for cell in found["cells"]:
        same = json_text([cell["architecture"], cell["facts"]])
        networks.setdefault((cell["budget"], cell["seed"], same), {})[cell["row"]] = None
    seeds: dict[tuple[str, str], list[int]] = {}
    for (budget, seed, _), rows in networks.items():
        if len(rows) > 1:
            seeds.setdefault((budget, f"{', '.join([*rows][:-1])} and {[*rows][-1]}"), []).append(seed)
    return [
        f"At {budget} the rows {rows} are the same network ({'seed' if len(which) == 1 else 'seeds'} "
        f"{', '.join(map(str, which))}), so nothing is to be read from their being level."
        for (budget, rows), which in seeds.items()
    ]


def _of(found: Mapping[str, Any], budget: str) -> list[dict[str, Any]]:
    return [row for row in found["rows"] if row["budget"] == budget]


def _remarks(row: Mapping[str, Any], metric: str, limits: Mapping[str, float]) -> str:
    said, noise = [], [name for name in ("best", "original") if row[_BESIDE[name]] == "within noise"]
    if row[metric]["lost"]:
        said.append(f"{metric} is no number in {row[metric]['lost']} of {len(row['seeds'])} seeds")
    if row["verdict"] in ("best", "one seed"):
        said.append(row["verdict"])
    if noise:
        said.append(f"within noise of the {' and the '.join(noise)}")
    used = max((row[measure] / limit for measure, limit in limits.items()), default=1.0)
    if used < _USED:
        said.append(f"uses {used:.0%} of the budget")
    other = [_fact(name, value) for name, value in row["differs"].items()]
    return "; ".join([*said, *other])


def _fact(name: str, value: Any) -> str:
    return epochs(value) if name == "epochs" else _FACTS.get(name, "{}").format(value)


def _mean(value: Mapping[str, Any], form: str) -> str:
    return decimal(value["mean"], form) + ("" if value["sd"] is None else f" ± {value['sd']:{form}}")


def _beyond(one: float | None, other: float | None, form: str) -> str:
    return "–" if one is None or other is None else f"{one - other:+{form}}"


def _milliseconds(latency: Mapping[str, Any], batch: str) -> str:
    if batch not in latency:
        return "–"
    value = latency[batch]
    digits = 2 if value["median"] < 100 else 0
    return f"{value['median']:.{digits}f} ({value['low']:.{digits}f}–{value['high']:.{digits}f})"
