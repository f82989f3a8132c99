"""Neural architecture search that prunes: a trained network and a budget in, the best smaller network out."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tas import testing as testing
    from tas.cost import budget as budget
    from tas.cost import macs as macs
    from tas.cost import params as params
    from tas.distillation import distill as distill
    from tas.distillation.synthesis import synthesize as synthesize
    from tas.distribution import ArchitectureDistribution as ArchitectureDistribution
    from tas.exporting import export as export
    from tas.exporting import load as load
    from tas.exporting import save as save
    from tas.extraction import extract as extract
    from tas.importance import reorder as reorder
    from tas.latency import measure_latency as measure_latency
    from tas.latency import with_latency as with_latency
    from tas.methods import SearchResult as SearchResult
    from tas.methods import search as search
    from tas.objectives import Objective as Objective
    from tas.runner import run as run
    from tas.sampling import sample as sample
    from tas.sampling import sample_many as sample_many
    from tas.scoring import Score as Score
    from tas.scoring import score as score
    from tas.supernet import Supernet as Supernet
    from tas.tracing import Rules as Rules
    from tas.tracing import Traced as Traced
    from tas.tracing import trace as trace

from tas.errors import BadData, BadNetwork, BadRecipe, Infeasible, TasError, Untraceable
from tas.space import Architecture, Budget, Choice, Kept, SearchSpace

__version__ = "0.1.0"

# Where each public name lives. It is imported when it is first used, so that `import tas` stays light.
_HOMES = {
    "ArchitectureDistribution": "distribution",
    "Objective": "objectives",
    "Rules": "tracing",
    "Score": "scoring",
    "SearchResult": "methods",
    "Supernet": "supernet",
    "Traced": "tracing",
    "budget": "cost",
    "distill": "distillation",
    "export": "exporting",
    "extract": "extraction",
    "load": "exporting",
    "macs": "cost",
    "measure_latency": "latency",
    "params": "cost",
    "reorder": "importance",
    "run": "runner",
    "sample": "sampling",
    "sample_many": "sampling",
    "save": "exporting",
    "score": "scoring",
    "search": "methods",
    "synthesize": "distillation.synthesis",
    "trace": "tracing",
    "with_latency": "latency",
}

__all__ = [
    "Architecture",
    "ArchitectureDistribution",
    "BadData",
    "BadNetwork",
    "BadRecipe",
    "Budget",
    "Choice",
    "Infeasible",
    "Kept",
    "Objective",
    "Rules",
    "Score",
    "SearchResult",
    "SearchSpace",
    "Supernet",
    "TasError",
    "Traced",
    "Untraceable",
    "budget",
    "distill",
    "export",
    "extract",
    "load",
    "macs",
    "measure_latency",
    "params",
    "reorder",
    "run",
    "sample",
    "sample_many",
    "save",
    "score",
    "search",
    "synthesize",
    "testing",
    "trace",
    "with_latency",
]


def __getattr__(name: str) -> Any:
    if name == "testing":
        return importlib.import_module("tas.testing")
    if name not in _HOMES:
        raise AttributeError(f"module 'tas' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"tas.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
