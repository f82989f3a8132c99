"""Forms of mixing at equal cost: zero extension in the traced supernet against the TAS paper's channel interpolation.

    python scripts/benchmarks/mixing.py cifar10.npz [--images 5000] [--plain-steps 400] [--epochs 4] [--seeds 2]

ResNet-20 with the paper's shortcuts, 55 % of its MACs, everything from scratch on the first `--images` training images
(stratified). Each form searches for as many iterations as cost `--plain-steps` training steps of the original
(supernet_step.py: 1.4 and 1.95 plain steps an iteration), takes the most probable architecture, and that is trained
from scratch for `--epochs`, as are uniform and random widths. Judged on 2,000 other training images; the test split is
not read. Printed: a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import tas
from search_spaces.cifar_resnet import CifarResNet, initialize, resnet20
from search_spaces.cifar_resnet_supernet import CifarSupernet
from tas.data import Data, Split, load
from tas.methods import baselines
from tas.objectives import default_objective
from tas.training import TrainingPlan, evaluate, train

BATCH = 64
PLAIN_STEPS_AN_ITERATION = {"zero extension": 1.4, "interpolation": 1.95}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--plain-steps", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    data, held_out = splits(arguments.root, arguments.images)
    reached: dict[str, list[float]] = {}
    for seed in range(arguments.seeds):
        for name, network in students(data, arguments.plain_steps, seed).items():
            plan = TrainingPlan(epochs=arguments.epochs, batch=BATCH, lr=0.1, channels_last=True)
            train(network, data, plan, default_objective(), torch.Generator().manual_seed(seed))
            reached.setdefault(name, []).append(evaluate(network, held_out, default_objective())["top1"])
            Console(stderr=True).print(f"seed {seed}, {name}: {reached[name][-1]:.2f}")
    report(reached, vars(arguments))


def splits(root: str, images: int) -> tuple[Data, Split]:
    """`images` training images to search and train on, and 2,000 others to judge on."""
    data = load("npz", root=root, padding=4, flip=True)
    chosen = data.train.take(images + 2000)
    order = torch.randperm(images + 2000, generator=torch.Generator().manual_seed(0))
    return Data(data.name, chosen.take(order[2000:]), None, None, data.classes, data.augment), chosen.take(order[:2000])


def students(data: Data, plain_steps: int, seed: int) -> dict[str, nn.Module]:
    """A freshly initialised network for each form of mixing and each baseline."""
    generator = torch.Generator().manual_seed(seed)
    original = resnet20(shortcut="tas")
    initialize(original, generator)
    traced = tas.trace(original, torch.randn(2, 3, 32, 32))
    budget = tas.budget(traced.space, macs=0.55)
    forms: dict[str, tuple[Any, Callable[[Any], CifarResNet]]] = {
        "zero extension": (traced, lambda a: tas.extract(traced, a)),  # type: ignore[dict-item,return-value]
        "interpolation": ((paper := CifarSupernet(original, generator=generator)), paper.student),
    }
    found: dict[str, nn.Module] = {}
    for name, (source, student) in forms.items():
        architecture = searched(source, data, round(plain_steps / PLAIN_STEPS_AN_ITERATION[name]), seed)
        found[name] = student(architecture)
    found["uniform widths"] = tas.extract(traced, baselines.uniform(traced.space, budget))
    found["random widths"] = tas.extract(traced, baselines.random(traced.space, budget, generator)[0])
    for network in found.values():
        initialize(network, torch.Generator().manual_seed(seed))
    return found


def searched(source: Any, data: Data, iterations: int, seed: int) -> tas.Architecture:
    """The paper's settings but for what a short search needs: as many epochs as give `iterations`, a larger rate."""
    epochs = max(1, round(iterations / (len(data.train) // 2 // BATCH)))
    rates = {"weight_lr": 0.1, "architecture_lr": 0.05}
    plan: dict[str, Any] = {
        "epochs": epochs,
        "batch": BATCH,
        "warm_start": False,
        "start": "noise",
        "candidates": 1,
        **rates,
    }
    return tas.search(source, data, tas.budget(source.space, macs=0.55), seed=seed, **plan).architecture


def report(reached: dict[str, list[float]], settings: dict[str, Any]) -> None:
    table = Table("form", "top-1, mean", "spread (sd)", "n", title="ResNet-20 at 55 % of its MACs, held-out images")
    for name, values in reached.items():
        spread = f"{statistics.stdev(values):.2f}" if len(values) > 1 else "-"
        table.add_row(name, f"{statistics.fmean(values):.2f}", spread, str(len(values)))
    Console(stderr=True).print(table)
    print(json.dumps({"benchmark": "mixing", **settings, "top1": reached}))


if __name__ == "__main__":
    main()
