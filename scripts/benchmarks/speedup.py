"""How much faster is a network that lost half of its MACs?

    python scripts/benchmarks/speedup.py [--networks resnet20 resnet18] [--runtimes eager compile onnxruntime]
        [--ratio 0.5] [--batch 1] [--threads 1] [--rounds 31] [--device cpu]

MACs ratio beside measured speed-up of the student with uniform widths at `ratio` of the MACs. Weights are random: time
does not depend on them. Original and student of every network and runtime are measured in turns in one process, in an
order that is shuffled every round; a round keeps the quickest of five measurements, and gives one speed-up, of the two
networks in it. Printed: median and quartiles of the milliseconds and of the speed-ups.
"""

from __future__ import annotations

import argparse
import random
import statistics
from collections.abc import Mapping

import torch
from rich.console import Console

import tas
from tas.importing import imported
from tas.latency.measuring import once, this_machine
from tas.latency.pieces import at_batch, network_at
from tas.latency.target import Forward, Target, forward_of, ready
from tas.methods.baselines import uniform
from tas.reporting.tables import console
from tas.timing import calls_for

NETWORKS = {
    "resnet20": ("search_spaces.cifar_resnet:resnet20", (2, 3, 32, 32)),
    "resnet18": ("torchvision.models:resnet18", (2, 3, 224, 224)),
}
Key = tuple[str, str, str]  # network, runtime, original or student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    runtimes = ["eager", "compile", "onnxruntime"]
    parser.add_argument("--runtimes", nargs="+", choices=runtimes, default=runtimes)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ratio", type=float, default=0.5)
    for name, number in (("batch", 1), ("threads", 1), ("rounds", 31)):
        parser.add_argument(f"--{name}", type=int, default=number)
    asked = parser.parse_args()
    targets = {name: Target(name, asked.device, asked.batch, asked.threads) for name in asked.runtimes}
    ratios: dict[str, float] = {}
    forwards: dict[Key, Forward] = {}
    for name in asked.networks:
        path, shape = NETWORKS[name]
        torch.manual_seed(0)
        traced = tas.trace(imported(path, tas.BadNetwork)(), torch.randn(shape))
        student = uniform(traced.space, tas.budget(traced.space, macs=asked.ratio))
        ratios[name] = tas.macs(traced.space, traced.space.largest()) / tas.macs(traced.space, student)
        args, kwargs = at_batch(traced, asked.batch)
        for runtime, target in targets.items():
            for which, sizes in (("original", traced.space.largest()), ("student", student)):
                with ready(target):
                    forwards[name, runtime, which] = forward_of(target, network_at(traced, sizes), args, kwargs)
    report(ratios, measured(targets, forwards, asked.rounds), next(iter(targets.values())))


def measured(targets: Mapping[str, Target], forwards: Mapping[Key, Forward], rounds: int) -> dict[Key, list[float]]:
    """Milliseconds, a value a round."""
    with ready(next(iter(targets.values()))) as device:  # runtimes differ, device and threads do not
        calls = {key: calls_for(forward, device) for key, forward in forwards.items()}
        taken: dict[Key, list[float]] = {key: [] for key in forwards}
        for done in range(rounds):
            order = list(forwards)
            random.Random(done).shuffle(order)
            for key in order:
                taken[key].append(once(forwards[key], device, calls[key]))
    return taken


def report(ratios: Mapping[str, float], taken: Mapping[Key, list[float]], target: Target) -> None:
    rows = []
    for network, runtime, which in taken:
        if which == "student":
            before, after = taken[network, runtime, "original"], taken[network, runtime, "student"]
            speedups = [one / other for one, other in zip(before, after, strict=True)]
            cells = [quartiles(before, 3), quartiles(after, 3), quartiles(speedups, 2)]
            rows.append([network, runtime, f"{ratios[network]:.2f}", *cells])
    Console().print(console((["network", "runtime", "MACs ratio", "original, ms", "student, ms", "speed-up"], rows)))
    rounds = len(next(iter(taken.values())))
    print(f"Machine: {this_machine(target)}. Batch {target.batch}, threads {target.threads}, n = {rounds} rounds.")


def quartiles(samples: list[float], digits: int) -> str:
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


if __name__ == "__main__":
    main()
