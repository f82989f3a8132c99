"""How a student gets its weights: the original's most important channels, those with the others merged in, or fresh."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from tas.calibration import modes_restored
from tas.errors import BadRecipe
from tas.extraction import extract
from tas.supernet import Supernet
from tas.tracing import Traced, as_call
from tas.tracing.dynamic import outputs_under
from tas.tracing.recording import plain_attention
from tas.tracing.slicing import apply_cut

Halves = tuple[Tensor, Tensor]
Weights = Literal["inherit", "merge", "rewind", "scratch"]
MERGE_IMAGES = 256  # enough for a few hundred channels: every position of a picture counts
_RIDGES = (1e-5, 1e-3, 1e-1)  # of the mean diagonal; twins make the Gram matrix singular, so the least is above 0
_WIDEST = 4096  # inputs of a layer beyond which their Gram matrix is not worth its memory


def student_at(
    source: Any, architecture: Mapping[str, int], weights: Weights, seed: int = 0, batches: Iterable[Any] | None = None
) -> nn.Module:
    """The student of `source` at an architecture.

    "inherit": the first channels of every width, hence the most important ones after `tas.reorder`. "merge": these, and
    what the removed ones said goes into the layers that read them (`merged`, on `batches` of inputs). "scratch": fresh
    weights that depend on `seed` alone. "rewind" (Frankle et al. 2020) is "inherit" from a `source` whose network holds
    early weights of the original, channels in the order of the trained one. A `source` with rules of its own builds its
    students fresh, by `.student`.
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
            return merged(source, architecture, batches)
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


def merged(
    traced: Traced, architecture: Mapping[str, int], batches: Iterable[Any], keep: Mapping[str, Any] | None = None
) -> nn.Module:
    """The student of `extract`, its layers reading the kept channels in place of all: least squares on `batches`.

    With A [channels, samples] what a layer reads in the original (without the blocks that the architecture leaves
    out), S its kept and R its removed channels, B = A_R A_S^T (A_S A_S^T + ridge I)^-1 [removed, kept] is the best
    linear guess of the removed ones from the kept ones, and V'[o, s] = V[o, s] + sum_r V[o, r] B[r, s] takes the place
    of the weights V. A removed twin is merged without loss. The ridge, or to merge nothing, is what guesses one half of
    the samples best from the other: behind a pooling a batch gives few samples, and a guess from more channels than
    samples learns them by heart. This is done layer by layer for what each reads, so it holds behind sums and
    concatenations as well; grouped convolutions, weights used in several places, and layers that run inside others keep
    what they inherit. Nothing else changes: no statistics, no biases.
    """
    student = extract(traced, architecture, keep)
    depths = {choice.name: architecture[choice.name] for choice in traced.space.choices if choice.kind == "depth"}
    whole = traced.cut(traced.keep_mask(traced.space.original()))
    for removal in traced.dead(depths):
        whole.set_submodule(removal.module, removal.stand_in())
    mask = traced.keep_mask(architecture, keep)
    readers = _readers(traced, student, mask)
    grams = _grams(whole, readers, batches)
    cuts = traced.cuts(mask)
    for name, gram in grams.items():
        reader, layer = readers[name], whole.get_submodule(name)
        others = {dim: kept for dim, kept in cuts[f"{name}.weight"].items() if dim != reader.dim}
        weight: Any = layer.weight
        with torch.no_grad():
            target: Any = student.get_submodule(name).weight
            target.copy_(_merge(apply_cut(weight, others), gram, reader))
    return student


@dataclass(frozen=True, eq=False)
class _Reader:
    """A layer that loses inputs: along `dim` of its weight, `places` [channels, fan] are the positions of each channel
    (fan > 1 behind a flattened picture), `kept` [channels] says which stay."""

    dim: int
    places: Tensor
    kept: Tensor


