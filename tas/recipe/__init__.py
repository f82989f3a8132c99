"""A run as one YAML file: strict (an unknown key names the nearest right one), frozen, read alone."""

from tas.recipe.reading import difference, dump, input_shape, parse, read, template
from tas.recipe.sections import (
    SEARCHES,
    Compare,
    DataSource,
    Differentiable,
    Distillation,
    Initialize,
    Limits,
    Machine,
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
    "Limits",
    "Machine",
    "Network",
    "ObjectiveNames",
    "Recipe",
    "Report",
    "Tuned",
    "amount",
    "difference",
    "dump",
    "input_shape",
    "parse",
    "read",
    "template",
]
