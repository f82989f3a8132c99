"""How a student gets its weights: the original's most important channels, those with the others merged in, or fresh."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tas.calibration import modes_restored
from tas.errors import BadRecipe
from tas.extraction import extract
from tas.merging import Merging
from tas.supernet import Supernet
from tas.tracing import Traced
from tas.tracing.dynamic import outputs_under
from tas.tracing.recording import plain_attention

Weights = Literal["inherit", "merge", "rewind", "scratch"]


def student_at(
    source: Any, architecture: Mapping[str, int], weights: Weights, seed: int = 0, batches: Iterable[Any] | None = None
) -> nn.Module:
    """The student of `source` at an architecture.

    "inherit": the first channels of every width, hence the most important ones after `tas.reorder`. "merge": these, and
    what the removed ones said goes into the layers that read them (`tas.merging`, on `batches` of inputs). "scratch":
    fresh weights that depend on `seed` alone. "rewind" (Frankle et al. 2020) is "inherit" from a `source` whose network
    holds early weights of the original, channels in the order of the trained one. A `source` with rules of its own
    builds its students fresh, by `.student`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not isinstance(source, Traced):
            return source.student(architecture)
        student = extract(source, architecture)
        require_same(source, architecture, student)
        if weights == "merge":
            if batches is None:
                raise BadRecipe("weights are merged on activations: give `batches` of inputs, 256 examples together")
            return Merging(source, [*batches]).student(architecture)
        if weights == "scratch":
            for module in student.modules():
                if callable(reset := getattr(module, "reset_parameters", None)):
                    reset()
        return student


def require_same(traced: Traced, architecture: Mapping[str, int], student: nn.Module) -> None:
    """RuntimeError unless a student that was extracted at an architecture computes, in eval mode and on the inputs that
    were traced, what the supernet does there, up to rounding (10 x the root of the precision, of an output's largest
    number; float32: 0.3 %): before anything is trained that a run will save. Both take the decisions that the traced
    network took (which boxes, which ranks)."""
    supernet, inputs = Supernet(traced).eval(), dict(traced.kwargs) or traced.args
    with modes_restored(student), torch.no_grad(), plain_attention():
        student.eval()
        runs = [lambda: supernet(inputs, architecture), lambda: student(*traced.args, **traced.kwargs)]
        outputs = []
        for run in runs:
            with torch.random.fork_rng(devices=[]):  # a network that draws numbers draws the same
                torch.manual_seed(0)
                outputs.append(outputs_under(traced.decisions, run, (), {}))
    pairs = [(a, b) for a, b in zip(*outputs, strict=False) if isinstance(a, Tensor) and isinstance(b, Tensor)]
    wrong = [(a, b) for a, b in pairs if not _difference(a, b) <= _rounding(a, b)]
    if wrong or len({*map(len, outputs)}) > 1:
        largest = max((_difference(a, b) for a, b in wrong), default=float("inf"))
        raise RuntimeError(
            f"the student is not what the supernet computes at {dict(architecture)}: outputs on the example inputs "
            f"differ by up to {largest:.3g}; nothing is saved; please report it, with the network"
        )


def _difference(a: Tensor, b: Tensor) -> float:
    """The largest one; infinite where shapes differ."""
    if a.shape != b.shape:
        return float("inf")
    a, b = (torch.view_as_real(x.resolve_conj()) if x.is_complex() else x for x in (a, b))
    a, b = (x.double().nan_to_num(posinf=0.0, neginf=0.0) for x in (a, b))
    return float((a - b).abs().max()) if a.numel() else 0.0


def _rounding(a: Tensor, b: Tensor) -> float:
    """How far outputs may be apart that are worked out in another order."""
    if not a.is_floating_point() and not a.is_complex():
        return 0.0
    scale = _difference(b, torch.zeros_like(b))
    return float(10 * torch.finfo(a.dtype).eps ** 0.5 * max(scale, 1e-3))
