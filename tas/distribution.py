"""The learned distribution over architectures, and the draws from it that a supernet runs at.

TAS (Dong & Yang 2019, eq. 3-5): every choice has a row of logits; Gumbel noise picks a few candidates of a row and the
same noise weighs them, so that the loss of one forward compares these candidates and moves their logits. (The other
logits of the row stand still but for the cost: the shift by which log_softmax moves all of them cancels.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from tas.space import Architecture, SearchSpace

Selection = Literal["multinomial", "top2"]

_FLOOR = 1e-7  # added to every probability before the multinomial, so that a second candidate exists at any temperature


@dataclass(frozen=True)
class Pick:
    """The candidate sizes, ascending, that one choice uses in one forward, and what each weighs.

    `weights` is [len(values)] and sums to 1; None only for a single value.
    """

    values: tuple[int, ...]
    weights: Tensor | None = None


def multiplied(picks: Sequence[tuple[Pick, int]], times: int = 1) -> Pick:
    """The pick of `times` x the product of independent sizes, each to a power."""
    values, weights = [times], None
    for pick, power in picks:
        values = [value * other**power for value in values for other in pick.values]
        if pick.weights is not None:
            weights = pick.weights if weights is None else torch.outer(weights, pick.weights).flatten()
    if weights is None:
        return Pick(tuple(values))
    distinct = sorted(set(values))
    place = torch.tensor([distinct.index(value) for value in values], device=weights.device)
    return Pick(tuple(distinct), weights.new_zeros(len(distinct)).index_add(0, place, weights))


Draw = Mapping[str, Pick]  # one Pick for every choice


def one_hot(architecture: Mapping[str, int]) -> dict[str, Pick]:
    """The draw that runs a supernet at exactly one architecture."""
    return {name: Pick((value,)) for name, value in architecture.items()}


def temperature(
    fraction: float, start: float = 5.0, end: float = 0.1, schedule: Literal["cosine", "linear"] = "cosine"
) -> float:
    """Temperature after a `fraction` (0 to 1) of the search, falling from `start` to `end`.

    Cosine 5 -> 0.1 is what the paper's code does; its text says linear 10 -> 0.1.
    """
    left = 1 - fraction if schedule == "linear" else (1 + math.cos(math.pi * fraction)) / 2
    return end + (start - end) * left


class ArchitectureDistribution(nn.Module):
    """Independent categorical distributions, one a choice, given by `logits` [choices, widest].

    Rows with fewer candidates than the widest choice are padded; padded columns have probability 0 and no gradient.
    `std` is that of the initial logits (paper: 0.01).
    """

    absent: Tensor
    everything: Tensor

    def __init__(self, space: SearchSpace, generator: torch.Generator | None = None, std: float = 0.01) -> None:
        super().__init__()
        self.space = space
        sizes = torch.tensor([len(choice.candidates) for choice in space.choices], dtype=torch.long)
        widest = max((len(choice.candidates) for choice in space.choices), default=1)
        absent = torch.arange(widest) >= sizes[:, None]
        depths = torch.tensor([choice.kind == "depth" for choice in space.choices], dtype=torch.bool)
        self.register_buffer("absent", absent, persistent=False)
        self.register_buffer("everything", depths[:, None] & ~absent, persistent=False)
        initial = torch.empty(absent.shape).normal_(0, std, generator=generator)
        self.logits = nn.Parameter(initial.masked_fill(absent, 0))

    def log_probabilities(self) -> Tensor:
        """[choices, widest], -inf in padded columns."""
        return self.logits.masked_fill(self.absent, -math.inf).log_softmax(-1)

    def probabilities(self) -> Tensor:
        """[choices, widest], 0 in padded columns; each row sums to 1."""
        return self.log_probabilities().exp()

    def log_probability(self, indices: Tensor) -> Tensor:
        """Of architectures given as candidate indices [..., choices] -> [...]."""
        table = self.log_probabilities()
        return table[torch.arange(len(table), device=table.device), indices].sum(-1)

    def mode(self) -> Architecture:
        """The most probable architecture."""
        best = self.logits.detach().masked_fill(self.absent, -math.inf).argmax(-1)
        return self.space.architecture(best.tolist())

    @torch.no_grad()
    def sample(self, generator: torch.Generator, count: int) -> Tensor:
        """Independent architectures as candidate indices [count, choices], on the generator's device."""
        if not self.space.choices:
            return torch.zeros(count, 0, dtype=torch.long, device=generator.device)
        table = self.probabilities().to(generator.device)
        return torch.multinomial(table, count, replacement=True, generator=generator).T.contiguous()

    def draw(
        self,
        generator: torch.Generator,
        temperature: float,
        selection: Selection = "multinomial",
        candidates: int = 2,
    ) -> dict[str, Pick]:
        """Candidates and weights for one forward, differentiable in `logits`.

        With g ~ Gumbel(0, 1), z = (log_softmax(logits) + g) / temperature and p = softmax(z): a width uses `candidates`
        (paper: 2) distinct sizes drawn from p + 1e-7 without replacement, or the most probable ones ("top2"), weighted
        by the softmax over their z; a depth uses all its candidates, weighted by p.
        """
        z = (self.log_probabilities() + self._gumbel(generator)) / temperature
        chosen = self._choose(z.detach(), generator, selection, candidates)
        weights = z.masked_fill(~chosen, -math.inf).softmax(-1)
        front = chosen.byte().argsort(dim=-1, descending=True, stable=True)  # chosen columns first, still ascending
        rows = weights.gather(-1, front).unbind(0)
        columns = chosen.tolist()  # the only transfer from the device
        picks = {}
        for choice, row, used in zip(self.space.choices, rows, columns, strict=True):
            values = tuple(size for size, use in zip(choice.candidates, used, strict=False) if use)
            picks[choice.name] = Pick(values, row[: len(values)] if len(values) > 1 else None)
        return picks

    def _choose(self, z: Tensor, generator: torch.Generator, selection: Selection, candidates: int) -> Tensor:
        if selection not in ("multinomial", "top2") or candidates < 1:
            raise ValueError(
                f"selection is 'multinomial' or 'top2' with at least 1 candidate, got {selection!r}, {candidates}"
            )
        rank = z
        if selection == "multinomial":
            # The first arrivals of independent exponential clocks with rates p are a multinomial draw without
            # replacement; this way it happens on any device, whichever device the generator is on.
            rank = (z.softmax(-1) + _FLOOR) / self._exponential(generator)
        rank = rank.masked_fill(self.absent, -math.inf)
        first = rank.topk(min(candidates, z.shape[-1]), dim=-1).indices
        return torch.zeros_like(self.absent).scatter(-1, first, True) & ~self.absent | self.everything

    def _gumbel(self, generator: torch.Generator) -> Tensor:
        return -self._exponential(generator).log()

    def _exponential(self, generator: torch.Generator) -> Tensor:
        # Torch's exponential is never 0, so its logarithm is finite and no noise has to be drawn again.
        noise = torch.empty(self.logits.shape, device=generator.device).exponential_(generator=generator)
        return noise.to(self.logits.device)
