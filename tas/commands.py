"""What the longer commands do, once `tas.cli` has read their arguments."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from tas.errors import BadRecipe
from tas.printing import show
from tas.recipe import Latency, Recipe

INTERRUPTED = 130  # as shells have it: 128 + SIGINT
_DRAWN = 24  # architectures, where a run is named and no number


def finish(recipe: Recipe, folder: Path, as_json: bool, **options: Any) -> None:
    """Run, then show the result and where it lies."""
    from tas import runner
    from tas.files import read_json, read_lines
    from tas.reporting import tables
    from tas.reporting.page import students_of

    metrics = _interruptible(folder, lambda: runner.run(recipe, folder, **options))
    state, students = read_json(folder / "run.json"), students_of(folder)
    metric, start = state["metric"], state["stages"].get("initialize")
    shown: list[Any] = [tables.result_rows(metrics, metric)]
    if options.get("until") == "search":
        shown.insert(0, tables.size_rows(read_json(folder / "space.json"), students))
    found: dict[str, Any] = {"architecture": students.get("student")}
    if len(students) > 1:
        candidates = read_lines(folder / "candidates.jsonl")
        shown += ["Scores that nothing cheaper reaches (ties: the lower loss):", tables.front_rows(candidates, metric)]
        found = {
            "architectures": read_json(folder / "architectures.json"),
            "front": [row for row in candidates if row["front"]],
        }
    if start:
        shown += [tables.start_rows(start, metric), tables.start_note(start)]
        found["initialize"] = {name: start[name] for name in ("chosen", "rows", "epochs", "trained_on", "judged_on")}
    names = ("architecture.json", "architectures.json", "student", "students", "metrics.json", "report.html")
    show(as_json, {**metrics, **found, "folder": str(folder)}, *shown, _paths(folder, names))


def synthesize(recipe: Recipe, folder: Path, as_json: bool) -> None:
    from tas import synthesizing
    from tas.reporting.synthesis import resemblance_rows

    found = _interruptible(folder, lambda: synthesizing.make(recipe, folder))
    show(as_json, {**found, "folder": str(folder)}, resemblance_rows(found["rows"]), found["sheet"])


def plan(recipe: Recipe, as_json: bool) -> None:
    from tas.planning import estimate
    from tas.preparation import prepare
    from tas.reporting import tables

    found = estimate(prepare(recipe))
    show(as_json, found, *tables.plan_tables(found))


def latency(recipe: Recipe, architecture: Path | None, networks: int | None, points: int | None, as_json: bool) -> None:
    """The latency table of a network on the recipe's target, and what it says."""
    from tas import describing, parts
    from tas.latency import check
    from tas.latency.explaining import by_layer
    from tas.latency.staircase import divisor, staircases
    from tas.methods.result import architecture_in
    from tas.reporting.latency import latency_tables, plain
    from tas.reporting.progress import Display

    original = parts.original_of(recipe.network, recipe.seed)
    inputs = parts.example_inputs(recipe.network, original, parts.data_of_inputs(recipe))
    traced = parts.source_of(recipe, original, inputs)
    describing.require_choices(traced.space, recipe.space)
    given = None if architecture is None else architecture_in(architecture)
    if given is not None:
        describing.require_member(traced.space, given, f"the architecture in {architecture}")
    file = parts.table_file(recipe.latency or Latency(), traced)
    try:
        with Display().bar("latency") as bar:
            timed, table = parts.timed(recipe, traced, lambda done, rounds: bar(done, rounds, ""), always=True)
    except KeyboardInterrupt:
        print(f"interrupted; {file} keeps the finished rounds: the same command goes on with them", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    assert table is not None
    checked = check(timed, table, networks) if networks else None
    stairs = staircases(timed, table.target, points, table.rounds) if points else []
    offset, scale = table.fit
    found = {
        "target": asdict(table.target),
        "machine": dict(table.machine),
        "table": str(file),
        "pieces": len(table.samples),
        "rounds": table.rounds,
        "spread": table.spread,
        "offset_ms": offset,
        "scale": scale,
        "layers": by_layer(timed.space, given),
        "feasibility": describing.feasibility(timed.space),
        **({} if checked is None else {"check": {**asdict(checked), "too_noisy": checked.too_noisy}}),
        **({"divisor": divisor(stairs), "staircases": [plain(each) for each in stairs]} if points else {}),
    }
    show(as_json, found, f"Target: {table.target}.", *latency_tables(found))


def score(
    recipe: Recipe,
    architectures: Path | None,
    sample: int | None,
    learned: Path | None,
    run: Path | None,
    raw: bool,
    as_json: bool,
) -> None:
    """Quick scores of architectures from a file, or of drawn ones."""
    from tas.judging import quick_scores
    from tas.methods.result import architectures_in
    from tas.reporting import tables
    from tas.reporting.numbers import decimal

    if architectures is None and sample is None and learned is None:
        raise BadRecipe("name what is to be scored: --architectures FILE, --sample N, --from RUN, or --correlate K")
    if architectures is not None and (sample is not None or learned is not None):
        raise BadRecipe(
            "architectures come from a file or are drawn: leave out --architectures, or --sample and --from"
        )
    asked = (sample or _DRAWN) if architectures is None else architectures_in(architectures)
    found = quick_scores(recipe, asked, run, learned, raw)
    for remark in found["remarks"]:
        print(f"warning: {remark}", file=sys.stderr)
    metric = found["metric"]
    original = f"The original reaches {decimal(found['original'][metric])} on the same images. "
    note = tables.weights_note(recipe.initialize.importance, found["merged"])
    show(as_json, found, tables.score_rows(found["scores"], metric), original + note)


def correlate(recipe: Recipe, folder: Path, count: int, epochs: int, learned: Path | None, as_json: bool) -> None:
    """Scores against what a short training reaches."""
    from tas import correlating
    from tas.reporting import tables

    found = _interruptible(folder, lambda: correlating.correlate(recipe, folder, count, epochs, learned))
    shown = [
        tables.candidate_rows(found["candidates"], found["metric"]),
        tables.correlation_rows(found["correlations"]),
    ]
    names = (correlating.LINES, correlating.RESULT, correlating.PICTURE, "report.html")
    value = {**found, "folder": str(folder)}
    show(as_json, value, *shown, tables.correlation_note(found), _paths(folder, names))


def compare(recipe: Recipe, folder: Path, as_json: bool) -> None:
    """Searches and baselines at equal budgets, epochs, data and start."""
    from tas import comparing
    from tas.reporting import comparison, forgetting
    from tas.reporting.page import COMPARED, COMPARISON

    found = _interruptible(folder, lambda: comparing.compare(recipe, folder))
    shown: list[Any] = []
    for budget in found["budgets"]:
        shown += [budget, comparison.comparison_rows(found, budget)]
    shown += [comparison.protocol(found), *comparison.cautions(found)]
    if found["forgetting"]:
        forgot = forgetting.read(folder / "compare")
        shown += ["What did pruning forget?", forgetting.summary_rows(forgot), *forgetting.explanation(forgot)]
        found["forgotten"] = forgot
    paths = _paths(folder, (COMPARISON, "compare/forgetting.json", "compare/curves.svg", COMPARED))
    show(as_json, {**found, "folder": str(folder)}, *shown, paths)


def join(folder: Path, overrides: list[str], as_json: bool) -> None:
    """Another process at the study of a run."""
    from tas import joining

    found = _interruptible(folder, lambda: joining.join(folder, overrides))
    show(as_json, found, f"{found['trials']} of the {found['of']} trials of {folder} were done here.")


def report(folders: list[Path], out: Path | None, as_json: bool) -> None:
    """The page of one run, in its folder, with that of a comparison there, or one about several."""
    from tas.reporting import write_report, write_runs
    from tas.reporting.comparison import write_comparison
    from tas.reporting.page import COMPARISON

    if len(folders) > 1:
        page = out or Path("runs.html")
        said = write_runs(folders, page)
        show(as_json, {"report": str(page), "cautions": said}, *said, str(page))
        return
    if out is not None:
        raise BadRecipe("--out is for a page about several runs; that of one run is report.html in its folder")
    pages = {"report": str(write_report(folders[0]))}
    if (folders[0] / COMPARISON).is_file():
        pages["comparison"] = str(write_comparison(folders[0]))
    show(as_json, pages, *pages.values())


def export(
    network: str,
    out: Path | None,
    recipe_of: Callable[[str], Recipe],
    format: str,
    images: int,
    as_json: bool,
    **options: Any,
) -> None:
    """One file for another runtime; exit code 1 where it disagrees there."""
    from tas.exporting import Mismatch
    from tas.judging import export_target

    try:
        found = export_target(network, out, recipe_of, format, images, **options)
    except Mismatch as problem:
        print(f"error: {problem}", file=sys.stderr)
        raise typer.Exit(1) from None
    show(as_json, found, (["", ""], [[name, str(value)] for name, value in found.items()]))


def _interruptible(folder: Path, work: Callable[[], Any]) -> Any:
    try:
        return work()
    except KeyboardInterrupt:
        print(_kept(folder), file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


def _kept(folder: Path) -> str:
    """What an interrupted run leaves, and how it goes on, in one line."""
    from tas.files import read_json

    state = read_json(folder / "run.json")
    if state is None:
        return f"interrupted before anything was written to {folder}; the same command begins anew"
    done = [name for name, stage in state["stages"].items() if stage["done"]]
    begun = any(any((folder / place).glob("*")) for place in ("checkpoints", "compare/checkpoints"))
    kept = [*done, *(["the finished part of what was under way"] if begun else [])]
    return f"interrupted; {folder} keeps {', '.join(kept) or 'no stage yet'}: the same command goes on there"


def _paths(folder: Path, names: tuple[str, ...]) -> str:
    return "\n".join(str(folder / name) for name in names if (folder / name).exists())
