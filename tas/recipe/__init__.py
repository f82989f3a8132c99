"""A run as one YAML file: strict (an unknown key names the nearest right one), frozen, read alone."""

from tas.recipe.inputs import examples, parse_inputs
from tas.recipe.reading import difference, dump, parse, read, template
from tas.recipe.searches import SEARCHES, Differentiable, NetAdapt, Tuned
from tas.recipe.sections import (
    Compare,
    DataSource,
    Distillation,
    Initialize,
    Latency,
    Limits,
    Machine,
    Network,
    ObjectiveNames,
    Recipe,
    Report,
    Synthesize,
    amount,
)

__all__ = [
    "SEARCHES",
    "Compare",
    "DataSource",
    "Differentiable",
    "Distillation",
    "Initialize",
    "Latency",
    "Limits",
    "Machine",
    "NetAdapt",
    "Network",
    "ObjectiveNames",
    "Recipe",
    "Report",
    "Synthesize",
    "Tuned",
    "amount",
    "difference",
    "dump",
    "examples",
    "parse",
    "parse_inputs",
    "read",
    "template",
]
