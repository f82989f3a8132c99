"""One epoch of the search by gradient (TAS, Dong & Yang 2019, algorithm 1): first-order bilevel alternation.

A weight step on a batch of the *weights* half of the training images, then, at a new draw, an architecture step on a
batch of the *architecture* half with loss + penalty_weight * penalty. (The paper's code takes the second batch with
replacement; here the half is shuffled and passed through again and again.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, repeat
from typing import Any, Literal

import torch
from torch import Tensor

from tas import cost
from tas.data import Split
from tas.distribution import ArchitectureDistribution, Selection, temperature
from tas.errors import BadRecipe, Diverged, least, require_rules, switches
from tas.methods.asked import Asked
from tas.methods.result import Row
from tas.scoring import CALIBRATION_IMAGES, SCORE_IMAGES
from tas.supernet import Supernet
from tas.training.evaluation import class_check


@dataclass(frozen=True)
class Settings:
    """How to search. In brackets the value of the paper, or of its code where that is all there is.

    epochs: passes over the weights half (600; 120 on ImageNet).
    batch: images of a step, on each side (256).
    warm_start: the supernet starts from the original's weights, False from new ones (False); a supernet that is
      passed ready-made keeps what it has.
    start: "uniform" centres the distribution on uniform widths and full depths at the budget, each candidate further
      away less probable by a factor e^-0.5; "noise" leaves it flat, so that depths are halved at first ("noise").
    weight_lr, momentum, nesterov, weight_decay: SGD for the weights (0.1, 0.9, True, 5e-4), cosine to 0.
    architecture_lr, architecture_betas, architecture_decay: Adam for the logits (1e-3, (0.5, 0.999), 1e-3); a short
      search needs a larger rate, because Adam moves a logit by at most about its rate a step.
    penalty_weight: of the budget's penalty (2).
    temperature_start, temperature_end, temperature_schedule: (code: 5, 0.1, "cosine"; text: 10, 0.1, "linear").
    anneal: temperature and weight_lr change every "step" or every "epoch" ("epoch").
    selection, mixed: which and how many widths of a choice a draw mixes ("multinomial", 2); see
      `ArchitectureDistribution.draw`.
    candidates: architectures scored at the end by adaptive batch norm, half of them the most probable feasible ones and
      half drawn from the distribution under the budget; the best wins. 1 takes the most probable one unseen, and
      nothing evolves (1).
    evolve: further candidates, small changes of the best and of uniform widths that look promising
      (`methods.evolving`; 0).
    images, calibration_images, merge: of the candidates' scores, see `tas.score`; without `merge` or
      `warm_start`, or for a ready-made supernet, they are scored with the weights of the supernet.
    rows: steps between two rows of the course.
    """

    epochs: int = 20
    batch: int = 128
    warm_start: bool = True
    start: Literal["uniform", "noise"] = "uniform"
    weight_lr: float = 0.02
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    architecture_lr: float = 0.02
    architecture_betas: tuple[float, float] = (0.5, 0.999)
    architecture_decay: float = 1e-3
    penalty_weight: float = 2.0
    temperature_start: float = 5.0
    temperature_end: float = 0.1
    temperature_schedule: Literal["cosine", "linear"] = "cosine"
    anneal: Literal["step", "epoch"] = "step"
    selection: Selection = "multinomial"
    mixed: int = 2
    candidates: int = 12
    evolve: int = 96
    images: int = SCORE_IMAGES
    calibration_images: int = CALIBRATION_IMAGES
    merge: bool = True
    rows: int = 20

    def __post_init__(self) -> None:
        above = ("weight_lr", "architecture_lr", "temperature_start", "temperature_end")
        from_0 = ("momentum", "weight_decay", "architecture_decay", "penalty_weight")
        rules = {
            **least(self, epochs=1, batch=1, mixed=1, candidates=1, evolve=0, images=1, calibration_images=1, rows=1),
            **switches(self, "warm_start", "merge"),
            **{f"{name} is above 0": getattr(self, name) > 0 for name in above},
            **{f"{name} is at least 0": getattr(self, name) >= 0 for name in from_0},
        }
        require_rules(self, rules, "search.")
        if self.momentum >= 1 or not all(0 <= beta < 1 for beta in self.architecture_betas):
            found = f"{self.momentum} and {self.architecture_betas}"
            raise BadRecipe(f"search.momentum and search.architecture_betas lie in [0, 1), got {found}")


@dataclass
class Run:
    """A search under way: what it was asked for, and what an epoch changes."""

    asked: Asked[Settings]
    weights_half: Split
    architecture_half: Split
    device: torch.device
    supernet: Supernet
    distribution: ArchitectureDistribution
    weight_optimizer: torch.optim.Optimizer
    architecture_optimizer: torch.optim.Optimizer
    epoch: int = 0
    course: list[Row] = field(default_factory=list)

    @cached_property
    def check(self) -> Callable[[Any, Any], None]:
        """Of outputs and targets, see `class_check`."""
        return class_check(self.asked.data.train, self.asked.objective)

    @property
    def settings(self) -> Settings:
        return self.asked.settings


def astray(course: Sequence[Row], classes: int | None, rate: float) -> str:
    """What to say where the loss of a course ends so high that its supernet has diverged; empty otherwise.

    Of `classes` (None: targets are none) that is well above guessing, ln(classes), or no better than guessing and twice
    the first loss; else ten times the first loss, since a smaller network is to lose more. rate: of the weights.
    """
    if not course:
        return ""
    first, last = course[0]["train_loss"], course[-1]["train_loss"]
    if classes is None:
        told, far, verdict = "", last > 10 * abs(first), "may have diverged, and then its choice says"
    else:
        guessing = math.log(classes)
        told = f", where guessing has {guessing:.3g}"
        far = last > 2 * guessing or (last > 2 * first and last > 0.95 * guessing)
        verdict = "has diverged, so its choice says"
    if not far:
        return ""
    return (
        f"The search's training loss went from {first:.3g} to {last:.3g}{told}: its supernet "
        f"{verdict} little. Lower search.weight_lr ({rate:g}), and search anew."
    )


def train_epoch(run: Run) -> None:
    """One pass over the weights half. All that is random in it follows from the seed and the number of the epoch."""
    generator = torch.Generator().manual_seed(run.asked.seed * 1_000_003 + run.epoch)
    held_out = chain.from_iterable(_batches(run, half, generator) for half in repeat(run.architecture_half))
    steps = run.weights_half.steps(run.settings.batch, drop_last=_whole(run, run.weights_half))
    losses: list[Tensor] = []
    run.supernet.train()
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        torch.manual_seed(generator.initial_seed())  # dropout in the network draws from torch's own generator
        for step, batch in enumerate(_batches(run, run.weights_half, generator), start=1):
            tau = _anneal(run, (step - 1) / steps)
            train_loss = _weight_step(run, *batch, generator, tau)
            losses.append(torch.stack([train_loss, _architecture_step(run, *next(held_out), generator, tau)]))
            if step % run.settings.rows == 0 or step == steps:
                place = {"step": run.epoch * steps + step, "steps": run.settings.epochs * steps, "temperature": tau}
                run.course.append({**place, **_row(run, torch.stack(losses).mean(0))})
                losses = []
                if run.asked.on_row:
                    run.asked.on_row(run.course[-1])
    run.epoch += 1


def _batches(run: Run, split: Split, generator: torch.Generator) -> Iterator[tuple[Any, Any]]:
    whole = _whole(run, split)
    return split.batches(run.settings.batch, generator, run.asked.data.augment, drop_last=whole, device=run.device)


def _whole(run: Run, split: Split) -> bool:
    """Whether a last, smaller batch is left out: it would be noise, unless it is the only one."""
    return len(split) >= run.settings.batch


def _anneal(run: Run, part_of_epoch: float) -> float:
    """Set the weights' learning rate; returns the temperature."""
    settings = run.settings
    fraction = (run.epoch + (part_of_epoch if settings.anneal == "step" else 0)) / settings.epochs
    for group in run.weight_optimizer.param_groups:
        group["lr"] = settings.weight_lr * (1 + math.cos(math.pi * fraction)) / 2
    start, end = settings.temperature_start, settings.temperature_end
    return temperature(fraction, start, end, settings.temperature_schedule)


