"""The pictures of the report as inline SVG that follows the page's light or dark colours.

matplotlib paints with marker colours, which are then replaced by the page's CSS variables.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# marker colour -> CSS variable of the page
_INK, _FAINT, _MAIN, _OTHER = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {_INK: "--ink", _FAINT: "--faint", _MAIN: "--main", _OTHER: "--other"}
_UNITS = {"macs": "MACs"}  # measures that are not written as they are named
_WIDTH = 4.6  # inches: about as wide as a phone, so that letters stay readable there
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, in the page's font
    "font.size": 10,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


def sizes(space: Mapping[str, Any], architecture: Mapping[str, int]) -> str:
    """One bar a choice: the original's size and what the student keeps of it."""
    with _style():
        choices = space["choices"]
        figure, axes = _figure("sizes", 0.9 + 0.22 * len(choices))
        rows = range(len(choices))
        full = [choice["candidates"][-1] for choice in choices]
        kept = [architecture[choice["name"]] for choice in choices]
        axes.barh(rows, [1.0] * len(choices), color=_FAINT, alpha=0.35, height=0.72, label="original")
        parts = [k / f for k, f in zip(kept, full, strict=True)]
        axes.barh(rows, parts, color=_MAIN, height=0.72, label="student")
        for row, (k, f) in enumerate(zip(kept, full, strict=True)):
            axes.text(1.02, row, f"{k} of {f}", va="center", fontsize=8)
        axes.set_yticks(list(rows), [choice["name"] for choice in choices], fontsize=8)
        axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
        axes.set_ylim(len(choices) - 0.4, -0.6)
        axes.set_xlim(0, 1.3)
        return _svg(figure)


def course(rows: Sequence[Mapping[str, Any]], measure: str, limit: float | None) -> str:
    """Expected cost, with the budget, and mean entropy of the choices over the steps of a search."""
    with _style():
        figure, axes = _figure("course", 3.0)
        steps, unit = [row["step"] for row in rows], _UNITS.get(measure, measure)
        costs = [row[f"{measure}_expected"] / 1e6 for row in rows]
        axes.plot(steps, costs, color=_MAIN, label=f"expected {unit}")
        if limit is not None:
            axes.axhline(limit / 1e6, color=_MAIN, linestyle=":", label="budget")
        axes.set(xlabel="step", ylabel=f"million {unit}", ylim=(0, 1.1 * max(*costs, (limit or 0) / 1e6)))
        other = axes.twinx()
        entropy = [row["entropy"] for row in rows]
        other.plot(steps, entropy, color=_OTHER, label="entropy")
        other.set(ylabel="mean entropy of a choice, nats", ylim=(0, 1.1 * max(entropy) + 1e-9))
        other.spines["right"].set_visible(True)
        figure.legend(loc="outside upper left", ncols=3, fontsize=8)
        return _svg(figure)


def candidates(rows: Sequence[Mapping[str, Any]], metric: str, limit: float | None) -> str:
    """Every scored candidate, with recalibrated and, where it was asked for, raw batch norm; a ring marks the chosen
    one."""
    with _style():
        figure, axes = _figure("candidates", 3.0)
        macs = [row["macs"] / 1e6 for row in rows]
        if inherited := [row for row in rows if row["raw"] is not None]:
            places = ([row["macs"] / 1e6 for row in inherited], [row["raw"] for row in inherited])
            axes.scatter(*places, s=18, color=_OTHER, marker="x", label="raw")
        axes.scatter(macs, [row["recalibrated"] for row in rows], s=18, color=_MAIN, label="recalibrated")
        for row in rows:
            if row.get("chosen"):
                where = ([row["macs"] / 1e6], [row["recalibrated"]])
                axes.scatter(*where, s=110, facecolors="none", edgecolors=_INK, linewidths=1.5, label="chosen")
        if limit is not None:
            axes.axvline(limit / 1e6, color=_FAINT, linestyle=":", label="budget")
        axes.set(xlabel="million MACs", ylabel=f"{metric} on held-out training images")
        figure.legend(loc="outside upper left", ncols=4, fontsize=8)
        return _svg(figure)


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def _figure(name: str, height: float) -> tuple[Figure, Axes]:
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = name  # ids must differ between the pictures of a page, not between two runs
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def _svg(figure: Figure) -> str:
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text[text.index("<svg") :]
