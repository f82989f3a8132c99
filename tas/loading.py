"""Rebuild a student from its folder: call the original's factory, then give every part the student's size.

A copy of this file lies in every student folder as `load.py`, so a student is used without `tas`; hence it imports
torch and safetensors alone, and raises ValueError.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS, RECORD = "student.safetensors", "student.json"


def load(network_factory: Callable[[], nn.Module], folder: str | Path) -> nn.Module:
    """The student in `folder`, in eval mode: the network that `network_factory()` builds, cut to the recorded sizes.

    `network_factory` builds the original, as it was before the search. ValueError where it builds another network.
    """
    record = json.loads((Path(folder) / RECORD).read_text())
    network = network_factory()
    _match_modules(network, record["modules"])
    _match_tensors(network, load_file(Path(folder) / WEIGHTS))
    return network.eval()


def _match_modules(network: nn.Module, records: dict[str, dict[str, Any] | None]) -> None:
    """Remove, silence or resize (in their Python attributes) the modules as recorded; null stands for None."""
    modules = dict(network.named_modules(remove_duplicate=False))
    unknown = [path for path, entry in records.items() if entry is not None and path not in modules]
    if unknown:
        raise ValueError(f"the factory builds another network than the student's: it has no module {unknown[0]!r}")
    for path, module in modules.items():
        owner, _, name = path.rpartition(".")
        if _at(network, owner) is not modules[owner]:
            continue  # its owner is gone or silenced
        if path not in records:
            delattr(modules[owner], name)
        elif (entry := records[path]) is None:
            setattr(modules[owner], name, None)
        elif type(module).__name__ == entry["class"]:
            _set_sizes(module, entry["sizes"])
        elif entry["class"] == "Identity":
            setattr(modules[owner], name, nn.Identity())
        else:
            raise ValueError(f"module {path!r} must be a {entry['class']}, the factory builds {type(module).__name__}")


def _at(network: nn.Module, path: str) -> nn.Module | None:
    """The module now at `path`, None where there is none any more."""
    current: nn.Module | None = network
    for name in path.split(".") if path else ():
        current = None if current is None else current._modules.get(name)
    return current


def _set_sizes(module: nn.Module, sizes: dict[str, Any]) -> None:
    for name, size in sizes.items():
        current = getattr(module, name, None)
        if json.loads(json.dumps(current)) != size:
            setattr(module, name, tuple(size) if isinstance(current, tuple) else size)


def _match_tensors(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Every parameter and buffer takes the recorded value and shape; tied parameters stay tied."""
    slots = [
        (f"{path}.{name}" if path else name, module, name, old)
        for path, module in network.named_modules(remove_duplicate=False)
        for name, old in [*module._parameters.items(), *module._buffers.items()]
    ]
    if unknown := sorted(tensors.keys() - {full for full, *_ in slots}):
        raise ValueError(f"the factory builds another network than the student's: it has no tensor {unknown[0]!r}")
    renewed: dict[int, nn.Parameter] = {}
    for full, module, name, old in slots:
        if old is None or full not in tensors:
            setattr(module, name, None)
        elif isinstance(old, nn.Parameter):
            fresh = nn.Parameter(tensors[full], requires_grad=old.requires_grad)
            setattr(module, name, renewed.setdefault(id(old), fresh))
        else:
            setattr(module, name, tensors[full])
