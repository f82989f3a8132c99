"""The study behind `tas.methods.optuna_study`: storage, warm start, trials, and the result read from its trials.

One trial is one architecture, a parameter a choice: the index of its candidate. What a trial found is kept in its user
attribute "score", so that any process can go on from the storage alone.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import optuna
import torch
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, Trial, TrialState

from tas import cost
from tas.data import examples_in
from tas.errors import BadRecipe
from tas.extraction import extract
from tas.methods.asked import Asked
from tas.methods.baselines import uniform
from tas.methods.claims import claimed, take_part
from tas.methods.optuna_study import Settings, stored, warm_starts
from tas.methods.result import Row, SearchResult
from tas.methods.storages import kept
from tas.methods.study_setup import opened
from tas.sampling import project, sample_many
from tas.scoring import Score, judged, ranked, require_sound, scored_on
from tas.space import Architecture, SearchSpace
from tas.timing import interleaved


def run(asked: Asked[Settings]) -> SearchResult:
    """Take part in the study until it has its candidates, and read the result from it."""
    settings, space = asked.settings, asked.space
    with kept(stored(asked)) as storage:
        measures = list(settings.measures)
        study, new = opened(asked, storage, {"measures": measures, "merge": settings.merge}, measures)
        if new:
            _warm_start(asked, study)

        def wanted() -> bool:
            return len(scored(space, study)) < settings.candidates

        def work(trial: Trial) -> bool:
            architecture = _proposed(asked, study, trial)
            if architecture is None or not claimed(study, trial, settings.stale_after):
                return False
            _tell(asked, study, trial, judged(asked.judge, architecture, raw=settings.raw)[0])
            return True

        def stuck() -> None:
            _enqueue(asked, study, sample_many(space, _generator(asked, study), 1, asked.budget)[0].tolist())

        take_part(study, _distributions(space), settings.stale_after, wanted, work, stuck)
        return _result(asked, study)


def _warm_start(asked: Asked[Settings], study: optuna.Study) -> None:
    """Enqueue what the settings name, uniform widths first."""
    space, settings = asked.space, asked.settings
    first = [uniform(space, asked.budget)] if settings.with_uniform else []
    for given in warm_starts(settings):
        try:
            first.append(space.architecture(_projected(asked, list(space.indices(given)))))
        except ValueError as problem:
            raise BadRecipe(f"search.warm_start: {problem}") from problem
    drawn = sample_many(space, torch.Generator().manual_seed(asked.seed), settings.startup, asked.budget)
    for architecture in dict.fromkeys([*first, *(space.architecture(row) for row in drawn.tolist())]):
        _enqueue(asked, study, list(space.indices(architecture)))


def _projected(asked: Asked[Settings], indices: list[int]) -> list[int]:
    """The architecture itself where it meets the budget, else one just below it by random single steps."""
    rows = torch.tensor([indices])
    if bool(cost.feasible(asked.space, rows, asked.budget)):
        return indices
    return project(asked.space, rows, asked.budget, torch.Generator().manual_seed(asked.seed))[0].tolist()


def _enqueue(asked: Asked[Settings], study: optuna.Study, indices: list[int]) -> None:
    study.enqueue_trial(dict(zip(_distributions(asked.space), indices, strict=True)))


def _distributions(space: SearchSpace) -> dict[str, Any]:
    return {choice.name: IntDistribution(0, len(choice.candidates) - 1) for choice in space.choices}


def _generator(asked: Asked[Settings], study: optuna.Study) -> torch.Generator:
    return torch.Generator().manual_seed(asked.seed * 1_000_003 + len(study.get_trials(deepcopy=False)))


def _proposed(asked: Asked[Settings], study: optuna.Study, trial: Trial) -> Architecture | None:
    """The trial's architecture if it meets the budget; else the trial is over, and its projection is to be the next."""
    indices = [trial.params[choice.name] for choice in asked.space.choices]
    row, excess = torch.tensor(indices), []
    for measure, limit in asked.budget.limits:
        excess.append(float(cost.count(asked.space, row, measure)) / (limit + cost.tolerance(measure)) - 1)
        trial.set_constraint(measure, excess[-1])
    if any(part > 0 for part in excess):
        _enqueue(asked, study, _projected(asked, indices))
        study.tell(trial, state=TrialState.PRUNED)
        return None
    return asked.space.architecture(indices)


