"""An Optuna study over widths and depths: every trial is an architecture, its value the adaptive batch-norm score.

Optuna itself is imported when a study runs (`tas.methods.study`), so that naming this method costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from tas.errors import BadRecipe, least, require_rules, switches
from tas.methods.asked import Asked
from tas.methods.result import SearchResult, architectures_in
from tas.sampling import require_feasible
from tas.scoring import CALIBRATION_IMAGES, SCORE_IMAGES

Sampler = Literal["tpe", "nsga2", "gp", "random"]
Measure = Literal["macs", "params", "latency"]


@dataclass(frozen=True)
class Settings:
    """How to search.

    candidates: architectures scored, by all processes of the study together; each process that is busy when this
      number is reached finishes its own.
    sampler: who proposes: "tpe", "nsga2" (the one for several measures), "gp" (needs scipy; for some dozens of
      candidates, its fit grows with their third power), "random".
    measures: costs ("macs", "params", "latency") that are minimised beside the score; with them, `tas.methods.front` of
      the result's candidates is the trade-off, and rows of the course name every candidate's. Without, the score alone
      is improved under the budget. "latency" is measured: the median of `latency_repeats` forwards at batch
      `latency_batch`, as a part of that of the largest architecture, which runs in turns with the candidate.
    startup: candidates drawn in the budget's band as "adaptive_bn" draws them, before the sampler proposes any.
    with_uniform: uniform widths at the budget are the first candidate.
    warm_start: architectures to be scored first, such as the result of a differentiable search and its candidates, or
      JSON files that hold some: RUN/architecture.json, RUN/candidates.jsonl. Those that do not meet the budget are
      projected onto it.
    storage: "journal:PATH" (a file that several processes of one machine may share), or a URL that SQLAlchemy takes:
      sqlite:///PATH (for one process), postgresql://USER@HOST/DATABASE (for several machines, extra `postgres`; its
      password belongs into ~/.pgpass or PGPASSWORD). By default a journal beside the checkpoint, or memory where there
      is none.
    study: its name in the storage. A study of that name is gone on with, by any number of processes at a time.
    stale_after: seconds without a sign of life after which a process of the study is taken for dead, and its candidate
      is proposed again.
    images, calibration_images, merge: see `tas.score`. raw: score with inherited statistics too.
    """

    candidates: int = 100
    sampler: Sampler = "tpe"
    measures: tuple[Measure, ...] = ()
    latency_batch: int = 1
    latency_repeats: int = 20
    startup: int = 10
    with_uniform: bool = True
    warm_start: tuple[Mapping[str, int] | str, ...] = ()
    storage: str | None = None
    study: str = "tas"
    stale_after: float = 60.0
    images: int = SCORE_IMAGES
    calibration_images: int = CALIBRATION_IMAGES
    merge: bool = True
    raw: bool = False

    def __post_init__(self) -> None:
        rules = least(self, candidates=1, images=1, calibration_images=1, latency_batch=1, latency_repeats=2)
        require_rules(self, {**rules, **switches(self, "merge", "raw")}, "search.")
        check_study(self)
        for measure in self.measures:
            known("search.measures", measure, get_args(Measure))

    @property
    def asked(self) -> int:
        """How many trials the study is to have."""
        return self.candidates


def known(name: str, value: str, values: tuple[str, ...]) -> None:
    """BadRecipe where `value` is none of `values`, with the nearest."""
    if value not in values:
        near = get_close_matches(value, values, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise BadRecipe(f"{name} is one of {', '.join(values)}, got {value!r}{hint}")


def check_study(settings: Any) -> None:
    """What every study needs: `sampler`, `startup`, `storage`, `stale_after`."""
    rules = {**least(settings, startup=0), "stale_after is above 0 seconds": settings.stale_after > 0}
    require_rules(settings, rules, "search.")
    known("search.sampler", settings.sampler, get_args(Sampler))
    if settings.sampler == "gp" and find_spec("scipy") is None:
        raise BadRecipe("search.sampler gp needs SciPy, which is not installed: pip install scipy, or take tpe")
    storage = settings.storage
    if storage is not None and not storage.startswith("journal:") and "://" not in storage:
        raise BadRecipe(f"search.storage is journal:PATH or a URL such as sqlite:///PATH, got {storage!r}")


def stored(asked: Asked[Any]) -> str | None:
    """The storage of the settings, by default a journal beside the checkpoint; None is memory."""
    named: str | None = asked.settings.storage
    if named is None and asked.checkpoint is not None:
        return f"journal:{asked.checkpoint.with_suffix('.journal')}"
    return named


def warm_starts(settings: Settings) -> list[Mapping[str, int]]:
    """The architectures of `settings.warm_start`, those in files too."""
    found: list[Mapping[str, int]] = []
    for given in settings.warm_start:
        found += architectures_in(Path(given)) if isinstance(given, str) else [given]
    return found


def search(asked: Asked[Settings]) -> SearchResult:
    """The best architecture within the budget that a study of `settings.candidates` scores finds, and all its scores.

    A proposal that exceeds the budget is never built: the study learns of it by its constraints, and its projection
    onto the budget is the next trial. No architecture is scored twice, whichever process proposes it. With one process
    the same seed gives the same study, also where it was interrupted; a study that is complete already is only read.
    `on_row` is told of this process's scores, a row as in `adaptive_bn`.

    Raises `Infeasible`; BadRecipe for a storage that cannot be used, and for a study of another space, budget, data,
    weights or objective.
    """
    require_feasible(asked.space, asked.budget)

    from tas.methods.study import run

    return run(asked)
