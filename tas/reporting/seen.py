"""A run as its folder tells it, for a page about several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tas.errors import BadRecipe
from tas.files import json_text
from tas.reporting.page import read_json, students_of


@dataclass(frozen=True)
class Seen:
    """label: as much of the path as sets it apart from the other runs. digest: of its data, None before a student is
    saved. target: what latency was measured on, None where none was."""

    label: str
    state: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    space: Mapping[str, Any]
    students: Mapping[str, Mapping[str, int]]
    recipe: Mapping[str, Any]
    commit: str
    digest: str | None
    target: str | None

    @property
    def network(self) -> str:
        section = self.recipe["network"]
        kwargs = f" {json_text(section['kwargs'])}" if section.get("kwargs") else ""
        return f"{section['name']}{kwargs}"

    @property
    def finished(self) -> bool:
        return any(name.partition(" ")[0] == "student" for name in self.metrics)

    def student(self, name: str) -> str:
        """What a column about the student `name` of `students` is called."""
        return self.label if name == "student" else f"{self.label}, {name}"


def seen(folders: Sequence[Path]) -> list[Seen]:
    """The runs in these folders. `BadRecipe` where one is none, stands twice, or is judged by another metric."""
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise BadRecipe("runs are compared with other runs: name each folder once")
    runs = [_seen(folder, label) for folder, label in zip(folders, labels(folders), strict=True)]
    told = {run.state["metric"]: run.label for run in reversed(runs)}
    if len(told) > 1:
        listed = ", ".join(f"{metric} ({label})" for metric, label in told.items())
        raise BadRecipe(f"runs on one page are judged by one metric, got {listed}")
    return runs


def labels(folders: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart."""
    whole = [folder.resolve().parts for folder in folders]
    count = 1
    while len({parts[-count:] for parts in whole}) < len(whole):
        count += 1
    return ["/".join(parts[-count:]) for parts in whole]


def _seen(folder: Path, label: str) -> Seen:
    if not (folder / "run.json").is_file():
        raise BadRecipe(f"a report is made of run folders; {folder} has no run.json")
    table, environment = read_json(folder / "latency.json"), read_json(folder / "environment.json")
    return Seen(
        label,
        read_json(folder / "run.json"),
        read_json(folder / "metrics.json") or {},
        read_json(folder / "space.json") or {"choices": []},
        students_of(folder),
        _recipe(folder / "recipe.yaml"),
        (environment or {}).get("commit") or "unknown",
        _digest(folder),
        _target(table) if table else None,
    )


def _recipe(file: Path) -> Mapping[str, Any]:
    try:
        found = yaml.safe_load(file.read_text())
    except (OSError, ValueError, yaml.YAMLError) as problem:
        raise BadRecipe(f"a run folder holds its recipe; {file} cannot be read: {problem!r:.120}") from problem
    if not isinstance(found, Mapping) or not isinstance(found.get("network"), Mapping):
        raise BadRecipe(f"a run folder holds its recipe; {file} names no network")
    return found


def _digest(folder: Path) -> str | None:
    """Of the data, as every saved student has it."""
    records = [read_json(file) for file in sorted(folder.glob("**/student.json"))]
    return next((r["provenance"]["data_digest"] for r in records if "data_digest" in r.get("provenance", {})), None)


def _target(table: Mapping[str, Any]) -> str:
    target, machine = table["target"], table["machine"]
    threads = f", threads: {target['threads']}" if target["device"] == "cpu" else ""
    place = f"{target['runtime']} on {target['device']}{threads}, batch {target['batch']}"
    return f"{place} ({machine['device']}, {machine['node']}, torch {machine['torch']})"
