"""The cells of a comparison: an architecture that a search finds, a student that is trained, each a JSON file.

A file is named by a digest of all that decides its content. What is there is not computed again; what was interrupted
goes on from its checkpoint. Students that are the same (a search may find the uniform widths) are trained once.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from tas.cautions import cautioned
from tas.choosing import Finals, finalists, finalists_of
from tas.data.tensors import digest as data_digest
from tas.describing import costs, costs_of_original
from tas.files import write_json
from tas.initialization import Weights
from tas.methods import search
from tas.methods.standing import distinct
from tas.predictions import predictions, write_predictions
from tas.recipe import Distillation, Recipe
from tas.space import Architecture, Budget
from tas.stages import Run, judged_on
from tas.teaching import started, taught
from tas.tracing import Traced


@dataclass(frozen=True)
class Student:
    """A cell: one student to be trained, and the row of the table that it belongs to."""

    row: str
    budget: str
    seed: int
    architecture: Architecture
    how: Distillation
    weights: Weights


@dataclass(frozen=True, eq=False)
class Work:
    """What the cells of one original share: `source` has its weights, `seeds` start from it."""

    current: Run
    budgets: Mapping[str, Budget]
    teacher: nn.Module
    source: Any
    seeds: tuple[int, ...]

    @property
    def recipe(self) -> Recipe:
        return self.current.recipe

    @property
    def path(self) -> Path:
        return self.current.folder.path / "compare"

    @cached_property
    def facts(self) -> dict[str, str]:
        """Digests of the data and of the weights of the original, and of other teachers."""
        weights = data_digest(self.teacher.state_dict().values())
        others = [teacher for teacher in self.current.prepared.teachers if teacher is not None]
        known = {"data": self.current.prepared.data.digest[:12], "original": weights[:12]}
        if others:
            known["teachers"] = data_digest(t for each in others for t in each.state_dict().values())[:12]
        return known

    @property
    def name(self) -> str:
        """Of the original's own cell."""
        return f"originals/{digest(self.facts)}"


def searched(work: Work, name: str, settings: Any, label: str, seed: int) -> Architecture:
    """What a search finds at a budget, and its finalists leave of it; with the `name` of its row on the display."""
    current, budget = work.current, work.budgets[label]
    options, number = asdict(settings), finalists_of(work.recipe, work.source)
    method = options.pop("method")
    decides = {"settings": asdict(settings), "finalists": number, "budget": asdict(budget), "seed": seed}
    identity = digest({**decides, **work.facts})
    checkpoint = work.path / "checkpoints" / f"{identity}.pt"
    if options.get("storage") is not None:
        options["study"] += f"-{identity}"  # every cell has a study of its own

    def find() -> dict[str, Any]:
        source = work.source if isinstance(work.source, Traced) else copy.deepcopy(work.source)
        with cautioned(current.warn), current.display.bar(f"search {name} at {label}, seed {seed}") as bar:
            found = search(
                source,
                current.prepared.data,
                budget,
                method,
                objective=current.prepared.objective,
                seed=seed,
                device=current.prepared.device,
                checkpoint=checkpoint,
                on_row=lambda row: bar(row["step"], row["steps"], ""),
                on_score=lambda done, count: bar(done, count, "scoring candidates"),
                **options,
            )
        scored = [each for each in found.candidates if each.valid]
        best = [each.architecture for each in distinct(scored, current.prepared.objective)] if scored else []
        ahead = finalists(found.architecture, best, number)
        return {"architecture": dict(found.architecture), "finalists": [*map(dict, ahead)]}

    known = kept(work.path / "searches" / f"{settings.method}-seed{seed}-{identity}.json", find)
    _forget(checkpoint)
    if not known["finalists"] or started(current, work.source, work.teacher) == "scratch":
        return Architecture.of(known["architecture"])
    finals = Finals.of(current, work.source, work.teacher, seed)
    return finals.best([_final(work, finals, Architecture.of(each)) for each in known["finalists"]])


