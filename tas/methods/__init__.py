"""Search methods: each allocates the choices of a space under a budget and returns a `SearchResult` with its course."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, overload

import torch

from tas.data import as_data
from tas.errors import BadRecipe, Caution
from tas.methods import adaptive_bn, baselines, differentiable, netadapt, optuna_study, tuned
from tas.methods.asked import Asked
from tas.methods.bilevel import astray
from tas.methods.budgets import at_budgets, tilted_to
from tas.methods.evolving import evolved
from tas.methods.result import OnRow, OnScore, Row, SearchResult
from tas.methods.standing import best_within, front
from tas.objectives import Objective, by_classes, default_objective
from tas.sampling import require_feasible
from tas.space import Budget, SearchSpace
from tas.supernet import Supernet
from tas.tracing import Traced

__all__ = ["METHODS", "OnRow", "OnScore", "Row", "SearchResult", "at_budgets", "front", "search"]

_S = TypeVar(
    "_S",
    differentiable.Settings,
    adaptive_bn.Settings,
    optuna_study.Settings,
    tuned.Settings,
    netadapt.Settings,
)

METHODS = ("differentiable", "adaptive_bn", "optuna", "tuned", "netadapt", "uniform", "random")


@overload
def search(
    source: Traced | Supernet, data: Any, budget: Budget, method: str = "differentiable", **options: Any
) -> SearchResult: ...


@overload
def search(
    source: Traced | Supernet, data: Any, budget: Sequence[Budget], method: str = "differentiable", **options: Any
) -> tuple[SearchResult, ...]: ...


def search(
    source: Traced | Supernet,
    data: Any,
    budget: Budget | Sequence[Budget],
    method: str = "differentiable",
    *,
    objective: Objective | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    on_row: OnRow | None = None,
    on_score: OnScore | None = None,
    **options: Any,
) -> SearchResult | tuple[SearchResult, ...]:
    """The best architecture within the budget, by one of `METHODS`; for a sequence of budgets one result each.

    data: a named data set, a Dataset, or an iterable of batches; "uniform" and "random" do not look at it.
    options: the fields of `Settings` of the method (`tas.methods.differentiable`, `.adaptive_bn`, `.optuna_study`,
      `.tuned`, `.netadapt`).
    checkpoint: file by which an interrupted search is resumed (the studies of "optuna" and "tuned": a journal beside
      it); "adaptive_bn" starts again.

    on_row: is told every row of the course as it comes. on_score: how many candidates are scored of how many, where
      that comes after the course ("differentiable", "tuned"), and may take as long.

    Several budgets share their work: "differentiable" searches at the first one and tilts what it learned to the
    others (`at_budgets`), "adaptive_bn" decodes its images once, and in both whatever was scored for one budget
    competes for all that it meets. "tuned" tilts what its best trial learned. "optuna" runs a study a budget, each
    starting from the best of the one before, "netadapt" a search a budget.

    Raises `Infeasible`, with the smallest reachable cost, when no architecture meets a budget; BadRecipe for an
    unknown method or option.
    """
    budgets = (budget,) if isinstance(budget, Budget) else tuple(budget) if isinstance(budget, Sequence) else ()
    _require_searchable(source.space, budget, budgets)

    def asked(settings: type[_S]) -> Asked[_S]:
        judged_by, own = objective or default_objective(), _settings(settings, options)
        return Asked(source, as_data(data), budgets, own, judged_by, seed, device, checkpoint, on_row, on_score)

    found: Sequence[SearchResult]
    match method:
        case "differentiable":
            mine = asked(differentiable.Settings)
            found = _tilted(differentiable.search, mine)
            _caution(mine, found)
        case "adaptive_bn":
            found = adaptive_bn.search(asked(adaptive_bn.Settings))
        case "optuna":
            found = _optuna(asked(optuna_study.Settings))
        case "tuned":
            found = _tilted(tuned.search, asked(tuned.Settings))
        case "netadapt":
            found = _adapted(asked(netadapt.Settings))
        case "uniform":
            _refuse(options, [])
            found = [SearchResult(baselines.uniform(source.space, each)) for each in budgets]
        case "random":
            _refuse(options, [])
            generator = torch.Generator().manual_seed(seed)
            found = [SearchResult(baselines.random(source.space, each, generator)[0]) for each in budgets]
        case _:
            raise BadRecipe(f"method is one of {METHODS}, got {method!r}")
    return found[0] if isinstance(budget, Budget) else tuple(found)


def _require_searchable(space: SearchSpace, asked: Any, budgets: Sequence[Budget]) -> None:
    if not isinstance(asked, Budget | Sequence) or not all(isinstance(each, Budget) for each in budgets):
        raise BadRecipe(f"a budget is what tas.budget(space, macs=...) gives, or a list of such; got {asked!r}")
    for budget in budgets:
        require_feasible(space, budget)
    if all(len(choice.candidates) == 1 for choice in space.choices):
        raise BadRecipe("a search needs a choice with at least two candidates, this space has none: see `tas space`")


def _tilted(first: Callable[[Asked[Any]], SearchResult], asked: Asked[Any]) -> list[SearchResult]:
    """One search at the first budget; the others are tilted from it and scored with the same weights. At every budget
    the candidates then evolve."""
    if not asked.budgets:
        return []
    found, settings = first(asked), asked.settings
    if not found.candidates and len(asked.budgets) == 1:  # a single one was not scored
        return [found]
    judge = differentiable.judge_of(asked, found.supernet)
    others = tilted_to(judge, found.probabilities, asked.budgets[1:], found.candidates, settings.candidates, asked.seed)
    results = [found, *others]
    if not found.candidates:
        return results
    scores = [*chain.from_iterable(result.candidates for result in results)]
    generator = torch.Generator().manual_seed(asked.seed)
    for budget in asked.budgets:
        note = asked.counting(settings.evolve)
        scores += evolved(judge, budget, scores, settings.evolve, generator, on_score=note)
    best = [best_within(asked.space, budget, [scores], asked.objective) for budget in asked.budgets]
    pairs = zip(results, best, strict=True)
    return [replace(result, architecture=its[0].architecture, candidates=tuple(its)) for result, its in pairs]


def _caution(asked: Asked[differentiable.Settings], found: Sequence[SearchResult]) -> None:
    """`Caution` where the supernet has diverged."""
    classes = asked.data.classes if by_classes(asked.objective.loss) else None
    course = found[0].course if found else ()
    if said := astray(course, classes, asked.settings.weight_lr):
        warnings.warn(said, Caution, stacklevel=3)


def _optuna(asked: Asked[optuna_study.Settings]) -> list[SearchResult]:
    """A study a budget, the later ones under names of their own."""
    found: list[SearchResult] = []
    for number, budget in enumerate(asked.budgets):
        mine = asked.settings
        if number:
            start = (found[-1].architecture, *mine.warm_start)
            mine = replace(mine, study=f"{mine.study}-{number}", warm_start=start)
        found.append(optuna_study.search(asked.at(budget, settings=mine)))
    return found


def _adapted(asked: Asked[netadapt.Settings]) -> list[SearchResult]:
    """A search a budget, each with a checkpoint of its own that stays until all are done."""
    first = asked.checkpoint
    files = [first if not n or first is None else first.with_suffix(f".{n}.pt") for n in range(len(asked.budgets))]
    pairs = zip(asked.budgets, files, strict=True)
    found = [netadapt.search(asked.at(budget, checkpoint=file)) for budget, file in pairs]
    for file in files[1:]:
        if file is not None:
            file.unlink(missing_ok=True)
    return found


def _settings(kind: type[_S], options: dict[str, Any]) -> _S:
    _refuse(options, [item.name for item in fields(kind)])
    return kind(**options)


def _refuse(options: dict[str, Any], known: list[str]) -> None:
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {known}"
            raise BadRecipe(f"unknown search option {name!r}; {hint}")
