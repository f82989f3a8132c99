"""How many images a quick score needs: does a score on few images rank candidates like EagleEye's, on 23,056?

    python scripts/benchmarks/images_needed.py configs/cifar10_resnet20_22m.yaml images_needed.jsonl \\
        --set network.weights=resnet20.safetensors --set data.root=cifar10.npz [--candidates 200]
        [--few 1280 3120 --few 2432 1968] [--many 13056 10000] [--threads 1]

Candidates are drawn within the recipe's budget and run with the recipe's weights. Two disjoint stratified sets of
training images, A and B, have `--many` images each, for the calibration and for the score (102 batches of 128 and
10,000: EagleEye). `--few` of A are the first ones of A, and of B those of B, by default as many as scores
take. Two scores on many images, of A and of B, differ as any two do that see other images: their Kendall is what can be
had. The few images are enough where the Kendall of their score with the many of the *other* set is at least that, minus
0.02 (the mean over A and B).

Every score is a line of the file, which is gone on with, also for other `--few`; a file of other settings is refused.
Printed: a table with 95 % bootstrap intervals over the candidates, and the same as one JSON line.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
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
from tas.scoring import CALIBRATION_IMAGES, SCORE_IMAGES, Judge, judged
from tas.space import Architecture
from tas.stages import weighted

BATCH = 128
MARGIN = 0.02
RESAMPLES = 2000
Sizes = tuple[int, int]  # images for the calibration, images for the score
Key = tuple[Architecture, str, Sizes]  # what a score is of: the set is A or B


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("lines", type=Path)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--few", type=int, nargs=2, action="append")
    parser.add_argument("--many", type=int, nargs=2, default=(13056, 10000))
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    recipe = read(asked.recipe, asked.set)
    prepared = prepare(recipe)
    torch.set_num_threads(asked.threads)
    settings = {
        "network": recipe.network.name,
        "data": prepared.data.digest[:12],
        "budget": dict(prepared.budget.limits),
        "seed": recipe.seed,
    }
    known = read_lines(asked.lines, settings)
    few, many = [tuple(each) for each in asked.few or [(CALIBRATION_IMAGES, SCORE_IMAGES)]], tuple(asked.many)
    chosen = drawn(prepared.space, prepared.budget, asked.candidates, recipe.seed)
    judges = image_sets(prepared, sorted([*few, many]), many)
    with asked.lines.open("a") as lines:
        for architecture in chosen:
            for key, score in scores(judges, architecture, known):
                known[key] = score
                _, name, sizes = key
                lines.write(
                    json.dumps({"architecture": dict(architecture), "set": name, "sizes": sizes, **score}) + "\n"
                )
                lines.flush()
    for sizes in few:
        report(known, chosen, sizes, many, {**settings, "torch": torch.__version__})


def read_lines(path: Path, settings: dict[str, Any]) -> dict[Key, dict[str, float]]:
    """The scores that the file has, metric and loss of each; it begins with the settings that decide them."""
    if not path.exists():
        path.write_text(json.dumps(settings) + "\n")
    first, *rows = map(json.loads, path.read_text().splitlines())
    if first != settings:
        raise BadRecipe(f"{path} must be of these settings, but holds {first}: name another file")
    return {
        (Architecture.of(row["architecture"]), row["set"], tuple(row["sizes"])): {
            "metric": row["metric"],
            "loss": row["loss"],
        }
        for row in rows
    }


def image_sets(prepared: Prepared, sizes: Sequence[Sizes], many: Sizes) -> dict[str, dict[Sizes, Judge]]:
    """A judge for each set and each of the `sizes`, of which `many` are the most.
    Pieces of one order whose every piece has each class in its share."""
    split = prepared.data.train
    if 2 * sum(many) > len(split) or any(size[0] > many[0] or size[1] > many[1] for size in sizes):
        raise BadRecipe(f"two sets of {sum(many)} images are disjoint and contain {sizes}, got {len(split)} images")
    order = nested(split.targets, len(split), torch.Generator().manual_seed(0))
    source = weighted(prepared, prepared.original)

    def of(start: int, size: Sizes) -> Judge:
        calibration = split.take(order[start : start + size[0]]).batches(BATCH, drop_last=True)
        held_out = split.take(order[start + many[0] :][: size[1]]).batches(BATCH)
        inputs = [inputs for inputs, _ in calibration]
        return Judge(source, prepared.objective, split, inputs, list(held_out), size[1], prepared.device)

    return {name: {size: of(start, size) for size in sizes} for name, start in (("A", 0), ("B", sum(many)))}


def scores(
    judges: dict[str, dict[Sizes, Judge]], architecture: Architecture, known: dict[Key, dict[str, float]]
) -> Iterator[tuple[Key, dict[str, float]]]:
    """Metric and loss of one candidate, where they are not known; more images go on from the statistics of fewer."""
    for name, of_set in judges.items():
        reached: dict[str, Tensor] | None = None
        for sizes, judge in of_set.items():
            if (architecture, name, sizes) not in known:
                found, reached = judged(judge, architecture, known=reached)
                yield (architecture, name, sizes), {"metric": found.recalibrated, "loss": found.loss}


def report(
    known: dict[Key, dict[str, float]],
    chosen: Sequence[Architecture],
    few: Sizes,
    many: Sizes,
    settings: dict[str, Any],
) -> None:
    columns = {
        f"{count} {name}{ending}": torch.tensor([known[each, name, sizes][field] for each in chosen]).double()
        for count, sizes in (("few", few), ("many", many))
        for name in "AB"
        for field, ending in (("metric", ""), ("loss", " loss"))
    }
    resamples = torch.randint(len(chosen), (RESAMPLES, len(chosen)), generator=torch.Generator().manual_seed(0))
    drawn_ = torch.cat([torch.arange(len(chosen))[None], resamples])
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
    title = f"{len(chosen)} candidates; few: {few[0]:,} + {few[1]:,} images, many: {many[0]:,} + {many[1]:,}"
    table = Table("", "Kendall (95 %)", title=title)
    for name, (value, low, high) in found.items():
        table.add_row(name, f"{value:.3f} ({low:.3f} to {high:.3f})")
    spread = {name: round(float(columns[name].std()), 3) for name in ("few A", "many A")}
    Console(stderr=True).print(table, f"standard deviation over candidates: {spread}; few are enough: {enough}")
    summary = {"candidates": len(chosen), "few": few, "many": many, "kendall": found, "sd": spread, "enough": enough}
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
