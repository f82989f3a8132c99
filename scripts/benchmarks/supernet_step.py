"""What a search iteration costs in plain training steps of the same network, ResNet-56.

    python scripts/benchmarks/supernet_step.py [--rounds 15] [--batch 64] [--threads 1] [--device cpu]

A round times one plain step, one weight step and one architecture step, in this order, in this process; each ratio is
to the plain step of its own round. Memory is what autograd keeps for the backward of one weight step, in that of a
plain step. Printed: a table of medians with quartiles, and the same as one JSON line.
The default form is `tas.Supernet` over a traced network, the paper-exact form `search_spaces.cifar_resnet_supernet`.
The paper's own code takes 4.2 plain steps an iteration.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

import tas.cost
from search_spaces.cifar_resnet import CifarResNet, resnet56
from search_spaces.cifar_resnet_supernet import CifarSupernet
from tas.distribution import ArchitectureDistribution
from tas.supernet import Supernet
from tas.tracing import trace

Step = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    images = torch.randn(arguments.batch, 3, 32, 32, device=device)
    targets = torch.randint(0, 10, (arguments.batch,), device=device)
    rows = {}
    for form, (shortcut, build) in FORMS.items():
        plain = plain_step(resnet56(shortcut=shortcut), images, targets)
        steps = search_steps(build(resnet56(shortcut=shortcut)).to(device), images, targets)
        rows[form] = ratios(plain, *steps, arguments.rounds)
        rows[form]["memory, weight step"] = [kept_for_backward(steps[0]) / kept_for_backward(plain)] * 3
    report(rows, {**vars(arguments), "torch": torch.__version__})


def traced(network: CifarResNet) -> Supernet:
    return Supernet(trace(network, torch.randn(2, 3, 32, 32)))


FORMS: dict[str, tuple[Literal["A", "B", "tas"], Callable[[CifarResNet], Any]]] = {
    "default, tas shortcuts": ("tas", traced),
    "default, A shortcuts": ("A", traced),
    "paper-exact": ("tas", CifarSupernet),
}


def plain_step(network: CifarResNet, images: torch.Tensor, targets: torch.Tensor) -> Step:
    network.to(images.device)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(network(images), targets).backward()
        optimizer.step()

    return step


def search_steps(supernet: Any, images: torch.Tensor, targets: torch.Tensor) -> tuple[Step, Step]:
    """Weight step and architecture step at the highest temperature, two candidates a width, all depths."""
    generator = torch.Generator().manual_seed(0)
    distribution = ArchitectureDistribution(supernet.space, generator).to(images.device)
    weights = torch.optim.SGD(supernet.weight_parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    logits = torch.optim.Adam(distribution.parameters(), 1e-3, betas=(0.5, 0.999), weight_decay=1e-3)
    limits = tas.cost.budget(supernet.space, macs=0.47)

    def weight_step() -> None:
        with torch.no_grad():
            draw = distribution.draw(generator, temperature=5.0)
        weights.zero_grad()
        F.cross_entropy(supernet(images, draw), targets).backward()
        weights.step()

    def architecture_step() -> None:
        logits.zero_grad()
        draw = distribution.draw(generator, temperature=5.0)
        penalty = tas.cost.penalty(supernet.space, limits, distribution.probabilities())
        with supernet.frozen_weights():
            (F.cross_entropy(supernet(images, draw), targets) + 2 * penalty).backward()
        logits.step()

    return weight_step, architecture_step


def ratios(plain: Step, weight_step: Step, architecture_step: Step, rounds: int) -> dict[str, list[float]]:
    """Medians and quartiles, [low, median, high], after two rounds of warming up."""
    times = torch.tensor(
        [[seconds(step) for step in (plain, weight_step, architecture_step)] for _ in range(rounds + 2)]
    )
    plain_seconds, weight, architecture = times[2:].double().unbind(1)
    measured = {
        "plain step, s": plain_seconds,
        "weight step": weight / plain_seconds,
        "architecture step": architecture / plain_seconds,
        "iteration": (weight + architecture) / plain_seconds,
    }
    quartiles = torch.tensor([0.25, 0.5, 0.75], dtype=torch.double)
    return {name: [round(q, 3) for q in values.quantile(quartiles).tolist()] for name, values in measured.items()}


def kept_for_backward(step: Step) -> int:
    """Bytes that autograd keeps between forward and backward of one step, each storage once."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return sum(kept.values())


def seconds(step: Step) -> float:
    start = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def report(rows: dict[str, dict[str, list[float]]], settings: dict[str, object]) -> None:
    table = Table("form", *next(iter(rows.values())), title="ResNet-56, in plain steps: median (quartiles)")
    for form, measured in rows.items():
        table.add_row(form, *(f"{median:.2f} ({low:.2f}-{high:.2f})" for low, median, high in measured.values()))
    Console(stderr=True).print(table)
    print(json.dumps({"benchmark": "supernet_step", **settings, "ratios": rows}))


if __name__ == "__main__":
    main()
