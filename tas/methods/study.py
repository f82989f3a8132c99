"""The study behind `tas.methods.optuna_study`: storage, warm start, trials, and the result read from its trials.

One trial is one architecture, a parameter a choice: the index of its candidate. What a trial found is kept in its user
attribute "score", so that any process can go on from the storage alone.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

import optuna
import torch
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from tas import cost
from tas.data import Data, as_data
from tas.errors import BadRecipe
from tas.methods.baselines import uniform
from tas.methods.result import Row, SearchResult
from tas.methods.study_setup import Asked, opened
from tas.sampling import project, sample_many
from tas.scoring import Judge, Score, judge, judged, ranked
from tas.space import Architecture, SearchSpace

_IDLE = 64  # proposals in a row without a new architecture before the space counts as exhausted
_HELP = 8  # after so many of them, one drawn in the budget's band is proposed
_STALE = 3600.0  # seconds after which a running trial is taken for that of a killed process


def run(asked: Asked) -> SearchResult:
    """Take part in the study until it has its candidates, and read the result from it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # a line a trial is the caller's to print
    data = as_data(asked.data)
    study, new = opened(asked, data)
    if new:
        _warm_start(asked, study)
    settings, idle = asked.settings, 0
    chosen: Judge | None = None
    while idle < _IDLE and len(scored(asked.space, study)) < settings.candidates:
        if idle % _HELP == _HELP - 1:
            _enqueue(asked, study, sample_many(asked.space, _generator(asked, study), 1, asked.budget)[0].tolist())
        trial = study.ask(_distributions(asked.space))
        try:
            architecture = _claimed(asked, study, trial)
            idle = idle + 1 if architecture is None else 0
            if architecture is not None:
                chosen = chosen or _judge(asked, data)
                _tell(asked, study, trial, judged(chosen, architecture, raw=settings.raw)[0])
        except BaseException:
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            raise
    return _result(asked, study)


def _judge(asked: Asked, data: Data) -> Judge:
    return judge(
        asked.source,
        data,
        objective=asked.objective,
        calibration_images=asked.settings.calibration_images,
        images=asked.settings.images,
        seed=asked.seed,
        device=asked.device,
    )


def _warm_start(asked: Asked, study: optuna.Study) -> None:
    """Enqueue what the settings name, uniform widths first."""
    space, settings = asked.space, asked.settings
    first = [uniform(space, asked.budget)] if settings.with_uniform else []
    for given in settings.warm_start:
        try:
            first.append(space.architecture(_projected(asked, list(space.indices(given)))))
        except ValueError as problem:
            raise BadRecipe(f"search.warm_start: {problem}") from problem
    drawn = sample_many(space, torch.Generator().manual_seed(asked.seed), settings.startup, asked.budget)
    for architecture in dict.fromkeys([*first, *(space.architecture(row) for row in drawn.tolist())]):
        _enqueue(asked, study, list(space.indices(architecture)))


def _projected(asked: Asked, indices: list[int]) -> list[int]:
    """The architecture itself where it meets the budget, else one just below it by random single steps."""
    rows = torch.tensor([indices])
    if bool(cost.feasible(asked.space, rows, asked.budget)):
        return indices
    return project(asked.space, rows, asked.budget, torch.Generator().manual_seed(asked.seed))[0].tolist()


def _enqueue(asked: Asked, study: optuna.Study, indices: list[int]) -> None:
    study.enqueue_trial(dict(zip(_distributions(asked.space), indices, strict=True)))


def _distributions(space: SearchSpace) -> dict[str, Any]:
    return {choice.name: IntDistribution(0, len(choice.candidates) - 1) for choice in space.choices}


def _generator(asked: Asked, study: optuna.Study) -> torch.Generator:
    return torch.Generator().manual_seed(asked.seed * 1_000_003 + len(study.get_trials(deepcopy=False)))


def _claimed(asked: Asked, study: optuna.Study, trial: Trial) -> Architecture | None:
    """The trial's architecture, if it meets the budget and nobody has scored or claimed it; else the trial is over.

    The claim is written before the others' are read: of two processes with the same architecture at least one sees the
    other's claim. (Both may, and both give up; then it can be proposed again.)
    """
    indices = [trial.params[choice.name] for choice in asked.space.choices]
    row, excess = torch.tensor(indices), []
    for measure, limit in asked.budget.limits:
        excess.append(float(cost.count(asked.space, row, measure)) / (limit + 0.5) - 1)  # see `cost.feasible`
        trial.set_constraint(measure, excess[-1])
    if any(part > 0 for part in excess):
        study.tell(trial, state=TrialState.PRUNED)
        _enqueue(asked, study, _projected(asked, indices))
        return None
    trial.set_user_attr("claimed", time.time())
    for other in study.get_trials(deepcopy=False):
        if other.number != trial.number and other.params == trial.params and _counts(other):
            trial.set_user_attr("duplicate of", other.number)
            study.tell(trial, state=TrialState.FAIL)
            return None
    return asked.space.architecture(indices)


def _counts(trial: FrozenTrial) -> bool:
    """Whether a trial has scored its architecture, or is at it."""
    if "score" in trial.user_attrs:
        return True
    running = trial.state == TrialState.RUNNING
    return running and time.time() - trial.user_attrs.get("claimed", 0.0) < _STALE


def _tell(asked: Asked, study: optuna.Study, trial: Trial, score: Score) -> None:
    """Store the score, then the state: a trial with a score is complete, or its score is no number."""
    facts = {name: value for name, value in asdict(score).items() if name != "architecture"}
    trial.set_user_attr("score", facts)
    trial.set_user_attr("architecture", dict(score.architecture))  # for people: the parameters are indices
    if score.valid:
        row = torch.tensor(asked.space.indices(score.architecture))
        costs = [float(cost.count(asked.space, row, measure)) for measure in asked.settings.measures]
        study.tell(trial, [score.recalibrated, *costs])
    else:
        study.tell(trial, state=TrialState.FAIL)
    if asked.on_row:
        asked.on_row(_course(asked, scored(asked.space, study))[-1])


def scored(space: SearchSpace, study: optuna.Study) -> list[Score]:
    """Every score of a study, in the order of its trials."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        if "score" in trial.user_attrs and trial.state.is_finished():
            architecture = space.architecture([trial.params[choice.name] for choice in space.choices])
            found.append(Score(architecture, **trial.user_attrs["score"]))
    return found


def _course(asked: Asked, scores: list[Score]) -> tuple[Row, ...]:
    rows: list[Row] = []
    steps, lost = max(asked.settings.candidates, len(scores)), 0
    for step, each in enumerate(scores, 1):
        lost += not each.valid
        row = {"step": step, "steps": steps, "recalibrated": each.recalibrated, "loss": each.loss}
        rows.append({**row, "raw": each.raw, "images": each.images, "lost": lost})
    return tuple(rows)


def _result(asked: Asked, study: optuna.Study) -> SearchResult:
    scores = scored(asked.space, study)
    best = ranked(scores, asked.objective)
    return SearchResult(best[0].architecture, tuple(best), _course(asked, scores))
