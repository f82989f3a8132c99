"""What people read of a measured latency: layers, the check against whole networks, staircases over channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tas.latency.staircase import Staircase, divisor
from tas.latency.table import TOO_NOISY
from tas.reporting.tables import Table, feasibility_rows


def latency_rows(layers: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of `tas latency`: what each layer takes, and with an architecture what it takes there."""
    header = ["layer", "ms", "of latency", "of MACs"]
    if layers and "ms_there" in layers[0]:
        header += ["ms there", "MACs kept", "latency kept", ""]
    rows = []
    for row in layers:
        rows.append([row["layer"], f"{row['ms']:.4f}", f"{row['of_latency']:.1%}", f"{row['of_macs']:.1%}"])
        if "ms_there" in row:
            kept = [f"{row[key]:.0%}" if row[key] is not None else "–" for key in ("macs_kept", "latency_kept")]
            rows[-1] += [f"{row['ms_there']:.4f}", *kept, "MACs fell, latency did not" if row["idle"] else ""]
    return header, rows


def idle_lines(layers: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line where an architecture lost MACs in vain; none where no architecture is asked about."""
    if not layers or "idle" not in layers[0]:
        return []
    idle = [row for row in layers if row["idle"]]
    if not idle:
        return ["Wherever MACs fell, latency did too."]
    part = sum(row["of_latency"] for row in idle)
    return [f"MACs fell, but latency did not, in {len(idle)} of {len(layers)} layers ({part:.0%} of the latency)."]


def latency_tables(found: Mapping[str, Any]) -> list[Any]:
    """All of `tas latency`."""
    offset, scale = found["offset_ms"], found["scale"]
    lines: list[Any] = [
        latency_rows(found["layers"]),
        *idle_lines(found["layers"]),
        feasibility_rows(found["feasibility"]),
        f"Measured on {found['machine']['device']}, torch {found['machine']['torch']}.",
        f"{found['pieces']} distinct pieces, {found['rounds']} rounds, spread {found['spread']:.1%} (half the distance "
        f"of the quartiles). A network takes {offset:.4f} ms + {scale:.2f} x the sum of its pieces.",
        f"The table: {found['table']}",
    ]
    if found["spread"] > TOO_NOISY:
        lines.append("Too noisy: measure more rounds, or on a quieter machine.")
    if checked := found.get("check"):
        aim = "too noisy to tell" if checked["too_noisy"] else "beside networks that the table has not seen"
        lines += [
            check_rows(checked),
            f"Spearman {checked['spearman']:.3f}, median error {checked['error']:.1%} ({checked['error_fitted']:.1%} "
            f"after a fit to them), spread {checked['spread']:.1%}: {aim}.",
        ]
    if "staircases" in found:
        lines += [staircase_rows(found["staircases"]), divisor_line(found["divisor"])]
    return lines


def plain(stairs: Staircase) -> dict[str, Any]:
    """A staircase as JSON: milliseconds by size, and the divisor of this one alone."""
    taken = [{"size": size, **vars(one)} for size, one in zip(stairs.sizes, stairs.taken, strict=True)]
    alone = {"divisor": divisor([stairs]), "flat": stairs.flat}
    return {"layer": stairs.layer, "side": stairs.side, "other": stairs.other, **alone, "taken": taken}


def staircase_rows(stairs: Sequence[Mapping[str, Any]]) -> Table:
    """A row a layer and side: the ends, where latency jumps most, and the divisor."""
    rows = []
    for each in stairs:
        first, last = each["taken"][0], each["taken"][-1]
        jumps = _jumps(each["taken"])
        verdict = "flat" if each["flat"] else "–" if each["divisor"] is None else str(each["divisor"])
        ends = [f"{one['median']:.4f}" for one in (first, last)]
        rows.append([each["layer"], each["side"], f"{first['size']}…{last['size']}", *ends, jumps, verdict])
    return ["layer", "over", "sizes", "ms, fewest", "ms, all", "largest steps, after", "divisor"], rows


def divisor_line(value: int | None) -> str:
    if value is None:
        return "No divisor: over these sizes latency does not change by more than its spread. Measure more sizes."
    if value == 1:
        return "No divisor: every channel that goes saves time on this target."
    return (
        f"This target likes multiples of {value}: between them fewer channels save little. Set space.divisor: {value}."
    )


def _jumps(taken: Sequence[Mapping[str, Any]], count: int = 4) -> str:
    """The sizes after which latency rises most, ascending."""
    rises = [(after["median"] - before["median"], before["size"]) for before, after in pairwise(taken)]
    return " ".join(str(size) for _, size in sorted(sorted(rises)[-count:], key=lambda rise: rise[1]))


def check_rows(found: Mapping[str, Any]) -> Table:
    """A latency table beside networks that it has not seen."""
    pairs = zip(found["predicted"], found["measured"], strict=True)
    rows = [
        [
            f"{said:.3f}",
            f"{true['median']:.3f}",
            f"{true['low']:.3f}-{true['high']:.3f}",
            f"{said / true['median'] - 1:+.1%}",
        ]
        for said, true in pairs
    ]
    return ["table, ms", "measured, ms", "quartiles", "error"], rows