def _readers(traced: Traced, student: nn.Module, mask: np.ndarray) -> dict[str, _Reader]:
    uses: dict[int, int] = {}
    for _, parameter in traced.network.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    alive = dict(student.named_modules())
    found = {}
    for name, layer in traced.network.named_modules():
        plain = isinstance(layer, nn.Linear) or (isinstance(layer, _ConvNd) and layer.groups == 1)
        plain = plain and not layer.weight.is_complex()
        if not plain or type(alive.get(name)) is not type(layer) or uses.get(id(getattr(layer, "weight", None))) != 1:
            continue
        dim = 0 if getattr(layer, "transposed", False) else 1
        rows = traced.rows.get(f"{name}.weight", (None, None))[dim]
        if rows is None or mask[rows].all():
            continue
        places = _places(rows)
        kept = np.asarray(mask[rows].all(1))[places[:, 0]]
        if len(places) <= _WIDEST and kept.any():
            found[name] = _Reader(dim, torch.from_numpy(places), torch.from_numpy(kept))
    return found


def _places(rows: np.ndarray) -> np.ndarray:
    """Positions [channels, fan] that need the same units; each its own channel where they come unequally often."""
    _, channel, counts = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    if len(set(counts)) > 1:
        return np.arange(len(rows))[:, None]
    return np.argsort(channel.reshape(-1), kind="stable").reshape(len(counts), -1)


def _grams(network: nn.Module, readers: Mapping[str, _Reader], batches: Iterable[Any]) -> dict[str, Halves]:
    """A A^T [channels, channels] in float64 of what every reader is called with, of every second example and of the
    others; none for one that never is."""
    grams: dict[str, Halves] = {}

    def add(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        read = (inputs[0] if inputs else named["input"]).detach()
        if isinstance(layer, _ConvNd):
            read = read.movedim(-1 - len(layer.kernel_size), -1)
        read = read if read.dim() > 1 else read[None]
        places = readers[name].places.to(read.device)
        halves = [_gram(half.reshape(-1, half.shape[-1])[:, places]) for half in (read[::2], read[1::2])]
        before = grams.get(name, (0, 0))
        grams[name] = (before[0] + halves[0], before[1] + halves[1])

    hooks = [
        network.get_submodule(name).register_forward_pre_hook(partial(add, name), with_kwargs=True) for name in readers
    ]
    try:
        with modes_restored(network), torch.no_grad():
            network.eval()
            for inputs in batches:
                args, kwargs = as_call(inputs)
                network(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return grams


def _gram(values: Tensor) -> Tensor:
    """Of [samples, channels, fan]: every position of a channel is a sample."""
    values = values.movedim(1, -1).reshape(-1, values.shape[1]).double()
    return values.T @ values


def _merge(weight: Tensor, grams: Halves, reader: _Reader) -> Tensor:
    """V' from V, with the kept positions of dimension `reader.dim` in their order."""
    kept = reader.kept.to(grams[0].device)
    guess = torch.zeros(int(kept.sum()), len(kept), dtype=torch.float64, device=kept.device)  # [kept, channels]
    guess[:, kept] = torch.eye(len(guess), dtype=torch.float64, device=kept.device)
    guess[:, ~kept] = _guess(grams, kept)
    old = weight.movedim(reader.dim, 0)
    new = torch.tensordot(guess, old[reader.places].to(guess), dims=1)  # [kept, fan, ...]
    positions = reader.places[reader.kept].reshape(-1)
    return new.flatten(0, 1)[positions.argsort()].movedim(0, reader.dim).to(weight.dtype)


def _guess(grams: Halves, kept: Tensor) -> Tensor:
    """B^T [kept, removed]: the fit to all samples by the ridge that does best from half to half; 0 where none helps."""

    def fit(gram: Tensor, part: float) -> Tensor:
        among = gram[kept][:, kept]
        ridge = torch.full_like(among.diagonal(), part * float(among.diagonal().mean()) or 1.0).diag()
        return torch.linalg.solve(among + ridge, gram[kept][:, ~kept])

    def gain(gram: Tensor, found: Tensor) -> float:  # of the squared error, against guessing 0
        return float((found * (2 * gram[kept][:, ~kept] - gram[kept][:, kept] @ found)).sum())

    gains = {part: sum(gain(b, fit(a, part)) for a, b in (grams, grams[::-1])) for part in _RIDGES}
    best = max(gains, key=gains.__getitem__)
    whole = grams[0] + grams[1]
    return fit(whole, best) if gains[best] > 0 else torch.zeros_like(whole[kept][:, ~kept])
