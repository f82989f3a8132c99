"""What a run will cost, from a few timed steps on copies, before anything is trained."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tas import cost
from tas.calibration import has_batch_norm
from tas.choosing import finalists_of
from tas.describing import describe
from tas.distribution import ArchitectureDistribution
from tas.initialization import student_at
from tas.methods import netadapt
from tas.methods.baselines import uniform
from tas.objectives import Objective
from tas.preparation import Prepared
from tas.recipe import Differentiable, NetAdapt, Tuned
from tas.scoring import search_splits
from tas.space import Architecture, Budget
from tas.supernet import Supernet
from tas.synthesizing import planned
from tas.tracing import Traced
from tas.training import call

_TIMED = 3  # steps that are timed after one that is not; the median counts


def estimate(prepared: Prepared) -> dict[str, Any]:
    """The space with its feasibility, seconds by stage, and megabytes of a training step of the original.

    Seconds are measured seconds an image x images x epochs: starting up, evaluation and the slowing of a machine that
    gets hot are not in them. Uniform widths at each budget stand for its student and its candidates.
    """
    recipe, real = prepared.recipe, len(prepared.data.train)
    prepared = planned(prepared)
    train = len(prepared.data.train)
    timer = _Timer.of(prepared)
    original = copy.deepcopy(prepared.original).to(prepared.device)
    evens = [uniform(prepared.space, budget) for budget in prepared.budgets.values()]
    students = [student_at(prepared.source, even, "inherit").to(prepared.device) for even in evens]
    stages = {}
    if recipe.original is not None and recipe.network.weights is None:
        stages["original"] = timer.training(original) * recipe.original.epochs * real
    if (how := recipe.synthesize) is not None:  # the gradient of pixels costs about what that of weights does
        stages["synthesize"] = timer.training(original) * (how.steps + how.coarse_steps / 4) * how.images
    proposals = [_proposals(prepared, place) for place in range(len(students))]
    evolving, adapts = _evolving(prepared), has_batch_norm(prepared.original)
    if isinstance(recipe.search, NetAdapt):
        pairs = zip(prepared.budgets.values(), evens, students, strict=True)
        stages["search"] = sum(_adapting(prepared, timer, original, *its) for its in pairs)
    else:
        scored = [_scored_images(recipe.search, train, count, evolving, adapts) for count in proposals]
        stages["search"] = sum(timer.forward(one) * images for one, images in zip(students, scored, strict=True))
    if epochs := _search_epochs(recipe.search):
        stages["search"] += timer.searching(prepared) * epochs * len(search_splits(prepared.data)[0])
    step = sum(map(timer.training, students))
    step += len(students) * _guidance(prepared, original, timer)
    if recipe.initialize.weights == "auto":
        tried = len(recipe.initialize.among) * recipe.initialize.epochs
        stages["initialize"] = step / len(students) * tried * len(search_splits(prepared.data)[0])
    if (finalists := min(finalists_of(recipe, prepared.source), proposals[0] + evolving)) > 1:
        stages["choose"] = step * finalists * recipe.choose.epochs * len(search_splits(prepared.data)[0])
    rivals = (1 + len(recipe.report.baselines)) * recipe.report.repeats
    stages["distill"] = step * recipe.distill.epochs * train * rivals
    return {
        **describe(prepared.space, prepared.budgets),
        "seconds": {**stages, "together": sum(stages.values())},
        "megabytes": timer.megabytes(original),
    }


def _adapting(
    prepared: Prepared, timer: _Timer, original: nn.Module, budget: Budget, even: Architecture, student: nn.Module
) -> float:
    """Seconds of NetAdapt's search: each of its proposals is trained and scored, and they lie between the original and
    the budget, where seconds are taken to be straight between the original's and those of uniform widths, by MACs."""
    search: Any = prepared.recipe.search
    space = prepared.space
    tried = netadapt.proposals(space, budget, search)
    if not len(tried):
        return 0.0
    least, most = cost.macs(space, even), cost.original(space, "macs")
    way = float((cost.count(space, tried, "macs").double().mean() - least) / max(most - least, 1))
    scored = _scored_images(search, len(prepared.data.train), 1, 0, has_batch_norm(prepared.original))
    work = ((timer.forward, scored), (timer.training, search.steps * search.batch))
    seconds = ((one(student) + way * (one(original) - one(student))) * images for one, images in work)
    return len(tried) * sum(seconds)


