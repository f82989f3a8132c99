"""The search of a run: what it is asked, what it leaves in the folder, and what its scores are worth."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from tas.cautions import cautioned, few_images
from tas.choosing import CANDIDATES, chosen
from tas.describing import costs
from tas.errors import BadRecipe
from tas.files import json_text, read_json, write_json, write_lines
from tas.latency import latencies
from tas.latency.explaining import by_layer
from tas.latency.measuring import this_machine
from tas.methods import OnRow, OnScore, SearchResult, front, search
from tas.methods.standing import distinct
from tas.preparation import Prepared
from tas.reporting.tables import lost_note
from tas.scoring import Score, search_splits
from tas.space import Architecture
from tas.stages import Run
from tas.training import evaluate

_MEMORISED = 99.95  # percent of the held-out training images: no candidate can then be told from another by its errors


def searched(current: Run, source: Any, network: nn.Module, given: Mapping[str, int] | None) -> dict[str, Architecture]:
    """The architecture of every budget: `given`, or what the search and its finalists give. One budget's is
    `architecture.json`, those of several are `architectures.json`."""
    several = len(current.prepared.budgets) > 1
    path = current.folder.path / ("architectures.json" if several else "architecture.json")

    def work() -> dict[str, Any]:
        found = [Architecture.of(given)] if given is not None else _search(current, source, network)
        return {**_write(current, path, found), "architectures": [*map(dict, found)]}

    facts = current.staged("search", work)
    held = read_json(path)
    if held is None:
        raise BadRecipe(
            f"{path} holds what the search found, and is gone: restore it (every student.json has its architecture, "
            "too), or choose another --out"
        )
    if given is not None and held != dict(given):
        raise BadRecipe(f"{current.folder.path} holds the student of another architecture; choose another --out")
    found = [row["architecture"] for row in held] if several else [held]
    best = dict(zip(current.prepared.budgets, map(Architecture.of, found), strict=True))
    if given is None and not any(stage.startswith("distill ") for stage in current.folder.state["stages"]):
        answers = facts.get("architectures") or [*map(dict, best.values())]  # what the search said, before finalists
        first = dict(zip(best, map(Architecture.of, answers), strict=True))
        best = chosen(current, source, network, first)
        _write(current, path, [*best.values()])
    return best


def _write(current: Run, path: Path, found: Sequence[Architecture]) -> dict[str, Any]:
    """Into the file, an architecture or one a budget with what it costs; the costs."""
    space, budgets = current.prepared.space, current.prepared.budgets
    facts = {label: costs(space, each) for label, each in zip(budgets, found, strict=True)}
    if len(budgets) == 1:
        write_json(path, dict(found[0]))
        return next(iter(facts.values()))
    pairs = zip(facts.items(), found, strict=True)
    write_json(path, [{"budget": label, "architecture": dict(each), **its} for (label, its), each in pairs])
    return facts


def measured(current: Run, source: Any, found: Mapping[str, Architecture]) -> dict[str, dict[str, float]]:
    """Where the run has a latency table of this machine: latency in milliseconds, {"median", "low", "high"}, of the
    original and of the networks found, measured whole in turns; else nothing."""
    table = current.prepared.latency
    if table is None:
        return {}
    for label, architecture in found.items():
        rows = by_layer(current.prepared.space, architecture)
        if idle := [row["layer"] for row in rows if row["idle"]]:
            where = f" ({label})" if len(found) > 1 else ""
            current.warn(
                f"Layers of the student{where} whose MACs fell, but not their latency, by the table: {', '.join(idle)}."
            )
    if table.machine != this_machine(table.target):
        current.warn(
            f"The latency table was measured on {table.machine['device']} ({table.machine['node']}), not here: the "
            "networks found are not measured whole."
        )
        return {}

    def work() -> dict[str, Any]:
        taken = latencies(source, table.target, [current.prepared.space.original(), *found.values()])
        return {"measured": {name: asdict(one) for name, one in zip(["original", *found], taken, strict=True)}}

    return current.staged("latency", work)["measured"]


def _search(current: Run, source: Any, network: nn.Module) -> list[Architecture]:
    prepared, folder = current.prepared, current.folder
    warn_of_scores(current, network)
    sizes = {choice.name: choice.size for choice in prepared.space.choices}
    checkpoint = folder.checkpoint("search")
    with (
        current.display.bar("search") as bar,
        (folder.path / "search.jsonl").open("a") as lines,
        cautioned(current.warn),
    ):

        def on_row(row: dict[str, Any]) -> None:
            lines.write(json_text(row) + "\n")
            lines.flush()
            bar(row["step"], row["steps"], "")
            current.events.search(row, sizes)

        results = asked_search(
            prepared, source, checkpoint, on_row, lambda done, count: bar(done, count, "scoring candidates")
        )
    course = [row for result in results for row in result.course]
    write_lines(folder.path / "search.jsonl", course)  # without the rows of an interrupted epoch
    rows = _candidates(prepared, results)
    write_lines(folder.path / CANDIDATES, rows)
    if lost := lost_note(rows):
        current.warn(lost)
    if results[0].probabilities:
        write_json(folder.path / "distribution.json", dict(results[0].probabilities))
    if results[0].hyperparameters:
        write_json(folder.path / "hyperparameters.json", dict(results[0].hyperparameters))
    checkpoint.unlink(missing_ok=True)
    return [result.architecture for result in results]


def asked_search(
    prepared: Prepared, source: Any, checkpoint: Path, on_row: OnRow, on_score: OnScore | None = None
) -> tuple[SearchResult, ...]:
    """The search of the recipe: a result a budget."""
    options = asdict(prepared.recipe.search)
    method = options.pop("method")
    return search(
        source,
        prepared.data,
        list(prepared.budgets.values()),
        method,
        objective=prepared.objective,
        seed=prepared.recipe.seed,
        device=prepared.device,
        checkpoint=checkpoint,
        on_row=on_row,
        on_score=on_score,
        **options,
    )


def _candidates(prepared: Prepared, results: Sequence[SearchResult]) -> list[dict[str, Any]]:
    """A row for everything that was scored, best first. Of several budgets, they also say for which of them they were
    chosen, and whether they lie on the Pareto front of score and cost."""
    best = {result.architecture for result in results}
    found = distinct([score for result in results for score in result.candidates], prepared.objective)
    rows = [candidate_row(prepared, score, best) for score in found]
    if len(results) == 1:
        return rows
    measure = prepared.budget.limits[0][0]
    edge = set(front(prepared.space, found, measure, prepared.objective))
    names = list(zip(prepared.budgets, results, strict=True))
    for row, score in zip(rows, found, strict=True):
        row["chosen_for"] = [label for label, result in names if result.architecture == score.architecture]
        row["front"] = score in edge
    return rows


def warn_of_scores(current: Run, network: nn.Module) -> None:
    """Say so where there are fewer images than asked for, or where the original knows the held-out training images by
    heart, on which candidates are scored."""
    prepared, asked = current.prepared, current.recipe.search
    for said in few_images(prepared.data, asked.images, asked.calibration_images, current.recipe.seed):
        current.warn(said)
    if current.recipe.synthesize is not None:
        current.warn(
            "Candidates are scored on images that were synthesized from the original: scores say how far they agree "
            "with it, not how often they are right."
        )
        return
    if prepared.objective.name != "top1":
        return
    held_out = search_splits(prepared.data, current.recipe.seed)[1].take(2000)
    reached = evaluate(network, held_out, prepared.objective, device=prepared.device)["top1"]
    if reached >= _MEMORISED:
        current.warn(
            f"The original classifies {reached:.1f} % of the held-out training images: it has seen them, so scores "
            "rank less sharply. Augment the data, or train the original on half of the images."
        )


def candidate_row(prepared: Prepared, score: Score, chosen: Collection[Architecture]) -> dict[str, Any]:
    """A line of `candidates.jsonl`: the score, what the architecture costs, whether it is among the `chosen`."""
    row = {**asdict(score), "architecture": dict(score.architecture)}
    return {**row, **costs(prepared.space, score.architecture), "chosen": score.architecture in chosen}
