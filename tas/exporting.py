"""Students on disk: safetensors and JSON, written whole or not at all, readable without `tas`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from tas import loading
from tas.errors import BadNetwork


def save(student: nn.Module, folder: str | Path, **facts: Any) -> None:
    """Write `student.safetensors`, `student.json` and the loader `load.py` into `folder`, replacing what was there.

    The JSON holds every module's class and sizes (its Python attributes that are integers or sequences of them, from
    which `load` rebuilds the student) and `facts`: JSON values such as the architecture, the metrics, the provenance.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        # copies: safetensors refuses tensors that share memory; `load` ties them again as the factory does
        save_file({name: value.detach().cpu().clone() for name, value in _tensors(student)}, beside / loading.WEIGHTS)
        write_json(beside / loading.RECORD, {**facts, "modules": _modules(student)})
        shutil.copyfile(loading.__file__, beside / "load.py")
        beside.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def load(network_factory: Callable[[], nn.Module], folder: str | Path) -> nn.Module:
    """The student saved in `folder`, in eval mode; `network_factory()` builds the original it was cut from.

    `BadNetwork` where the folder holds no student or the factory builds another network.
    """
    try:
        return loading.load(network_factory, folder)
    except (OSError, ValueError, KeyError, SafetensorError) as problem:
        raise BadNetwork(f"cannot load a student from {folder}: {problem}") from problem


def facts(folder: str | Path) -> dict[str, Any]:
    """What `save` was told about the student: architecture, metrics, provenance."""
    try:
        record = json.loads((Path(folder) / loading.RECORD).read_text())
    except (OSError, ValueError) as problem:
        raise BadNetwork(f"{folder} must be a student folder with a {loading.RECORD}: {problem}") from problem
    return {name: value for name, value in record.items() if name != "modules"}


def write_json(path: Path, value: Any) -> None:
    """One JSON value, whole or not at all: written beside, then renamed."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_text(text)
    os.replace(beside, path)


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    """All parameters and buffers, also those that a state dict leaves out: their sizes are the student's too."""
    parameters = network.named_parameters(remove_duplicate=False)
    return [*parameters, *network.named_buffers(remove_duplicate=False)]


def _modules(network: nn.Module) -> dict[str, Mapping[str, Any] | None]:
    records: dict[str, Mapping[str, Any] | None] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        sizes = {name: value for name, value in vars(module).items() if _is_size(value)}
        records[path] = {"class": type(module).__name__, "sizes": sizes}
        for name, child in module._modules.items():
            if child is None:
                records[f"{path}.{name}" if path else name] = None
    return records


def _is_size(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(_is_size(part) for part in value)
    return isinstance(value, int) and not isinstance(value, bool)
