"""The tables of the console and the page, from the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table as ConsoleTable

from tas.files import is_number
from tas.reporting.numbers import decimal, digits, duration, epochs, figures, milliseconds, short, size_on_disk

Rows = Mapping[str, Mapping[str, Any]]
Table = tuple[list[str], list[list[str]]]  # header and rows

ONLY_MIXED = "students are exact; only two widths at once, as a search mixes them, are approximate there"
_MILLISECONDS = {"latency_ms": "latency, ms", "measured_ms": "measured, ms"}  # by the table, and whole (quartiles)


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def tuned_rows(course: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> Table:
    """Header and rows of the trials of a study over hyper-parameters; a star marks the ones that were chosen."""
    tuned, form = list(chosen), figures(row.get("recalibrated") for row in course)
    rows = []
    for row in course:
        end = "diverged" if row["diverged"] else "pruned" if row["pruned"] else ""
        best = decimal(row["recalibrated"], form) if "recalibrated" in row else ""
        star = "*" if row["hyperparameters"] == chosen else ""
        rows.append([f"{row['trial']}{star}", best, f"{row['epoch']}", end])
        rows[-1] += [f"{row['hyperparameters'][name]:.4g}" for name in tuned]
    return ["trial", "best score", "epochs run", "ended", *tuned], rows


def result_rows(metrics: Rows, metric: str) -> Table:
    """Header and rows of the table that a run ends with; `metric` names the key that decides."""
    original, form = metrics["original"], figures(row[metric] for row in metrics.values())
    header = ["network", metric, "difference", "MACs", "params", "of MACs"]
    timed = [name for name in _MILLISECONDS if name in original]
    rows = []
    for name, row in metrics.items():
        spread = f" ± {row['spread']:{form}}" if row.get("spread") is not None else ""
        difference = "" if name == "original" else decimal(_minus(row[metric], original[metric]), f"+{form}")
        share = f"{row['macs'] / original['macs']:.1%}"
        rows.append(
            [name, f"{decimal(row[metric], form)}{spread}", difference, short(row["macs"]), short(row["params"]), share]
        )
        rows[-1] += [milliseconds(row, key) for key in timed]
    return [*header, *(_MILLISECONDS[key] for key in timed)], rows


def page_rows(metrics: Rows, metric: str) -> Table:
    """The same for the page, which has room for the size of the weights on disk."""
    header, rows = result_rows(metrics, metric)
    sizes = [size_on_disk(row) for row in metrics.values()]
    return [*header, "on disk"], [[*cells, size] for cells, size in zip(rows, sizes, strict=True)]


def start_rows(decided: Mapping[str, Any], metric: str) -> Table:
    """The starts that `initialize.weights: auto` has tried; a star marks the one that students get."""
    rows, form = [], figures(row[metric] for row in decided["rows"])
    for row in decided["rows"]:
        star = "*" if row["weights"] == decided["chosen"] else ""
        rows.append([f"{row['weights']}{star}", decimal(row[metric], form), decimal(row["loss"], ".3f")])
    return ["start of the weights", metric, "loss"], rows


def start_note(decided: Mapping[str, Any]) -> str:
    """How the starts of `start_rows` were tried."""
    return (
        f"Uniform widths from each start, {epochs(decided['epochs'])} on {decided['trained_on']:,} training images, "
        f"judged on {decided['judged_on']:,} others of them (n = 1); the star marks the start of all students."
    )


def feasibility_rows(feasibility: Rows) -> Table:
    """Smallest, uniform and largest architecture of a space, before any training."""
    largest = feasibility.get("original", feasibility["largest"])
    header = ["architecture", "MACs", "params", "of MACs", "of params"]
    rows = [
        [f"{name}{_widths(row)}", short(row["macs"]), short(row["params"])]
        + [f"{row[measure] / largest[measure]:.1%}" for measure in ("macs", "params")]
        for name, row in feasibility.items()
    ]
    if "latency_ms" in largest:
        header += ["ms", "of ms"]
        for cells, row in zip(rows, feasibility.values(), strict=True):
            cells += [digits(row["latency_ms"]), f"{row['latency_ms'] / largest['latency_ms']:.1%}"]
    return header, rows


def _widths(row: Mapping[str, Any]) -> str:
    """Which part of each width uniform ones keep: candidates seldom allow the same of all."""
    low, high = (f"{part:.0%}" for part in row.get("widths", (0, 0)))
    return f" ({low if low == high else f'{low} to {high}'} of each width)" if "widths" in row else ""


def choice_rows(space: Mapping[str, Any]) -> Table:
    """The choices of `SearchSpace.to_dict()`."""
    rows = [
        [c["name"], c["kind"], _candidates(c["candidates"]), str(c.get("original", c["candidates"][-1]))]
        for c in space["choices"]
    ]
    return ["choice", "kind", "candidates", "original"], rows


def size_rows(space: Mapping[str, Any], students: Mapping[str, Mapping[str, int]]) -> Table:
    """What the architectures of students, by name, keep of each size."""
    rows = [
        [
            c["name"],
            c["kind"],
            str(c.get("original", c["candidates"][-1])),
            *(str(s[c["name"]]) for s in students.values()),
        ]
        for c in space["choices"]
    ]
    return ["choice", "kind", "original", *students], rows


def kept_rows(space: Mapping[str, Any]) -> Table:
    """What is not searched, and why: each stream once, with how many parameter dimensions share its size and the reason
    that tells most."""
    streams: dict[str, list[Mapping[str, Any]]] = {}
    for kept in space["kept"]:
        streams.setdefault(kept.get("stream", kept["name"]), []).append(kept)
    rows = []
    for pieces in streams.values():
        telling = min(pieces, key=lambda kept: kept["reason"].startswith("it meets a size that cannot change"))
        rows.append([pieces[0]["name"], str(pieces[0]["size"]), str(pieces[0].get("places", 1)), telling["reason"]])
    return ["kept", "size", "places", "reason"], rows


def score_rows(scores: Sequence[Mapping[str, Any]], metric: str) -> Table:
    """Candidates as `candidates.jsonl` has them."""
    return _scores(scores, metric, [str(number) for number in range(1, len(scores) + 1)])


def _scores(scores: Sequence[Mapping[str, Any]], metric: str, names: Sequence[str]) -> Table:
    """A row a score, named by what it was chosen for, or else by its name here."""
    form = figures(s.get(key) for s in scores for key in ("reached", "recalibrated", "raw"))
    finals, raw = (any(s.get(key) is not None for s in scores) for key in ("reached", "raw"))

    def number(value: float | None) -> str:
        return "–" if value is None else decimal(value, form)

    rows = []
    for score, name in zip(scores, names, strict=True):
        quick = decimal(score["recalibrated"] if is_number(score["loss"]) else None, form)
        trained = [number(score.get("reached"))] if finals else []
        old = [number(score["raw"])] if raw else []
        sizes = [str(score["images"]), short(score["macs"]), short(score["params"])]
        rows.append([_mark(score) or name, *trained, quick, *old, *sizes])
    trained = [f"{metric}, trained shortly"] if finals else []
    return ["", *trained, f"{metric}, recalibrated", *(["raw"] if raw else []), "images", "MACs", "params"], rows


def _mark(score: Mapping[str, Any]) -> str:
    """For which budgets a candidate was chosen, where there are several."""
    if not score.get("chosen"):
        return ""
    return "; ".join(["chosen at " + label for label in score.get("chosen_for", ())]) or "chosen"


def front_rows(scores: Sequence[Mapping[str, Any]], metric: str) -> Table:
    """Those on the Pareto front of several budgets, by ascending cost."""
    best = sorted((s for s in scores if s["front"]), key=lambda s: s["macs"])
    return _scores(best, metric, [str(number) for number in range(1, len(best) + 1)])


def lost_note(scores: Sequence[Mapping[str, Any]]) -> str:
    """How many candidates have no score; empty where all have one."""
    lost = sum(not (is_number(s["recalibrated"]) and is_number(s["loss"])) for s in scores)
    return f"{lost} of {len(scores)} candidates: metric or loss is no number, so they are never chosen." if lost else ""


def weights_note(importance: str, merged: bool) -> str:
    """With which weights scores outside a run are made."""
    others = "the others merged in" if merged else "without the others"
    return f"Scored with the original's weights, the most important channels by {importance}, {others}."


def candidate_rows(candidates: Sequence[Mapping[str, Any]], metric: str) -> Table:
    """Candidates of `tas score --correlate`, with what they reached."""
    header = ["", f"{metric} after training", "recalibrated", "raw", "blocks", "MACs", "params"]
    kinds = ("reached", "recalibrated", "raw")
    form = figures(row[key] for row in candidates for key in kinds)
    rows = [
        [str(number), *(decimal(row[key], form) for key in kinds), str(row["depth"])]
        + [short(row["macs"]), short(row["params"])]
        for number, row in enumerate(candidates, 1)
    ]
    return header, rows


def correlation_rows(correlations: Mapping[str, Any]) -> Table:
    """Coefficients with their 95 % intervals, over all candidates and within and across depths."""
    parts = {"all": "all", "within": "within a depth", "across": "across depths"}
    header, rows = ["scores", "over", "Pearson", "Spearman", "Kendall", "of"], []
    for kind, by_part in correlations.items():
        for part, found in by_part.items():
            count, pairs = found["pearson"]["count"], found["kendall"]["count"]
            unit = "depths" if part == "across" else "networks"
            of = f"{count} {unit}" + ("" if part == "all" else f", {pairs} pairs")
            cells = [_coefficient(found[name]) for name in ("pearson", "spearman", "kendall")]
            rows.append([kind, parts[part], *cells, of])
    return header, rows


def correlation_note(found: Mapping[str, Any]) -> str:
    """What was correlated, on which images, with which weights."""
    count = len(found["candidates"])
    few = f" ({found['asked']} were asked for, no more were found)" if count < found["asked"] else ""
    images = "among them those of the scores, so the agreement looks better than it is"
    return (
        f"{count} architectures within the budget{few}, each distilled for {epochs(found['epochs'])} on "
        f"the weights half of the training images and judged on {found['reached_images']} images of the architecture "
        f"half ({images if found['overlap'] else 'none of them a score image'}); scores on {found['images']} images. "
        "Brackets: 95 % bootstrap intervals. " + weights_note(found["importance"], found.get("merged", False))
    )


def _coefficient(value: Mapping[str, Any]) -> str:
    if value["value"] is None:
        return "–"
    if value["low"] is None or value["high"] is None:
        return f"{value['value']:.2f}"
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def space_tables(described: Mapping[str, Any]) -> list[Any]:
    """All of `tas space`: choices, kept sizes, feasibility, what can go, how that was counted, notes."""
    kept = [kept_rows(described)] if described["kept"] else []
    tables = [choice_rows(described), *kept, feasibility_rows(described["feasibility"])]
    return [*tables, *_survey_lines(described), *(f"Note: {line}" for line in grouped(described["notes"]))]


def _survey_lines(found: Mapping[str, Any]) -> list[str]:
    part, norms = found["searchable"], found["batch_norms"]
    formula, torchs = found["counted"]["formula"], found["counted"]["torch"]
    differ = "" if formula == torchs else f": they differ by {abs(formula - torchs):,}, please report it"
    return [
        f"Up to {part['macs']:.1%} of the MACs and {part['params']:.1%} of the parameters can go; "
        f"{part['layers']:.1%} of the MACs lie in layers that a choice changes.",
        f"MACs of the original: {formula:,} by the formula, {torchs:,} counted by torch{differ}.",
        f"Batch norms: {norms}, whose statistics are recalibrated before a score."
        if norms
        else "No batch norm: scores need no recalibration.",
        f"Traced in {found['seconds']:.1f} s.",
    ]


def grouped(notes: Sequence[str]) -> list[str]:
    """The notes of a space for people: those of one kind in one line, with how many there are and the first place."""
    kinds: dict[str, list[str]] = {}
    for note in notes:
        kind, _, place = note.partition(": ")
        kinds.setdefault(kind, []).append(place)
    lines = []
    for kind, places in kinds.items():
        often = f", in {len(places)} places" if places[1:] else ""
        more = f", and {len(places) - 1} more" if places[1:] else ""
        harmless = f" ({ONLY_MIXED})" if places[0] else ""
        lines.append(f"{kind}{often}{': ' if places[0] else ''}{places[0]}{more}{harmless}")
    return lines


def plan_tables(found: Mapping[str, Any]) -> list[Any]:
    """All of `tas run --plan`: what is feasible, and what it takes."""
    times = [[stage, duration(seconds)] for stage, seconds in found["seconds"].items()]
    memory = f"About {found['megabytes']:,.0f} MB for a training step of the original, besides the data."
    return [feasibility_rows(found["feasibility"]), (["stage", "about"], times), memory]


def console(table: Table, title: str = "") -> ConsoleTable:
    """Header and rows for rich; columns of numbers are aligned to the right."""
    header, rows = table
    drawn = ConsoleTable(title=title or None, title_justify="left", header_style="bold")
    for index, name in enumerate(header):
        numeric = bool(rows) and all(row[index][:1] in "0123456789+-" for row in rows)
        drawn.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    return drawn


def _candidates(sizes: Sequence[int]) -> str:
    """All of a few; the ends and the step of many."""
    if len(sizes) <= 10:
        return " ".join(map(str, sizes))
    return f"{sizes[0]} {sizes[1]} … {sizes[-1]} ({len(sizes)})"
