"""A whole run: original, images where its recipe has them made, search, distillation of the student and of what it is
compared with, report.

Every stage leaves its result in the run folder and is skipped when the same folder is run again.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from tas import loading
from tas.cautions import untaught
from tas.comparison import baselines, distilled
from tas.cost import feasible
from tas.describing import costs_of_original, require_member, row_name
from tas.errors import BadRecipe
from tas.files import json_text, read_json, write_json
from tas.folder import check_owner
from tas.preparation import Prepared, prepare
from tas.recipe import Recipe, read
from tas.reporting import write_report
from tas.reporting.progress import Display
from tas.searching import measured, searched
from tas.stages import Run, judged_on, opened, original, weighted
from tas.synthesizing import rival, synthesized

Stage = Literal["original", "search", "distill"]


def run(
    recipe: Recipe | str | Path,
    folder: str | Path,
    *,
    until: Stage = "distill",
    architecture: Mapping[str, int] | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Run a recipe in a folder, or go on with the run that is there; the result table as in `metrics.json`.

    A recipe of several budgets gives a student, and its baselines, for each of them: rows "student at 30% of MACs".
    until: the last stage. architecture: takes the place of the search, at one budget. Raises a `TasError` before
    anything is written where the recipe, or the folder for it, is wrong. Ctrl-C loses at most the epoch that was
    running.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read(recipe)
    check_owner(folder, recipe)
    prepared = prepare(recipe)
    judged_on(prepared.data)
    rival(prepared)
    if architecture is not None:
        require_member(prepared.space, architecture)
        if len(prepared.budgets) > 1:
            raise BadRecipe(f"an architecture is trained at one budget, the recipe has {list(prepared.budgets)}")
    current = opened(prepared, folder, display)
    if architecture is not None and not _within(prepared, architecture):
        current.warn("The architecture does not meet the recipe's budget; uniform widths beside it do.")
    try:
        return _stages(current, until, architecture)
    finally:
        current.events.close()
        write_report(current.folder.path)


def _within(prepared: Prepared, architecture: Mapping[str, int]) -> bool:
    indices = torch.tensor(prepared.space.indices(architecture))
    return bool(feasible(prepared.space, indices, prepared.budget))


def _stages(current: Run, until: Stage, given: Mapping[str, int] | None) -> dict[str, Any]:
    network, facts = original(current)
    path = current.folder.path / "metrics.json"
    metrics = read_json(path) or {}  # rows that were finished before stay, also where this call stops earlier
    held = sum(tensor.nbytes for tensor in network.state_dict().values())
    metrics["original"] = {**facts, **costs_of_original(current.prepared.space), "bytes": held}
    write_json(path, metrics)
    if until == "original":
        return metrics
    current = synthesized(current, network)
    source = weighted(current.prepared, network)
    found, budgets = searched(current, source, network, given), current.prepared.budgets
    taken = measured(current, source, found)
    if taken:
        metrics["original"] |= _measured(taken["original"])
        write_json(path, metrics)
    _warn_of_equals(current, found)
    if until == "search":
        return metrics
    data, objective = current.prepared.data, current.prepared.objective
    for label, architecture in found.items():
        rivals = {"student": [architecture] * current.recipe.report.repeats, **baselines(current, budgets[label])}
        for name, architectures in rivals.items():
            row, place = row_name(name, label, budgets), _place(name, label, budgets)
            metrics[row] = distilled(current, row, place, architectures, source, network)
            metrics[row]["bytes"] = (path.parent / place / loading.WEIGHTS).stat().st_size
            if name == "student" and taken:
                metrics[row] |= _measured(taken[label])
            write_json(path, metrics)
            if said := untaught(judged_on(data), objective, row, metrics[row][objective.name]):
                current.warn(said)
        if rivals["student"] == rivals.get("uniform"):
            current.warn(
                f"What was chosen{f' ({label})' if len(found) > 1 else ''} are uniform widths: the rows of the student "
                "and of uniform widths are the same network."
            )
    return metrics


def _warn_of_equals(current: Run, found: Mapping[str, Mapping[str, int]]) -> None:
    labels: dict[str, list[str]] = {}
    for label, architecture in found.items():
        labels.setdefault(json_text(architecture), []).append(label)
    for same in labels.values():
        if len(same) > 1:
            current.warn(f"The same architecture was chosen for {' and for '.join(same)}: their students are level.")


def _measured(taken: Mapping[str, float]) -> dict[str, float]:
    """The median of the whole network, and its quartiles."""
    return {"measured_ms": taken["median"], "measured_low_ms": taken["low"], "measured_high_ms": taken["high"]}


def _place(name: str, label: str, budgets: Collection[str]) -> str:
    """Where a student is saved in the folder; of several budgets in a folder each, such as `students/30-of-macs`."""
    if len(budgets) == 1:
        return name if name == "student" else f"baselines/{name}"
    short = re.sub(r"[^a-z0-9.]+", "-", label.lower())
    return f"students/{short}" if name == "student" else f"baselines/{name}-{short}"
