"""How many images a quick score needs: does a score on few images rank candidates like EagleEye's, on 23,056?

    python scripts/benchmarks/images_needed.py configs/cifar10_resnet20_22m.yaml images_needed.jsonl \\
        --set network.weights=resnet20.safetensors --set data.root=cifar10.npz [--candidates 200]
        [--few 2432 1968] [--many 13056 10000] [--threads 1]

Candidates are drawn within the recipe's budget and run with the recipe's weights. Two disjoint stratified sets of
training images, A and B, have `--many` images each, for the calibration and for the score (102 batches of 128 and
10,000: EagleEye). `--few` of A are the first ones of A, and of B those of B. Two scores on many images, of A and of B,
differ as any two do that see other images: their Kendall is what can be had. The few images are enough where the
Kendall of their score with the many of the *other* set is at least that, minus 0.02 (the mean over A and B).

Every candidate is a line of the file, which is gone on with; a file of other settings is refused. Printed: a table with
95 % bootstrap intervals over candidates, and the same as one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tas.correlation import kendall
from tas.data import nested
from tas.errors import BadRecipe
from tas.judging import drawn
from tas.preparation import Prepared, prepare
from tas.recipe import read
from tas.scoring import Judge, judged
from tas.space import Architecture
from tas.stages import weighted

BATCH = 128
MARGIN = 0.02
RESAMPLES = 2000
Sizes = tuple[int, int]  # images for the calibration, images for the score


@dataclass(frozen=True, eq=False)
class Sets:
    """One judge a set: the few images of A and of B, and the many, of which the few are the first."""

    few: tuple[Judge, Judge]
    many: tuple[Judge, Judge]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("lines", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--few", type=int, nargs=2, default=(2432, 1968))
    parser.add_argument("--many", type=int, nargs=2, default=(13056, 10000))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    recipe = read(arguments.recipe, arguments.set)
    prepared = prepare(recipe)
    torch.set_num_threads(arguments.threads)
    settings = {
        "network": recipe.network.name,
        "data": prepared.data.digest[:12],
        "budget": dict(prepared.budget.limits),
        "seed": recipe.seed,
        "few": list(arguments.few),
        "many": list(arguments.many),
    }
    rows = known(arguments.lines, settings)
    chosen = drawn(prepared.space, prepared.budget, arguments.candidates, recipe.seed)
    sets = image_sets(prepared, tuple(arguments.few), tuple(arguments.many))
    with arguments.lines.open("a") as lines:
        for architecture in chosen[len(rows) :]:
            rows.append({"architecture": dict(architecture), **scores(sets, architecture)})
            lines.write(json.dumps(rows[-1]) + "\n")
            lines.flush()
    report(rows[: arguments.candidates], {**settings, "torch": torch.__version__})


def known(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The candidates that the file has; it begins with the settings that decide its scores."""
    if not path.exists():
        path.write_text(json.dumps(settings) + "\n")
    first, *rows = map(json.loads, path.read_text().splitlines())
    if first != settings:
        raise BadRecipe(f"{path} must be of these settings, but holds {first}: name another file")
    return rows


def image_sets(prepared: Prepared, few: Sizes, many: Sizes) -> Sets:
    """Consecutive pieces of one order whose every piece has each class in its share."""
    split = prepared.data.train
    if 2 * sum(many) > len(split) or few > many or few[1] > many[1]:
        raise BadRecipe(f"two sets of {sum(many)} images are disjoint and contain {few}, got {len(split)} images")
    order = nested(split.targets, len(split), torch.Generator().manual_seed(0))
    source = weighted(prepared, prepared.original)

    def of(start: int, sizes: Sizes) -> Judge:
        calibration = split.take(order[start : start + sizes[0]]).batches(BATCH, drop_last=True)
        held_out = split.take(order[start + many[0] :][: sizes[1]]).batches(BATCH)
        inputs = [inputs for inputs, _ in calibration]
        return Judge(source, prepared.objective, inputs, list(held_out), sizes[1], prepared.device)

    starts = 0, sum(many)
    return Sets((of(starts[0], few), of(starts[1], few)), (of(starts[0], many), of(starts[1], many)))


def scores(sets: Sets, architecture: Architecture) -> dict[str, Any]:
    """Of one candidate: metric and loss by set and count; the many images go on from the statistics of the few."""
    started, row = time.perf_counter(), {}
    for name, few, many in zip("AB", sets.few, sets.many, strict=True):
        early, statistics = judged(few, architecture)
        late, _ = judged(many, architecture, known=statistics)
        row |= {f"few {name}": early.recalibrated, f"many {name}": late.recalibrated}
        row |= {f"few {name} loss": early.loss, f"many {name} loss": late.loss}
    return {**row, "seconds": round(time.perf_counter() - started, 1)}


def report(rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> None:
    columns = {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0] if " " in name}
    resamples = torch.randint(len(rows), (RESAMPLES, len(rows)), generator=torch.Generator().manual_seed(0))
    drawn_ = torch.cat([torch.arange(len(rows))[None], resamples])
    of = {
        "many A, many B": agreement(columns, drawn_, "many A", "many B"),
        "few A, many B": agreement(columns, drawn_, "few A", "many B"),
        "few B, many A": agreement(columns, drawn_, "few B", "many A"),
        "few A, few B": agreement(columns, drawn_, "few A", "few B"),
        "by loss: many A, many B": agreement(columns, drawn_, "many A loss", "many B loss"),
        "by loss: few A, many B": agreement(columns, drawn_, "few A loss", "many B loss"),
    }
    both = (of["few A, many B"] + of["few B, many A"]) / 2
    of["few with many, minus many with many"] = both - of["many A, many B"]
    found = {name: interval(values) for name, values in of.items()}
    enough = found["few with many, minus many with many"][0] >= -MARGIN
    few, many = (f"{sum(settings[name]):,}" for name in ("few", "many"))
    table = Table("", "Kendall (95 %)", title=f"{len(rows)} candidates; few: {few} images, many: {many}")
    for name, (value, low, high) in found.items():
        table.add_row(name, f"{value:.3f} ({low:.3f} to {high:.3f})")
    spread = {name: float(columns[name].std()) for name in ("few A", "many A")}
    Console(stderr=True).print(table, f"standard deviation over candidates: {spread}; few are enough: {enough}")
    summary = {"candidates": len(rows), "kendall": found, "sd": spread, "enough": enough}
    print(json.dumps({"benchmark": "images_needed", **settings, **summary}))


def agreement(columns: dict[str, Tensor], drawn_: Tensor, one: str, other: str) -> Tensor:
    """Kendall of two columns, first of all candidates, then of each resample."""
    return kendall(columns[one][drawn_], columns[other][drawn_])


def interval(values: Tensor) -> list[float]:
    """[value, low, high], rounded: the first is of all candidates, the others resamples."""
    low, high = values[1:].nanquantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return [round(float(number), 4) for number in (values[0], low, high)]


if __name__ == "__main__":
    main()
