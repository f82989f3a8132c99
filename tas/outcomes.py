"""From the cells of a comparison to the rows of its table: means, spreads, speed-ups, what is best and what is noise.

A row is one search or baseline at one budget. A cell is a mapping with "row", "budget", "seed", the metric by its name,
perhaps "top5", "macs", "params", "architecture" and "facts": what rows must share to be comparable.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tas.forgetting import welch

_ALPHA = 0.05
Cell = Mapping[str, Any]


def rows_of(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a budget and name, in the order of the cells.

    found: "metric", "higher_is_better", "original" (`original_of_cells`), "cells", and "latency" by architecture
    (JSON) and batch. Every row says in which "facts" it differs from the first one of its budget, the first search, and
    its `verdict` beside the best row and beside the original. A row with a cell whose metric is no number says how many
    there are ("lost" of its spread, which is of the others) and is never the best.
    """
    metric, original = found["metric"], found["original"]
    grouped: dict[tuple[str, str], list[Cell]] = {}
    for cell in found["cells"]:
        grouped.setdefault((cell["budget"], cell["row"]), []).append(cell)
    rows = [_row(found, budget, name, cells) for (budget, name), cells in grouped.items()]
    for budget in dict.fromkeys(row["budget"] for row in rows):
        mine = [row for row in rows if row["budget"] == budget]
        whole = [row[metric] for row in mine if not row[metric]["lost"]]
        best = (max if found["higher_is_better"] else min)(whole, key=lambda one: one["mean"], default=_NOTHING)
        for row in mine:
            row["beside_original"] = verdict(row[metric], original["spread"][metric])
            ties = row[metric]["mean"] == best["mean"] and not row[metric]["lost"]
            row["verdict"] = "best" if ties else verdict(row[metric], best)
            row["differs"] = {name: value for name, value in row["facts"].items() if value != mine[0]["facts"][name]}
    return rows


def original_of_cells(cells: Sequence[Cell]) -> dict[str, Any]:
    """The original, or the mean of several: its metrics and costs, and "spread" of each metric."""
    numeric = [key for key, value in cells[0].items() if value is None or isinstance(value, int | float)]
    spreads = {key: spread([cell[key] for cell in cells]) for key in numeric}
    means = {key: value["mean"] for key, value in spreads.items()}
    whole = {key: round(means[key]) for key in ("macs", "params")}
    return {**means, **whole, "spread": {key: value for key, value in spreads.items() if key not in whole}}


def verdict(one: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """Compared with the best row of a budget, or with the original: "within noise" where Welch's two-sided t-test of
    the means does not reach p < 0.05, "" where it does or one has no number, "one seed" where there is no spread.
    (To compare the means with a pooled standard deviation would call a difference in 29 % of comparisons of equals, at
    three seeds each.)"""
    if one["mean"] is None or best["mean"] is None:
        return ""
    if one["sd"] is None or best["sd"] is None:
        return "one seed"
    test = welch(*(torch.tensor(_numbers(each["values"]), dtype=torch.float64) for each in (one, best)))
    return "within noise" if test is not None and test.p >= _ALPHA else ""


def spread(values: Sequence[float | None]) -> dict[str, Any]:
    """Mean (None of no number), standard deviation (None of fewer than two), the values, and how many were "lost": no
    number, which files hold as None."""
    numbers = _numbers(values)
    mean = statistics.fmean(numbers) if numbers else None
    sd = statistics.stdev(numbers) if len(numbers) > 1 else None
    return {"mean": mean, "sd": sd, "values": list(values), "lost": len(values) - len(numbers)}


def _numbers(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None and math.isfinite(value)]


_NOTHING = spread([])


def _row(found: Mapping[str, Any], budget: str, name: str, cells: Sequence[Cell]) -> dict[str, Any]:
    metric, original = found["metric"], found["original"]
    means = {measure: statistics.fmean(cell[measure] for cell in cells) for measure in ("macs", "params")}
    row = {
        "row": name,
        "budget": budget,
        "seeds": [cell["seed"] for cell in cells],
        metric: spread([cell[metric] for cell in cells]),
        "macs": round(means["macs"]),
        "params": round(means["params"]),
        "speedup": original["macs"] / means["macs"],
        "compression": original["params"] / means["params"],
        "latency": _latency(found["latency"], cells),
        "facts": {fact: _alike([cell["facts"][fact] for cell in cells]) for fact in cells[0]["facts"]},
    }
    return row | ({"top5": spread([cell["top5"] for cell in cells])} if "top5" in cells[0] else {})


def _alike(values: Sequence[Any]) -> Any:
    """The one value, or the ends of several numbers as text."""
    if len(set(values)) == 1:
        return values[0]
    return f"{min(values)} to {max(values)}"


def _latency(measured: Mapping[str, Mapping[str, Any]], cells: Sequence[Cell]) -> dict[str, Any]:
    """By batch, the mean of the medians and of the quartiles of the row's architectures; empty before they are
    measured."""
    known = [measured.get(json.dumps(cell["architecture"])) for cell in cells]
    if not all(known):
        return {}
    each = [one for one in known if one]
    return {
        batch: {key: statistics.fmean(one[batch][key] for one in each) for key in ("median", "low", "high")}
        for batch in each[0]
    }
