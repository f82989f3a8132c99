"""A run as one YAML file: strict (an unknown key names the nearest right one), frozen, read alone."""

from tas.recipe.inputs import examples, input_shape, parse_inputs
from tas.recipe.reading import difference, dump, parse, read, template
from tas.recipe.sections import (
    SEARCHES,
    Compare,
    DataSource,
    Differentiable,
    Distillation,
    Initialize,
    Latency,
    Limits,
    Machine,
    NetAdapt,
    Network,
    ObjectiveNames,
    Recipe,
    Report,
    Tuned,
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
    "Tuned",
    "amount",
    "difference",
    "dump",
    "examples",
    "input_shape",
    "parse",
    "parse_inputs",
    "read",
    "template",
]
