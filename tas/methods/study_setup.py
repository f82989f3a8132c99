"""Opening a study: where it is stored, what tells it from other studies, and who proposes its trials."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from tas.data import Data
from tas.data.tensors import digest
from tas.errors import BadRecipe
from tas.methods.optuna_study import Settings
from tas.methods.result import OnRow
from tas.objectives import Objective
from tas.space import Budget, SearchSpace
from tas.supernet import Supernet
from tas.tracing import Traced


@dataclass(frozen=True)
class Asked:
    """What a search was asked for."""

    source: Traced | Supernet
    data: Any
    budget: Budget
    settings: Settings
    objective: Objective
    seed: int
    device: torch.device | str
    storage: str | None
    on_row: OnRow | None

    @property
    def space(self) -> SearchSpace:
        return self.source.space


def opened(asked: Asked, data: Data) -> tuple[optuna.Study, bool]:
    """The study of the settings' name, and whether it is new. BadRecipe where its storage cannot be used, or it is one
    of another search."""
    identity = _identity(asked, data)
    best = StudyDirection.MAXIMIZE if asked.objective.higher_is_better else StudyDirection.MINIMIZE
    try:
        study = optuna.create_study(
            storage=_storage(asked.storage),
            sampler=Reseeded(asked.settings, asked.seed),
            study_name=asked.settings.study,
            directions=[best, *(StudyDirection.MINIMIZE for _ in asked.settings.measures)],
            load_if_exists=True,
        )
        # In this order: a process that is about to enqueue trials has written the identity before.
        trials, known = study.get_trials(deepcopy=False), study.user_attrs.get("identity")
        if known is None and not trials:
            study.set_user_attr("identity", identity)
            return study, True
    except (OSError, ImportError, SQLAlchemyError, optuna.exceptions.StorageInternalError) as problem:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise BadRecipe(f"the storage of a study must be reachable, {asked.storage} is not: {reason}") from problem
    differing = [name for name in identity if (known or {}).get(name) != identity[name]]
    if differing:
        raise BadRecipe(
            f"the study {asked.settings.study!r} in {asked.storage} must be of this search, but {differing} differ: "
            "choose another search.study or search.storage"
        )
    return study, False


def _identity(asked: Asked, data: Data) -> dict[str, Any]:
    """What two searches must share to be one study. Sampler and number of candidates may change on the way."""
    settings, source = asked.settings, asked.source
    weights = (source.network if isinstance(source, Traced) else source).state_dict()
    return {
        "space": digest([json.dumps(asked.space.to_dict()["choices"])]),
        "budget": json.dumps(asdict(asked.budget)),
        "data": data.digest,
        "weights": digest(weights.values()),
        "objective": [asked.objective.name, asked.objective.higher_is_better],
        "measures": list(settings.measures),
        "images": [settings.images, settings.calibration_images],
        "seed": asked.seed,
    }


def _storage(name: str | None) -> optuna.storages.BaseStorage | None:
    if name is None:
        return None
    if name.startswith("journal:"):
        path = Path(name.removeprefix("journal:"))
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    return optuna.storages.RDBStorage(name)


class Reseeded(BaseSampler):
    """The sampler of the settings, made anew for every trial with a seed from the trial's number: a study that is gone
    on with proposes what it would have proposed, and no two processes draw the same numbers."""

    def __init__(self, settings: Settings, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self._now = self._made(0)

    def _made(self, number: int) -> BaseSampler:
        settings, seed = self._settings, (self._seed * 1_000_003 + number) % 2**32
        match settings.sampler:
            case "tpe":
                return TPESampler(seed=seed, n_startup_trials=settings.startup)
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=max(4, min(50, settings.candidates // 4)))
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=settings.startup, deterministic_objective=False)
        return RandomSampler(seed=seed)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._now = self._made(trial.number)
        self._now.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return self._now.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return self._now.sample_relative(study, trial, search_space)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        return self._now.sample_independent(study, trial, name, distribution)

    def after_trial(self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Any) -> None:
        self._now.after_trial(study, trial, state, values)
