"""One process of a study, for tests: `python study_worker.py STORAGE CANDIDATES STALE_AFTER SECONDS [HANG MARKER]`.

Every score takes SECONDS longer; with HANG, the score of that number writes MARKER and never ends.
"""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from toys import data, network

import tas
from tas.methods import study

SMALL: dict[str, Any] = {"startup": 4, "images": 48, "calibration_images": 48, "sampler": "random"}


def started(*arguments: object) -> subprocess.Popen[bytes]:
    here = Path(__file__)
    paths = os.pathsep.join([str(here.parent), str(here.parents[1])])
    command = [sys.executable, str(here), *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})


def killed(worker: subprocess.Popen[bytes], marker: Path, seconds: float = 120) -> None:
    """SIGKILL, once the worker is in the middle of a trial."""
    end = time.monotonic() + seconds
    while not marker.exists():
        assert worker.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)
    worker.kill()
    worker.wait()


def main(storage: str, candidates: str, stale_after: str, seconds: str, hang: str = "0", marker: str = "") -> None:
    torch.set_num_threads(1)
    judged, calls = study.judged, 0

    def slow(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == int(hang):
            Path(marker).touch()
            time.sleep(3600)
        time.sleep(float(seconds))
        return judged(*arguments, **named)

    study.judged = slow
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    options = {**SMALL, "candidates": int(candidates), "stale_after": float(stale_after), "storage": storage}
    tas.search(source, data(), tas.budget(source.space, macs=0.6), "optuna", **options)


if __name__ == "__main__":
    main(*sys.argv[1:])
