"""The command line as tests use it, and a clock that is a formula."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tas import cli
from tas.latency import measuring

Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shell:
    """Run `tas` with these arguments in an empty folder: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tas", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def by_size(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A forward takes as long as its network has parameters, in microseconds, and 1 ms in a whole network for what is
    between the layers; returns what has been timed."""
    timed: list[str] = []

    def milliseconds(forward: Any, device: torch.device, calls: int) -> float:
        network: torch.nn.Module = forward.func
        timed.append(type(network).__name__)
        layers = sum(p.numel() for p in network.parameters()) / 1e3 + 1e-3
        return layers if type(network).__name__ == "_Chain" else 1 + 2 * layers

    monkeypatch.setattr(measuring, "once", milliseconds)
    monkeypatch.setattr(measuring, "calls_for", lambda forward, device: 1)
    return timed
