"""A run folder: what has been done, how long it took, what it gave; written so that a run can be taken up again."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from tas.errors import BadRecipe
from tas.files import read_json, write_json, write_text
from tas.recipe import Recipe, difference, dump, read


class RunFolder:
    """`run.json` holds the stages with their seconds and facts, and the warnings; a finished stage is not run again."""

    def __init__(self, path: str | Path, recipe: Recipe, title: str, metric: str, device: torch.device) -> None:
        """Take up or begin a run; `check_owner` has been asked before."""
        self.path = Path(path)
        file = self.path / "run.json"
        begun = {"title": title, "metric": metric, "stages": {}, "warnings": []}
        self.state: dict[str, Any] = read_json(file) or begun
        self._texts = {
            "recipe.yaml": dump(recipe),
            "environment.json": json.dumps(environment(recipe.seed, device), indent=2) + "\n",
        }
        if not file.is_file():
            self._sign()
            self._write()

    def _sign(self) -> None:
        """Note the recipe and where it runs: of the last command that did work here, not of one that only looked."""
        for name, text in self._texts.items():
            write_text(self.path / name, text)

    def stage(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The facts that `work` returns; from `run.json` where the stage was finished before."""
        known = self.state["stages"].get(name, {"seconds": 0.0, "done": False})
        if known["done"]:
            return known
        self._sign()
        started, facts, done = time.perf_counter(), {}, False
        try:
            facts = work()
            done = True
        finally:  # an interrupted stage leaves the time that it took so far
            seconds = known["seconds"] + time.perf_counter() - started
            self.state["stages"][name] = {**facts, "seconds": seconds, "done": done}
            self._write()
        with suppress(OSError):  # another stage's checkpoint is still in it
            (self.path / "checkpoints").rmdir()
        return self.state["stages"][name]

    def finished(self, name: str) -> bool:
        return bool(self.state["stages"].get(name, {}).get("done"))

    def forget(self, name: str) -> None:
        """As if a stage had never been begun."""
        del self.state["stages"][name]
        self._write()

    def warn(self, text: str) -> None:
        if text not in self.state["warnings"]:
            self.state["warnings"].append(text)
            self._write()

    def checkpoint(self, stage: str) -> Path:
        """Where a stage keeps its state while it runs."""
        path = checkpoint_in(self.path, stage)
        path.parent.mkdir(exist_ok=True)
        return path

    def _write(self) -> None:
        write_json(self.path / "run.json", self.state)


def checkpoint_in(folder: str | Path, stage: str) -> Path:
    """Where the run of a folder keeps the state of a stage; a study's journal lies beside it."""
    return Path(folder) / "checkpoints" / f"{stage.replace(' ', '-')}.pt"


def check_owner(path: str | Path, recipe: Recipe) -> None:
    """`BadRecipe` where a folder holds the run of another recipe (machine, title and what is compared may differ), or
    something else."""
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise BadRecipe(f"the run folder must be a folder, {path} is a file")
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / "recipe.yaml").is_file():
        raise BadRecipe(f"{path} is neither empty nor a run folder (no recipe.yaml); choose another --out")
    before, now = read(path / "recipe.yaml").model_dump(mode="json"), recipe.model_dump(mode="json")
    for values in (before, now):
        for name in ("machine", "title", "compare"):
            values.pop(name, None)
    if found := difference(before, now):
        raise BadRecipe(f"{path} belongs to another recipe: {found}; choose another --out. {_reuse(path)}".rstrip())


def _reuse(path: Path) -> str:
    """How another folder goes on from what is done in this one."""
    trained, found = path / "original" / "student.safetensors", path / "architecture.json"
    said = [f"its original: --set network.weights={trained}"] if trained.is_file() else []
    said += [f"its architecture: tas distill --architecture {found}"] if found.is_file() else []
    return f"What is done here can be used there: {'; '.join(said)}" if said else ""


def environment(seed: int, device: torch.device) -> dict[str, Any]:
    """Versions, commit, seed and device."""
    packages = ("tas", "torchvision", "numpy", "safetensors")
    versions = {name: found for name in packages if (found := _version(name))}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "command": " ".join(sys.argv),
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        **versions,
        "platform": platform.platform(),
        "device": f"{device} ({name})",
        "threads": torch.get_num_threads(),
        "seed": seed,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the checkout that tas runs from, with "+" where it has been changed since; None where there is none."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"], capture_output=True, text=True
        )
    except OSError:
        return None
    return answer.stdout.strip() or None
