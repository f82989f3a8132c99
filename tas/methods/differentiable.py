"""The search by gradient of TAS (Dong & Yang 2019, arXiv 1905.09717): widths and depths as a distribution whose logits
are learned together with the weights of one supernet, then the best of a few of its architectures by adaptive batch
norm (which is not in the paper: it takes the most probable one).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from tas.distribution import ArchitectureDistribution
from tas.methods.asked import Asked
from tas.methods.baselines import uniform
from tas.methods.bilevel import Run, Settings, train_epoch
from tas.methods.checkpoint import Stateful, resume, save
from tas.methods.learned import candidates
from tas.methods.result import SearchResult
from tas.sampling import require_feasible
from tas.scoring import Judge, Score, raced, ranked, search_splits
from tas.space import Architecture
from tas.supernet import Supernet
from tas.tracing import Traced
from tas.training import require_trainable

__all__ = ["Settings", "search"]

_SLOPE = 0.5  # nats a candidate: neighbours stay likely, e^-0.5 = 0.6 times the centre


def search(asked: Asked[Settings], on_epoch: Callable[[Run], None] | None = None) -> SearchResult:
    """Search the space of `asked.source` for the best architecture within the (first) budget.

    The source is a traced original, or a network with the interface of `tas.Supernet`, which is then trained itself:
    forward(inputs, draw), `.space`, `.weight_parameters()`, `.frozen_weights()`. `on_row` is told every row of the
    course as it comes: step of steps, temperature, losses, expected and most probable cost, mean entropy (nats) and
    expected value of every choice. `on_epoch` sees the search after every epoch, and may end it by an exception.

    With a checkpoint, every epoch is saved there, and a search that finds the file goes on from it, to the same result
    as without the interruption; BadRecipe where the file belongs to another search.
    """
    settings, seed, device = asked.settings, asked.seed, torch.device(asked.device)
    require_feasible(asked.space, asked.budget)
    checkpoint = asked.checkpoint
    identity = {} if checkpoint is None else _identity(asked)
    supernet = _supernet(asked.source, settings, seed).to(device)
    distribution = ArchitectureDistribution(supernet.space, torch.Generator().manual_seed(seed)).to(device)
    if settings.start == "uniform":
        _centre(distribution, uniform(supernet.space, asked.budget))
    optimizers = _optimizers(supernet, distribution, settings)
    run = Run(asked, *search_splits(asked.data, seed), device, supernet, distribution, *optimizers)
    parts: dict[str, Stateful] = {
        "supernet": supernet,
        "distribution": distribution,
        "weight_optimizer": optimizers[0],
        "architecture_optimizer": optimizers[1],
    }
    if checkpoint is not None and checkpoint.exists():
        run.course = resume(checkpoint, identity, parts)
        run.epoch = run.course[-1]["epoch"]
    while run.epoch < settings.epochs:
        train_epoch(run)
        if checkpoint is not None:
            save(checkpoint, identity, parts, run.course)
        if on_epoch:
            on_epoch(run)
    return _chosen(run)


@torch.no_grad()
def _centre(distribution: ArchitectureDistribution, architecture: Architecture) -> None:
    """Make an architecture the most probable one. Flat logits start a search of few steps far from its budget (12 of 22
    million MACs on ResNet-20, since half of the depth is gone), and it spends them on the way back."""
    centre = torch.tensor(distribution.space.indices(architecture), device=distribution.logits.device)
    steps = torch.arange(distribution.logits.shape[1], device=distribution.logits.device)
    distribution.logits.sub_(_SLOPE * (steps - centre[:, None]).abs())


def _optimizers(
    supernet: Supernet, distribution: ArchitectureDistribution, settings: Settings
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    require_trainable(supernet)
    weights = torch.optim.SGD(
        supernet.weight_parameters(),
        lr=settings.weight_lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov and settings.momentum > 0,
        weight_decay=settings.weight_decay,
    )
    architecture = torch.optim.Adam(
        distribution.parameters(),
        lr=settings.architecture_lr,
        betas=settings.architecture_betas,
        weight_decay=settings.architecture_decay,
    )
    return weights, architecture


def _supernet(source: Traced | Supernet, settings: Settings, seed: int) -> Supernet:
    if not isinstance(source, Traced):
        return source
    supernet = Supernet(source)
    if not settings.warm_start:
        _draw_weights(supernet, seed)
    return supernet


def _draw_weights(network: nn.Module, seed: int) -> None:
    """Fresh weights as in the paper's code: convolutions Kaiming-normal by fan-out, norms 1 and 0, linear N(0, 0.01^2);
    other modules as they reset themselves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
            if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _chosen(run: Run) -> SearchResult:
    space, asked, settings = run.supernet.space, run.asked, run.settings
    table = run.distribution.probabilities().detach().cpu().double()
    generator = torch.Generator().manual_seed(asked.seed)
    found = candidates(space, table, asked.budget, settings.candidates, generator)
    scores: list[Score] = []
    if len(found) > 1:
        judge = judge_of(asked, run.supernet)
        scores = ranked(raced(judge, found, on_score=asked.counting(len(found))), asked.objective)
    return SearchResult(
        architecture=scores[0].architecture if scores else found[0],
        candidates=tuple(scores),
        course=tuple(run.course),
        probabilities={
            choice.name: tuple(row[: len(choice.candidates)].tolist())
            for choice, row in zip(space.choices, table, strict=True)
        },
        supernet=run.supernet,
    )


def judge_of(asked: Asked[Settings], supernet: Any) -> Judge:
    """What scores the candidates: the original's, merged, as students start; where these are not wanted, or not
    what the search began with, those of the supernet."""
    merges = asked.settings.merge and asked.settings.warm_start and isinstance(asked.source, Traced)
    return asked.judge if merges or supernet is None else replace(asked, source=supernet).judge


def _identity(asked: Asked[Settings]) -> dict[str, Any]:
    """What two searches must share for one to go on where the other stopped. The weights of a ready-made supernet do
    not count: they are trained, and the checkpoint has them."""
    known = asked.identity(settings=json.dumps(asdict(asked.settings)))
    return known if isinstance(asked.source, Traced) else {**known, "weights": None}
