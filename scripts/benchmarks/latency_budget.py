"""Is a budget of milliseconds worth more than one of MACs, where time is what counts?

python scripts/benchmarks/latency_budget.py configs/cifar10_resnet20_22m.yaml --set data.root=cifar10.npz
    [--macs 0.5] [--candidates 64] [--score-images 1000] [--images 2000] [--epochs 1] [--seeds 3]
    [--points 4] [--rounds 15]

For every seed a search under the MACs budget, then one under the latency that its network has by the table, with as
many candidates (adaptive batch norm, both). Both students are trained the same way on `images` training images and
judged on others of them; no test image is read. All networks found are then measured whole, in turns, on the target of
the recipe's section `latency` (PyTorch on one thread at batch 1, without one).
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import replace

import torch
from rich.console import Console

import tas
from tas.describing import costs
from tas.distillation import distill
from tas.latency import MEASURE, Target, latencies, measure_latency
from tas.preparation import Prepared, prepare
from tas.recipe import read
from tas.reporting.tables import console
from tas.scoring import search_splits, unseen
from tas.space import Architecture, Budget
from tas.training import evaluate

KINDS = ("MACs", "latency")
_NUMBERS = {"candidates": 64, "score-images": 1000, "images": 2000, "epochs": 1, "seeds": 3, "points": 4, "rounds": 15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--macs", type=float, default=0.5)
    for name, number in _NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    prepared = prepare(read(asked.recipe, asked.overrides))
    target = prepared.recipe.latency.target if prepared.recipe.latency else Target()
    traced = tas.reorder(prepared.source)
    timed = tas.with_latency(traced, measure_latency(traced, target, points=asked.points, rounds=asked.rounds))
    found: dict[tuple[str, int], Architecture] = {}
    reached: dict[tuple[str, int], float] = {}
    for seed in range(asked.seeds):
        budget = tas.budget(timed.space, macs=asked.macs)
        for kind in KINDS:
            found[kind, seed] = searched(prepared, timed, budget, asked, seed)
            reached[kind, seed] = trained(prepared, timed, found[kind, seed], asked, seed)
            print(f"seed {seed}, budget of {kind}: {reached[kind, seed]:.2f}", file=sys.stderr, flush=True)
            budget = tas.budget(timed.space, latency_ms=tas.cost.of(timed.space, found[kind, seed], MEASURE))
    report(prepared, timed, target, found, reached)


def searched(
    prepared: Prepared, timed: tas.Traced, budget: Budget, asked: argparse.Namespace, seed: int
) -> Architecture:
    options = {"candidates": asked.candidates, "images": asked.score_images, "calibration_images": asked.score_images}
    return tas.search(timed, prepared.data, budget, "adaptive_bn", seed=seed, **options).architecture


def trained(
    prepared: Prepared, timed: tas.Traced, architecture: Architecture, asked: argparse.Namespace, seed: int
) -> float:
    """The metric on training images that are in no score and no training."""
    data = replace(prepared.data, train=search_splits(prepared.data, seed)[0].take(asked.images))
    student, plan = tas.extract(timed, architecture), replace(prepared.recipe.distill.plan, epochs=asked.epochs)
    generator = torch.Generator().manual_seed(seed)
    distill(student, timed.network, data, plan, prepared.objective, generator=generator)
    rest = unseen(prepared.data, asked.score_images, seed)
    assert rest is not None, "the images of the scores are all that there are: lower --score-images"
    return evaluate(student, rest.take(asked.images), prepared.objective)[prepared.objective.name]


def report(
    prepared: Prepared,
    timed: tas.Traced,
    target: Target,
    found: dict[tuple[str, int], Architecture],
    reached: dict[tuple[str, int], float],
) -> None:
    metric, whole = prepared.objective.name, latencies(timed, target, [timed.space.original(), *found.values()])
    rows = [
        [kind, str(seed), f"{reached[kind, seed]:.2f}", f"{costs(timed.space, architecture)['macs'] / 1e6:.2f}"]
        + [f"{costs(timed.space, architecture)[MEASURE]:.3f}", f"{took.median:.3f} ({took.low:.3f}-{took.high:.3f})"]
        for ((kind, seed), architecture), took in zip(found.items(), whole[1:], strict=True)
    ]
    rows.append(["original", "", "", f"{tas.macs(timed.space, timed.space.largest()) / 1e6:.2f}", ""])
    rows[-1].append(f"{whole[0].median:.3f} ({whole[0].low:.3f}-{whole[0].high:.3f})")
    Console().print(console((["budget of", "seed", metric, "MACs, M", "by table, ms", "measured, ms"], rows)))
    for kind in KINDS:
        values = [value for (which, _), value in reached.items() if which == kind]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        print(f"{kind}: {metric} {statistics.fmean(values):.2f}{spread}, n = {len(values)}")
    print(f"Target: {target}.")


if __name__ == "__main__":
    main()