def _tell(asked: Asked[Settings], study: optuna.Study, trial: Trial, score: Score) -> None:
    """Store the score, then the state: a trial with a score is complete, or its score is no number."""
    facts = {name: value for name, value in asdict(score).items() if name != "architecture"}
    measured = _measured(asked, score.architecture)
    trial.set_user_attr("measured", measured)
    trial.set_user_attr("architecture", dict(score.architecture))  # for people: the parameters are indices
    if score.valid:
        trial.set_user_attr("values", [score.recalibrated, *measured.values()])
    trial.set_user_attr("score", facts)
    if score.valid:
        study.tell(trial, [score.recalibrated, *measured.values()])
    else:
        study.tell(trial, state=TrialState.FAIL)
        require_sound(asked.judge)
    if asked.on_row:
        asked.on_row(_course(asked, study)[-1])


def _measured(asked: Asked[Settings], architecture: Architecture) -> dict[str, float]:
    """What an architecture costs by each of the settings' measures."""
    row = torch.tensor(asked.space.indices(architecture))
    found: dict[str, float] = {}
    for measure in asked.settings.measures:
        latency = measure == "latency"
        found[measure] = _latency(asked, architecture) if latency else float(cost.count(asked.space, row, measure))
    return found


def _latency(asked: Asked[Settings], architecture: Architecture) -> float:
    """Median latency as a part of that of the largest architecture, both in turns: what slows the machine, such as
    other processes of the study, slows both."""
    settings = asked.settings
    size = settings.latency_batch
    inputs, targets = next(scored_on(asked.data, size, asked.seed).batches(size, device=asked.device))
    if examples_in(targets) < size:
        raise BadRecipe(
            f"search.latency_batch needs so many held-out training images in one batch, got {size} of which there are "
            f"{examples_in(targets)}"
        )
    networks = [extract(asked.source, each) for each in (architecture, asked.space.largest())]
    mine, largest = interleaved(networks, inputs, asked.device, settings.latency_repeats)
    return mine.median / largest.median


def scored(space: SearchSpace, study: optuna.Study) -> list[Score]:
    """Every score of a study, in the order of its trials."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        if _has_score(trial):
            architecture = space.architecture([trial.params[choice.name] for choice in space.choices])
            found.append(Score(architecture, **trial.user_attrs["score"]))
    return found


def _has_score(trial: FrozenTrial) -> bool:
    return "score" in trial.user_attrs and trial.state.is_finished()


def _course(asked: Asked[Settings], study: optuna.Study) -> tuple[Row, ...]:
    """A row a score, in the order of the trials."""
    rows: list[Row] = []
    done = [trial for trial in study.get_trials(deepcopy=False) if _has_score(trial)]
    steps, lost = max(asked.settings.candidates, len(done)), 0
    for step, (trial, each) in enumerate(zip(done, scored(asked.space, study), strict=False), 1):
        lost += not each.valid
        row = {"step": step, "steps": steps, "recalibrated": each.recalibrated, "loss": each.loss}
        rows.append({**row, "raw": each.raw, "images": each.images, "lost": lost, **trial.user_attrs["measured"]})
        rows[-1]["architecture"] = dict(each.architecture)
    return tuple(rows)


def _result(asked: Asked[Settings], study: optuna.Study) -> SearchResult:
    best = ranked(scored(asked.space, study), asked.objective)
    return SearchResult(best[0].architecture, tuple(best), _course(asked, study))
