"""How to train, as a value; the learning rate at a step and the optimiser that follow from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn

from tas.errors import BadNetwork, require_rules


@dataclass(frozen=True)
class TrainingPlan:
    """How to train. The TAS paper trains its CIFAR networks like this, but for 300 epochs, batch 256, 5 warm-up epochs.

    epochs, batch: passes over the training images, and images a step. lr: highest learning rate; linear warm-up over
    `warmup_epochs` (may be a fraction), then cosine to 0, both per step. optimizer: "sgd" with `momentum` (`nesterov`
    or plain), or "adamw". weight_decay: of all weights; decay_norms: whether it also applies to norms and biases
    (every parameter of one dimension), as in TAS.
    label_smoothing: of cross-entropy, in [0, 1). mixup, cutmix: blend every input with another of its batch
    (`tas.mixing`), by a share from Beta(a, a) with a this number; 0: not; with both, a coin decides for each batch.
    clip: largest norm of all gradients together. ema: decay per step of an exponential moving average of weights and
    buffers, which the network is given at the end. dtype: "bfloat16" runs the forward under autocast; weights stay as
    they are. channels_last: the layout of pictures and convolutions. compile: the forward goes through `torch.compile`.
    section: what messages put before the name of a field; a recipe has several plans, and so a subclass for each.
    """

    section: ClassVar[str] = ""

    epochs: int = 30
    batch: int = 128
    lr: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    decay_norms: bool = True
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    clip: float | None = None
    ema: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        rules = {
            "epochs must be at least 1": self.epochs >= 1,
            "batch must be at least 1": self.batch >= 1,
            "lr must be above 0": self.lr > 0,
            "optimizer must be 'sgd' or 'adamw'": self.optimizer in ("sgd", "adamw"),
            "momentum must be in [0, 1)": 0 <= self.momentum < 1,
            "weight_decay must be at least 0": self.weight_decay >= 0,
            f"warmup_epochs must be in [0, epochs = {self.epochs})": 0 <= self.warmup_epochs < self.epochs,
            "label_smoothing must be in [0, 1)": 0 <= self.label_smoothing < 1,
            "mixup must be at least 0": self.mixup >= 0,
            "cutmix must be at least 0": self.cutmix >= 0,
            "clip must be above 0": self.clip is None or self.clip > 0,
            "ema must be in (0, 1)": self.ema is None or 0 < self.ema < 1,
            "dtype must be 'float32' or 'bfloat16'": self.dtype in ("float32", "bfloat16"),
        }
        require_rules(self, rules, self.section)


def learning_rate(plan: TrainingPlan, step: int, steps: int) -> float:
    """The rate of the 0-based `step`, counted over all epochs of `steps` steps each."""
    warmup = plan.warmup_epochs * steps
    if step + 1 <= warmup:
        return plan.lr * (step + 1) / warmup
    done = max(0.0, step - warmup) / (plan.epochs * steps - warmup)
    return plan.lr * 0.5 * (1 + math.cos(math.pi * done))


def require_trainable(network: nn.Module) -> None:
    """`BadNetwork` where nothing of a network can be trained."""
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise BadNetwork(
            "a network is trained here, and no parameter of it requires gradients: where it is made, call "
            ".requires_grad_(True) on it, or on the parts that are to be trained"
        )


def optimizer_for(network: nn.Module, plan: TrainingPlan) -> torch.optim.Optimizer:
    """SGD or AdamW over the trainable parameters of `network`, those without weight decay in a group of their own;
    `BadNetwork` where it has none."""
    require_trainable(network)
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trainable if plan.decay_norms or parameter.dim() > 1]
    exempt = [parameter for parameter in trainable if not plan.decay_norms and parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": plan.weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(groups, plan.lr)
    return torch.optim.SGD(groups, plan.lr, plan.momentum, nesterov=plan.nesterov and plan.momentum > 0)
