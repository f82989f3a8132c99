"""A run folder: what has been done, how long it took, what it gave; written so that a run can be taken up again."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, TextIO
from weakref import WeakValueDictionary

import torch

from tas.errors import BadRecipe
from tas.files import read_json, write_json, write_text
from tas.recipe import Recipe, difference, dump, read

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class RunFolder:
    """`run.json` holds the stages with their seconds and facts, and the warnings; a finished stage is not run again."""

    def __init__(self, path: str | Path, recipe: Recipe, title: str, metric: str, device: torch.device) -> None:
        """Take up or begin a run; `check_owner` has been asked before."""
        self.path = Path(path)
        file = self.path / "run.json"
        begun = {"title": title, "metric": metric, "stages": {}, "warnings": []}
        self._texts = {
            "recipe.yaml": dump(recipe),
            "environment.json": json.dumps(environment(recipe.seed, device), indent=2) + "\n",
        }
        if file.is_file():  # before anything of another process is overwritten
            self._claim = _Claim.of(self.path)
        known, written = read_json(file), self.path / "recipe.yaml"
        anew = known is None or (_nothing_done(self.path) and written.is_file() and read(written) != recipe)
        self.state: dict[str, Any] = begun if anew else known
        if anew:
            self._sign()
            self._write()
        self._claim = _Claim.of(self.path)

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


class _Claim:
    """A folder in which no other process may run, while this is held. The lock is the system's: it ends with the
    process, however that ends. (Windows has none of that kind; there nothing is refused.)"""

    _held: ClassVar[WeakValueDictionary[Path, _Claim]] = WeakValueDictionary()

    @classmethod
    def of(cls, folder: Path) -> _Claim:
        """The one of this process; `BadRecipe` where another process has one, or the folder cannot be written."""
        path = folder.resolve() / ".lock"
        claim = cls._held.get(path)
        if claim is None:
            try:
                claim = cls(path.open("a+"))
            except OSError as problem:
                raise BadRecipe(f"{path} cannot be written: {problem.strerror}; choose another place") from problem
            claim._lock(folder)
            cls._held[path] = claim
        return claim

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def _lock(self, folder: Path) -> None:
        if fcntl is None:
            return
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            self._file.seek(0)
            raise BadRecipe(
                f"only one process may run in a folder, and process {self._file.read().strip()} does in {folder}: "
                "wait for it, choose another --out, or `tas join` its study"
            ) from problem
        self._file.truncate(0)
        self._file.write(str(os.getpid()))
        self._file.flush()

    def __del__(self) -> None:
        self._file.close()


def checkpoint_in(folder: str | Path, stage: str) -> Path:
    """Where the run of a folder keeps the state of a stage; a study's journal lies beside it."""
    return Path(folder) / "checkpoints" / f"{stage.replace(' ', '-')}.pt"


def check_owner(path: str | Path, recipe: Recipe) -> None:
    """`BadRecipe` where a folder holds the run of another recipe (machine, title and what is compared may differ) that
    came to anything, or something else."""
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
    found = difference(before, now)
    if found and not _nothing_done(path):
        use = reuse(path) if before["network"]["name"] == now["network"]["name"] else ""
        raise BadRecipe(f"{path} belongs to another recipe: {found}; choose another --out. {use}".rstrip())


def _nothing_done(path: Path) -> bool:
    """Whether a run that has begun in a folder failed before its first stage was finished or left a checkpoint."""
    stages = (read_json(path / "run.json") or {}).get("stages", {})
    only = {"recipe.yaml", "environment.json", "run.json", "space.json", "report.html", ".lock", "events"}
    left = {file.name for file in path.iterdir()} | {file.name for file in path.glob("checkpoints/*")}
    return not any(stage["done"] for stage in stages.values()) and left <= only | {"checkpoints"}


def reuse(path: Path) -> str:
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
