"""What distillation losses and starts of the weights are worth in a short training: uniform widths, held-out images.

python scripts/benchmarks/distilling.py configs/cifar10_resnet20_22m.yaml results.jsonl --set data.root=cifar10.npz

Every combination of a loss (cross-entropy alone, kd, dkd, dist, kd with feature taps) and a start (inherit, merge;
fresh weights, which need longer, with the first two losses only) trains on the same images in the same order and is
judged on other training images; no test image is read. A row a combination and seed goes to the file, which an
interrupted study goes on from; the table has mean and spread.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tas
from tas.data import Data, Split
from tas.distillation import distill, find_taps
from tas.initialization import Weights, student_at
from tas.merging import MERGE_IMAGES
from tas.methods.baselines import uniform
from tas.preparation import Prepared, prepare
from tas.recipe import read
from tas.scoring import search_splits
from tas.space import Architecture
from tas.tracing import Traced
from tas.training import evaluate

LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy": {"alpha": 0.0},
    "kd": {"alpha": 0.9},
    "dkd": {"alpha": 0.5, "soft": "dkd"},
    "dist": {"alpha": 0.5, "soft": "dist"},
    "kd, taps": {"alpha": 0.9},
}
STARTS = ("inherit", "merge", "scratch")


def arguments(description: str, seeds: int) -> argparse.ArgumentParser:
    """What every study of short trainings asks for."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("results", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--images", type=int, default=2000, help="training images, and as many held-out ones")
    parser.add_argument("--seeds", type=int, default=seeds)
    return parser


def known_rows(results: Path) -> list[dict]:
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def note(row: dict, results: Path) -> dict:
    """Append to the file; the row itself."""
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def main() -> None:
    parser = arguments(__doc__, seeds=2)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--taps", default="layer*.?", help="module names, by glob")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    prepared = prepare(read(asked.recipe, asked.overrides))
    rows = known_rows(asked.results)
    done = {(row["loss"], row["start"], row["seed"]) for row in rows}
    for seed in range(asked.seeds):
        for start in asked.starts:
            for loss in asked.losses:
                few = start == "scratch" and loss not in ("cross-entropy", "kd")
                if not few and (loss, start, seed) not in done:
                    rows.append(note(trained(prepared, asked, loss, start, seed), asked.results))
    show(rows)


def begun(
    prepared: Prepared, images: int, start: Weights, seed: int
) -> tuple[Data, Split, Traced, Architecture, nn.Module]:
    """The data of so many training images, as many held-out ones, and a student of uniform widths to be trained."""
    half, rest = search_splits(prepared.data, 0)
    data, held_out = replace(prepared.data, train=half.take(images)), rest.take(images)
    source = tas.reorder(prepared.source)
    architecture = uniform(prepared.space, prepared.budget)
    batches = data.train.take(MERGE_IMAGES).batches(64) if start == "merge" else ()
    student = student_at(source, architecture, start, seed, (inputs for inputs, _ in batches))
    return data, held_out, source, architecture, student


def trained(prepared: Prepared, asked: argparse.Namespace, loss: str, start: Weights, seed: int) -> dict:
    """Metric on held-out images before and after the training."""
    data, held_out, source, architecture, student = begun(prepared, asked.images, start, seed)
    taps = find_taps(source, architecture, [asked.taps]) if "taps" in loss else None
    before = evaluate(student, held_out, prepared.objective)
    distill(
        student,
        taps.original if taps else source.network,
        data,
        prepared.recipe.distill.plan,
        prepared.objective,
        generator=torch.Generator().manual_seed(seed),
        taps=taps,
        **LOSSES[loss],
    )
    name = prepared.objective.name
    after = evaluate(student, held_out, prepared.objective)[name]
    return {"loss": loss, "start": start, "seed": seed, "before": before[name], "after": after}


def show(rows: list[dict]) -> None:
    print("| loss |", " | ".join(STARTS), "|\n| --- |" + " --- |" * len(STARTS))
    for loss in dict.fromkeys(row["loss"] for row in rows):
        cells = []
        for start in STARTS:
            values = [row["after"] for row in rows if (row["loss"], row["start"]) == (loss, start)]
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.2f}{spread}" if values else "")
        print(f"| {loss} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
