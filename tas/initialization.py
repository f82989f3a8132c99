"""How a student gets its weights: the original's most important channels, or fresh ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from tas.extraction import extract
from tas.tracing import Traced


def student_at(
    source: Any, architecture: Mapping[str, int], weights: Literal["inherit", "scratch"], seed: int = 0
) -> nn.Module:
    """The student of `source` at an architecture.

    "inherit": the first channels of every width, hence the most important ones after `tas.reorder`. "scratch": fresh
    weights that depend on `seed` alone. A `source` with rules of its own builds its students fresh, by `.student`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not isinstance(source, Traced):
            return source.student(architecture)
        student = extract(source, architecture)
        if weights == "scratch":
            for module in student.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        return student
