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

import torch

import tas
from tas.distillation import distill, find_taps
from tas.initialization import student_at
from tas.merging import MERGE_IMAGES
from tas.methods.baselines import uniform
from tas.preparation import prepare
from tas.recipe import read
from tas.scoring import search_splits
from tas.training import evaluate

LOSSES = {
    "cross-entropy": {"alpha": 0.0},
    "kd": {"alpha": 0.9},
    "dkd": {"alpha": 0.5, "soft": "dkd"},
    "dist": {"alpha": 0.5, "soft": "dist"},
    "kd, taps": {"alpha": 0.9},
}
STARTS = ("inherit", "merge", "scratch")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("results", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--images", type=int, default=2000, help="training images, and as many held-out ones")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=list(LOSSES))
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--taps", default="layer*.?", help="module names, by glob")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    prepared = prepare(read(asked.recipe, asked.overrides))
    rows = [json.loads(line) for line in asked.results.read_text().splitlines()] if asked.results.exists() else []
    done = {(row["loss"], row["start"], row["seed"]) for row in rows}
    for seed in range(asked.seeds):
        for start in asked.starts:
            for loss in asked.losses:
                few = start == "scratch" and loss not in ("cross-entropy", "kd")
                if not few and (loss, start, seed) not in done:
                    rows.append(trained(prepared, asked, loss, start, seed))
                    with asked.results.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    show(rows)


def trained(prepared: tas.preparation.Prepared, asked: argparse.Namespace, loss: str, start: str, seed: int) -> dict:
    """Metric on held-out images before and after the training."""
    half, rest = search_splits(prepared.data, 0)
    data, held_out = replace(prepared.data, train=half.take(asked.images)), rest.take(asked.images)
    source = tas.reorder(prepared.source)
    architecture = uniform(prepared.space, prepared.budget)
    batches = data.train.take(MERGE_IMAGES).batches(64) if start == "merge" else ()
    student = student_at(source, architecture, start, seed, (inputs for inputs, _ in batches))
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
