"""What the score of one candidate costs in plain inferences of its network on the same images, at 50 % of the MACs.

    python scripts/benchmarks/scoring.py [--network resnet56] [--rounds 7] [--images 3120] [--calibration 1280]
        [--ratio 0.5] [--device cpu]

resnet56 sees pictures of 32 pixels, resnet50 (torchvision's) of 224. A round times, in alternating order and in this
process: the extracted network in eval mode on the calibration and the score images; a whole score of the candidate
(extraction, calibration, hold-out metric and loss); the same merged, as searches score, where the depths were met
before, and the merging alone where they were not; the same with the raw metric; and the parts of a score: extraction,
calibration, evaluation. Both kinds of image pass once, which is all that the mathematics needs; what is left is that
batch norm in the calibration also takes the statistics of its input. Each ratio is to the plain inference of its own
round. On a CPU, processor time of this process with one thread is taken, so that other processes do not matter much; on
a GPU, wall-clock time. Images are random: their content does not change the work. Printed: a table of medians with
quartiles, and the same as one JSON line. Aim: at most 1.15.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import tas
from tas.calibration import recalibrate
from tas.data import Data, InMemory, Split
from tas.methods.baselines import uniform
from tas.originals import build
from tas.scoring import CALIBRATION_IMAGES, SCORE_IMAGES, judge, judged

Work = Callable[[], object]
NETWORKS = {"resnet56": ("search_spaces.cifar_resnet:resnet56", 32), "resnet50": ("torchvision.models:resnet50", 224)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet56")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=SCORE_IMAGES)
    parser.add_argument("--calibration", type=int, default=CALIBRATION_IMAGES)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name, side = NETWORKS[arguments.network]
    traced = tas.trace(build(name).eval(), torch.randn(2, 3, side, side))
    architecture = uniform(traced.space, tas.budget(traced.space, macs=arguments.ratio))
    data = random_data(2 * max(arguments.images, arguments.calibration), side)
    chosen, merging = (
        judge(
            traced,
            data,
            calibration_images=arguments.calibration,
            images=arguments.images,
            batch=min(arguments.calibration, 128),
            merge=merge,
            device=arguments.device,
        )
        for merge in (False, True)
    )
    assert merging.merging is not None
    merger = merging.merging
    student = tas.extract(traced, architecture).to(arguments.device).eval()
    inputs = [inputs for inputs, _ in chosen.held_out]
    works: dict[str, Work] = {
        "plain inference": lambda: plain(student, [*chosen.calibration, *inputs]),
        "score": lambda: judged(chosen, architecture),
        "score, merged": lambda: judged(merging, architecture),
        "of it merging at new depths": lambda: replace(merger, _known={}).student(architecture),
        "score, also raw": lambda: judged(chosen, architecture, raw=True),
        "of it extraction": lambda: tas.extract(traced, architecture).to(arguments.device),
        "of it calibration": lambda: recalibrate(student, chosen.calibration),
        "of it evaluation": lambda: plain(student, inputs),
        "calibration images, plain": lambda: plain(student, chosen.calibration),
    }
    macs = tas.macs(traced.space, architecture) / tas.macs(traced.space, traced.space.largest())
    report(ratios(works, arguments.rounds), {**vars(arguments), "macs": round(macs, 4), "torch": torch.__version__})


def random_data(count: int, side: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
    split = Split("train", InMemory(images, torch.arange(count) % 10), mean=(0.5,) * 3, std=(0.25,) * 3)
    return Data("random", split, classes=10)


@torch.inference_mode()
def plain(student: nn.Module, batches: list[Tensor]) -> None:
    for inputs in batches:
        student(inputs)


def ratios(works: dict[str, Work], rounds: int) -> dict[str, list[float]]:
    """Median and quartiles, [low, median, high], after one round of warming up."""
    rows: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        order = list(works) if number % 2 else list(works)[::-1]
        taken = {name: seconds(works[name]) for name in order}
        if number:
            for name, value in taken.items():
                rows[name].append(value / taken["plain inference"])
    quartiles = torch.tensor([0.25, 0.5, 0.75])
    return {name: torch.tensor(values).quantile(quartiles).tolist() for name, values in rows.items()}


def seconds(work: Work) -> float:
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def report(rows: dict[str, list[float]], settings: dict[str, object]) -> None:
    table = Table(
        "", "plain inferences", title=f"{settings['network']} at {settings['macs']:.0%} of its MACs: median (quartiles)"
    )
    for name, (low, median, high) in rows.items():
        table.add_row(name, f"{median:.3f} ({low:.3f}-{high:.3f})")
    Console(stderr=True).print(table)
    print(json.dumps({"benchmark": "scoring", **settings, "ratios": rows}))


if __name__ == "__main__":
    main()
