"""Searches x budgets x seeds, and what they have to beat, all trained the same way: `tas compare`.

Everything lies in the run folder's `compare`, cell by cell (`tas.cells`), so that a comparison that was interrupted, or
that is asked for more budgets or seeds, goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tas.cells import Student, Work, digest, kept, original_cell, searched, trained
from tas.choosing import finalists_of
from tas.describing import budgets_of, costs, costs_of_original
from tas.errors import BadRecipe
from tas.files import write_json
from tas.folder import check_owner, environment
from tas.importance import scores, sites
from tas.initialization import student_at
from tas.methods.baselines import magnitude, random, uniform
from tas.outcomes import original_of_cells, rows_of
from tas.populations import originals, require_populations, write_forgotten
from tas.preparation import prepare
from tas.recipe import SEARCHES, Recipe, dump
from tas.reporting import write_report
from tas.reporting.comparison import write_comparison
from tas.reporting.page import COMPARISON
from tas.reporting.progress import Display
from tas.searching import warn_of_scores
from tas.space import Architecture
from tas.stages import judged_on, opened, weighted
from tas.synthesizing import rival, synthesized
from tas.teaching import in_epochs, started
from tas.timing import interleaved
from tas.tracing import Traced


def compare(recipe: Recipe, folder: str | Path, display: Display | None = None) -> dict[str, Any]:
    """Compare as the recipe's section `compare` says; returns what `compare/comparison.json` holds.

    folder: of a run of this recipe, or a new one; the original is trained there where it came without weights. Ctrl-C
    loses at most the epoch that was running, and leaves a table and a page of what is done.
    """
    check_owner(folder, recipe)
    prepared = prepare(recipe)
    judged_on(prepared.data)
    require_populations(prepared)
    rival(prepared)
    asked = recipe.compare.budgets
    budgets = budgets_of(prepared.space, asked, "compare.budgets") if asked else prepared.budgets
    current = opened(prepared, folder, display)
    found: dict[str, Any] = {}
    try:
        works = [
            Work(synthesized(current, teacher), budgets, teacher, weighted(prepared, teacher), seeds)
            for teacher, seeds in originals(current)
        ]
        warn_of_scores(works[0].current, works[0].teacher)
        found = _found(works)
        for cell in _cells(works):
            found["cells"].append(cell)  # one by one: an interruption leaves those before
        found["latency"] = _latencies(works[0], found["cells"])
    finally:
        current.events.close()
        if found.get("cells"):
            found["rows"] = rows_of(found)
            if recipe.compare.forgetting:
                write_forgotten(works, found["cells"])
            write_json(current.folder.path / COMPARISON, found)
            write_comparison(current.folder.path)
            write_report(current.folder.path)  # it leads there
    return found


def _found(works: Sequence[Work]) -> dict[str, Any]:
    """The comparison before its first cell."""
    prepared, recipe = works[0].current.prepared, works[0].recipe
    cells = [original_cell(work) for work in works]
    if len({cell["facts"]["original"] for cell in cells}) < len(cells):
        raise BadRecipe("every seed needs an original of its own, two of compare.weights hold the same weights")
    return {
        "title": works[0].current.folder.state["title"],
        "metric": prepared.objective.name,
        "higher_is_better": prepared.objective.higher_is_better,
        "images": {"train": len(prepared.data.train), "test": len(judged_on(prepared.data))},
        "seeds": list(recipe.compare.seeds),
        "budgets": {name: dict(budget.limits) for name, budget in works[0].budgets.items()},
        "searches": {name: asdict(settings) for name, settings in searches(recipe).items()},
        "distill": recipe.model_dump(mode="json")["distill"],
        "choose": {"finalists": finalists_of(recipe, works[0].source), "epochs": recipe.choose.epochs},
        "start": started(works[0].current, works[0].source, works[0].teacher),
        "recipe": dump(recipe),
        "environment": environment(recipe.seed, prepared.device),
        "random_draws": recipe.compare.random_draws,
        "traced": isinstance(prepared.source, Traced),
        "forgetting": recipe.compare.forgetting,
        "original": original_of_cells(cells),
        "cells": [],
        "latency": {},
    }


def searches(recipe: Recipe) -> dict[str, Any]:
    """The settings of every search that is compared, by the name of its row."""
    found: dict[str, Any] = {}
    for asked in recipe.compare.methods or (recipe.search.method,):
        settings = _named(recipe, asked) if isinstance(asked, str) else asked
        number = sum(each.method == settings.method for each in found.values()) + 1
        found[settings.method if number == 1 else f"{settings.method} {number}"] = settings
    return found


def _named(recipe: Recipe, method: str) -> Any:
    """The recipe's own settings, or the defaults of another method on as many images."""
    if method == recipe.search.method:
        return recipe.search
    shared = {"images": recipe.search.images, "calibration_images": recipe.search.calibration_images}
    if "netadapt" not in (method, recipe.search.method):  # which does not choose
        shared["merge"] = recipe.search.merge
    return SEARCHES[method](**shared)