def _final(work: Work, finals: Finals, architecture: Architecture) -> dict[str, Any]:
    """What a finalist of a search reaches in its short training, whichever search it is of."""
    current, recipe, seed = work.current, work.recipe, finals.seed
    decides = {"architecture": dict(architecture), "how": asdict(recipe.distill), "choose": recipe.choose.model_dump()}
    start = _start(recipe, started(current, work.source, work.teacher))
    identity = digest({**decides, "start": start, **work.facts, "seed": seed})
    checkpoint = work.path / "checkpoints" / f"{identity}.pt"

    stage = f"finalist, seed {seed}"
    path = work.path / f"finalists/seed{seed}-{identity}.json"
    known = kept(path, lambda: finals.reached(stage, architecture, checkpoint))
    _forget(checkpoint)
    return known


def trained(work: Work, student: Student, place: str) -> dict[str, Any]:
    """What a student reaches, and the facts in which rows must not differ."""
    current = work.current
    prepared, how = current.prepared, student.how
    decides = {"architecture": dict(student.architecture), "how": asdict(how), "weights": student.weights}
    facts = {
        "epochs": how.epochs,
        "lr": how.lr,
        "distillation": f"{how.loss}, alpha {how.alpha:g}, T {how.temperature:g}",
        "start": _start(work.recipe, student.weights),
        **work.facts,
    }
    identity = digest({**decides, "facts": facts, "seed": student.seed})
    checkpoint = work.path / "checkpoints" / f"{identity}.pt"
    name = f"students/seed{student.seed}-{identity}"

    def train() -> dict[str, Any]:
        network = taught(
            current,
            place,
            student.architecture,
            work.source,
            work.teacher,
            student.seed,
            how=how,
            weights=student.weights,
            checkpoint=checkpoint,
        )
        reached = {**current.judged(network), **classified(work, network, name)}
        cost = costs(prepared.space, student.architecture)
        return {**decides, "seed": student.seed, **reached, **cost, "facts": facts}

    known = kept(work.path / f"{name}.json", train)
    _forget(checkpoint)
    return {"row": student.row, "budget": student.budget, **{key: known[key] for key in known if key != "how"}}


def _start(recipe: Recipe, weights: Weights) -> str:
    """What decides the first weights, in words that differ where they do."""
    asked = recipe.initialize
    parts: list[str] = [weights, *([asked.importance] if weights != "scratch" else [])]
    parts += [f"checkpoint {asked.checkpoint}"] if weights == "rewind" else []
    return ", ".join([*parts, *(["recalibrated"] if asked.recalibrate else [])])


def classified(work: Work, network: nn.Module, name: str) -> dict[str, Any]:
    """Of a classifier: what it predicts, kept beside its cell in the file that is named here, and its top-5."""
    prepared = work.current.prepared
    if not prepared.classifies:
        return {}
    found = predictions(network, judged_on(prepared.data), prepared.objective, prepared.device)
    write_predictions(work.path / f"{name}.npz", found)
    return {"predictions": f"{name}.npz", **({} if found.top5 is None else {"top5": found.top5})}


def original_cell(work: Work) -> dict[str, Any]:
    """What an original reaches and costs."""
    current = work.current

    def judge() -> dict[str, Any]:
        reached = {**current.judged(work.teacher), **classified(work, work.teacher, work.name)}
        return {**reached, **costs_of_original(current.prepared.space), "facts": work.facts}

    return kept(work.path / f"{work.name}.json", judge)


def kept(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The value in a JSON file; made and written, whole or not at all, where there is none."""
    if not path.is_file():
        write_json(path, make())
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _forget(checkpoint: Path) -> None:
    """Only once the cell is written: an interruption before would compute it again."""
    for path in checkpoint.parent.glob(f"{checkpoint.stem}*"):
        path.unlink()
    with suppress(OSError):  # the journal or the checkpoint of another cell is still in it, or nothing ever was
        checkpoint.parent.rmdir()


def digest(value: Mapping[str, Any]) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
