"""The model card of a student: what it is, what it reaches, where it comes from, how to use it; in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def card(record: Mapping[str, Any]) -> str:
    """Markdown from what `student.json` holds; a section whose facts are not known is left out."""
    kind = record["modules"][""]["class"]
    name = record.get("network", {}).get("name")
    origin = f"`{name}`" if name else f"a larger `{kind}`"
    versions = ", ".join(f"{package} {version}" for package, version in record["versions"].items())
    parts = [
        f"# {record.get('title') or kind + ', cut to size'}",
        f"A `{kind}` with fewer channels or blocks than its original, {origin}. It was found, trained and saved by "
        f"`tas` and needs nothing of it ({versions}).",
        _results(record),
        _use(record),
        _table("Sizes", ("choice", "kept"), record.get("architecture", {})),
        _exports(record.get("exports", ())),
        _table("Where it comes from", ("", ""), record.get("provenance", {})),
        "## Limits\n\nIt was compressed to agree with its original: it inherits the original's errors and biases, and "
        "may have lost more on rare classes than the mean shows. Measure it on your own data.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _results(record: Mapping[str, Any]) -> str:
    """A row for the student, beside one for the original where it is known."""
    rows = {name: record[key] for name, key in (("original", "original"), ("student", "metrics")) if record.get(key)}
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    if not rows:
        return ""
    lines = [[name, *(_text(row.get(column, "")) for column in columns)] for name, row in rows.items()]
    return f"## What it reaches\n\n{_grid(['', *columns], lines)}\n\ntop1 and top5 in percent."


def _use(record: Mapping[str, Any]) -> str:
    network = record.get("network", {})
    module, _, attribute = network.get("name", "").partition(":")
    arguments = ", ".join(f"{key}={value!r}" for key, value in network.get("kwargs", {}).items())
    building = f"{attribute}({arguments})" if attribute else "original()"
    first = f"from {module} import {attribute}" if attribute else "# `original()` builds the network it was cut from"
    return (
        "## Use it\n\nIn this folder, with torch and safetensors installed:\n\n```python\n"
        f'{first}\nfrom load import load\n\nstudent = load(lambda: {building}, ".")  # in eval mode\n```'
    )


def _exports(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    columns = ("file", "format", "opset", "dtype", "bytes", "largest_difference", "images")
    text = [[_text(row.get(column)) for column in columns] for row in rows]
    return (
        f"## Exports\n\n{_grid(columns, text)}\n\n`largest_difference`: between outputs of the file in its own runtime "
        "and of the student, over these images."
    )


def _table(title: str, head: Sequence[str], values: Mapping[str, Any]) -> str:
    return f"## {title}\n\n{_grid(head, [[f'`{k}`', _text(v)] for k, v in values.items()])}" if values else ""


def _grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def _text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value).replace("|", "\\|")
