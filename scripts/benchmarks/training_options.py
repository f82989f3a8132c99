"""What every option of a training plan gives against the default, in the distillation of a student.

python scripts/benchmarks/training_options.py configs/cifar10_resnet20_22m.yaml results.jsonl \\
    --set data.root=cifar10.npz

Uniform widths within the budget, merged starts and the recipe's `distill` section; one option at a time is changed. All
train on the same images in the same order and are judged on other training images; no test image is read. A row an
option and seed goes to the file, which an interrupted study goes on from. The table has the mean and spread of the
metric, the differences from the default seed by seed, and the processor time as a ratio to the default's.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from distilling import arguments, begun, known_rows, note

from tas.distillation import distill
from tas.preparation import Prepared, prepare
from tas.recipe import read
from tas.training import evaluate

DEFAULT = "default"
OPTIONS: dict[str, dict[str, Any]] = {
    DEFAULT: {},
    "plain momentum": {"nesterov": False},
    "adamw, lr 0.001": {"optimizer": "adamw", "lr": 0.001},
    "no weight decay": {"weight_decay": 0.0},
    "no decay of norms": {"decay_norms": False},
    "1 epoch of warm-up": {"warmup_epochs": 1.0},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "mixup 0.2": {"mixup": 0.2},
    "cutmix 1": {"cutmix": 1.0},
    "clip 1": {"clip": 1.0},
    "ema 0.9": {"ema": 0.9},
    "ema 0.98": {"ema": 0.98},
    "bfloat16": {"dtype": "bfloat16"},
    "channels first": {"channels_last": False},
    "compile": {"compile": True},
}


def main() -> None:
    parser = arguments(__doc__, seeds=3)
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    prepared = prepare(read(asked.recipe, asked.overrides))
    rows = known_rows(asked.results)
    done = {(row["option"], row["seed"]) for row in rows}
    for seed in range(asked.seeds):
        for option in dict.fromkeys([DEFAULT, *asked.options]):
            if (option, seed) not in done:
                row = {"option": option, "seed": seed, **trained(prepared, asked.images, OPTIONS[option], seed)}
                rows.append(note(row, asked.results))
    show(rows)


def trained(prepared: Prepared, images: int, option: dict[str, Any], seed: int) -> dict[str, float]:
    """Metric on held-out images after the training, and the processor seconds of the training."""
    data, held_out, source, _, student = begun(prepared, images, "merge", seed)
    settings = prepared.recipe.distill
    started = time.process_time()
    distill(
        student,
        source.network,
        data,
        replace(settings.plan, **option),
        prepared.objective,
        alpha=settings.alpha,
        temperature=settings.temperature,
        generator=torch.Generator().manual_seed(seed),
    )
    seconds = time.process_time() - started
    after = evaluate(student, held_out, prepared.objective)[prepared.objective.name]
    return {"after": after, "seconds": round(seconds, 1)}


def show(rows: list[dict[str, Any]]) -> None:
    print("| option | metric | minus default, seed by seed | time / default's |\n| --- | --- | --- | --- |")
    base = {row["seed"]: row for row in rows if row["option"] == DEFAULT}
    for option in dict.fromkeys(row["option"] for row in rows):
        own = [row for row in rows if row["option"] == option]
        values = [row["after"] for row in own]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        differences = ", ".join(f"{row['after'] - base[row['seed']]['after']:+.2f}" for row in own)
        ratio = statistics.median(row["seconds"] / base[row["seed"]]["seconds"] for row in own)
        print(f"| {option} | {statistics.fmean(values):.2f}{spread} | {differences} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
