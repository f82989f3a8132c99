"""On which networks does `tas` work? Traces every network of a list, and checks the laws on them if asked to.

    python scripts/benchmarks/coverage.py [--only 'torchvision*'] [--laws] [--limit 120] [--out runs/coverage]

A line of the list (coverage_networks.txt beside this file) is an import path, the shape of an example batch (or
`2*3,64,64`: a list of two pictures, with targets for a detector), keyword arguments of the factory. Every network runs
in a process of its own under a time limit (processor seconds on one thread, as all times here: a busy machine does not
change them); finished ones are not run again (`--again` repeats the failed ones, `--afresh` all), so the script can be
interrupted. Written into `--out`: coverage.json and coverage.md. The laws are checked at the smallest, one random and
one single-choice architecture.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import platform
import resource
import time
import warnings
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import yaml

import tas.cost
from tas.errors import BadNetwork
from tas.importing import imported
from tas.testing import check_space

LIST = Path(__file__).with_name("coverage_networks.txt")
ENOUGH = 0.25  # a network counts as free where its smallest architecture has at most this share of its MACs
_PATIENCE = 100  # seconds of waiting for one processor second, on a busy machine
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", type=Path, default=LIST)
    parser.add_argument("--only", default="*", help="a glob over the lines of the list")
    parser.add_argument("--laws", action="store_true", help="check the laws too: minutes for large networks")
    parser.add_argument("--limit", type=float, default=120, help="processor seconds a network")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage"))
    parser.add_argument("--again", action="store_true", help="repeat the failed ones")
    parser.add_argument("--afresh", action="store_true", help="repeat all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    known: dict[str, Row] = _read(arguments.out / "coverage.json")
    for line in _lines(arguments.list, arguments.only):
        row = known.get(line, {})
        done = "share" in row and (row.get("laws") == "hold" or not arguments.laws)
        failed = "error" in row or row.get("laws") not in (None, "hold")
        if not arguments.afresh and (done or (failed and not arguments.again)):
            continue
        known[line] = _limited(line, arguments.laws, arguments.limit)
        print(_row(line, known[line]), flush=True)
        _write(arguments.out, known)
    print(_summary(known))


def measure(line: str, laws: bool) -> Iterator[Row]:
    """What is known of a network after its trace, and again after the laws."""
    path, shape, *options = line.split()
    torch.manual_seed(0)
    network = imported(path, BadNetwork)(**{k: yaml.safe_load(v) for k, v in (o.split("=", 1) for o in options)})
    x = _example(shape)
    start = time.process_time()
    space = tas.trace(network, x).space
    row: Row = {
        "seconds": round(time.process_time() - start, 2),
        "choices": len(space.choices),
        "depths": sum(choice.kind == "depth" for choice in space.choices),
        "kept": len(space.kept),
        "notes": len(space.notes),
        "share": round(tas.cost.macs(space, space.smallest()) / max(1, tas.cost.macs(space, space.largest())), 4),
        "reasons": sorted({kept.reason for kept in space.kept})[:20],
    }
    yield row
    if laws:
        try:
            check_space(network, x, architectures=1)
            row["laws"] = "hold"
        except Exception as error:
            row["laws"] = f"{type(error).__name__}: {str(error)[:300]}"
        row["laws_seconds"] = round(time.process_time() - start - row["seconds"], 1)
        yield row


def _example(shape: str) -> Any:
    """A batch; or a list of pictures, and for each two objects with all that torchvision's detectors train on."""
    count, _, size = shape.rpartition("*")
    channels = [int(n) for n in size.split(",")]
    if not count:
        return torch.randn(*channels)
    _, height, width = channels
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.9]]) * torch.tensor([width, height, width, height])
    points = boxes[:, None, :2] + torch.rand(2, 17, 2) * (boxes[:, None, 2:] - boxes[:, None, :2])
    target = {
        "boxes": boxes,
        "labels": torch.ones(2, dtype=torch.long),
        "masks": torch.randint(2, (2, height, width), dtype=torch.uint8),
        "keypoints": torch.cat([points, torch.ones(2, 17, 1)], 2),
    }
    return [torch.rand(channels) for _ in range(int(count))], [target for _ in range(int(count))]


def _limited(line: str, laws: bool, limit: float) -> Row:
    """The last row that `measure` gave within the limit; "error" where there is none or it did not end."""
    context = multiprocessing.get_context("fork")  # torch and timm are imported once
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(there, line, laws, limit), daemon=True)
    child.start()
    there.close()
    row: Row = {}
    with contextlib.suppress(EOFError):
        while here.poll(_PATIENCE * limit):
            row = here.recv()
    child.kill()
    child.join()
    if not row or (laws and "laws" not in row and "error" not in row):
        row["laws" if row else "error"] = f"not done after {limit:.0f} s (exit code {child.exitcode})"
    return row


def _send(there: Connection, line: str, laws: bool, limit: float) -> None:
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + limit),) * 2)
    try:
        for row in measure(line, laws):
            there.send(row)
    except Exception as error:
        there.send({"error": f"{type(error).__name__}: {str(error)[:300]}"})


def _lines(path: Path, only: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and fnmatchcase(line, only)]


def _read(path: Path) -> dict[str, Row]:
    return json.loads(path.read_text())["networks"] if path.exists() else {}


def _write(folder: Path, rows: dict[str, Row]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    made = {name: version(name) for name in ("tas", "torch", "torchvision", "timm") if _installed(name)}
    whole = {"versions": made | {"python": platform.python_version()}, "networks": rows}
    table = ["| network | choices | depths | kept | smallest MACs | trace s | laws |", "|---|---|---|---|---|---|---|"]
    table += [_row(line, row) for line, row in rows.items()]
    for name, text in (("coverage.json", json.dumps(whole, indent=1)), ("coverage.md", "\n".join(table))):
        beside = folder / f"{name}.part"
        beside.write_text(f"{text}\n\n{_summary(rows)}\n" if name.endswith(".md") else text)
        beside.replace(folder / name)


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except ModuleNotFoundError:
        return False


def _row(line: str, row: Row) -> str:
    name = line.split()[0].partition(":")[2]
    if "error" in row:
        return f"| {name} | {row['error']} | | | | | |"
    cells = [name, row["choices"], row["depths"], row["kept"], f"{row['share']:.1%}", row["seconds"]]
    return "| " + " | ".join(str(cell) for cell in [*cells, row.get("laws", "")]) + " |"


def _summary(rows: dict[str, Row]) -> str:
    traced = [row for row in rows.values() if "share" in row]
    free = sum(row["share"] <= ENOUGH for row in traced)
    checked = [row for row in traced if "laws" in row]
    hold = sum(row["laws"] == "hold" for row in checked)
    quick = sum(row["seconds"] <= 10 for row in traced)
    return (
        f"{len(traced)} of {len(rows)} networks traced, {quick} in 10 s or less; {free} can lose 75 % of their MACs; "
        f"the laws hold on {hold} of {len(checked)} checked"
    )


if __name__ == "__main__":
    main()