def _weight_step(run: Run, inputs: Any, targets: Any, generator: torch.Generator, tau: float) -> Tensor:
    with torch.no_grad():  # the paper's code computes the gradient of the logits here too, and discards it
        draw = run.distribution.draw(generator, tau, run.settings.selection, run.settings.mixed)
    run.weight_optimizer.zero_grad()
    loss = _loss(run, inputs, targets, draw)
    loss.backward()
    run.weight_optimizer.step()
    return loss.detach()


def _architecture_step(run: Run, inputs: Any, targets: Any, generator: torch.Generator, tau: float) -> Tensor:
    draw = run.distribution.draw(generator, tau, run.settings.selection, run.settings.mixed)
    run.architecture_optimizer.zero_grad()
    with run.supernet.frozen_weights():
        loss = _loss(run, inputs, targets, draw)
        penalty = cost.penalty(run.supernet.space, run.asked.budget, run.distribution.probabilities())
        (loss + run.settings.penalty_weight * penalty.to(loss.dtype)).backward()
    run.architecture_optimizer.step()
    return loss.detach()


def _loss(run: Run, inputs: Any, targets: Any, draw: Any) -> Tensor:
    outputs = run.supernet(inputs, draw)
    run.check(outputs, targets)
    return run.asked.objective.loss(outputs, targets)


@torch.no_grad()
def _row(run: Run, losses: Tensor) -> Row:
    space, table = run.supernet.space, run.distribution.probabilities().cpu()
    train_loss, held_out_loss = losses.tolist()
    if not (math.isfinite(train_loss) and math.isfinite(held_out_loss)):
        run.asked.data.train.require_numbers()
        raise Diverged(f"the search needs finite losses, got {train_loss} and {held_out_loss}: lower search.weight_lr")
    row: Row = {"epoch": run.epoch + 1, "train_loss": train_loss, "val_loss": held_out_loss}
    for measure in dict.fromkeys(["macs", *(limited for limited, _ in run.asked.budget.limits)]):
        row[f"{measure}_expected"] = float(cost.expected(space, table, measure))
        row[f"{measure}_mode"] = float(cost.count(space, table.argmax(-1), measure))
    row["entropy"] = float(torch.special.entr(table).sum(-1).mean())
    row["expected"] = {
        choice.name: float(chances[: len(choice.candidates)] @ torch.tensor(choice.candidates, dtype=chances.dtype))
        for choice, chances in zip(space.choices, table, strict=True)
    }
    return row
