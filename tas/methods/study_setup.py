"""Opening a study: what tells it from other studies, and who proposes its trials."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tas.errors import BadRecipe
from tas.methods import optuna_study, tuned
from tas.methods.asked import Asked, differing
from tas.methods.optuna_study import stored
from tas.methods.storages import opening, shown

S = TypeVar("S", optuna_study.Settings, tuned.Settings)


def opened(
    asked: Asked[S],
    storage: BaseStorage | None,
    more: Mapping[str, Any],
    measures: Sequence[str] = (),
    pruner: BasePruner | None = None,
) -> tuple[optuna.Study, bool]:
    """The study of the settings' name, and whether it is new. BadRecipe where its storage cannot be used, or it is one
    of another search. more: what else two searches must share to be one study; sampler, pruner and number of trials may
    change on the way. measures: what is minimised beside the objective."""
    images = [asked.settings.images, asked.settings.calibration_images]
    identity = asked.identity(images=images, **more)
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line a trial is the caller's to print
    best = StudyDirection.MAXIMIZE if asked.objective.higher_is_better else StudyDirection.MINIMIZE
    with opening(stored(asked)):
        study = optuna.create_study(
            storage=storage,
            sampler=Reseeded(asked.settings, asked.seed),
            pruner=pruner,
            study_name=asked.settings.study,
            directions=[best, *(StudyDirection.MINIMIZE for _ in measures)],
            load_if_exists=True,
        )
        # In this order: a process that is about to enqueue trials has written the identity before.
        trials, known = study.get_trials(deepcopy=False), study.user_attrs.get("identity")
        if known is None and not trials:
            study.set_user_attr("identity", identity)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names([asked.objective.name, *measures])  # for people, in the dashboard
            return study, True
    if changed := differing(identity, known):
        raise BadRecipe(
            f"the study {asked.settings.study!r} in {shown(stored(asked))} must be of this search, but {changed} "
            "differ: choose another search.study or search.storage"
        )
    return study, False


class Reseeded(BaseSampler):
    """The sampler of the settings, made anew for every trial with a seed from the trial's number: a study that is gone
    on with proposes what it would have proposed, and no two processes draw the same numbers."""

    def __init__(self, settings: optuna_study.Settings | tuned.Settings, seed: int) -> None:
        self._settings, self._seed = settings, seed
        self._now = self._made(0)

    def _made(self, number: int) -> BaseSampler:
        settings, seed = self._settings, (self._seed * 1_000_003 + number) % 2**32
        match settings.sampler:
            case "tpe":
                return TPESampler(seed=seed, n_startup_trials=settings.startup)
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=max(4, min(50, settings.asked // 4)))
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
