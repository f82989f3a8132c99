"""Does a latency table tell how fast networks are that it has not seen?

    python scripts/benchmarks/latency.py search_spaces.cifar_resnet:resnet20 --shape 1,3,32,32 [--runtime eager]
        [--batch 1] [--threads 1] [--points 4] [--rounds 15] [--networks 16] [--repeats 15] [--table FILE]

Measures the table, then random networks whole, in turns, and prints both sides for each, Spearman, and the median
relative error: of the table as it is, and after one offset and one scale fitted to these very networks. Beside it what
MACs say, after their own fit. Where the spread of the measurements exceeds 5 %, it says so: "too noisy".
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

import tas
from tas import cost
from tas.importing import imported
from tas.latency import Check, Table, Target, check, measure_latency
from tas.latency.checking import compared
from tas.recipe import examples
from tas.reporting.tables import console

AIM_SPEARMAN, AIM_ERROR = 0.95, 0.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network")
    parser.add_argument("--shape", required=True)
    parser.add_argument("--runtime", default="eager")
    parser.add_argument("--device", default="cpu")
    for name, number in (
        ("batch", 1),
        ("threads", 1),
        ("points", 4),
        ("rounds", 15),
        ("networks", 16),
        ("repeats", 15),
    ):
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--table", type=Path)
    asked = parser.parse_args()
    network = imported(asked.network, tas.BadNetwork)()
    traced = tas.trace(network, examples([asked.shape], batch=2))
    target = Target(asked.runtime, asked.device, asked.batch, asked.threads)
    table = measure_latency(traced, target, points=asked.points, rounds=asked.rounds, file=asked.table)
    found = check(traced, table, asked.networks, asked.repeats)
    counted = [float(cost.macs(traced.space, each)) for each in found.architectures]
    report(table, found, compared(list(found.architectures), counted, list(found.measured)), counted)


def report(table: Table, found: Check, by_macs: Check, counted: list[float]) -> None:
    rows = [
        [f"{said:.3f}", f"{true.median:.3f}", f"{true.low:.3f}-{true.high:.3f}", f"{said / true.median - 1:+.1%}"]
        + [f"{macs / 1e6:.2f}"]
        for said, true, macs in zip(found.predicted, found.measured, counted, strict=True)
    ]
    out = Console()
    out.print(console((["table, ms", "measured, ms", "quartiles", "error", "MACs, M"], rows)))
    met = found.spearman >= AIM_SPEARMAN and found.error_fitted <= AIM_ERROR
    verdict = "too noisy to tell" if found.too_noisy else "met" if met else "not met"
    print(f"Target: {table.target}. Machine: {dict(table.machine)}.")
    print(f"Table: {len(table.samples)} pieces x {table.rounds} rounds, spread {table.spread:.1%}.")
    print(f"Spearman {found.spearman:.3f}; median error {found.error:.1%}, fitted {found.error_fitted:.1%}; ", end="")
    print(f"spread of the measurements {found.spread:.1%}.")
    print(f"MACs instead: Spearman {by_macs.spearman:.3f}; median error, fitted {by_macs.error_fitted:.1%}.")
    print(f"Aim (Spearman {AIM_SPEARMAN}, error {AIM_ERROR:.0%} fitted): {verdict}.")
    values = {key: value for key, value in asdict(found).items() if isinstance(value, float)}
    print(json.dumps({**values, "macs_spearman": by_macs.spearman, "macs_error_fitted": by_macs.error_fitted}))


if __name__ == "__main__":
    main()
