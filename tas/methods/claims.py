"""Several processes at one study: who is at which trial, and what becomes of the trials of a process that was killed.

All of it is in user attributes of trials, so that it works in any storage. (Optuna's own heartbeat is for databases and
`Study.optimize` alone.) Clocks of several machines should agree within a few seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import optuna
from optuna.exceptions import OptunaError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from tas.methods.storages import BROKEN

_IDLE = 64  # proposals in a row of which none was new, before a study counts as exhausted
_HELP = 8  # after so many of them `stuck` is asked for another proposal
_POLL = 0.05  # seconds


def take_part(
    study: optuna.Study,
    distributions: Mapping[str, Any],
    stale_after: float,
    wanted: Callable[[], bool],
    work: Callable[[Trial], bool],
    stuck: Callable[[], None] = lambda: None,
) -> None:
    """Ask for trials and work at them as long as more are wanted.

    work: returns whether the trial was a new one; it ends the trial itself. stuck: enqueues what the sampler does not
    come to. A trial that is interrupted or fails is enqueued again, as are those of killed processes: those that gave
    no sign of life for `stale_after` seconds.
    """
    idle = 0
    while idle < _IDLE and wanted():
        for other in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not alive(other, stale_after):
                give_up(study, other)
        if idle % _HELP == _HELP - 1:
            stuck()
        trial = study.ask(dict(distributions))
        with _beating(trial, stale_after), _kept(study, trial):
            idle = 0 if work(trial) else idle + 1


def claimed(study: optuna.Study, trial: Trial, stale_after: float) -> bool:
    """Whether this trial, and no other one, is to work at its parameters; where not, the trial is over.

    Every process writes its claim before it reads the others'. So of two at least the later one sees the other, and
    the rule decides: the higher number gives way; the lower one waits until the higher has done so, or has not seen it
    and begun.
    """
    trial.set_user_attr("claimed", time.time())
    while rivals := [other for other in _others(study, trial) if _counts(other, stale_after)]:
        ahead = [other for other in rivals if other.number < trial.number or _begun(other)]
        if ahead:
            trial.set_user_attr("duplicate of", ahead[0].number)
            study.tell(trial, state=TrialState.FAIL)
            return False
        time.sleep(_POLL)
    trial.set_user_attr("begun", True)
    return True


def _others(study: optuna.Study, trial: Trial) -> list[FrozenTrial]:
    found = study.get_trials(deepcopy=False)
    return [other for other in found if other.number != trial.number and other.params == trial.params]


def _counts(trial: FrozenTrial, stale_after: float) -> bool:
    """Whether a trial has worked at its parameters, or claims them."""
    done = trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or "score" in trial.user_attrs
    return done or ("claimed" in trial.user_attrs and alive(trial, stale_after))


def _begun(trial: FrozenTrial) -> bool:
    return trial.state.is_finished() or "begun" in trial.user_attrs


def alive(trial: FrozenTrial, stale_after: float) -> bool:
    """Whether the process of a running trial has given a sign of life in the last `stale_after` seconds."""
    began = trial.datetime_start.timestamp() if trial.datetime_start else 0.0
    seen = max(began, trial.user_attrs.get("alive", 0.0))
    return trial.state == TrialState.RUNNING and time.time() - seen < stale_after


def give_up(study: optuna.Study, trial: FrozenTrial) -> None:
    """End a trial that nobody works at any more, as far as it came, and enqueue again what it has not found out.

    Two processes may do so at once; of the two that they enqueue, `claimed` lets one be.
    """
    with suppress(UpdateFinishedTrialError):  # its process was only slow, and has ended it by now
        if "values" in trial.user_attrs:
            study.tell(trial.number, trial.user_attrs["values"], skip_if_finished=True)
            return
        asked = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if asked and "score" not in trial.user_attrs and not any(value > 0 for value in trial.constraints.values()):
            study.enqueue_trial(asked, user_attrs={"again": trial.number})
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


@contextmanager
def _kept(study: optuna.Study, trial: Trial) -> Iterator[None]:
    """Give the trial up where its work is interrupted or fails."""
    try:
        yield
    except UpdateFinishedTrialError:
        pass  # this process was taken for dead, its trial has been enqueued again: what it found comes too late
    except BaseException:
        with suppress(*BROKEN):  # a storage that is lost is what is told of
            mine = study.get_trials(deepcopy=False)[trial.number]
            if not mine.state.is_finished():
                give_up(study, mine)
        raise


@contextmanager
def _beating(trial: Trial, stale_after: float) -> Iterator[None]:
    """Signs of life, four in `stale_after` seconds, from a thread."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(stale_after / 4):
            try:
                trial.set_user_attr("alive", time.time())
            except (OptunaError, OSError, *BROKEN):
                return  # the trial is over, or its process meets the same problem at its next write

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
