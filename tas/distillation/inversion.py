"""Images from a network's own batch norms: DeepInversion and Adaptive DeepInversion (Yin et al. 2020).

Starting from noise, pixels descend on the cross-entropy of the network towards chosen classes, while what enters its
batch norms has to have the means and variances that their running statistics remember of the real images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from tas.calibration import batch_norms, modes_restored
from tas.errors import BadNetwork, require_rules
from tas.objectives import cross_entropy
from tas.tracing.undoing import hooked

OnStep = Callable[[int, float], None]  # (steps done, loss)
_BETAS = (0.5, 0.9)  # of Adam, as the paper's ImageNet setting
_WARMUP = 0.05  # part of the steps: 100 of 2,000 there
_TEMPERATURE = 3.0  # of the competition's probabilities


@dataclass(frozen=True)
class Settings:
    """How images are made. The paper takes for CIFAR-10 batch 256, steps 2000, lr 0.05, statistics 10; for ImageNet
    batch 152, coarse_steps 2000, steps 1000, lr 0.25, statistics 0.01, variation 1e-4, l2 1e-5, jitter 30, flip. In
    fewer steps, a large weight of the statistics leaves no room for the classes: both should be looked at.

    images: how many, as many of each class. batch: made together; their statistics are matched together, so fewer than
    a few a class do not look like the data. steps: of Adam on the pixels, at full resolution; coarse_steps: before
    them, on images of half of the side. lr: highest rate; linear warm-up, then cosine to 0. statistics: weight of the
    distance to the running statistics; first_statistics: a further factor for the first batch norm. variation,
    variation_l1: weights of the total variation, by norm and by mean. l2: of the norm of an image. competition: of the
    disagreement with a student, where one is given. jitter: each step sees the images shifted by up to so many pixels;
    flip: and half of the steps mirrored.
    """

    section: ClassVar[str] = ""  # what messages put before the name of a field, as in `TrainingPlan`
    images: int = 2000
    batch: int = 200
    steps: int = 400
    coarse_steps: int = 0
    lr: float = 0.1
    statistics: float = 0.1
    first_statistics: float = 10.0
    variation: float = 2.5e-5
    variation_l1: float = 0.0
    l2: float = 0.0
    competition: float = 2.0
    jitter: int = 2
    flip: bool = False

    def __post_init__(self) -> None:
        weights = ("statistics", "first_statistics", "variation", "variation_l1", "l2", "competition")
        rules = {
            "images must be at least 2": self.images >= 2,
            "batch must be at least 2": self.batch >= 2,
            "steps must be at least 1": self.steps >= 1,
            "coarse_steps must be at least 0": self.coarse_steps >= 0,
            "lr must be above 0": 0 < self.lr < math.inf,
            "jitter must be at least 0": self.jitter >= 0,
            **{f"{name} must be at least 0": 0 <= getattr(self, name) < math.inf for name in weights},
        }
        require_rules(self, rules, self.section)


def require_batch_norm(network: nn.Module) -> None:
    """`BadNetwork` where there are no running statistics to make images from."""
    if not batch_norms(network):
        raise BadNetwork(
            "images are made from the running statistics of batch norms, this network has none (layer and group norms "
            "keep no statistics of the data): train with real images"
        )


def invert(
    network: nn.Module,
    start: Tensor,
    targets: Tensor,
    bounds: tuple[Tensor, Tensor],
    settings: Settings,
    generator: torch.Generator,
    student: nn.Module | None = None,
    on_step: OnStep | None = None,
) -> Tensor:
    """The images [batch, channels, height, width] that `start` becomes, for targets int64 [batch], all on one device.

    bounds: lowest and highest value of a pixel, each [channels, 1, 1]; images are clipped to them after every step.
    student: images on which it differs from `network` are sought as well (Adaptive DeepInversion). Both run in eval
    mode and are the same, bit for bit, afterwards. `generator`, of the CPU, draws shifts and flips. `BadNetwork` where
    there is no batch norm, outputs are no logits [batch, classes], or the loss stops being a number.
    """
    require_batch_norm(network)
    pixels, done = start.detach().clone().requires_grad_(), 0
    together = settings.coarse_steps + settings.steps
    with modes_restored(network), ExitStack() as stack:
        network.eval()
        if student is not None:
            stack.enter_context(modes_restored(student))
            student.eval()
        for steps, coarse in ((settings.coarse_steps, 2), (settings.steps, 1)):
            optimizer = torch.optim.Adam([pixels], settings.lr, betas=_BETAS)
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = settings.lr * _rate(step, steps)
                seen = _moved(functional.avg_pool2d(pixels, coarse), settings, settings.jitter // coarse, generator)
                value = loss(network, seen, targets, settings, student)
                (pixels.grad,) = torch.autograd.grad(value, [pixels])  # of the pixels alone: weights need none
                optimizer.step()
                with torch.no_grad():
                    torch.clamp(pixels, *bounds, out=pixels)
                done += 1
                if on_step is not None and (done % 10 == 0 or done == together):
                    on_step(done, float(value.detach()))
    if not pixels.isfinite().all():
        raise BadNetwork("the loss of the images is no number any more: does the network give numbers? Else lower lr")
    return pixels.detach()


def loss(
    network: nn.Module, images: Tensor, targets: Tensor, settings: Settings, student: nn.Module | None = None
) -> Tensor:
    """What the pixels descend on (eq. 2, 4, 6, 8): cross-entropy, image priors, statistics and, with a student, 1 - JS.

    The mean over the batch where it is one over images; distances of statistics and total variation are of the batch.
    """
    with statistics_distances(network) as distances:
        logits = network(images)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        raise BadNetwork("images are made for networks with logits [batch, classes], this one returns something else")
    first, *rest = distances
    value = cross_entropy(logits, targets)
    value = value + settings.statistics * (settings.first_statistics * first + sum(rest))
    if settings.variation or settings.variation_l1:
        norm, mean = total_variation(images)
        value = value + settings.variation * norm + settings.variation_l1 * mean
    if settings.l2:
        value = value + settings.l2 * images.flatten(1).norm(dim=1).mean()
    if student is not None and settings.competition:
        value = value + settings.competition * (1 - divergence(logits, student(images)).clamp(0, 1))
    return value


@contextmanager
def statistics_distances(network: nn.Module) -> Iterator[list[Tensor]]:
    """A list to which every call of a batch norm inside adds ||mean - running mean|| + ||var - running var|| (eq. 4),
    of what enters it: norms over channels, the biased variance over all other dimensions. Scalars, with gradients."""
    found: list[Tensor] = []

    def note(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        entering = arguments[0]
        others = [dim for dim in range(entering.dim()) if dim != 1]
        variance, mean = torch.var_mean(entering, others, correction=0)
        found.append((mean - norm.running_mean).norm() + (variance - norm.running_var).norm())  # type: ignore[operator]

    with hooked(norm.register_forward_pre_hook(note) for norm in batch_norms(network)):
        yield found


def total_variation(images: Tensor) -> tuple[Tensor, Tensor]:
    """Of the differences between neighbours, right, below and on both diagonals: the sum of their norms over the whole
    batch, and the sum of their mean absolute values."""
    above, below = images[..., :-1, :], images[..., 1:, :]
    differences = (
        images[..., :-1] - images[..., 1:],
        above - below,
        above[..., :-1] - below[..., 1:],
        above[..., 1:] - below[..., :-1],
    )
    norms = [difference.norm() for difference in differences]
    return torch.stack(norms).sum(), torch.stack([difference.abs().mean() for difference in differences]).sum()


def divergence(one: Tensor, other: Tensor, temperature: float = _TEMPERATURE) -> Tensor:
    """Jensen-Shannon between softmax(logits / T), mean over the batch: 0 where equal, log 2 where disjoint.

    (KL(P || M) + KL(Q || M)) / 2 with M = (P + Q) / 2, as the paper writes it.
    """
    logs = [functional.log_softmax(logits / temperature, dim=1) for logits in (one, other)]
    middle = torch.logaddexp(*logs) - math.log(2)
    parts = [functional.kl_div(middle, log, reduction="batchmean", log_target=True) for log in logs]
    return (parts[0] + parts[1]) / 2


def bounds_of(mean: Sequence[float], std: Sequence[float], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Black and white, normalised, each [channels, 1, 1]."""
    means, stds = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (mean, std))
    return -means / stds, (1 - means) / stds


def _rate(step: int, steps: int) -> float:
    """Part of the highest rate at the 0-based `step`: linear warm-up, then cosine to 0."""
    warmup = int(_WARMUP * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _moved(images: Tensor, settings: Settings, jitter: int, generator: torch.Generator) -> Tensor:
    """Shifted in a circle, all by the same, and mirrored every other time."""
    shift = torch.randint(-jitter, jitter + 1, (2,), generator=generator).tolist()
    moved = images.roll(shift, dims=(2, 3))
    mirrored = settings.flip and bool(torch.rand((), generator=generator) < 0.5)
    return moved.flip(3) if mirrored else moved
