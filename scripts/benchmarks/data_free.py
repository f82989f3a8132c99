"""Distilling without data: the same student on real, synthesized, mixed and noise images.

    python scripts/benchmarks/data_free.py ORIGINAL [--images 1000] [--steps 300] [--epochs 20] [--seeds 3]

ORIGINAL: the folder of the quickstart's original, runs/quickstart/original. The student has uniform widths at half of
the MACs and starts from the original's weights, or from fresh ones (--weights scratch). Every row gets `--images`
images, labels included, in the same epochs: real ones (a stratified sample), synthesized ones, half of each, and noise,
which is what synthesis starts from. `scores` is adaptive batch norm alone: the same student, not trained, with its
statistics recalibrated on these images. Each seed makes its own images. Finished students are judged once, on the
1,000 test images. Printed: a table of mean and standard deviation, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import tas
from search_spaces.mnist_resnet import small
from tas.calibration import recalibrate
from tas.data import Data, InMemory, Split, load, noise
from tas.distillation.inversion import Settings
from tas.distillation.synthesis import beside, resemblance
from tas.initialization import student_at
from tas.methods.baselines import uniform
from tas.objectives import default_objective
from tas.training import TrainingPlan, evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weights", choices=("inherit", "scratch"), default="inherit")
    parser.add_argument("--keep", type=Path, help="Folder for the images, to go on after an interruption.")
    arguments = parser.parse_args()
    original, data = tas.load(small, arguments.original), load("mnist5k", padding=2)
    test, reached = data.split("test"), {"original": [evaluate(original, data.split("test"), default_objective())]}
    traced = tas.reorder(tas.trace(original, torch.randn(2, 1, 28, 28)), importance="l1")
    widths = uniform(traced.space, tas.budget(traced.space, macs=0.5))
    for seed in range(arguments.seeds):
        sources = kinds(original, data, arguments, seed)
        if seed == 0:
            rows = resemblance(original, {name: each.train for name, each in sources.items()}, arguments.batch)
            Console(stderr=True).print(rows)
        for name, each in sources.items():
            student = student_at(traced, widths, arguments.weights, seed)
            if arguments.weights == "inherit":
                ordered = torch.Generator().manual_seed(seed)
                recalibrate(student, (x for x, _ in each.train.batches(100, ordered)))
                reached.setdefault(f"{name}, recalibrated", []).append(evaluate(student, test, default_objective()))
                student = student_at(traced, widths, "inherit", seed)
            plan = TrainingPlan(epochs=arguments.epochs, batch=100, lr=arguments.lr)
            tas.distill(student, original, each, plan, generator=torch.Generator().manual_seed(seed))
            reached.setdefault(f"{name}, distilled", []).append(evaluate(student, test, default_objective()))
            Console(stderr=True).print(f"seed {seed}, {name}: {reached[f'{name}, distilled'][-1]['top1']:.1f}")
    report({name: [row["top1"] for row in rows] for name, rows in reached.items()}, vars(arguments))


def kinds(original: nn.Module, data: Data, arguments: argparse.Namespace, seed: int) -> dict[str, Data]:
    """As many images of every kind."""
    count, generator = arguments.images, torch.Generator().manual_seed(seed)
    mean, std = data.train.mean or (), data.train.std or ()
    settings = Settings(images=count, batch=arguments.batch, steps=arguments.steps)
    folder = None if arguments.keep is None else arguments.keep / f"seed{seed}"
    made = tas.synthesize(original, (1, 28, 28), 10, mean, std, settings, generator=generator, folder=folder)
    pixels = noise(count, (1, 28, 28), mean, std, torch.Generator().manual_seed(1000 + seed))
    start = Split("train", InMemory(pixels, torch.arange(count) % 10), mean, std)
    return {
        "real": Data(data.name, data.train.take(count), classes=10, augment=data.augment),
        "synthesized": beside(data, made),
        "half of each": beside(data, made.take(count // 2), count // 2),
        "noise": beside(data, start),
    }


def report(reached: dict[str, list[float]], arguments: dict[str, object]) -> None:
    table = Table("images", "top-1", "sd", "n")
    for name, values in reached.items():
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
        table.add_row(name, f"{statistics.fmean(values):.2f}", spread, str(len(values)))
    Console().print(table)
    print(json.dumps({"reached": reached, **{key: str(value) for key, value in arguments.items()}}))


if __name__ == "__main__":
    main()
