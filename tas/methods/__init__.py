"""Search methods: each allocates the choices of a space under a budget and returns a `SearchResult` with its course."""

from __future__ import annotations

from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import torch

from tas.errors import BadRecipe
from tas.methods import adaptive_bn, baselines, differentiable
from tas.methods.result import OnRow, Row, SearchResult
from tas.objectives import Objective
from tas.space import Budget
from tas.supernet import Supernet
from tas.tracing import Traced

__all__ = ["METHODS", "OnRow", "Row", "SearchResult", "search"]

_S = TypeVar("_S", differentiable.Settings, adaptive_bn.Settings)

METHODS = ("differentiable", "adaptive_bn", "uniform", "random")


def search(
    source: Traced | Supernet,
    data: Any,
    budget: Budget,
    method: str = "differentiable",
    *,
    objective: Objective | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    on_row: OnRow | None = None,
    **options: Any,
) -> SearchResult:
    """The best architecture within the budget, by one of `METHODS`.

    data: a named data set, a Dataset, or an iterable of batches; "uniform" and "random" do not look at it.
    options: the fields of `Settings` of the method (`tas.methods.differentiable`, `tas.methods.adaptive_bn`).
    checkpoint: file by which an interrupted "differentiable" search is resumed.

    Raises `Infeasible`, with the smallest reachable cost, when no architecture meets the budget; BadRecipe for an
    unknown method or option.
    """
    common: dict[str, Any] = {"objective": objective, "seed": seed, "device": device, "on_row": on_row}
    match method:
        case "differentiable":
            trained = _settings(differentiable.Settings, options)
            return differentiable.search(source, data, budget, trained, checkpoint=checkpoint, **common)
        case "adaptive_bn":
            return adaptive_bn.search(source, data, budget, _settings(adaptive_bn.Settings, options), **common)
        case "uniform":
            _refuse(options, [])
            return SearchResult(baselines.uniform(source.space, budget))
        case "random":
            _refuse(options, [])
            return SearchResult(baselines.random(source.space, budget, torch.Generator().manual_seed(seed))[0])
    raise BadRecipe(f"method is one of {METHODS}, got {method!r}")


def _settings(kind: type[_S], options: dict[str, Any]) -> _S:
    _refuse(options, [item.name for item in fields(kind)])
    return kind(**options)


def _refuse(options: dict[str, Any], known: list[str]) -> None:
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {known}"
            raise BadRecipe(f"unknown search option {name!r}; {hint}")
