"""The pictures of the report as inline SVG that follows the page's light or dark colours.

matplotlib paints with marker colours, which are then replaced by the page's CSS variables.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# marker colour -> CSS variable of the page
_INK, _FAINT, _MAIN, _OTHER = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {_INK: "--ink", _FAINT: "--faint", _MAIN: "--main", _OTHER: "--other"}
LIGHT = {  # the page's colours by day
    "--paper": "#ffffff",
    "--ink": "#1d2530",
    "--soft": "#5a6675",
    "--faint": "#b4bdc8",
    "--line": "#e1e6ec",
    "--main": "#1f6fb5",
    "--other": "#c4571b",
    "--warn": "#fff5df",
}
_UNITS = {"macs": "million MACs", "params": "million params", "latency_ms": "ms"}  # what an axis counts a measure in
_WIDTH = 4.6  # inches: about as wide as a phone, so that letters stay readable there
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, in the page's font
    "font.size": 10,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.labelsize": 9,
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
        steps, unit = [row["step"] for row in rows], _UNITS[measure]
        size = 1e6 if unit.startswith("million") else 1.0
        costs = [row[f"{measure}_expected"] / size for row in rows]
        axes.plot(steps, costs, color=_MAIN, label=f"expected {unit.removeprefix('million ')}")
        if limit is not None:
            axes.axhline(limit / size, color=_MAIN, linestyle=":", label="budget")
        axes.set(xlabel="step", ylabel=unit, ylim=(0, 1.1 * max(*costs, (limit or 0) / size)))
        other = axes.twinx()
        entropy = [row["entropy"] for row in rows]
        other.plot(steps, entropy, color=_OTHER, label="entropy")
        other.set(ylabel="mean entropy of a choice, nats", ylim=(0, 1.1 * max(entropy) + 1e-9))
        other.spines["right"].set_visible(True)
        figure.legend(loc="outside upper left", ncols=3, fontsize=8)
        return _svg(figure)


def candidates(rows: Sequence[Mapping[str, Any]], metric: str, limits: Sequence[float]) -> str:
    """Every scored candidate, with recalibrated and, where it was asked for, raw batch norm; a ring marks the chosen
    ones, steps the Pareto front of several budgets. Scores that are no numbers are left out."""
    rows = [row for row in rows if row["recalibrated"] is not None and row["loss"] is not None]
    with _style():
        figure, axes = _figure("candidates", 3.0)
        macs = [row["macs"] / 1e6 for row in rows]
        if inherited := [row for row in rows if row["raw"] is not None]:
            places = ([row["macs"] / 1e6 for row in inherited], [row["raw"] for row in inherited])
            axes.scatter(*places, s=18, color=_OTHER, marker="x", label="raw")
        axes.scatter(macs, [row["recalibrated"] for row in rows], s=18, color=_MAIN, label="recalibrated")
        best = sorted((row["macs"] / 1e6, row["recalibrated"]) for row in rows if row.get("front"))
        if best:
            axes.step(*zip(*best, strict=True), where="post", color=_MAIN, linewidth=1, label="front")
        if chosen := [row for row in rows if row.get("chosen")]:
            where = [row["macs"] / 1e6 for row in chosen], [row["recalibrated"] for row in chosen]
            axes.scatter(*where, s=110, facecolors="none", edgecolors=_INK, linewidths=1.5, label="chosen")
        for number, limit in enumerate(limits):
            label = "" if number else "budget" if len(limits) == 1 else "budgets"
            axes.axvline(limit / 1e6, color=_FAINT, linestyle=":", label=label)
        axes.set(xlabel="million MACs", ylabel=f"{metric} on held-out training images")
        figure.legend(loc="outside upper left", ncols=5 if best else 4, fontsize=8, columnspacing=1.2)
        return _svg(figure)


def correlation(rows: Sequence[Mapping[str, Any]], metric: str) -> str:
    """What every candidate reached over its recalibrated and over its raw score; the numbers are depths, where these
    differ."""
    with _style():
        kinds = [name for name in ("recalibrated", "raw") if any(row["raw"] != row["recalibrated"] for row in rows)]
        kinds = kinds or ["recalibrated"]
        figure, first = _figure("correlation", 2.8, columns=len(kinds))
        several = len({row["depth"] for row in rows}) > 1
        for axes, kind, colour in zip(figure.axes, kinds, (_MAIN, _OTHER), strict=False):
            places = [row[kind] for row in rows], [row["reached"] for row in rows]
            axes.scatter(*places, s=14, color=colour)
            for row in rows if several else ():
                where, near = (row[kind], row["reached"]), (3, 2)
                axes.annotate(str(row["depth"]), where, near, textcoords="offset points", fontsize=7, color=_INK)
            axes.set(xlabel=f"{kind} score, {metric}")
        first.set_ylabel(f"{metric} after training")
        return _svg(figure)


def curves(rows: Sequence[Mapping[str, Any]], original: Mapping[str, Any], metric: str) -> str:
    """Mean and standard deviation over MACs, a line a row of the comparison's tables; a dotted line marks the
    original. Rows without a number are left out."""
    rows = [row for row in rows if row[metric]["mean"] is not None]
    with _style():
        figure, axes = _figure("curves", 3.8)
        names = list(dict.fromkeys(row["row"] for row in rows))
        apart = 0.006 * max((row["macs"] for row in rows), default=0) / 1e6  # bars would hide each other
        for number, name in enumerate(names):
            mine = sorted((row for row in rows if row["row"] == name), key=lambda row: row["macs"])
            shift = (number - (len(names) - 1) / 2) * apart
            places = [row["macs"] / 1e6 + shift for row in mine], [row[metric]["mean"] for row in mine]
            colour = (_MAIN, _OTHER, _INK)[number % 3]
            look: dict[str, Any] = {"marker": "osD^vX"[number % 6], "linestyle": ("-", "--", ":")[number // 3 % 3]}
            spreads = [row[metric]["sd"] or 0.0 for row in mine]
            axes.errorbar(*places, spreads, color=colour, label=name, markersize=5, capsize=2, linewidth=1, **look)
        if original[metric] is not None:
            axes.axhline(original[metric], color=_FAINT, linestyle=":", label="original")
        axes.locator_params(axis="x", nbins=6)
        axes.set(xlabel="million MACs", ylabel=f"{metric} on test images")
        if rows or original[metric] is not None:
            figure.legend(loc="outside upper left", ncols=3, fontsize=8)
        return _svg(figure)


def runs(points: Sequence[Mapping[str, Any]], metric: str) -> str:
    """Every network of several runs over MACs: a colour and a marker a run, students filled and joined by a line,
    baselines hollow, originals faint."""
    with _style():
        figure, axes = _figure("runs", 3.8)
        names = list(dict.fromkeys(point["run"] for point in points))
        for name, kind in dict.fromkeys((point["run"], point["network"]) for point in points):
            mine = [point for point in points if (point["run"], point["network"]) == (name, kind)]
            mine.sort(key=lambda point: point["macs"])
            marker, colour = _look(names.index(name))
            student = kind == "student"
            look: dict[str, Any] = {"marker": marker, "color": _FAINT if kind == "original" else colour}
            look |= {"fillstyle": "full", "label": name} if student else {"fillstyle": "none", "linestyle": "none"}
            macs = [point["macs"] / 1e6 for point in mine]
            values, spreads = ([point[key] for point in mine] for key in ("value", "spread"))
            axes.errorbar(macs, values, spreads, markersize=6, capsize=2, linewidth=1, **look)
        axes.locator_params(axis="x", nbins=6)
        axes.set(xlabel="million MACs", ylabel=f"{metric} on test images", xlim=(0, None))
        axes.set_title("filled: students; hollow: baselines; grey: originals", fontsize=8, loc="left")
        figure.legend(loc="outside upper left", ncols=_columns(names), fontsize=8)
        return _svg(figure)


def beside(space: Mapping[str, Any], columns: Mapping[str, Mapping[str, int]]) -> str:
    """What several students keep of each size, a row a choice, a marker a student."""
    with _style():
        choices = space["choices"]
        figure, axes = _figure("beside", 1.1 + 0.22 * len(choices) + 0.14 * len(columns))
        full = [choice.get("original", choice["candidates"][-1]) for choice in choices]
        axes.barh(range(len(choices)), 1.0, color=_FAINT, alpha=0.35, height=0.72)
        for number, (name, kept) in enumerate(columns.items()):
            marker, colour = _look(number)
            parts = [kept[choice["name"]] / size for choice, size in zip(choices, full, strict=True)]
            rows = [row + 0.4 * ((number + 0.5) / len(columns) - 0.5) for row in range(len(choices))]
            axes.plot(
                parts, rows, marker=marker, color=colour, linestyle="none", markersize=4.5, label=name, clip_on=False
            )
        axes.set_yticks(range(len(choices)), [choice["name"] for choice in choices], fontsize=8)
        axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
        axes.set_ylim(len(choices) - 0.4, -0.6)
        axes.set_xlim(0, 1.05)
        figure.legend(loc="outside upper left", ncols=_columns(columns), fontsize=8)
        return _svg(figure)


def _columns(names: Iterable[str]) -> int:
    """Of a legend as wide as a picture."""
    return 1 if max(map(len, names)) > 24 else 2


def _look(number: int) -> tuple[str, str]:
    """Marker and colour of the n-th of several."""
    return "osD^vX"[number % 6], (_MAIN, _OTHER, _INK)[number % 3]


def standalone(picture: str) -> str:
    """A picture of the page as a file of its own: in the page's colours by day, on white."""
    for variable, colour in LIGHT.items():
        picture = picture.replace(f"var({variable})", colour)
    return picture.replace("<svg ", f'<svg style="background: {LIGHT["--paper"]}" ', 1)


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def _figure(name: str, height: float, columns: int = 1) -> tuple[Figure, Axes]:
    """A figure and its first axes; those of further columns share the vertical scale."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = name  # ids must differ between the pictures of a page, not between two runs
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot(1, columns, 1)
    for column in range(1, columns):
        figure.add_subplot(1, columns, column + 1, sharey=axes).tick_params(labelleft=False)
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
