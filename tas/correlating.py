"""How far quick scores agree with what the same networks reach after a short training, candidate by candidate.

Scores and trainings share no image: candidates train on the *weights* half of the training images and are judged on the
*architecture* half, as far as possible on images of it that the scores have not used. Test images are not looked at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tas.calibration import has_batch_norm
from tas.cautions import cautioned
from tas.correlation import Correlation, by_group, correlations
from tas.data import Split
from tas.describing import costs
from tas.errors import BadRecipe
from tas.files import is_number, read_lines, write_json, write_lines, write_text
from tas.folder import check_owner, reuse
from tas.judging import drawn
from tas.preparation import prepare
from tas.recipe import Recipe
from tas.reporting import pictures, write_report
from tas.reporting.progress import Display
from tas.scoring import Judge, judge, judged, search_splits, unseen
from tas.searching import warn_of_scores
from tas.space import Architecture, SearchSpace
from tas.stages import Run, judged_on, opened, original, weighted
from tas.teaching import briefly

_UNSEEN = 1000  # images: with fewer, the standard error of what is reached (1.6 points at 50 %) hides the ranking
LINES, RESULT, PICTURE = "correlation.jsonl", "correlation.json", "correlation.svg"


def correlate(
    recipe: Recipe,
    folder: str | Path,
    count: int = 24,
    epochs: int = 1,
    learned: Path | None = None,
    display: Display | None = None,
) -> dict[str, Any]:
    """Score `count` architectures within the budget, train each for `epochs` by the recipe's distillation, correlate.

    folder: of a run of this recipe, or a new one; the original is trained there where it came without weights. Every
    finished candidate is a line of `correlation.jsonl`, which is gone on with. learned: the folder of a run whose
    learned distribution they are drawn from; by default rates are uniform. Returns what `correlation.json` holds.
    """
    if recipe.network.supernet is not None:
        raise BadRecipe("quick scores need inherited weights; students of network.supernet start from fresh ones")
    if recipe.synthesize is not None:
        raise BadRecipe("a correlation judges on training images, synthesized ones cannot tell: set synthesize=null")
    if count < 3 or epochs < 1:
        raise BadRecipe(f"a correlation needs 3 architectures and 1 epoch at least, got {count} and {epochs}")
    check_owner(folder, recipe)
    prepared = prepare(recipe)
    judged_on(prepared.data)
    if len(prepared.budgets) > 1:  # costs would explain what scores should
        raise BadRecipe(
            f"a correlation is made at one budget, the recipe has {list(prepared.budgets)}: --set budget=50% and a "
            f"folder for it alone, --out. {reuse(Path(folder))}".rstrip()
        )
    chosen = drawn(prepared.space, prepared.budget, count, recipe.seed, learned)
    if len(chosen) < 3:
        raise BadRecipe(
            f"a correlation needs 3 architectures, within the budget were found {len(chosen)}: raise the budget or "
            "budget.slack, or let more sizes be searched"
        )
    current = opened(prepared, folder, display)
    record = current.folder
    try:
        rows = _rows(_Setting.of(current, epochs), chosen)
    finally:
        current.events.close()
    found = _found(current, rows, epochs, count)
    write_json(record.path / RESULT, found)
    write_text(record.path / PICTURE, pictures.standalone(pictures.correlation(found["candidates"], found["metric"])))
    write_report(record.path)
    return found


@dataclass(frozen=True)
class _Setting:
    """What all candidates share. overlap: `held_out`, which trained networks are judged on, has the images of the
    scores in it."""

    current: Run
    teacher: nn.Module
    judge: Judge
    epochs: int
    half: Split
    held_out: Split
    overlap: bool

    @classmethod
    def of(cls, current: Run, epochs: int) -> _Setting:
        prepared, recipe = current.prepared, current.recipe
        teacher, _ = original(current)
        warn_of_scores(current, teacher)
        source = weighted(prepared, teacher)
        images = recipe.search.images
        with cautioned(current.warn):
            judge_ = judge(
                source,
                prepared.data,
                objective=prepared.objective,
                calibration_images=recipe.search.calibration_images,
                merge=recipe.search.merge,
                images=images,
                seed=recipe.seed,
                device=prepared.device,
            )
        weights, half = search_splits(prepared.data, recipe.seed)
        rest = unseen(prepared.data, images, recipe.seed)
        apart = rest is not None and len(rest) >= _UNSEEN
        return cls(current, teacher, judge_, epochs, weights, rest if rest is not None and apart else half, not apart)


def _rows(setting: _Setting, chosen: Sequence[Architecture]) -> list[dict[str, Any]]:
    """A row a candidate; those that the file has from before are not trained again."""
    path, epochs = setting.current.folder.path / LINES, setting.epochs
    lines = read_lines(path) if path.is_file() else []
    merged = setting.judge.merging is not None
    same = (row for row in lines if row["epochs"] == epochs and row.get("merged", False) == merged)
    known = {Architecture.of(row["architecture"]): row for row in same}
    for number, architecture in enumerate(chosen, 1):
        if architecture in known:
            continue
        known[architecture] = _row(setting, architecture, f"correlate {number} of {len(chosen)}")
        lines.append(known[architecture])
        write_lines(path, lines)
    return [known[architecture] for architecture in chosen]


def _row(setting: _Setting, architecture: Architecture, stage: str) -> dict[str, Any]:
    current, started = setting.current, time.perf_counter()
    prepared = current.prepared
    found, _ = judged(setting.judge, architecture, raw=True)
    seed = current.recipe.seed  # one for all: the same batches in the same order
    source, teacher = setting.judge.source, setting.teacher
    reached = briefly(
        current, stage, architecture, source, teacher, seed, setting.epochs, setting.half, setting.held_out
    )
    return {
        **asdict(found),
        "architecture": dict(architecture),
        **costs(prepared.space, architecture),
        "depth": depth(prepared.space, architecture),
        "epochs": setting.epochs,
        "merged": setting.judge.merging is not None,
        "reached": reached[prepared.objective.name],
        "reached_loss": reached["loss"],
        "reached_images": len(setting.held_out),
        "overlap": setting.overlap,
        "seconds": time.perf_counter() - started,
    }


def depth(space: SearchSpace, architecture: Mapping[str, int]) -> int:
    """How many of the blocks that can be left out are kept, over all depth choices."""
    return sum(architecture[choice.name] for choice in space.choices if choice.kind == "depth")


def _found(current: Run, rows: list[dict[str, Any]], epochs: int, asked: int) -> dict[str, Any]:
    """Rows best first, and how far the scores agree with what is reached."""
    prepared, recipe = current.prepared, current.recipe
    valid = [row for row in rows if all(is_number(row[key]) for key in ("recalibrated", "raw", "loss", "reached"))]
    if len(valid) < 3:
        raise BadRecipe(f"only {len(valid)} of {len(rows)} candidates have a score and a result that are numbers")
    kinds = ("recalibrated", "raw") if has_batch_norm(prepared.original) else ("recalibrated",)
    sign = -1 if prepared.objective.higher_is_better else 1
    return {
        "metric": prepared.objective.name,
        "weights": "original",
        "merged": rows[0]["merged"],
        "importance": recipe.initialize.importance,
        "epochs": epochs,
        "images": rows[0]["images"],
        "reached_images": rows[0]["reached_images"],
        "overlap": rows[0]["overlap"],
        "asked": asked,
        "left_out": len(rows) - len(valid),
        "correlations": {name: _agreement(valid, name, recipe.seed) for name in kinds},
        "candidates": sorted(valid, key=lambda row: sign * row["reached"]),
    }


def _agreement(rows: Sequence[Mapping[str, Any]], name: str, seed: int) -> dict[str, Any]:
    """By "all", and, where candidates differ in depth, "within" and "across" depths: plain numbers, None for NaN."""
    scores, reached, depths = ([row[key] for row in rows] for key in (name, "reached", "depth"))
    found = {"all": correlations(scores, reached, torch.Generator().manual_seed(seed))}
    if len(set(depths)) > 1:
        found |= by_group(scores, reached, depths, torch.Generator().manual_seed(seed))
    return {part: {key: _plain(value) for key, value in each.items()} for part, each in found.items()}


def _plain(value: Correlation) -> dict[str, Any]:
    return {key: None if math.isnan(number) else number for key, number in asdict(value).items()}
