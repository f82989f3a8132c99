"""Processes that share a study in PostgreSQL lose no trial and repeat none. The test starts the server itself."""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial, TrialState
from study_worker import SMALL, killed, started
from toys import data, network

import tas
from tas.errors import BadRecipe
from tas.methods.storages import kept

pytestmark = pytest.mark.postgres

STALE = 5  # seconds; a machine with other work may hold up a living process for some


@dataclass(frozen=True)
class Server:
    """A server of its own in a folder, reached by a socket in it."""

    programs: Path
    folder: Path

    def call(self, program: str, *arguments: str) -> None:
        """Run one of its programs; a server refuses to be root's, so root hands over to the user `postgres`."""
        before = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*before, str(self.programs / program), *arguments]
        done = subprocess.run(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self.folder} -c fsync=off"
        log = str(self.folder / "log")
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-l", log, "-w", "-o", options, "start")

    def stop(self) -> None:
        self.call("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "immediate", "stop")

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.folder}"


def programs() -> Path:
    """Where initdb and pg_ctl lie; a failure, and no skip, where they are missing."""
    found = [Path(path).parent for path in [shutil.which("initdb")] if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in found:
        if (folder / "pg_ctl").exists():
            return folder.resolve()
    pytest.fail("no PostgreSQL server is installed; Debian: apt-get install postgresql")


@contextmanager
def running() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="tas-pg-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        server = Server(programs(), folder)
        server.call("initdb", "-D", str(folder / "data"), "-U", "postgres", "-A", "trust", "--no-sync")
        server.start()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running() as found:
        yield found


def trials(url: str) -> list[FrozenTrial]:
    with kept(url) as storage:
        return optuna.load_study(study_name="tas", storage=storage).get_trials()


def test_four_processes_share_a_study_and_one_is_killed(server: Server, tmp_path: Path) -> None:
    """20 candidates; the killed process is in the middle of its third score, the others go on."""
    marker = tmp_path / "marker"
    workers = [started(server.url, 20, STALE, 0.5) for _ in range(3)]
    victim = started(server.url, 20, STALE, 0.5, 3, marker)
    killed(victim, marker)
    claimed = [trial for trial in trials(server.url) if "begun" in trial.user_attrs]
    assert [worker.wait(300) for worker in workers] == [0, 0, 0]
    time.sleep(STALE)
    done = trials(server.url)
    left = [trial for trial in done if trial.state == TrialState.RUNNING]
    assert len(left) <= 1  # where the others were done before the killed process was missed
    so_far = sum("score" in trial.user_attrs for trial in done)  # workers that were busy at the 20th finished theirs
    assert started(server.url, so_far + 1 + len(left), STALE, 0).wait(120) == 0  # as a resumed run does

    done = trials(server.url)
    scored = [trial for trial in done if "score" in trial.user_attrs]
    print(f"{len(done)} trials, {len(scored)} scored: {dict(Counter(trial.state.name for trial in done))}")
    assert [trial.number for trial in done] == list(range(len(done)))
    assert 21 <= len(scored) <= 24
    assert all(trial.state == TrialState.COMPLETE for trial in scored)
    assert len({tuple(sorted(trial.params.items())) for trial in scored}) == len(scored)  # none twice
    assert not [trial for trial in done if trial.state == TrialState.RUNNING]
    (lost,) = [trial for trial in done if trial.state == TrialState.FAIL and "begun" in trial.user_attrs]
    assert lost.number in {trial.number for trial in claimed}
    again = [trial for trial in scored if trial.params == lost.params]
    assert [trial.user_attrs.get("again") for trial in again] == [lost.number]  # none lost
    asked = [trial.system_attrs["fixed_params"] for trial in done if "fixed_params" in trial.system_attrs]
    waiting = [trial.system_attrs["fixed_params"] for trial in done if trial.state == TrialState.WAITING]
    assert all(any(trial.params == params for trial in done) or params in waiting for params in asked)


def test_a_server_that_stops_on_the_way_is_told_of_and_the_study_goes_on_afterwards() -> None:
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    budget = tas.budget(source.space, macs=0.6)
    with running() as own:
        options: dict[str, Any] = {**SMALL, "candidates": 5, "storage": own.url, "stale_after": 0.1}

        def stop(row: dict[str, Any]) -> None:
            if row["step"] == 2:
                own.stop()

        with pytest.raises(BadRecipe, match="the storage of a study must be reachable, postgresql://postgres@"):
            tas.search(source, data(), budget, "optuna", on_row=stop, **options)
        with pytest.raises(BadRecipe, match="must be reachable"):
            tas.search(source, data(), budget, "optuna", **options)
        own.start()
        found = tas.search(source, data(), budget, "optuna", **options)
        assert len(found.candidates) == 5
