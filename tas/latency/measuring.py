"""Measuring a latency table: every distinct piece and some whole networks, in turns, round by round."""

from __future__ import annotations

import platform
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from tas.errors import BadRecipe
from tas.latency.pieces import Piece, Sizes, Stretch, at_batch, network_at, pieces_of, sizes_of, stretches_at
from tas.latency.table import Samples, Table, fingerprint, read, write
from tas.latency.target import Forward, Target, forward_of, ready
from tas.sampling import sample_many
from tas.space import Architecture
from tas.timing import Latency, calls_for, seconds, summary
from tas.tracing import Traced

_TRIES = 5  # measurements in a row of which a round keeps the quickest: what interrupts a forward only ever adds to it
_FITTED = 6  # random networks measured whole, beside the original and the smallest
Progress = Callable[[int, int], None]  # (rounds done, rounds)


def measure_latency(
    traced: Traced,
    target: Target | None = None,
    *,
    points: int = 4,
    rounds: int = 15,
    file: Path | None = None,
    progress: Progress | None = None,
) -> Table:
    """The latency table of a traced network on a target, for `with_latency`.

    points: sizes of each width that are measured (all where a width has no more); between them, latency is taken for
    straight. rounds: of measurements; each takes everything once, in another order, so that what slows the machine
    slows all, and keeps the quickest of five measurements. The first forwards and the building of pieces are in none.
    file: written whole after every round, and gone on with where it is there; a file that has all rounds is only read,
    on any machine.

    Raises `BadRecipe` where the runtime is missing or the file is of another network or target, `BadNetwork` where a
    runtime cannot take a part of the network.
    """
    target = target or Target()
    if points < 2 or rounds < 3:
        raise BadRecipe(f"a latency table takes at least 2 points and 3 rounds, got {points} and {rounds}")
    known = read(file) if file is not None and file.exists() else None
    mine = fingerprint(traced, target)
    if known is not None and known.fingerprint != mine:
        raise BadRecipe(f"{file} was measured for another network, space, input or target: name another file")
    if known is not None and known.rounds >= rounds:
        return known
    with ready(target) as device:
        table, forwards = _built(traced, target, points, mine)
        table = _taken_up(table, known)
        calls = {key: calls_for(forward, device) for key, forward in forwards.items()}
        for done in range(table.rounds, rounds):
            order = sorted(forwards)
            random.Random(done).shuffle(order)
            table = _with_round(table, {key: once(forwards[key], device, calls[key]) for key in order})
            if file is not None:
                write(table, file)
            if progress:
                progress(done + 1, rounds)
    return table


def measured_whole(
    traced: Traced, target: Target, architectures: Sequence[Mapping[str, int]], rounds: int = 15
) -> list[Samples]:
    """Milliseconds of the networks at these architectures on the target, a value a round, in turns."""
    args, kwargs = at_batch(traced, target.batch)
    with ready(target) as device:
        forwards = [forward_of(target, network_at(traced, each), args, kwargs) for each in architectures]
        return in_turns(forwards, device, rounds)


def in_turns(forwards: Sequence[Forward], device: torch.device, rounds: int) -> list[Samples]:
    """Milliseconds of each, a value a round; every round takes all of them once, in another order."""
    calls = [calls_for(forward, device) for forward in forwards]
    taken: list[list[float]] = [[] for _ in forwards]
    for done in range(rounds):
        order = list(range(len(forwards)))
        random.Random(done).shuffle(order)
        for index in order:
            taken[index].append(once(forwards[index], device, calls[index]))
    return [tuple(samples) for samples in taken]


def once(forward: Forward, device: torch.device, calls: int) -> float:
    """Milliseconds, as one round has them."""
    return 1e3 * min(seconds(forward, device, calls) for _ in range(_TRIES))


def latencies(traced: Traced, target: Target, architectures: Sequence[Mapping[str, int]]) -> list[Latency]:
    """Median and quartiles of `measured_whole`."""
    return [summary(samples) for samples in measured_whole(traced, target, architectures)]


