"""What coverage.py found, as JSON and as a table."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peers

ENOUGH = 0.25  # a network counts as free where its smallest architecture has at most this share of its MACs
HALF = 0.6  # tools that cut all layers by one ratio meet half of the MACs only roughly
Row = dict[str, Any]


def read(folder: Path) -> dict[str, Row]:
    """The rows that an earlier run wrote."""
    path = folder / "coverage.json"
    return json.loads(path.read_text())["networks"] if path.exists() else {}


def write(folder: Path, rows: dict[str, Row]) -> None:
    """coverage.json and coverage.md, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    packages = ("torch", "torchvision", "timm", "transformers", *peers.PACKAGES.values())
    made = {name: version(name) for name in packages if _installed(name)}
    whole = {"versions": made | {"python": platform.python_version()}, "networks": rows}
    asked = [peer for peer in peers.PEERS if any(peer in row.get("peers", {}) for row in rows.values())]
    head = ["network", "choices", "depths", "kept", "smallest MACs", "trace s", "laws"]
    head += [f"{peer}: half, smallest, s" for peer in asked]
    table = [_cells(head), _cells(["---"] * len(head))] + [line_of(line, row, asked) for line, row in rows.items()]
    for name, text in (("coverage.json", json.dumps(whole, indent=1)), ("coverage.md", "\n".join(table))):
        beside = folder / f"{name}.part"
        beside.write_text(f"{text}\n\n{summary(rows)}\n" if name.endswith(".md") else text)
        beside.replace(folder / name)


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except ModuleNotFoundError:
        return False


def line_of(line: str, row: Row, asked: list[str]) -> str:
    """A line of the table; `asked`: the tools that have a column."""
    cells: list[Any] = [line.split()[0].partition(":")[2]]
    if "error" in row:
        cells += [row["error"], *[""] * 5]
    else:
        cells += [
            row["choices"],
            row["depths"],
            row["kept"],
            f"{row['share']:.1%}",
            row["seconds"],
            row.get("laws", ""),
        ]
    return _cells([*cells, *(_peer_cell(row.get("peers", {}).get(peer, {})) for peer in asked)])


def _peer_cell(found: Row) -> str:
    shares = [f"{found[name]:.1%}" for name in ("half", "smallest") if name in found]
    return ", ".join([*shares, *(str(found[name]) for name in ("seconds", "error") if name in found)])


def _cells(cells: list[Any]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def summary(rows: dict[str, Row]) -> str:
    """A sentence on all rows, and one a tool."""
    traced = [row for row in rows.values() if "share" in row]
    free = sum(row["share"] <= ENOUGH for row in traced)
    checked = [row for row in traced if "laws" in row]
    hold = sum(row["laws"] == "hold" for row in checked)
    quick = sum(row["seconds"] <= 10 for row in traced)
    lines = [
        f"{len(traced)} of {len(rows)} networks traced, {quick} in 10 s or less; {free} can lose 75 % of their MACs; "
        f"the laws hold on {hold} of {len(checked)} checked"
    ]
    for peer in peers.PEERS:
        tried = [row["peers"][peer] for row in rows.values() if peer in row.get("peers", {})]
        half = sum(found.get("half", 1) <= HALF for found in tried)
        small = sum(found.get("smallest", 1) <= ENOUGH for found in tried)
        if tried:
            lines.append(f"{peer}: {half} of {len(tried)} run at about half of their MACs, {small} with 75 % gone")
    return "\n".join(lines)
