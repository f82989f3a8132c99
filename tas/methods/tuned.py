"""The search by gradient, its hyper-parameters tuned: an Optuna study of which every trial is a whole short search.

A trial reports, after every epoch, the adaptive batch-norm score of the most probable architecture that meets the
budget, and a pruner ends the searches that lag behind. At its end its candidates are scored as in `differentiable`,
never with the weights of its own supernet: a score compares architectures only under equal weights (and images), and a
higher learning rate or more epochs would raise a supernet's without making a better architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from tas.errors import BadRecipe, least, require_rules
from tas.methods import bilevel
from tas.methods.asked import Asked
from tas.methods.optuna_study import Sampler, check_study, known
from tas.methods.result import SearchResult
from tas.sampling import require_feasible

Pruner = Literal["median", "hyperband", "none"]

WHOLE = ("epochs", "batch", "mixed")
_TUNABLE = (
    *WHOLE,
    *("weight_lr", "momentum", "weight_decay", "architecture_lr", "architecture_decay"),
    *("penalty_weight", "temperature_start", "temperature_end"),
)


def _ranges() -> dict[str, tuple[float, float]]:
    return {
        "epochs": (3, 10),
        "penalty_weight": (0.5, 8.0),
        "temperature_start": (1.0, 10.0),
        "weight_lr": (0.002, 0.1),
        "architecture_lr": (0.002, 0.1),
    }


@dataclass(frozen=True)
class Settings(bilevel.Settings):
    """How to search: the fields of `differentiable`, which hold in every trial where `ranges` does not name them, and

    trials: searches, by all processes of the study together; pruned ones count.
    ranges: the lowest and highest value of what is tuned: epochs, batch, mixed (whole numbers), weight_lr, momentum,
      weight_decay, architecture_lr, architecture_decay, penalty_weight, temperature_start, temperature_end (drawn by
      their logarithms). The first trial has the settings' own values of those that lie in their range.
    pruner: which searches end early: "median" those below the median of the others at the same epoch, "hyperband"
      (Li et al. 2018) by successive halving over epochs, "none". Searches of few epochs anneal faster, and so look
      better in their early epochs than long ones.
    startup: trials before the sampler proposes and the median pruner ends any.
    sampler, storage, study, stale_after: see `optuna_study`.
    candidates: architectures scored at the end of a trial; the best is its value.
    images, calibration_images: of every score of every trial, the same ones.
    """

    epochs: int = 5
    trials: int = 20
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=_ranges)
    pruner: Pruner = "median"
    sampler: Sampler = "tpe"
    startup: int = 5
    storage: str | None = None
    study: str = "tas"
    stale_after: float = 60.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_rules(self, least(self, trials=1), "search.")
        check_study(self)
        known("search.pruner", self.pruner, get_args(Pruner))
        if not self.ranges:
            raise BadRecipe("search.ranges names what is to be tuned, got nothing: use the method differentiable")
        for name, (low, high) in self.ranges.items():
            known("search.ranges", name, _TUNABLE)
            if not 0 < low <= high:
                raise BadRecipe(f"search.ranges.{name} is [low, high] with 0 < low <= high, got [{low}, {high}]")
            if name in WHOLE and not (float(low).is_integer() and float(high).is_integer()):
                raise BadRecipe(f"search.ranges.{name} is of whole numbers, got [{low}, {high}]")
            for value in (low, high):
                self.trial({name: value})

    @property
    def asked(self) -> int:
        """How many trials the study is to have."""
        return self.trials

    def trial(self, drawn: Mapping[str, float]) -> bilevel.Settings:
        """The search of a trial. BadRecipe where a value is none that a search takes."""
        own = {item.name: getattr(self, item.name) for item in fields(bilevel.Settings)}
        return bilevel.Settings(**{**own, **{k: int(v) if k in WHOLE else float(v) for k, v in drawn.items()}})


def search(asked: Asked[Settings]) -> SearchResult:
    """The best architecture that `settings.trials` searches come upon, and with which hyper-parameters.

    All trials have the same seed, halves and images, so that they differ in hyper-parameters alone; no test image is
    used. Whatever was scored in any trial, pruned ones too, is a candidate of the result. The weights of the source are
    those that every score uses, and every search starts from with `warm_start`. `on_row` is told of every trial that
    ends: step of steps, its best score, the epoch that it reached, whether it was pruned, its hyper-parameters.

    An interrupted trial is taken up again with the same hyper-parameters, with a checkpoint from its last epoch (files
    beside it); the study lies in `settings.storage`. Raises `Infeasible`; BadRecipe for a storage that cannot be used,
    a study of another search, and where no trial gives a score.
    """
    require_feasible(asked.space, asked.budget)

    from tas.methods.tuning import run

    return run(asked)
