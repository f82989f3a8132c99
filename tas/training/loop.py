"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tas.augment import Augment
from tas.calibration import modes_restored
from tas.data import Split, as_data, map_tensors
from tas.errors import BadRecipe, Diverged
from tas.mixing import mixed, of_both
from tas.objectives import Objective, by_classes, cross_entropy
from tas.training import checkpoint as checkpoints
from tas.training.checkpoint import Run
from tas.training.evaluation import call, class_check
from tas.training.plan import TrainingPlan, learning_rate, optimizer_for

Loss = Callable[[Any, Any, Any], Tensor]  # (inputs, outputs, targets) -> scalar
_SECONDS_BETWEEN_REPORTS = 0.2  # reading the loss waits for the device, so not at every step
_STEPS_BETWEEN_CHECKS = 100  # that losses are numbers: for the same reason


@dataclass(frozen=True)
class Progress:
    """Where a training stands, for whoever shows it: epochs and steps count from 1, steps over all epochs."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float  # mean of the epoch so far
    lr: float
    seconds_left: float


def train(
    network: nn.Module,
    data: Any,
    plan: TrainingPlan,
    objective: Objective,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    loss: Loss | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
) -> list[dict[str, float]]:
    """Train `network` in place; one row {"epoch", "loss", "lr", "seconds"} an epoch, `loss` its mean over the epoch.

    data: `Data` (its training split, with its augmentation), a `Split`, or anything `as_data` takes.
    loss(inputs, outputs, targets) replaces the objective's, for example by a distillation loss; with `plan.mixup` or
    `plan.cutmix` its targets are `tas.mixing.Mixed`.
    progress: called at the start and the end of every epoch and a few times a second between.
    checkpoint: written whole after every epoch; a file that is there already is resumed from, and refused if it belongs
    to another plan or network. Ctrl-C leaves the one of the last finished epoch.

    Raises `Diverged` with the step where a loss is no number, at the end of an epoch also for a weight; the checkpoint
    is then that of the last epoch with numbers, and the network is given its weights.
    """
    device = torch.device(device)
    split, augment = training_split(data)
    network.to(device)
    _set_layout(network, plan.channels_last)
    run = Run(network, optimizer_for(network, plan), _average(network, plan), generator, [])
    if checkpoint is not None and checkpoint.exists():
        checkpoints.resume(run, plan, checkpoint)
    drop_last = len(split) >= plan.batch  # a last batch of one example would break batch norm
    clock = _Clock(plan, split.steps(plan.batch, drop_last), progress)
    step = _step_function(
        run, plan, objective_loss(objective, plan) if loss is None else loss, class_check(split, objective)
    )
    with modes_restored(network):
        network.train()
        while len(run.history) < plan.epochs:
            with _seeded(generator, device), _numbers(run, split, plan, checkpoint):
                batches = split.batches(plan.batch, generator, augment, drop_last, device)
                batches = mixed(batches, plan.mixup, plan.cutmix, generator)
                row = _epoch(step, batches, plan, clock, len(run.history))
                _require_weights(network, clock, row)
            run.history.append(row)
            if checkpoint is not None:
                checkpoints.write(run, plan, checkpoint)
    if run.average is not None:
        network.load_state_dict(run.average.module.state_dict())
    _set_layout(network, False)
    return run.history


def objective_loss(objective: Objective, plan: TrainingPlan) -> Loss:
    """The objective's loss as the loop wants it, label smoothing included."""
    loss = objective.loss
    if plan.label_smoothing:
        if not by_classes(loss):
            raise BadRecipe(
                f"{plan.section}label_smoothing applies to cross-entropy only, the objective's loss is {loss}; "
                "set it to 0"
            )
        loss = partial(cross_entropy, label_smoothing=plan.label_smoothing)
    return lambda inputs, outputs, targets: of_both(partial(loss, outputs), targets)


def _epoch(
    step: Callable[[Any, Any, float], Tensor],
    batches: Iterable[tuple[Any, Any]],
    plan: TrainingPlan,
    clock: _Clock,
    epoch: int,
) -> dict[str, float]:
    started, rate = time.monotonic(), 0.0
    total: Tensor | float = 0.0
    unread: list[Tensor] = []  # losses since the last check
    for index, (inputs, targets) in enumerate(batches):
        rate = learning_rate(plan, epoch * clock.steps + index, clock.steps)
        unread.append(step(inputs, targets, rate))
        total = total + unread[-1]
        clock.tell(epoch, index, total, rate)
        if len(unread) == _STEPS_BETWEEN_CHECKS or index + 1 == clock.steps:
            _require_numbers(unread, clock, epoch, index)
            unread.clear()
    return {"epoch": epoch + 1, "loss": float(total) / clock.steps, "lr": rate, "seconds": time.monotonic() - started}


