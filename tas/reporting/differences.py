"""Where runs are not comparable, in words, and the keys of their recipes that differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tas.files import json_text
from tas.reporting.numbers import decimal, short
from tas.reporting.seen import Seen
from tas.reporting.tables import Table

_TRAINED_BY = ("original", "distill", "initialize", "synthesize", "objective")  # sections that decide on accuracy
_APART = ("title", "network", "budget", "compare", "latency", "export")  # told elsewhere, or of no weight for the rows
_ABSENT = "–"


def cautions(runs: Sequence[Seen]) -> list[str]:
    """Why figures of these runs must not, or hardly, be set against each other; nothing where they may."""
    said = [f"{run.label} is not finished: it has no student yet." for run in runs if not run.finished]
    known = [run for run in runs if run.digest]
    if unknown := [run.label for run in runs if not run.digest]:
        said.append(f"No saved student tells which data {listed(unknown)} had: they may be others.")
    said += _told(
        "Other data (digests)",
        _groups(known, [f"{run.digest:.8}" for run in known]),
        "What networks reach that were trained or judged on other images cannot be compared.",
    )
    judged = [run for run in runs if "original" in run.metrics]
    said += _told(
        "Other originals",
        _groups(judged, [_original(run) for run in judged]),
        "Compare what students lose, not what they reach.",
    )
    said += _other_training(runs)
    said += _told(
        "Other spaces (choices)",
        _groups(runs, [json_text(run.space["choices"]) for run in runs], [str(len(r.space["choices"])) for r in runs]),
        "Sizes stand side by side where a space is shared.",
    )
    timed = [run for run in runs if run.target]
    targets = _groups(timed, [str(run.target) for run in timed])
    said += _told("Latency on other targets", targets, "Milliseconds of one say nothing about the other.")
    single = [run.label for run in runs if run.finished and not any("spread" in row for row in run.metrics.values())]
    if single:
        said.append(f"Each network of {listed(single)} was trained once: no difference can be told from noise.")
    return said


def difference_rows(runs: Sequence[Seen]) -> Table:
    """The keys of the recipes in which runs differ, a column a run; a dash where a recipe has no such key.

    A key that only one recipe has is left out: the others lack its section, which is told, or were written by a version
    that did not know it.
    """
    flat = [_flat(run.recipe) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    rows = [[key, *(values.get(key, _ABSENT) for values in flat)] for key in keys]
    differ = {key for key in keys if len({values[key] for values in flat if key in values}) > 1}
    return ["key", *(run.label for run in runs)], [row for row in rows if row[0] in differ]


def listed(parts: Iterable[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def _other_training(runs: Sequence[Seen]) -> list[str]:
    """One sentence for all keys that decide on how networks are trained."""
    parts = []
    for key, *values in difference_rows(runs)[1]:
        if key.partition(".")[0] in _TRAINED_BY:
            groups = _groups(runs, values)
            parts.append(f"{key} " + ", ".join(f"{value} in {listed(names)}" for value, names in groups))
    return [f"Other training: {'; '.join(parts)}. So a difference is not the architecture's alone."] if parts else []


def _original(run: Seen) -> str:
    row, metric = run.metrics["original"], run.state["metric"]
    loss = decimal(row.get("loss"), ".4f")
    return f"{run.network}, {metric} {decimal(row[metric])}, loss {loss}, {short(row['macs'])} MACs"


def _groups(
    runs: Sequence[Seen], values: Sequence[str], shown: Sequence[str] | None = None
) -> list[tuple[str, list[str]]]:
    """The labels of the runs with each value, beside what is shown of it, by default the value."""
    found: dict[str, tuple[str, list[str]]] = {}
    for run, value, text in zip(runs, values, shown or values, strict=True):
        found.setdefault(value, (text, []))[1].append(run.label)
    return list(found.values())


def _told(what: str, groups: Sequence[tuple[str, list[str]]], so: str) -> list[str]:
    if len(groups) < 2:
        return []
    return [f"{what}: " + "; ".join(f"{text} in {listed(names)}" for text, names in groups) + f". {so}"]


def _flat(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Dotted keys and their values as text; every section that may be missing also by its name alone."""
    found = {"budget": _budget(recipe.get("budget"))}
    for name in dict.fromkeys((*recipe, *_TRAINED_BY)):
        section = recipe.get(name)
        if name in _APART:
            continue
        if name in _TRAINED_BY:
            found[name] = _ABSENT if section is None else "yes"
        found |= _leaves(section, name)
    return found


def _leaves(value: Any, key: str) -> dict[str, str]:
    if isinstance(value, Mapping):
        return {name: leaf for part, below in value.items() for name, leaf in _leaves(below, f"{key}.{part}").items()}
    if key in _TRAINED_BY:
        return {}
    return {key: _ABSENT if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)}


def _budget(asked: Any) -> str:
    """Of one or several, the limits that are set."""
    each = asked if isinstance(asked, list) else [asked or {}]
    return "; ".join(", ".join(f"{key} {value}" for key, value in one.items() if value is not None) for one in each)
