"""The benchmark that goes through a list of networks, with tas and with tools that others made."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toys import Net

SCRIPTS = Path(__file__).parents[1] / "scripts" / "benchmarks"
GOOD, BAD = "toys:Net 2,1,8,8", "toys:Net 2,3,8,8"
X = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("peers")


def script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "list.txt").write_text(f"# two networks\n{GOOD}\n{BAD}  # three channels where it takes one\n")
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(SCRIPTS / "coverage.py"), "--list", "list.txt", "--out", "out", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


def test_rows_are_written_once_and_renewed_on_demand(tmp_path: Path) -> None:
    first = script(tmp_path, "--peer", "tas", "--limit", "60")
    assert first.returncode == 0, first.stderr
    whole = json.loads((tmp_path / "out" / "coverage.json").read_text())
    good, bad = whole["networks"][GOOD], whole["networks"][BAD]
    assert whole["versions"].keys() >= {"tas", "torch", "transformers", "python"}
    assert good["choices"] == 5
    assert good["peers"]["tas"].keys() == {"half", "smallest", "seconds"}
    assert good["peers"]["tas"]["smallest"] == good["share"]
    assert 0.3 < good["peers"]["tas"]["half"] <= 0.5
    assert bad["error"].startswith("BadNetwork: the network must run on the example inputs (2, 3, 8, 8)")
    assert bad["peers"]["tas"]["error"].startswith("RuntimeError: ")
    told = "1 of 2 networks traced, 1 in 10 s or less; 1 can lose 75 % of their MACs; the laws hold on 0 of 0 checked"
    table = (tmp_path / "out" / "coverage.md").read_text()
    assert told in table
    assert "tas: 1 of 2 run at about half of their MACs, 1 with 75 % gone" in table
    columns = {line.count(" | ") for line in table.splitlines() if line.startswith("|")}
    assert columns == {7}
    again = script(tmp_path, "--peer", "tas")
    assert again.stdout == first.stdout[first.stdout.index(told) :]  # nothing was run


def test_a_tool_that_is_not_installed_is_named_before_anything_runs(tmp_path: Path) -> None:
    if importlib.util.find_spec("torch_pruning"):
        pytest.skip("torch-pruning is installed")
    done = script(tmp_path, "--peer", "torch-pruning")
    assert done.returncode == 2
    assert "--peer torch-pruning needs another package, pip install torch-pruning" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_tool_that_cuts_nothing_is_seen(peers: Any) -> None:
    rows = list(peers.judge(lambda network, inputs, keep: network, Net, X))
    assert [(row["half"], row.get("smallest")) for row in rows] == [(1.0, None), (1.0, 1.0)]


def test_the_smallest_share_is_the_smallest_that_was_reached(peers: Any) -> None:
    """Some tools give up on layers that are asked to lose too much."""
    rows = list(peers.judge(lambda network, inputs, keep: peers.ours(network, inputs, keep or 0.9), Net, X))
    assert rows[1]["smallest"] == rows[0]["half"] <= 0.5


def test_what_a_tool_breaks_is_its_own_error(peers: Any) -> None:
    def narrower(network: Any, inputs: Any, keep: float) -> nn.Module:
        network.linear = nn.Linear(12, 3)
        return network

    def endless(network: Any, inputs: Any, keep: float) -> nn.Module:
        network.linear.weight.data.fill_(float("inf"))
        return network

    def torn(network: Any, inputs: Any, keep: float) -> nn.Module:
        network.linear = nn.Linear(11, 4)
        return network

    for tool, kind, told in (
        (narrower, ValueError, r"outputs have shapes \[\(2, 3\)\], the original's \[\(2, 4\)\]"),
        (endless, ValueError, "a gradient of the smaller network is not finite"),
        (torn, RuntimeError, "shapes cannot be multiplied"),
    ):
        with pytest.raises(kind, match=told):
            list(peers.judge(tool, Net, X))
