"""On which networks does `tas` work? Traces every network of a list, and checks the laws on them if asked to.

    python scripts/benchmarks/coverage.py [--only 'torchvision*'] [--laws] [--limit 120] [--out runs/coverage]
    python scripts/benchmarks/coverage.py --peer tas --peer torch-pruning --peer modelopt [--only ...]

A line of the list (coverage_networks.txt beside this file) is an import path, the shape of an example batch (or
`2*3,64,64`: a list of two pictures, with targets for a detector), keyword arguments of the factory. Every network runs
in a process of its own under a time limit (processor seconds on one thread, as all times here: a busy machine does not
change them); finished ones are not run again (`--again` repeats the failed ones, `--afresh` all), so the script can be
interrupted. Written into `--out`: coverage.json and coverage.md. The laws are checked at the smallest, one random and
one single-choice architecture, in float64, or to 1e-4 in float32 where a network does not take that, or with
`--float32`. With `--peer`, each tool (peers.py beside this file; pip install torch-pruning, or nvidia-modelopt,
torchprofile and requests) also cuts every network to about half of its MACs and as far as it goes; what comes out must
give outputs of the original's shapes, and train for a step.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import coverage_table
import peers
import torch
import yaml
from torch import nn

import tas.cost
from tas.errors import BadNetwork
from tas.importing import imported
from tas.testing import check_space

LIST = Path(__file__).with_name("coverage_networks.txt")
_PATIENCE = 100  # seconds of waiting for one processor second, on a busy machine
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", type=Path, default=LIST)
    parser.add_argument("--only", default="*", help="a glob over the lines of the list")
    parser.add_argument("--laws", action="store_true", help="check the laws too: minutes for large networks")
    parser.add_argument("--float32", action="store_true", help="the laws in half of the memory, to 1e-4")
    parser.add_argument("--peer", action="append", choices=peers.PEERS, default=[], help="compare; may be repeated")
    parser.add_argument("--limit", type=float, default=120, help="processor seconds a network")
    parser.add_argument("--out", type=Path, default=Path("runs/coverage"))
    parser.add_argument("--again", action="store_true", help="repeat the failed ones")
    parser.add_argument("--afresh", action="store_true", help="repeat all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for peer in arguments.peer:
        try:
            importlib.import_module(peers.MODULES[peer])  # here, so that no network's seconds hold it
        except ImportError as problem:
            parser.error(f"--peer {peer} needs another package, pip install {peers.PACKAGES[peer]}: {problem}")
    known = coverage_table.read(arguments.out)
    for line in _lines(arguments.list, arguments.only):
        row = _renewed(line, known.get(line, {}), arguments)
        if row != known.get(line):
            known[line] = row
            print(coverage_table.line_of(line, row, arguments.peer), flush=True)
            coverage_table.write(arguments.out, known)
    print(coverage_table.summary(known))


def _renewed(line: str, before: Row, arguments: argparse.Namespace) -> Row:
    """The row of a network, with what was asked for and is missing in it."""
    row, limit = before, arguments.limit
    done = "share" in row and (row.get("laws") == "hold" or not arguments.laws)
    failed = "error" in row or row.get("laws") not in (None, "hold")
    if arguments.afresh or not (done or (failed and not arguments.again)):
        row, problem = _limited(partial(measure, line, arguments.laws, arguments.float32), limit)
        if problem:
            row = {**row, "laws" if "share" in row else "error": problem}
    compared = dict(before.get("peers", {}))
    for peer in arguments.peer:
        if peer not in compared or arguments.afresh or (arguments.again and "error" in compared[peer]):
            found, problem = _limited(partial(compare, line, peer), limit)
            compared[peer] = {**found, "error": problem} if problem else found
    return {**row, "peers": compared} if compared else row


def measure(line: str, laws: bool, float32: bool) -> Iterator[Row]:
    """What is known of a network after its trace, and again after the laws."""
    network, x = _built(line)
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
            row["precision"] = _checked(network, x, float32)
            row["laws"] = "hold"
        except Exception as error:
            row["laws"] = _told(error)
        row["laws_seconds"] = round(time.process_time() - start - row["seconds"], 1)
        yield row


def _checked(network: nn.Module, x: Any, float32: bool) -> str:
    """The precision in which the laws hold."""
    if not float32:
        try:
            check_space(network, x, architectures=1)
            return "float64"
        except BadNetwork:  # it refuses float64, as torchvision's keypoint detector does, or overflows in it
            pass
    check_space(network, x, architectures=1, dtype=torch.float32, tolerance=1e-4)
    return "float32"


def compare(line: str, peer: str) -> Iterator[Row]:
    """What a tool makes of a network."""
    _, x = _built(line)
    yield from peers.judge(peers.PEERS[peer], lambda: _built(line)[0], x)


def _built(line: str) -> tuple[nn.Module, Any]:
    """A network of the list, the same every time, and its example inputs."""
    path, shape, *options = line.split()
    torch.manual_seed(0)
    network = imported(path, BadNetwork)(**{k: yaml.safe_load(v) for k, v in (o.split("=", 1) for o in options)})
    return network, _example(shape)


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


def _limited(rows: Callable[[], Iterator[Row]], limit: float) -> tuple[Row, str]:
    """The last row that came within the limit, and what went wrong, "" where nothing did."""
    context = multiprocessing.get_context("fork")  # torch and timm are imported once
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(there, rows, limit), daemon=True)
    child.start()
    there.close()
    row: Row = {}
    problem: str | None = None
    with contextlib.suppress(EOFError):
        while problem is None and here.poll(_PATIENCE * limit):
            row, problem = here.recv()
    child.kill()
    child.join()
    if problem is None:
        late = child.exitcode == -signal.SIGXCPU
        problem = f"not done after {limit:.0f} s" if late else f"killed, out of memory? (exit code {child.exitcode})"
    return row, problem


def _send(there: Connection, rows: Callable[[], Iterator[Row]], limit: float) -> None:
    """Pairs of a row and what went wrong, None as long as it goes on."""
    warnings.simplefilter("ignore")
    end = int(time.process_time() + limit)
    resource.setrlimit(resource.RLIMIT_CPU, (end, end + 5))  # SIGXCPU, which tells it from a kill for memory
    row: Row = {}
    try:
        for row in rows():
            there.send((row, None))
        there.send((row, ""))
    except Exception as error:
        there.send((row, _told(error)))


def _told(error: Exception) -> str:
    """In one line that a table takes."""
    return " ".join(f"{type(error).__name__}: {error}".replace("|", "/").split())[:300]


def _lines(path: Path, only: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and fnmatchcase(line, only)]


if __name__ == "__main__":
    main()