def _guidance(prepared: Prepared, original: nn.Module, timer: _Timer) -> float:
    """Seconds an image of what teachers and the original say to it."""
    how = prepared.recipe.distill
    asked = [teacher or original for teacher in prepared.teachers] if how.alpha else []
    asked += [original] if how.taps and original not in asked else []
    return sum(timer.forward(copy.deepcopy(teacher).to(prepared.device)) for teacher in asked)


def _proposals(prepared: Prepared, place: int) -> int:
    """How many architectures the search scores at a budget, by its place, before they evolve."""
    search: Any = prepared.recipe.search
    if isinstance(search, NetAdapt):
        return len(netadapt.proposals(prepared.space, [*prepared.budgets.values()][place], search))
    if isinstance(search, Tuned) and not place:  # its candidates and, after every epoch, the most probable one
        return search.trials * search.candidates + _search_epochs(search)
    return int(search.candidates)


def _evolving(prepared: Prepared) -> int:
    """How many it scores after these; a search by gradient none where its one candidate has no rival."""
    search: Any = prepared.recipe.search
    alone = isinstance(search, Differentiable) and search.candidates == 1 and len(prepared.budgets) == 1
    return 0 if alone else getattr(search, "evolve", 0)


def _scored_images(search: Any, train: int, scores: int, evolving: int, adapts: bool) -> float:
    """Images that pass through candidates, on all rungs of a race; each side has half of the training images. Nothing
    `adapts` without batch norm."""
    passes = 2 if adapts and getattr(search, "raw", False) else 1  # raw scores take another
    rungs, keep = getattr(search, "rungs", 1), getattr(search, "keep", 1.0)
    calibration = min(search.calibration_images, train / 2) if adapts else 0
    held_out = min(search.images, train / 2)
    whole = calibration + passes * held_out
    parts = [keep ** (rungs - 1 - rung) for rung in range(rungs)]  # of the images; of the candidates in reverse
    held_out *= passes * sum(part * running for part, running in zip(parts, parts[::-1], strict=True))
    steps = zip(parts, [0.0, *parts[:-1]], parts[::-1], strict=True)
    calibration *= sum((part - before) * running for part, before, running in steps)
    return float(scores * (calibration + held_out) + evolving * whole)


def _search_epochs(search: Any) -> int:
    """Passes over the weights half; where their number is tuned or trials are pruned, at most so many."""
    if isinstance(search, Tuned):
        return int(search.trials * search.ranges.get("epochs", (0, search.epochs))[1])
    return search.epochs if isinstance(search, Differentiable) else 0


@dataclass(frozen=True)
class _Timer:
    """Seconds an image of this and that step on one batch."""

    inputs: Any
    targets: Any
    images: int
    objective: Objective
    device: torch.device

    @classmethod
    def of(cls, prepared: Prepared) -> _Timer:
        size = min(prepared.recipe.distill.batch, len(prepared.data.train))
        inputs, targets = next(prepared.data.train.take(size).batches(size, device=prepared.device))
        return cls(inputs, targets, size, prepared.objective, prepared.device)

    def training(self, network: nn.Module) -> float:
        network.train()
        return self._seconds(lambda: self._loss(call(network, self.inputs)).backward())

    def forward(self, network: nn.Module) -> float:
        network.eval()
        with torch.no_grad():
            return self._seconds(lambda: call(network, self.inputs))

    def searching(self, prepared: Prepared) -> float:
        """A weight step and an architecture step, at a new draw each."""
        source = prepared.source
        supernet = Supernet(source) if isinstance(source, Traced) else copy.deepcopy(source)
        supernet.to(self.device).train()
        generator = torch.Generator().manual_seed(0)
        distribution = ArchitectureDistribution(prepared.space, generator).to(self.device)

        def iteration() -> None:
            with torch.no_grad():
                draw = distribution.draw(generator, 1.0)
            self._loss(supernet(self.inputs, draw)).backward()
            with supernet.frozen_weights():
                self._loss(supernet(self.inputs, distribution.draw(generator, 1.0))).backward()

        return self._seconds(iteration)

    def megabytes(self, network: nn.Module) -> float:
        """What a training step keeps: weights, gradients, momentum, and activations for the backward pass."""
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            loss = self._loss(call(network.train(), self.inputs))
        del loss
        weights = sum(p.numel() * p.element_size() for p in network.parameters())
        return (3 * weights + sum(kept.values())) / 1e6

    def _loss(self, outputs: Any) -> Tensor:
        return self.objective.loss(outputs, self.targets)

    def _seconds(self, work: Callable[[], Any]) -> float:
        taken = []
        for _ in range(1 + _TIMED):
            started = time.perf_counter()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            taken.append(time.perf_counter() - started)
        return statistics.median(taken[1:]) / self.images