def _require_numbers(losses: list[Tensor], clock: _Clock, epoch: int, index: int) -> None:
    """`Diverged` unless these are; the last one is that of the step `index` of the epoch."""
    wrong = (~torch.isfinite(torch.stack(losses))).nonzero()
    if len(wrong):
        raise Diverged(f"the loss is no number at {clock.place(epoch, index - len(losses) + 1 + int(wrong[0]))}")


def _require_weights(network: nn.Module, clock: _Clock, row: dict[str, float]) -> None:
    for name, parameter in network.named_parameters():
        if not torch.isfinite(parameter).all():
            place = clock.place(int(row["epoch"]) - 1, clock.steps - 1)
            raise Diverged(f"{name!r} holds something else than numbers after {place}")


@contextmanager
def _numbers(run: Run, split: Split, plan: TrainingPlan, checkpoint: Path | None) -> Iterator[None]:
    """Where the training inside diverges, go back to the last finished epoch and say how to go on: `BadData` where
    examples hold no numbers."""
    try:
        yield
    except Diverged as problem:
        kept = "no checkpoint was asked for, so the network's weights are of no use"
        if checkpoint is not None:
            kept = "no epoch was finished before"
            if checkpoint.exists():
                run.history.clear()
                checkpoints.resume(run, plan, checkpoint)
                kept = f"the network is as it was after epoch {len(run.history)}, which {checkpoint} holds"
        split.require_numbers()
        lower = f"Lower {plan.section}lr ({plan.lr:g}), or set {plan.section}clip (say 1.0) or a warm-up"
        raise Diverged(f"{problem}; {kept}. {lower}, and start anew") from None


def _step_function(
    run: Run, plan: TrainingPlan, loss: Loss, check: Callable[[Any, Any], None]
) -> Callable[[Any, Any, float], Tensor]:
    """One optimiser step on (inputs, targets) at a learning rate -> the loss, on the device."""
    forward = torch.compile(run.network) if plan.compile else run.network
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]

    def step(inputs: Any, targets: Any, rate: float) -> Tensor:
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        inputs = map_tensors(_channels_last, inputs) if plan.channels_last else inputs
        with torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=plan.dtype == "bfloat16"):
            outputs = map_tensors(full_precision, call(forward, inputs))
            check(outputs, targets)
            value = loss(inputs, outputs, targets)
        run.optimizer.zero_grad()
        value.backward()
        if plan.clip is not None:
            nn.utils.clip_grad_norm_(parameters, plan.clip)
        run.optimizer.step()
        if run.average is not None:
            run.average.update_parameters(run.network)
        return value.detach()

    return step


@dataclass
class _Clock:
    """Tells `progress` how far the training is, a few times a second."""

    plan: TrainingPlan
    steps: int  # in an epoch
    progress: Callable[[Progress], None] | None
    started: float = field(default_factory=time.monotonic)
    first: int | None = None  # the step, over all epochs, at which this process began
    last_report: float = float("-inf")

    def place(self, epoch: int, index: int) -> str:
        """A 0-based step of a 0-based epoch, for people."""
        plan, step = self.plan, epoch * self.steps + index
        rate = learning_rate(plan, step, self.steps)
        return f"step {step + 1} of {plan.epochs * self.steps} (epoch {epoch + 1} of {plan.epochs}, lr {rate:.3g})"

    def tell(self, epoch: int, index: int, total: Tensor | float, rate: float) -> None:
        now, step, end = time.monotonic(), epoch * self.steps + index, index + 1 == self.steps
        self.first = step if self.first is None else self.first
        if self.progress is None or not (end or index == 0 or now - self.last_report > _SECONDS_BETWEEN_REPORTS):
            return
        self.last_report = now
        epochs, all_steps = self.plan.epochs, self.plan.epochs * self.steps
        left = (now - self.started) / (step + 1 - self.first) * (all_steps - step - 1)
        self.progress(Progress(epoch + 1, epochs, step + 1, all_steps, float(total) / (index + 1), rate, left))


def training_split(data: Any) -> tuple[Split, Augment | None]:
    """What `data` is trained on, and how it is augmented."""
    if isinstance(data, Split):
        return data, None
    found = as_data(data)
    return found.train, found.augment


def _average(network: nn.Module, plan: TrainingPlan) -> AveragedModel | None:
    if plan.ema is None:
        return None
    return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(plan.ema), use_buffers=True)


@contextmanager
def _seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Torch's global randomness (dropout, a Dataset's transforms) follows from `generator` inside, and is restored."""
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _set_layout(network: nn.Module, channels_last: bool) -> None:
    network.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def full_precision(tensor: Tensor) -> Tensor:
    """Losses are computed in float32 after a forward in half precision."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
