"""Numbers as people write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tas.files import is_number


def short(number: float) -> str:
    """22440000 -> "22.44 M"."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(number) >= size:
            return f"{number / size:.2f}{unit}"
    return f"{number:.0f}"


def duration(seconds: float) -> str:
    """75.2 -> "1 min 15 s"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def figures(values: Iterable[float | None]) -> str:
    """The format of a column of metrics: as many decimals as give its largest value four figures, two at least. So
    98.30 percent stay as they are, and errors of 0.0004 are told apart."""
    largest = max((abs(value) for value in values if is_number(value)), default=0.0)
    if largest == 0 or largest >= 10:
        return ".2f"
    return f".{3 - math.floor(math.log10(largest))}f" if largest >= 1e-4 else ".3e"


def decimal(value: float | None, form: str | None = None) -> str:
    """In `form`, by default the `figures` of the value alone; "no number" for NaN, which files hold as None."""
    return f"{value:{form or figures([value])}}" if is_number(value) else "no number"


def milliseconds(row: Mapping[str, Any], key: str) -> str:
    """ "2.31", or "2.31 (2.29–2.40)" where quartiles are known; a dash where nothing was measured."""
    if key not in row:
        return "–"
    low, high = (row.get(key.replace("_ms", end)) for end in ("_low_ms", "_high_ms"))
    spread = f" ({digits(low)}–{digits(high)})" if is_number(low) and is_number(high) else ""
    return f"{digits(row[key])}{spread}"


def digits(value: float) -> str:
    """Three digits: "0.890", "1.40", "112"."""
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def size_on_disk(row: Mapping[str, Any]) -> str:
    """Of the weights; a dash where a run has not noted it."""
    return f"{row['bytes'] / 1e6:.2f} MB" if "bytes" in row else "–"


def epochs(count: int) -> str:
    return f"{count} epoch" if count == 1 else f"{count} epochs"
