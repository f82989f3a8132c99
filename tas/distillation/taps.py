"""Feature taps: what a module of the student says, against what the module of that name says in the original.

The channels of a student are some of the original's, and which ones is known, so the two are compared channel by
channel, without the adapter between them that feature distillation needs elsewhere (FitNets, Romero et al. 2015).
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tas.calibration import modes_restored
from tas.distillation.teachers import ask
from tas.errors import BadRecipe
from tas.extraction import extract
from tas.tracing import Traced
from tas.tracing.recording import plain_attention
from tas.tracing.regions import leave_out
from tas.tracing.undoing import hooked

_DRAWS = 32  # of noise: a channel behind a relu may be silent on the example inputs
_NOISE = 0.5  # of a parameter's spread

Kept = Mapping[int, Tensor]  # by dimension of an output: the positions that the student has too
Heard = dict[str, list[Tensor]]  # by module: what it gave, call by call


@dataclass(frozen=True, eq=False)
class Taps:
    """original: a copy of `traced.network`, which has the student's order of channels. kept: by module. skipped: which
    of the asked modules have no twin, and why."""

    original: nn.Module
    kept: Mapping[str, Kept]
    skipped: Mapping[str, str]

    def loss(self, ours: Heard, theirs: Heard) -> Tensor:
        """Mean over modules and their calls of ||student - original||^2 / ||original||^2, on the channels that both
        have; 0 where a student says what the original says."""
        terms = []
        for name, kept in self.kept.items():
            for mine, its in zip(ours[name], theirs[name], strict=True):
                for dim, positions in kept.items():
                    its = its.index_select(dim, positions.to(its.device))
                terms.append((mine.float() - its.float()).square().mean() / its.float().square().mean().clamp(1e-12))
        return torch.stack(terms).mean()

    def ask(self, inputs: Any, dtype: str = "float32") -> tuple[Any, Heard]:
        """The original's outputs, and what its tapped modules say."""
        with listening(self.original, self.kept) as heard:
            return ask(self.original, inputs, dtype), heard


def require_modules(network: nn.Module, names: Sequence[str]) -> list[str]:
    """The modules that match; `BadRecipe` with the nearest names where a glob matches none."""
    known = [name for name, _ in network.named_modules() if name]
    for glob in names:
        if not any(fnmatchcase(name, glob) for name in known):
            near = difflib.get_close_matches(glob, known, n=3, cutoff=0.4) or known[:3]
            raise BadRecipe(
                f"distill.taps name modules of the original, {glob!r} matches none; the nearest names: "
                f"{', '.join(map(repr, near)) or 'none'}"
            )
    return [name for name in known if any(fnmatchcase(name, glob) for glob in names)]


def find_taps(traced: Traced, architecture: Mapping[str, int], names: Sequence[str]) -> Taps:
    """The taps between the student at an architecture (`extract`, without keep sets) and the original.

    names: of modules, or globs ("layer*"; a star also stands for dots). A module that the student leaves out, or whose
    forward nobody calls, has no twin and is skipped; so is one whose output gives no tensor first.

    Which positions of an output the student keeps is seen in runs: the original with what is cut set to zero, at noisy
    weights, gives constants where the student has nothing. `BadRecipe` where a glob matches nothing, or the runs do not
    tell (a layer that mixes channels behind the last choice of its size).
    """
    chosen = require_modules(traced.network, names)
    gone = [removal.module for removal in traced.dead(architecture)]
    skipped = {
        name: "the student leaves it out"
        for name in chosen
        if any(name == module or name.startswith(f"{module}.") for module in gone)
    }
    chosen = [name for name in chosen if name not in skipped]
    student = _once(extract(traced, architecture), traced, chosen)
    silent = {name: "its forward gives no tensor of real numbers" for name in chosen if not student[name]}
    found = _Varying(traced, architecture, [name for name in chosen if name not in silent])
    return Taps(copy.deepcopy(traced.network), found.kept(student), skipped | silent)


@contextmanager
def listening(network: nn.Module, names: Mapping[str, Any] | Sequence[str]) -> Iterator[Heard]:
    """What the modules of these names give inside, call by call; whoever reads it also empties the lists."""
    heard: Heard = {name: [] for name in names}

    def note(into: list[Tensor], module: nn.Module, inputs: Any, output: Any) -> None:
        first = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
        if first is not None and first.is_floating_point():
            into.append(first)

    with hooked(network.get_submodule(name).register_forward_hook(partial(note, heard[name])) for name in names):
        yield heard


def _once(network: nn.Module, traced: Traced, names: Sequence[str]) -> Heard:
    """What modules give on the example inputs, in eval mode."""
    with modes_restored(network), torch.no_grad(), plain_attention(), listening(network, names) as heard:
        network.eval()(*traced.args, **traced.kwargs)
    return heard


@dataclass(frozen=True, eq=False)
class _Varying:
    """The original with everything that the student lacks set to zero; what stays varies with the inputs."""

    traced: Traced
    architecture: Mapping[str, int]
    names: Sequence[str]

    def kept(self, student: Heard) -> dict[str, dict[int, Tensor]]:
        wanted: dict[tuple[str, int], int] = {}  # positions of a dimension that the student has fewer of
        whole = _once(self.traced.network, self.traced, self.names)
        for name in self.names:
            pair = whole[name][0].shape, student[name][0].shape
            wanted |= {(name, d): n for d, (full, n) in enumerate(zip(*pair, strict=True)) if full != n}
        seen = {(name, dim): torch.zeros(whole[name][0].shape[dim], dtype=torch.bool) for name, dim in wanted}
        generator = torch.Generator().manual_seed(0)
        for _ in range(_DRAWS):
            if all(int(seen[place].sum()) >= count for place, count in wanted.items()):
                break
            heard = _once(self._masked(generator), self.traced, self.names)
            for name, dim in wanted:
                seen[name, dim] |= _varies(heard[name][0], dim).cpu()
        found: dict[str, dict[int, Tensor]] = {name: {} for name in self.names}
        for (name, dim), count in wanted.items():
            if int(seen[name, dim].sum()) != count:
                raise BadRecipe(
                    f"distill.taps compare the channels that student and original share; of {name!r} the student has "
                    f"{count} of {len(seen[name, dim])}, and which of them cannot be told: tap the module before it"
                )
            found[name][dim] = seen[name, dim].nonzero().flatten()
        return found

    def _masked(self, generator: torch.Generator) -> nn.Module:
        network = copy.deepcopy(self.traced.network)
        leave_out(network, self.traced.dead(self.architecture))
        cuts = self.traced.cuts(self.traced.keep_mask(self.architecture))
        with torch.no_grad():
            for parameter in network.parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter)
                spread = float(parameter.std(correction=0))
                parameter.add_(noise, alpha=max(_NOISE * spread, 0.05))
            for name, tensor in (*network.named_parameters(), *network.named_buffers()):
                for dim, part in cuts.get(name, {}).items():
                    kept = part if isinstance(part, Tensor) else torch.arange(part)
                    lost = torch.ones(tensor.shape[dim], dtype=torch.bool).index_fill(0, kept.cpu(), False)
                    tensor.index_fill_(dim, lost.nonzero().flatten().to(tensor.device), 0)
        return network


def _varies(output: Tensor, dim: int) -> Tensor:
    """Which positions of a dimension hold more than one value."""
    flat = output.movedim(dim, 0).flatten(1)
    return flat.amax(1) > flat.amin(1)
