"""Networks judged outside a run: quick scores of architectures; metric or export of any network or student folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tas.cautions import cautioned, chance, few_images
from tas.comparison import saved
from tas.describing import require_member
from tas.errors import BadRecipe
from tas.exporting import SUFFIXES, export, facts, load, note
from tas.files import rounded
from tas.fitting import require_judged
from tas.methods.learned import table_of
from tas.originals import build, check_runs
from tas.parts import data_of, device_of, objective_of, original_of
from tas.preparation import Prepared, prepare
from tas.recipe import Recipe
from tas.reporting.tables import lost_note
from tas.sampling import sample_many
from tas.scoring import ranked, score, scored_on
from tas.searching import candidate_row
from tas.space import Architecture, Budget, SearchSpace
from tas.stages import judged_on, weighted
from tas.synthesizing import from_run
from tas.training import evaluate


def quick_scores(
    recipe: Recipe,
    architectures: Sequence[Mapping[str, int]] | int,
    run: Path | None = None,
    learned: Path | None = None,
    raw: bool = False,
) -> dict[str, Any]:
    """What `tas score --json` prints: the metric's name, what the original reaches on the same images, remarks, and a
    row an architecture, best first; all with the original's weights.

    architectures: themselves, or how many are `drawn` within each budget. run: the folder of a run that trained the
    original; by default `learned`, which they are drawn from. raw: also with inherited batch-norm statistics.
    """
    if recipe.network.supernet is not None:
        raise BadRecipe("quick scores need inherited weights; students of network.supernet start from fresh ones")
    prepared = prepare(recipe)
    if isinstance(architectures, int):
        each, count = prepared.budgets.values(), architectures
        sampled = [drawn(prepared.space, budget, count, recipe.seed, learned) for budget in each]
        architectures = list(dict.fromkeys(architecture for some in sampled for architecture in some))
    for number, architecture in enumerate(architectures, 1):
        require_member(prepared.space, architecture, f"architecture {number} of {len(architectures)}")
    original, search = trained(prepared, run or learned), recipe.search
    prepared = from_run(prepared, original, run or learned)
    held_out = scored_on(prepared.data, search.images, recipe.seed)
    reached = evaluate(original, held_out, prepared.objective, device=prepared.device)
    remarks = few_images(prepared.data, search.images, search.calibration_images, recipe.seed)
    remarks += filter(None, [chance(held_out, prepared.objective, reached[prepared.objective.name])])
    with cautioned(remarks.append):
        found = score(
            weighted(prepared, original),
            architectures,
            prepared.data,
            objective=prepared.objective,
            calibration_images=search.calibration_images,
            images=search.images,
            merge=search.merge,
            raw=raw,
            seed=recipe.seed,
            device=prepared.device,
        )
    best = ranked(found, prepared.objective)
    rows = [candidate_row(prepared, each, ()) for each in best]  # nothing is chosen here
    remarks += filter(None, [lost_note(rows)])
    return {
        "metric": prepared.objective.name,
        "weights": "original",
        "merged": search.merge,
        "original": reached,
        "remarks": remarks,
        "scores": rows,
    }


def drawn(space: SearchSpace, budget: Budget, count: int, seed: int, learned: Path | None = None) -> list[Architecture]:
    """Up to `count` distinct architectures in the budget's band, fewer where it holds no more: by uniform rates, or
    from the distribution that the run in the folder `learned` has learned. More of them begin with the same ones."""
    table = None if learned is None else _distribution(space, learned)
    found = sample_many(space, torch.Generator().manual_seed(seed), max(256, 8 * count), budget, table)
    return list(dict.fromkeys(space.architecture(row) for row in found.tolist()))[:count]


def _distribution(space: SearchSpace, run: Path) -> Tensor:
    """Probabilities [choices, widest] as `distribution.json` of a run folder has them."""
    try:
        known = json.loads((run / "distribution.json").read_text())
    except (OSError, ValueError) as problem:
        raise BadRecipe(
            f"--from needs the folder of a finished differentiable search, {run} keeps no distribution.json: {problem}"
        ) from problem
    try:
        return table_of(space, known)
    except ValueError as problem:
        raise BadRecipe(f"the run in {run} must have searched the same space: {problem}") from problem


def trained(prepared: Prepared, run: Path | None) -> nn.Module:
    """The original with its weights, the recipe's or those that a run gave it."""
    section = prepared.recipe.network
    if section.weights is not None:
        return prepared.original
    if run is None or not (run / "original").is_dir():
        raise BadRecipe("scores need a trained original: give network.weights, or the --out of a run that trained it")
    return load(lambda: build(section.name, section.kwargs), run / "original")


def evaluate_target(target: str, split: str, recipe_of: Callable[[str], Recipe]) -> dict[str, Any]:
    """Metric, loss, number of images and of parameters on a split; `target` and `recipe_of` as for `network_at`."""
    network, recipe = network_at(target, recipe_of)
    judge, data = objective_of(recipe.objective), data_of(recipe.data).split(split)
    check_runs(network, next(data.take(2).batches(2))[0])
    require_judged(network, data, judge)
    found = evaluate(network, data, judge, device=device_of(recipe.machine))
    counted = {"images": len(data), "params": sum(parameter.numel() for parameter in network.parameters())}
    return {"network": target, "split": split, **{k: rounded(v) for k, v in found.items()}, **counted}


def export_target(
    target: str, out: Path | None, recipe_of: Callable[[str], Recipe], format: str, images: int, **options: Any
) -> dict[str, Any]:
    """Export `target` to the file `out` and check it on `images` of its test split; what `tas.export` reports.

    By default the file is `student.onnx` or `student.pt2` in the student's folder, whose card then lists it. `options`
    are those of `tas.export`.
    """
    if format not in SUFFIXES:
        raise BadRecipe(f"an export format is {' or '.join(SUFFIXES)}, got {format!r}")
    folder = Path(target)
    if out is None and not folder.is_dir():
        raise BadRecipe(
            f"{target} is no student folder, where the file would go: check the path, or name the file with --out"
        )
    path = out or folder / f"student{SUFFIXES[format]}"
    network, recipe = network_at(target, recipe_of)
    inputs, _ = next(judged_on(data_of(recipe.data)).take(images).batches(images))
    found = asdict(export(network, path, format, inputs=inputs, **options))  # type: ignore[arg-type]
    found = {"file": path.name, **found, "path": str(path)}
    if folder.is_dir() and path.parent.resolve() == folder.resolve():
        others = [row for row in facts(folder).get("exports", ()) if row["file"] != path.name]
        note(folder, exports=[*others, {name: value for name, value in found.items() if name != "path"}])
    return found


def network_at(target: str, recipe_of: Callable[[str], Recipe]) -> tuple[nn.Module, Recipe]:
    """A network with its weights, and the recipe that says what data it is judged on.

    target: an import path, a recipe, or a folder that `tas.save` wrote; inside a run folder, the recipe is the run's.
    `recipe_of` reads a recipe's path or completes an import path.
    """
    folder = Path(target)
    if folder.is_dir():
        network, section = saved(folder)
        near = [path / "recipe.yaml" for path in (folder.parent, folder.parent.parent)]
        return network, recipe_of(next((str(path) for path in near if path.is_file()), section.name))
    recipe = recipe_of(target)
    if recipe.network.weights is None:
        raise BadRecipe(f"{target} names no weights: give --weights, or a folder such as RUN/original")
    return original_of(recipe.network), recipe