def _cells(works: Sequence[Work]) -> Iterator[dict[str, Any]]:
    """All cells, seed by seed, so that an interruption leaves whole rows; trained where they are not there yet."""
    recipe, budgets, number = works[0].recipe, works[0].budgets, 0
    each = len(searches(recipe)) + 3 + recipe.compare.random_draws + isinstance(works[0].source, Traced)
    together = len(recipe.compare.seeds) * len(budgets) * each
    for work in works:
        for seed, label in product(work.seeds, budgets):
            for student in _students(work, label, seed):
                number += 1
                yield trained(work, student, f"{student.row} at {label}, seed {seed} ({number} of {together})")


def _students(work: Work, label: str, seed: int) -> Iterator[Student]:
    """The rows of one budget and seed: searches, baselines at the same budget, and the first search's architecture
    trained from fresh weights in as many epochs (scratch-E) and at the same cost as the original's training in them
    (scratch-B; Liu et al. 2019)."""
    prepared, recipe, budget = work.current.prepared, work.recipe, work.budgets[label]
    space, how = prepared.space, recipe.distill
    weights = started(work.current, work.source, work.teacher)
    found = {name: searched(work, name, settings, label, seed) for name, settings in searches(recipe).items()}
    first = next(iter(found.values()))
    generator = torch.Generator().manual_seed(seed + 1_000_003)  # adaptive_bn draws from the seed itself
    rows = [*found.items(), ("uniform", uniform(space, budget))]
    draws = recipe.compare.random_draws  # one by one: more of them begin with the same ones
    rows += [("random", random(space, budget, generator)[0]) for _ in range(draws)]
    if isinstance(work.source, Traced):
        rows.append(("magnitude", magnitude(space, budget, _importance(work.source, recipe))))
    for row, architecture in rows:
        yield Student(row, label, seed, architecture, how, weights)
    ratio = costs_of_original(space)["macs"] / costs(space, first)["macs"]
    longer = in_epochs(how, int(how.epochs * ratio))
    yield Student("scratch-E", label, seed, first, how, "scratch")
    yield Student("scratch-B", label, seed, first, longer, "scratch")


def _importance(source: Traced, recipe: Recipe) -> dict[str, torch.Tensor]:
    """Scores of the units of every width choice."""
    generator, criterion = torch.Generator().manual_seed(recipe.seed), recipe.initialize.importance
    widths = [choice.name for choice in source.space.choices if choice.kind == "width"]
    return {name: scores(criterion, sites(source, name), generator) for name in widths}


def _latencies(work: Work, cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of the original, and of every architecture as JSON, at batch 1 and at a larger one, which has no
    more images than there are: milliseconds, in turns."""
    prepared, section = work.current.prepared, work.recipe.compare
    listed = list(dict.fromkeys(Architecture.of(cell["architecture"]) for cell in cells))
    judged = judged_on(prepared.data)
    sizes = sorted({1, min(section.latency_batch, len(judged))})
    asked = ["original", *(each.to_json() for each in listed)]
    where = [str(prepared.device), str(torch.get_num_threads()), torch.__version__]
    identity = digest({"of": asked, "sizes": sizes, "repeats": section.latency_repeats, "where": where})

    def measured() -> dict[str, Any]:
        networks = [work.teacher, *(student_at(work.source, each, "inherit") for each in listed)]
        found: dict[str, dict[str, Any]] = {name: {} for name in asked}
        for size in sizes:
            inputs, _ = next(judged.take(size).batches(size, device=prepared.device))
            taken = interleaved(networks, inputs, prepared.device, section.latency_repeats)
            for name, latency in zip(asked, taken, strict=True):
                found[name][str(size)] = asdict(latency)
        return found

    return kept(work.path / f"latency-{identity}.json", measured)
