"""Students whose layers read the kept channels in place of all: least squares puts what the removed ones said into
the weights of the layers that read them.

With A [channels, samples] what a layer reads in the original (without the blocks that the architecture leaves out), S
its kept and R its removed channels, B = A_R A_S^T (A_S A_S^T + ridge I)^-1 [removed, kept] is the best linear guess of
the removed ones from the kept ones, and V'[o, s] = V[o, s] + sum_r V[o, r] B[r, s] takes the place of the weights V. A
removed twin is merged without loss. The ridge, or to merge nothing, is what guesses one half of the samples best from
the other: behind a pooling a batch gives few samples, and a guess from more channels than samples learns them by heart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from tas.calibration import modes_restored
from tas.extraction import extract
from tas.tracing import Traced, as_call
from tas.tracing.recording import plain_attention
from tas.tracing.regions import leave_out
from tas.tracing.slicing import apply_cut
from tas.tracing.undoing import hooked

MERGE_IMAGES = 256  # enough for a few hundred channels: every position of a picture counts
_RIDGES = (1e-5, 1e-3, 1e-1)  # of the mean diagonal; twins make the Gram matrix singular, so the least is above 0
_WIDEST = 4096  # inputs of a layer beyond which their Gram matrix is not worth its memory
_SAMPLES = 4096  # of half a batch and a layer: more positions of the same pictures say little more
_KEPT_BYTES = 1 << 30  # of Gram matrices, for architectures of depths that come again

Halves = tuple[Tensor, Tensor]
Grams = dict[str, Halves]


@dataclass(frozen=True, eq=False)
class Merging:
    """Merged students of one traced network, as often as asked for: what that takes of the network itself is worked
    out once for architectures of the same depths. batches: inputs, together about `MERGE_IMAGES` examples, on the
    device where the network is to run."""

    traced: Traced
    batches: Sequence[Any]
    _known: dict[tuple[int, ...], dict[str, Halves | None]] = field(default_factory=dict)  # None: it is never called

    def student(self, architecture: Mapping[str, int], keep: Mapping[str, Any] | None = None) -> nn.Module:
        """The student of `extract`, merged layer by layer for what each reads, so that it holds behind sums and
        concatenations as well; grouped convolutions, weights used in several places, and layers that run inside others
        keep what they inherit. Nothing else changes: no statistics, no biases."""
        traced, student = self.traced, extract(self.traced, architecture, keep)
        mask = traced.keep_mask(architecture, keep)
        readers, cuts = _readers(traced, student, mask), traced.cuts(mask)
        for name, gram in self._grams(architecture, readers).items():
            reader, layer = readers[name], traced.network.get_submodule(name)
            others = {dim: kept for dim, kept in cuts[f"{name}.weight"].items() if dim != reader.dim}
            weight: Any = layer.weight
            with torch.no_grad():
                target: Any = student.get_submodule(name).weight
                target.copy_(_merge(apply_cut(weight, others), gram, reader))
        return student

    def _grams(self, architecture: Mapping[str, int], readers: Mapping[str, _Reader]) -> Grams:
        """Of the readers, with the original at the depths of an architecture; none for one that is never called."""
        depths = {
            choice.name: architecture[choice.name] for choice in self.traced.space.choices if choice.kind == "depth"
        }
        known = self._known.pop(tuple(depths.values()), {})
        if missing := {name: reader for name, reader in readers.items() if name not in known}:
            whole = self.traced.cut(self.traced.keep_mask(self.traced.space.original()))
            leave_out(whole, self.traced.dead(depths))
            known = {**known, **dict.fromkeys(missing), **_grams(whole, missing, self.batches)}
        self._known[tuple(depths.values())] = known
        while sum(map(_bytes, self._known.values())) > _KEPT_BYTES:  # the least lately used first, at last this one
            self._known.pop(next(iter(self._known)))
        return {name: gram for name in readers if (gram := known[name]) is not None}


def _bytes(grams: Mapping[str, Halves | None]) -> int:
    return sum(half.nbytes for halves in grams.values() for half in halves or ())


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


def _grams(network: nn.Module, readers: Mapping[str, _Reader], batches: Sequence[Any]) -> Grams:
    """A A^T [channels, channels] in float64 of what every reader is called with, of every second example and of the
    others; none for one that never is."""
    grams: Grams = {}

    def add(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        read = (inputs[0] if inputs else named["input"]).detach()
        if isinstance(layer, _ConvNd):
            read = read.movedim(-1 - len(layer.kernel_size), -1)
        read = read if read.dim() > 1 else read[None]
        places = readers[name].places.to(read.device)
        halves = [_gram(_sampled(half.reshape(-1, half.shape[-1]))[:, places]) for half in (read[::2], read[1::2])]
        before = grams.get(name, (0, 0))
        grams[name] = (before[0] + halves[0], before[1] + halves[1])

    hooks = [
        network.get_submodule(name).register_forward_pre_hook(partial(add, name), with_kwargs=True) for name in readers
    ]
    with hooked(hooks), modes_restored(network), torch.no_grad(), plain_attention():
        network.eval()
        for inputs in batches:
            args, kwargs = as_call(inputs)
            network.to(_device(inputs))(*args, **kwargs)
    return grams


def _device(inputs: Any) -> torch.device:
    return next((x.device for x in tree_leaves(inputs) if isinstance(x, Tensor)), torch.device("cpu"))


def _sampled(rows: Tensor) -> Tensor:
    if len(rows) <= _SAMPLES:
        return rows
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return rows[order[:_SAMPLES].to(rows.device)]


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
