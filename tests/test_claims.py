"""Of several trials with the same parameters one is worked at; what a killed process was at is worked at again."""

import threading
import time
from pathlib import Path

import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState
from study_worker import killed, started

from tas.methods.claims import alive, claimed, give_up, take_part

ONE = {"a": IntDistribution(0, 9)}
FAIL, WAITING, COMPLETE = TrialState.FAIL, TrialState.WAITING, TrialState.COMPLETE


def twins(count: int = 2) -> tuple[optuna.Study, list[optuna.Trial]]:
    """A study with running trials of the same parameters."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(count):
        study.enqueue_trial({"a": 3})
    return study, [study.ask(ONE) for _ in range(count)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_one_of_several_trials_gets_a_claim_in_whatever_order_they_come(order: tuple[int, ...]) -> None:
    study, trials = twins(3)
    assert [claimed(study, trials[index], 60) for index in order] == [True, False, False]
    states = [study.trials[index].state for index in order]
    assert states == [TrialState.RUNNING, FAIL, FAIL]
    assert study.trials[order[1]].user_attrs["duplicate of"] == order[0]


def test_of_two_that_claim_at_once_the_lower_number_gets_it_and_never_none() -> None:
    study, (lower, higher) = twins()
    higher.set_user_attr("claimed", time.time())  # and has not looked yet
    won: list[bool] = []
    thread = threading.Thread(target=lambda: won.append(claimed(study, lower, 60)))
    thread.start()
    time.sleep(0.3)
    assert not won  # waits, since the other one may not have seen it
    assert not claimed(study, higher, 60)
    thread.join(10)
    assert won == [True]


def test_many_threads_that_claim_at_once_leave_one_trial() -> None:
    for _ in range(5):
        study, trials = twins(6)
        won: list[int] = []
        together = threading.Barrier(len(trials))

        def claim(trial: optuna.Trial, study=study, won=won, together=together) -> None:
            together.wait()
            if claimed(study, trial, 60):
                won.append(trial.number)

        threads = [threading.Thread(target=claim, args=(trial,)) for trial in trials]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(won) == 1


def test_a_claim_ends_with_its_process() -> None:
    study, (first, second) = twins()
    assert claimed(study, first, 60)
    time.sleep(0.2)
    assert not alive(study.trials[0], 0.1)
    assert alive(study.trials[0], 60)
    assert claimed(study, second, 0.1)


def test_what_a_trial_was_at_is_enqueued_again_however_far_it_came() -> None:
    study, (asked_only, with_score) = twins()
    give_up(study, study.trials[0])
    assert study.trials[0].state == FAIL
    assert study.trials[2].state == WAITING
    assert study.trials[2].system_attrs["fixed_params"] == {"a": 3}
    assert study.trials[2].user_attrs == {"again": asked_only.number}
    with_score.set_user_attr("values", [0.5])  # killed between the score and the state
    give_up(study, study.trials[1])
    assert study.trials[1].state == COMPLETE
    assert study.trials[1].values == [0.5]
    assert len(study.trials) == 3
    give_up(study, study.trials[1])
    assert len(study.trials) == 3


def test_a_trial_over_the_budget_is_not_enqueued_again() -> None:
    study, (trial, _) = twins()
    trial.set_constraint("macs", 0.5)
    give_up(study, study.trials[0])
    assert [each.state for each in study.trials] == [FAIL, TrialState.RUNNING]


def test_an_interrupted_trial_is_enqueued_again_and_a_late_result_is_dropped() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))

    def interrupted(trial: optuna.Trial) -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_part(study, ONE, 60, lambda: True, interrupted)
    assert [trial.state for trial in study.trials] == [FAIL, WAITING]
    left = 2

    def late(trial: optuna.Trial) -> bool:
        nonlocal left
        left -= 1
        if left:  # somebody else took this process for dead
            give_up(study, study.trials[trial.number])
            trial.set_user_attr("values", [1.0])
            raise AssertionError("a finished trial took a value")
        study.tell(trial, 1.0)
        return True

    take_part(study, ONE, 60, lambda: left > 0, late)
    assert [trial.state for trial in study.trials] == [FAIL, FAIL, COMPLETE]
    assert len({trial.params["a"] for trial in study.trials}) == 1


def test_a_process_at_work_gives_signs_of_life() -> None:
    study = optuna.create_study()
    seen: list[bool] = []

    def long(trial: optuna.Trial) -> bool:
        time.sleep(0.6)
        seen.append(alive(study.trials[trial.number], 0.3))
        study.tell(trial, 1.0)
        return True

    take_part(study, ONE, 0.3, lambda: not seen, long)
    assert seen == [True]


def test_a_process_that_is_killed_in_a_trial_loses_nothing(tmp_path: Path) -> None:
    storage = f"journal:{tmp_path / 'j'}"
    worker = started(storage, 8, 1, 0, 3, tmp_path / "marker")
    killed(worker, tmp_path / "marker")
    study = optuna.load_study(
        study_name="tas",
        storage=optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / "j"))),
    )
    (victim,) = study.get_trials(states=(TrialState.RUNNING,))
    time.sleep(1)
    assert started(storage, 8, 1, 0).wait(120) == 0
    assert study.trials[victim.number].state == FAIL
    again = [trial for trial in study.trials if trial.params == victim.params and "score" in trial.user_attrs]
    assert [trial.user_attrs["again"] for trial in again] == [victim.number]
    assert not study.get_trials(states=(TrialState.RUNNING,))
    scored = [tuple(trial.params.items()) for trial in study.trials if "score" in trial.user_attrs]
    assert len(scored) == len(set(scored)) == 8
