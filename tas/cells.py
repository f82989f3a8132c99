"""The cells of a comparison: an architecture that a search finds, a student that is trained, each a JSON file.

A file is named by a digest of all that decides its content. What is there is not computed again; what was interrupted
goes on from its checkpoint. Students that are the same (a search may find the uniform widths) are trained once.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from torch import nn

from tas.comparison import taught
from tas.files import write_json
from tas.initialization import Weights
from tas.methods import search
from tas.objectives import Objective, top5
from tas.preparation import costs
from tas.recipe import Distillation, Recipe
from tas.space import Architecture, Budget
from tas.stages import Run, judged_on
from tas.tracing import Traced
from tas.training import evaluate

_FOR_TOP5 = 6  # classes: of five, all are among the five largest


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
    """What all cells share."""

    current: Run
    budgets: Mapping[str, Budget]
    teacher: nn.Module
    source: Any

    @property
    def recipe(self) -> Recipe:
        return self.current.recipe

    @property
    def path(self) -> Path:
        return self.current.folder.path / "compare"


def searched(work: Work, name: str, settings: Any, label: str, seed: int) -> Architecture:
    current, budget = work.current, work.budgets[label]
    options = asdict(settings)
    method = options.pop("method")
    identity = digest({"settings": asdict(settings), "budget": asdict(budget), "seed": seed})
    checkpoint = work.path / "checkpoints" / f"{identity}.pt"
    if options.get("storage") is not None:
        options["study"] += f"-{identity}"  # every cell has a study of its own

    def work_() -> dict[str, Any]:
        started, resumed = time.perf_counter(), checkpoint.exists()
        source = work.source if isinstance(work.source, Traced) else copy.deepcopy(work.source)
        with current.display.bar(f"search {name} at {label}, seed {seed}") as bar:
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
                **options,
            )
        seconds = None if resumed else time.perf_counter() - started
        return {"architecture": dict(found.architecture), "candidates": len(found.candidates), "seconds": seconds}

    known = kept(work.path / "searches" / f"{name.replace(' ', '-')}-seed{seed}-{identity}.json", work_)
    _forget(checkpoint)
    return Architecture.of(known["architecture"])


def trained(work: Work, student: Student, place: str) -> dict[str, Any]:
    """What a student reaches, and the facts in which rows must not differ."""
    current = work.current
    prepared, how = current.prepared, student.how
    decides = {"architecture": dict(student.architecture), "how": asdict(how), "weights": student.weights}
    identity = digest({**decides, "seed": student.seed})
    checkpoint = work.path / "checkpoints" / f"{identity}.pt"

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
        reached = {**current.judged(network), **top5_of(work, network)}
        return {**decides, "seed": student.seed, **reached, **costs(prepared.space, student.architecture)}

    known = kept(work.path / "students" / f"seed{student.seed}-{identity}.json", train)
    _forget(checkpoint)
    order = work.recipe.initialize.importance
    facts = {
        "epochs": how.epochs,
        "data": prepared.data.digest[:12],
        "lr": how.lr,
        "distillation": f"{how.loss}, alpha {how.alpha:g}, T {how.temperature:g}",
        "start": student.weights if student.weights == "scratch" else f"{student.weights}, {order}",
    }
    plain = {name: value for name, value in known.items() if name != "how"}
    return {"row": student.row, "budget": student.budget, **plain, "facts": facts}


def top5_of(work: Work, network: nn.Module) -> dict[str, float]:
    prepared = work.current.prepared
    if prepared.objective.name != "top1" or (prepared.data.classes or 0) < _FOR_TOP5:
        return {}
    objective = Objective(prepared.objective.loss, top5, "top5")
    found = evaluate(network, judged_on(prepared.data), objective, device=prepared.device)
    return {"top5": round(found["top5"], 4)}


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
