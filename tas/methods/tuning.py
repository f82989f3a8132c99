"""The study behind `tas.methods.tuned`: its trials, and the result read from them.

Optuna keeps of a trial its hyper-parameters, the metric after every epoch, and as user attributes the "scores" of its
architectures and the "probabilities" that it learned last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import torch
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, NopPruner
from optuna.trial import FrozenTrial, Trial, TrialState

from tas.data.tensors import digest
from tas.errors import BadRecipe, Diverged
from tas.methods import bilevel, differentiable
from tas.methods.asked import Asked
from tas.methods.claims import claimed, take_part
from tas.methods.learned import candidates, table_of
from tas.methods.optuna_study import stored
from tas.methods.result import Row, SearchResult, read_score, written
from tas.methods.storages import kept
from tas.methods.study_setup import opened
from tas.methods.tuned import WHOLE, Settings
from tas.sampling import most_probable_feasible
from tas.scoring import Judge, Score, judged, ranked
from tas.space import Architecture
from tas.tracing import Traced


def run(asked: Asked[Settings]) -> SearchResult:
    """Take part in the study until it has its trials, and read the result from it."""
    settings = asked.settings
    with kept(stored(asked)) as storage:
        study, new = opened(asked, storage, {"search": _identity(settings)}, pruner=_pruner(settings))
        if new:
            inside = {name: low <= getattr(settings, name) <= high for name, (low, high) in settings.ranges.items()}
            study.enqueue_trial({name: getattr(settings, name) for name in inside if inside[name]})

        def wanted() -> bool:
            return len(_ended(study)) < settings.trials

        def work(trial: Trial) -> bool:
            if not claimed(study, trial, settings.stale_after):
                return False
            _searched(_Tried(asked, study, trial, asked.judge))
            return True

        take_part(study, _distributions(settings), settings.stale_after, wanted, work)
        return _result(asked, study)


def _identity(settings: Settings) -> dict[str, Any]:
    """What may not change between trials: what is not tuned, and the ranges of what is."""
    fixed = {name: value for name, value in asdict(settings.trial({})).items() if name not in settings.ranges}
    return {**fixed, "architecture_betas": list(settings.architecture_betas), "ranges": _plain(settings.ranges)}


def _plain(ranges: Any) -> dict[str, list[float]]:
    return {name: [float(low), float(high)] for name, (low, high) in ranges.items()}


def _distributions(settings: Settings) -> dict[str, Any]:
    return {
        name: IntDistribution(int(low), int(high)) if name in WHOLE else FloatDistribution(low, high, log=True)
        for name, (low, high) in settings.ranges.items()
    }


def _pruner(settings: Settings) -> BasePruner:
    match settings.pruner:
        case "median":
            return MedianPruner(n_startup_trials=settings.startup)
        case "hyperband":
            most = int(settings.ranges.get("epochs", (0, settings.epochs))[1])
            return HyperbandPruner(min_resource=1, max_resource=most)
    return NopPruner()


@dataclass(frozen=True)
class _Tried:
    """A trial at work, with the scores that it has so far."""

    asked: Asked[Settings]
    study: optuna.Study
    trial: Trial
    judge: Judge
    scores: list[Score] = field(default_factory=list)

    def score(self, architectures: Iterable[Architecture]) -> list[Score]:
        """Scores of `architectures`; what any trial has scored before is not scored again."""
        known = {each.architecture: each for each in _scores(self.study.get_trials(deepcopy=False))}
        found = [known.get(each) or judged(self.judge, each)[0] for each in architectures]
        self.scores[:] = dict.fromkeys([*self.scores, *found])
        self.trial.set_user_attr("scores", [written(each) for each in self.scores])
        return found

    def after_epoch(self, search: bilevel.Run) -> None:
        """Report the most probable architecture's metric; `TrialPruned` where the pruner has seen enough."""
        space, table = self.asked.space, search.distribution.probabilities().detach().cpu().double()
        mode = most_probable_feasible(space, table, self.asked.budget, 1)[0].tolist()
        (found,) = self.score([space.architecture(mode)])
        rows = zip(space.choices, table.tolist(), strict=True)
        self.trial.set_user_attr("probabilities", {c.name: row[: len(c.candidates)] for c, row in rows})
        if found.valid:
            self.trial.report(found.recalibrated, search.epoch)
            if self.trial.should_prune():
                raise optuna.TrialPruned


