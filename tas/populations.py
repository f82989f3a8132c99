"""The originals of a comparison, one for all or one a seed, and what the students of every row forgot of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tas.cells import Work
from tas.data import Batches, Split
from tas.errors import BadData, BadRecipe
from tas.files import write_bytes, write_json
from tas.forgetting import ENOUGH, exemplars, recall_shifts
from tas.parts import original_of
from tas.predictions import read_predictions
from tas.preparation import Prepared
from tas.recipe import Recipe
from tas.reporting.forgetting import FILE, PICTURES, SHOWN, png
from tas.stages import Run, judged_on, original

_BATCH = 250  # images read at once


def require_populations(prepared: Prepared) -> None:
    """`BadRecipe` where what pruning forgot is asked for and cannot be told; before anything is trained."""
    recipe = prepared.recipe
    section = recipe.compare
    if section.weights and not section.forgetting:
        raise BadRecipe("compare.weights are the originals of compare.forgetting: set that to true as well")
    if not section.forgetting:
        return
    if recipe.synthesize is not None:
        raise BadRecipe("compare.forgetting has an original a seed, synthesize makes images of one: leave out one")
    if not prepared.classifies:
        raise BadRecipe("compare.forgetting compares classes: it needs class labels, and top-1 as the metric")
    if section.weights and len(set(section.weights)) != len(section.seeds):
        raise BadRecipe(
            f"compare.weights must name a different file for each of the {len(section.seeds)} seeds, "
            f"got {len(section.weights)}, of them {len(set(section.weights))} different"
        )
    if recipe.network.weights is not None and not section.weights:
        raise BadRecipe(
            "compare.forgetting needs an original a seed: give compare.weights, files of originals trained from "
            "different seeds, or leave out network.weights, so that the section `original` trains them"
        )
    for path in section.weights:
        _from_file(recipe, path)


def originals(current: Run) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """Every original with the seeds that start from it."""
    recipe = current.recipe
    seeds = recipe.compare.seeds
    if not recipe.compare.forgetting:
        return [(original(current)[0], seeds)]
    if not recipe.compare.weights:
        return [(original(current, seed)[0], (seed,)) for seed in seeds]
    return [(_from_file(recipe, path), (seed,)) for path, seed in zip(recipe.compare.weights, seeds, strict=True)]


def _from_file(recipe: Recipe, path: str) -> nn.Module:
    return original_of(recipe.network.model_copy(update={"weights": path}))


def forgotten(works: Sequence[Work], cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What `compare/forgetting.json` holds: for every budget and row its exemplars and recall shifts.

    Of several random networks a seed the first one counts: those that share an original are not independent.
    """
    place = works[0].path
    truth = read_predictions(place / f"{works[0].name}.npz").labels
    before = _predicted([place / f"{work.name}.npz" for work in works], truth)
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for cell in cells:
        rows.setdefault((cell["budget"], cell["row"]), {}).setdefault(cell["seed"], cell["predictions"])
    found = []
    for (budget, row), files in rows.items():
        after = _predicted([place / name for name in files.values()], truth)
        enough = min(len(before), len(after)) >= ENOUGH
        found.append(
            {
                "budget": budget,
                "row": row,
                "originals": len(before),
                "students": len(after),
                "exemplars": asdict(exemplars(before, after, truth)) if enough else None,
                "shifts": [asdict(shift) for shift in recall_shifts(before, after, truth)],
            }
        )
    return {"images": len(truth), "rows": found}


def write_forgotten(works: Sequence[Work], cells: Sequence[Mapping[str, Any]]) -> None:
    """Write `compare/forgetting.json`, and the pictures that the page shows beside it."""
    place, found = works[0].path, forgotten(works, cells)
    first = {row["budget"]: row for row in reversed(found["rows"]) if row["exemplars"]}
    wanted = {each["image"] for row in first.values() for each in row["exemplars"]["found"][:SHOWN]}
    for image, pixels in _pixels(judged_on(works[0].current.prepared.data), sorted(wanted)):
        if (picture := png(pixels)) is not None:
            write_bytes(place / PICTURES / f"{image}.png", picture)
    write_json(place / FILE, found)


def _predicted(files: Sequence[Path], truth: Tensor) -> Tensor:
    """Predictions [networks, images]; `BadData` where the images came in another order."""
    read = [read_predictions(path) for path in files]
    if not all(torch.equal(each.labels, truth) for each in read):
        raise BadData(
            "compare.forgetting compares image by image: the judged split must give its images in the same order in "
            "every pass"
        )
    return torch.stack([each.predicted for each in read])


def _pixels(split: Split, wanted: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """The inputs at these places as they are stored, before they are normalised."""
    source = split.source
    if not wanted:
        return
    asked = set(wanted)
    places: Iterator[int] = itertools.count() if isinstance(source, Batches) else iter(wanted)
    if not isinstance(source, Batches):  # the user's own batches can only be passed through
        source = source.pick(torch.tensor(wanted))
    for inputs, _ in source.read(_BATCH, None, False, torch.device("cpu")):
        if isinstance(inputs, Tensor):
            # inputs first: zip must not take a place that has no input
            yield from ((image, each) for each, image in zip(inputs, places, strict=False) if image in asked)