def this_machine(target: Target) -> dict[str, Any]:
    """What a latency depends on beside the target."""
    name = torch.cuda.get_device_name(target.device) if target.device != "cpu" else _processor()
    return {"device": name, "node": platform.node(), "torch": torch.__version__, "python": platform.python_version()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@dataclass(frozen=True)
class _Asked:
    piece: int
    point: Sizes


def _built(traced: Traced, target: Target, points: int, mine: str) -> tuple[Table, dict[str, Forward]]:
    """The table without measurements, and the forward of each of its keys and each of its whole networks."""
    args, kwargs = at_batch(traced, target.batch)
    pieces = pieces_of(traced, args, kwargs, points)
    forwards: dict[str, Forward] = {}
    keys: dict[_Asked, str] = {}
    for sizes, asked in _covering(traced, pieces):
        stretches = stretches_at(traced, sizes, args, kwargs)
        for each in asked:
            stretch = stretches[each.piece]
            key = keys[each] = stretch.key()
            if key not in forwards:
                forwards[key] = _forward(target, stretch)
    entries = tuple(tuple(keys[_Asked(i, point)] for point in piece.points()) for i, piece in enumerate(pieces))
    whole = tuple((architecture, ()) for architecture in _fitted_networks(traced))
    for index, (architecture, _) in enumerate(whole):
        forwards[f"whole {index}"] = forward_of(target, network_at(traced, architecture), args, kwargs)
    samples: dict[str, Samples] = {key: () for each in entries for key in each}
    return Table(target, mine, this_machine(target), tuple(pieces), entries, samples, whole), forwards


def _forward(target: Target, stretch: Stretch) -> Forward:
    return forward_of(target, stretch.network(), stretch.args, stretch.kwargs)


def _covering(traced: Traced, pieces: Sequence[Piece]) -> Iterator[tuple[Architecture, list[_Asked]]]:
    """Few networks in which every point of every piece is met, and what each is to show."""
    open_points = [_Asked(index, point) for index, piece in enumerate(pieces) for point in piece.points()]
    while open_points:
        sizes: dict[str, int] = {}
        met: list[_Asked] = []
        rest: list[_Asked] = []
        for asked in open_points:
            named = dict(zip(pieces[asked.piece].choices, asked.point, strict=True))
            fits = all(sizes.get(name, size) == size for name, size in named.items())
            (met if fits else rest).append(asked)
            sizes |= named if fits else {}
        yield sizes_of(traced, **sizes), met
        open_points = rest


def _fitted_networks(traced: Traced) -> list[Architecture]:
    """What is measured whole: the original, the smallest, and random ones between."""
    space, generator = traced.space, torch.Generator().manual_seed(0)
    random_ones: Iterable[list[int]] = sample_many(space, generator, _FITTED).tolist()
    found = [sizes_of(traced), space.smallest(), *(space.architecture(row) for row in random_ones)]
    return list(dict.fromkeys(found))


def _taken_up(table: Table, known: Table | None) -> Table:
    """`table` with the measurements of `known`, which was interrupted."""
    if known is None:
        return table
    if known.entries != table.entries or [a for a, _ in known.whole] != [a for a, _ in table.whole]:
        raise BadRecipe("an interrupted latency table is gone on with at the same number of points: name another file")
    if known.machine != table.machine:
        raise BadRecipe(
            f"an interrupted latency table is finished where it was begun, on {dict(known.machine)}; "
            f"this is {dict(table.machine)}"
        )
    return known


def _with_round(table: Table, taken: Mapping[str, float]) -> Table:
    samples = {key: (*before, taken[key]) for key, before in table.samples.items()}
    whole = tuple((a, (*before, taken[f"whole {index}"])) for index, (a, before) in enumerate(table.whole))
    return replace(table, samples=samples, whole=whole)
