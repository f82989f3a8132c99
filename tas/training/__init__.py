"""Training and evaluation of one network: plain loops over a plan that is a value.

Everything random in an epoch follows from the caller's generator, so a training that was interrupted and resumed gives
the same weights as one that was not.
"""

from tas.training.evaluation import call, evaluate
from tas.training.loop import Loss, Progress, full_precision, objective_loss, train, training_split
from tas.training.plan import TrainingPlan, learning_rate, optimizer_for, require_trainable

__all__ = [
    "Loss",
    "Progress",
    "TrainingPlan",
    "call",
    "evaluate",
    "full_precision",
    "learning_rate",
    "objective_loss",
    "optimizer_for",
    "require_trainable",
    "train",
    "training_split",
]
