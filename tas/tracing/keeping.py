"""What stays as it is, and why: sizes of parameters, those of one stream together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tas.space import Kept
from tas.tracing.identity import Array
from tas.tracing.recording import Recorder
from tas.tracing.records import Record, Site, Value
from tas.tracing.units import Units


def kept_sizes(recorder: Recorder, units: Units) -> list[Kept]:
    """Sizes of parameters that stay, each once, at the first parameter that has it.

    What meets a size that cannot change is kept for that reason alone, so one stream is frozen piece by piece: `stream`
    is the name of the first piece, found by walking back from the operator where they met to the layers that made its
    operands. `places` counts the parameter dimensions."""
    kept, pieces = _pieces(recorder, units)
    shapes = {site: len(recorder.tensors[site[0]][site[1]]) for site in pieces}  # type: ignore[arg-type]
    leader = list(range(len(kept)))

    def lead(index: int) -> int:
        while leader[index] != index:
            index = leader[index]
        return index

    met: dict[str, list[Record]] = defaultdict(list)
    for record in recorder.records:
        met[record.where()].append(record)
    first = {index: site for site, index in reversed(pieces.items())}
    for index, piece in enumerate(kept):
        for record in met.get(piece.reason.rsplit(": ", 1)[-1], ()):
            for site in _made(recorder, record, shapes[first[index]]):
                if site in pieces and shapes[site] == shapes[first[index]]:
                    low, high = sorted((lead(index), lead(pieces[site])))
                    leader[high] = low
    places = Counter(lead(index) for index in pieces.values())
    return [
        replace(piece, stream=kept[lead(index)].name, places=places[lead(index)]) for index, piece in enumerate(kept)
    ]


def _pieces(recorder: Recorder, units: Units) -> tuple[list[Kept], dict[Site, int]]:
    """The pieces, and which of them each parameter dimension belongs to."""
    kept: list[Kept] = []
    owner: dict[int, int] = {}
    pieces: dict[Site, int] = {}
    for name, dims in recorder.tensors.items():
        for dim, rows in enumerate(dims):
            still = _still(units, rows)
            roots = [] if still is None else [int(r) for r in np.unique(recorder.identities.find(still.ravel()))]
            reason = "" if still is None or not roots else recorder.identities.reason(still)
            if not roots or reason.startswith("a kernel size"):
                continue
            if any(root not in owner for root in roots):
                owner.update((root, len(kept)) for root in roots if root not in owner)
                kept.append(Kept(f"{name}[{dim}]", len(still), reason))  # type: ignore[arg-type]
            pieces[name, dim] = owner[roots[-1]]
    return kept, pieces


def _still(units: Units, rows: Array | None) -> Array | None:
    """The identities of those positions that are always kept."""
    if rows is None:
        return None
    known = units.rows(rows)
    return rows if known is None else rows[(known == units.total).all(1)]


def _made(recorder: Recorder, record: Record, size: int) -> Iterator[Site]:
    """The parameter dimensions that made a dimension of this size of what an operator reads, or that it reads itself;
    as far back as the layers that set the size."""
    waiting: list[Value] = [value for value in record.inputs if size in value.shape]
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        yield from (site for sites, n in zip(value.sites, value.shape, strict=True) for site in sites if n == size)
        if value.made_by < 0 or value.made_by in seen:
            continue
        seen.add(value.made_by)
        maker = recorder.records[value.made_by]
        yield from maker.scales
        if maker.flow != "product":
            waiting += [given for given in maker.inputs if size in given.shape]
