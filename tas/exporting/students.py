"""Students on disk: safetensors, JSON and a model card, written whole or not at all, readable without `tas`."""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tas import loading, stand_in
from tas.errors import BadNetwork, BadRecipe
from tas.exporting.card import card
from tas.files import write_json, write_text
from tas.tracing.places import fields, holds_settings, is_boxed

CARD = "README.md"


def save(student: nn.Module, folder: str | Path, **facts: Any) -> None:
    """Write weights, `student.json`, a model card and the loader (`load.py`, `stand_in.py`) into `folder`, replacing a
    student there.

    The JSON holds every module's class and sizes (its Python attributes that are, or hold, integers: from them `load`
    rebuilds the student), the versions, and `facts`: JSON values such as the architecture, the metrics, the provenance.
    `network`, where it is given, is what commands build the original by: `{"name": "module:factory", "kwargs": {}}`.
    `BadRecipe` where the folder cannot be written, or holds other things than a student, which would be lost.
    """
    folder = Path(folder)
    if not isinstance(facts.get("network", {}), Mapping):
        raise BadRecipe(
            'network says how the original is built, {"name": "module:factory", "kwargs": {}}, '
            f"got {facts['network']!r}"
        )
    require_place(folder)
    record = {"versions": _versions(), **facts, "modules": _modules(student)}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as problem:
        raise BadRecipe(f"cannot write a student to {folder}: {problem.strerror}") from problem
    try:
        # clones: safetensors refuses tensors that share memory; `load` ties them again as the factory does
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in _tensors(student)}
        save_file(tensors, beside / loading.WEIGHTS)
        write_json(beside / loading.RECORD, record)
        write_text(beside / CARD, card(record))
        shutil.copyfile(loading.__file__, beside / "load.py")
        shutil.copyfile(stand_in.__file__, beside / "stand_in.py")
        (beside / loading.WEIGHTS).chmod(stat.S_IMODE((beside / CARD).stat().st_mode))  # others may read it as well
        beside.chmod(0o755)
        _replace(folder, beside)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def require_place(folder: Path) -> None:
    """`BadRecipe` where a student saved in `folder` would take the place of something else."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / loading.RECORD).is_file()):
        raise BadRecipe(
            f"a student is saved in a new folder or over another student, {folder} holds something else: choose "
            "another place, or move it away"
        )


def damage(folder: str | Path) -> str:
    """Why the student that was saved in `folder` cannot be read any more, as far as the files tell without its factory:
    some are gone, or end too early. Empty where it can."""
    try:
        _record(Path(folder))
        with safe_open(Path(folder) / loading.WEIGHTS, "pt"):
            return ""
    except (BadNetwork, OSError, SafetensorError) as problem:
        return str(problem)


def load(network_factory: Callable[[], nn.Module], folder: str | Path) -> nn.Module:
    """The student saved in `folder`, in eval mode; `network_factory()` builds the original it was cut from.

    `BadNetwork` where the folder holds no student or the factory builds another network. Nothing in the folder is
    executed or unpickled.
    """
    if isinstance(network_factory, nn.Module):
        kind = type(network_factory).__name__
        raise BadNetwork(
            f"the first argument is a function or class that builds the original, got a {kind}: give that class, or a "
            "function that makes a new one"
        )
    try:
        return loading.load(network_factory, folder)
    except (OSError, ValueError, KeyError, SafetensorError) as problem:
        raise BadNetwork(f"cannot load a student from {folder}: {problem}") from problem


def facts(folder: str | Path) -> dict[str, Any]:
    """What `save` and `note` were told about the student: architecture, metrics, provenance; and the versions."""
    return {name: value for name, value in _record(Path(folder)).items() if name != "modules"}


def note(folder: str | Path, **facts: Any) -> None:
    """Add facts about a student that is saved already, in its JSON and in its model card."""
    folder = Path(folder)
    record = {**_record(folder), **facts}
    write_json(folder / loading.RECORD, record)
    write_text(folder / CARD, card(record))


def _record(folder: Path) -> dict[str, Any]:
    path = folder / loading.RECORD
    if not path.is_file():
        raise BadNetwork(f"{folder} must be a student folder, it has no {loading.RECORD}")
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or not isinstance(record.get("modules"), dict):
            raise ValueError("it lists no modules")
    except (OSError, ValueError) as problem:
        raise BadNetwork(
            f"{folder} must be a student folder, its {loading.RECORD} does not say of what: {problem}"
        ) from problem
    return record


def _versions() -> dict[str, str]:
    installed = {name: list(metadata.distributions(name=name)) for name in ("tas", "torch", "safetensors")}
    return {name: found[0].version for name, found in installed.items() if found}


def _replace(folder: Path, new: Path) -> None:
    """`new` takes the place of `folder`; the old one is gone only once the new one is there."""
    old = new.with_name(f"{new.name}-old")
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """All parameters and buffers, also those that a state dict leaves out: their sizes are the student's too."""
    parameters = network.named_parameters(remove_duplicate=False)
    return [*parameters, *network.named_buffers(remove_duplicate=False)]


def _modules(network: nn.Module) -> dict[str, Mapping[str, Any] | None]:
    records: dict[str, Mapping[str, Any] | None] = {}
    held = Counter(id(value) for module in network.modules() for value in vars(module).values())
    for path, module in network.named_modules(remove_duplicate=False):
        # settings that modules share are the factory's: a module whose sizes are its own has a copy of its own
        own = {name: v for name, v in vars(module).items() if held[id(v)] == 1 or not holds_settings(v)}
        sizes = {name: _recorded(value) for name, value in own.items() if _counts(value)}
        records[path] = {"class": type(module).__name__, "sizes": sizes}
        for name, child in module._modules.items():
            if child is None:
                records[f"{path}.{name}" if path else name] = None
    return records


def _recorded(value: Any) -> Any:
    """A value as JSON, objects as dicts; of dicts and objects, what JSON can hold."""
    if isinstance(value, list | tuple):
        return [_recorded(part) for part in value]
    if is_boxed(value):
        return int(value)
    parts = value if isinstance(value, dict) else fields(value) if holds_settings(value) else None
    return value if parts is None else {key: _recorded(part) for key, part in parts.items() if _plain(part)}


def _plain(value: Any) -> bool:
    """Whether JSON can hold it and give it back."""
    if isinstance(value, dict):
        return all(isinstance(key, str | int) for key in value)
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or type(value) in (bool, int, float, str) or is_boxed(value) or holds_settings(value)


def _counts(value: Any) -> bool:
    """Whether there is an integer in it, hence perhaps a size."""
    if not _plain(value):
        return False
    if isinstance(value, list | tuple):
        return any(map(_counts, value))
    parts = value if isinstance(value, dict) else fields(value) if holds_settings(value) else None
    return type(value) is int or is_boxed(value) if parts is None else any(map(_counts, parts.values()))
