"""The result of a command on stdout: one JSON object for machines, or tables and lines for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tas.files import json_text

Table = tuple[Sequence[str], Sequence[Sequence[str]]]

_PROSE = 30  # characters: a column of sentences may be as narrow as that
_RULE = 3  # what a column costs beside its text


def show(as_json: bool, value: Mapping[str, Any], *shown: Any) -> None:
    """Print `value` as JSON, or else `shown`: lines, and tables as pairs of header and rows."""
    if as_json:
        print(json_text(value))
        return
    from rich.console import Console

    from tas.reporting.tables import console

    out = Console()
    for part in shown:
        if isinstance(part, str):
            out.print(part, highlight=False, soft_wrap=True)
            continue
        for block in blocks(part, out.width):
            out.print(console(block), highlight=False)


def blocks(table: Table, width: int) -> list[tuple[list[str], list[list[str]]]]:
    """A table whose numbers would break on `width` characters, as several below each other: the first column in all of
    them, the others in their order. Columns of sentences are folded."""
    header, rows = table
    needs = [_need([name, *(row[at] for row in rows)]) for at, name in enumerate(header)]
    found, taken = [[0]], needs[0] + 1
    for at, need in enumerate(needs[1:], 1):
        if found[-1][1:] and taken + need > width:
            found.append([0])
            taken = needs[0] + 1
        found[-1].append(at)
        taken += need
    return [([header[at] for at in kept], [[row[at] for at in kept] for row in rows]) for kept in found]


def _need(cells: Sequence[str]) -> int:
    """Characters of a column that breaks no word, nor a short text."""
    words = max(len(word) for cell in cells for word in cell.split() or [""])
    return max(words, min(_PROSE, max(map(len, cells)))) + _RULE
