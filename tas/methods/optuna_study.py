"""An Optuna study over widths and depths: every trial is an architecture, its value the adaptive batch-norm score.

Optuna itself is imported when a study runs (`tas.methods.study`), so that naming this method costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from tas.errors import BadRecipe
from tas.methods.result import OnRow, SearchResult
from tas.objectives import Objective, default_objective
from tas.sampling import require_feasible
from tas.space import Budget
from tas.supernet import Supernet
from tas.tracing import Traced

Sampler = Literal["tpe", "nsga2", "gp", "random"]


@dataclass(frozen=True)
class Settings:
    """How to search.

    candidates: architectures scored, by all processes of the study together; each process that is busy when this
      number is reached finishes its own.
    sampler: who proposes: "tpe", "nsga2" (the one for several measures), "gp" (needs scipy; for some dozens of
      candidates, its fit grows with their third power), "random".
    measures: costs ("macs", "params") that are minimised beside the score; with them, `tas.methods.front` of the
      result's candidates is the trade-off. Without, the score alone is improved under the budget.
    startup: candidates drawn in the budget's band as "adaptive_bn" draws them, before the sampler proposes any.
    with_uniform: uniform widths at the budget are the first candidate.
    warm_start: architectures to be scored first, such as the result of a differentiable search and its candidates;
      those that do not meet the budget are projected onto it.
    storage: "journal:PATH" (a file that several processes may share), or a URL that SQLAlchemy takes: sqlite:///PATH
      (for one process), postgresql://... By default a journal beside the checkpoint, or memory where there is none.
    study: its name in the storage. A study of that name is gone on with, by any number of processes at a time.
    images, calibration_images: see `tas.score`. raw: score with inherited statistics too.
    """

    candidates: int = 100
    sampler: Sampler = "tpe"
    measures: tuple[Literal["macs", "params"], ...] = ()
    startup: int = 10
    with_uniform: bool = True
    warm_start: tuple[Mapping[str, int], ...] = ()
    storage: str | None = None
    study: str = "tas"
    images: int = 2000
    calibration_images: int = 2560
    raw: bool = False

    def __post_init__(self) -> None:
        for name, least in (("candidates", 1), ("startup", 0), ("images", 1), ("calibration_images", 1)):
            if getattr(self, name) < least:
                raise BadRecipe(f"search.{name} is at least {least}, got {getattr(self, name)}")
        if self.sampler not in ("tpe", "nsga2", "gp", "random"):
            raise BadRecipe(f"search.sampler is one of tpe, nsga2, gp, random, got {self.sampler!r}")
        if unknown := set(self.measures) - {"macs", "params"}:
            raise BadRecipe(f"search.measures are of macs and params, got {sorted(unknown)}")
        if self.storage is not None and not self.storage.startswith("journal:") and "://" not in self.storage:
            raise BadRecipe(f"search.storage is journal:PATH or a URL such as sqlite:///PATH, got {self.storage!r}")


def search(
    source: Traced | Supernet,
    data: Any,
    budget: Budget,
    settings: Settings | None = None,
    *,
    objective: Objective | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    on_row: OnRow | None = None,
) -> SearchResult:
    """The best architecture within the budget that a study of `settings.candidates` scores finds, and all its scores.

    A proposal that exceeds the budget is never built: the study learns of it by its constraints, and its projection
    onto the budget is the next trial. No architecture is scored twice, whichever process proposes it. With one process
    the same seed gives the same study, also where it was interrupted; a study that is complete already is only read.
    `on_row` is told of this process's scores, a row as in `adaptive_bn`.

    Raises `Infeasible`; BadRecipe for a storage that cannot be used, and for a study of another space, budget, data,
    weights or objective.
    """
    settings, objective = settings or Settings(), objective or default_objective()
    require_feasible(source.space, budget)
    storage = settings.storage
    if storage is None and checkpoint is not None:
        storage = f"journal:{checkpoint.with_suffix('.journal')}"

    from tas.methods.study import run
    from tas.methods.study_setup import Asked

    return run(Asked(source, data, budget, settings, objective, seed, device, storage, on_row))