def _searched(tried: _Tried) -> None:
    """One trial: a search, its candidates scored, and the study told of the best."""
    asked, study, trial = tried.asked, tried.study, tried.trial
    whole = asked.checkpoint
    own = None if whole is None else whole.with_name(f"{whole.stem}-{_name(trial.params)}.pt")
    value: float | None = None
    try:
        value = _value(tried, own)
    except optuna.TrialPruned:
        pass
    except Diverged as problem:  # told as pruned: so the sampler takes these hyper-parameters for bad ones
        trial.set_user_attr("diverged", str(problem))
    study.tell(trial, value, TrialState.PRUNED if value is None else TrialState.COMPLETE)
    if own is not None:
        own.unlink(missing_ok=True)
    if asked.on_row:
        asked.on_row(_course(asked, study)[-1])


def _name(drawn: dict[str, Any]) -> str:
    """By which a trial that is taken up again finds its checkpoint."""
    return digest(f"{name}={drawn[name]!r}" for name in sorted(drawn))[:12]


def _value(tried: _Tried, checkpoint: Path | None) -> float | None:
    """The best metric among the candidates of a whole search; None where none is a number."""
    asked, space = tried.asked, tried.asked.space
    source = asked.source if isinstance(asked.source, Traced) else deepcopy(asked.source)
    settings = replace(asked.settings.trial(tried.trial.params), candidates=1)  # it does not score
    own = Asked(source, asked.data, asked.budgets, settings, asked.objective, asked.seed, asked.device, checkpoint)
    found = differentiable.search(own, tried.after_epoch)
    table, generator = table_of(space, found.probabilities), torch.Generator().manual_seed(asked.seed)
    last = candidates(space, table, asked.budget, asked.settings.candidates, generator)
    scores = tried.score(last)
    valid = [each for each in scores if each.valid]
    if not valid:
        return None
    best = ranked(valid, asked.objective)[0].recalibrated
    tried.trial.set_user_attr("values", [best])
    return best


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _scores(trials: Iterable[FrozenTrial]) -> Iterator[Score]:
    """Every score, that of an architecture once; of interrupted trials too."""
    seen: set[Architecture] = set()
    for trial in trials:
        for row in trial.user_attrs.get("scores", ()):
            score = read_score(row)
            if score.architecture not in seen:
                seen.add(score.architecture)
                yield score


def _course(asked: Asked[Settings], study: optuna.Study) -> tuple[Row, ...]:
    """A row a trial that has ended, in the order of their numbers."""
    ended, rows = _ended(study), []
    for step, trial in enumerate(ended, 1):
        scores = [each for each in _scores([trial]) if each.valid]
        best = ranked(scores, asked.objective)[0] if scores else None
        row: Row = {"step": step, "steps": max(asked.settings.trials, len(ended)), "trial": trial.number}
        row |= {"recalibrated": best.recalibrated, "loss": best.loss, "images": best.images} if best else {}
        row |= {"epoch": trial.last_step or 0, "pruned": trial.state == TrialState.PRUNED}
        rows.append({**row, "diverged": "diverged" in trial.user_attrs, "hyperparameters": dict(trial.params)})
    return tuple(rows)


def _result(asked: Asked[Settings], study: optuna.Study) -> SearchResult:
    trials = study.get_trials(deepcopy=False)
    scores = list(_scores(trials))
    if not any(each.valid for each in scores):
        raise BadRecipe(
            f"none of {len(trials)} trials gave a score that is a number: lower the ends of search.ranges.weight_lr"
        )
    best = ranked(scores, asked.objective)
    first = next(trial for trial in trials if best[0].architecture in {each.architecture for each in _scores([trial])})
    return SearchResult(
        architecture=best[0].architecture,
        candidates=tuple(best),
        course=_course(asked, study),
        probabilities={name: tuple(row) for name, row in first.user_attrs.get("probabilities", {}).items()},
        hyperparameters=dict(first.params),
    )
