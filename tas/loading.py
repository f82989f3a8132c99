"""Rebuild a student: call its original's factory, then give every part the student's size. A copy of this file lies in
every student folder as `load.py`, beside `stand_in.py`: it needs torch and safetensors alone, and raises ValueError."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

WEIGHTS, RECORD, OTHER = "student.safetensors", "student.json", "the factory builds another network:"


def load(network_factory: Callable[[], nn.Module], folder: str | Path) -> nn.Module:
    """The student in `folder`, in eval mode; `network_factory()` builds the original, as it was before the search."""
    records, network = json.loads((Path(folder) / RECORD).read_text())["modules"], network_factory()
    tensors = {name: tensor.clone() for name, tensor in load_file(Path(folder) / WEIGHTS).items()}  # aligned as any
    _match_modules(dict(network.named_modules(remove_duplicate=False)), records)
    modules = list(network.named_modules(remove_duplicate=False))
    renewed: dict[int, nn.Parameter] = {}  # parameters that the factory ties stay tied
    for path, module, name, old in [(p, m, *slot) for p, m in modules for slot in (m._parameters | m._buffers).items()]:
        new = tensors.pop(f"{path}.{name}" if path else name, None)
        if new is not None and isinstance(old, nn.Parameter):
            new = renewed.setdefault(id(old), nn.Parameter(new, requires_grad=old.requires_grad))
        setattr(module, name, new)
    if tensors:
        raise ValueError(f"{OTHER} it has no tensor {min(tensors)!r}")
    return network.eval()


def _match_modules(modules: dict[str, nn.Module], records: dict[str, Any]) -> None:
    """Remove, silence or resize (in their Python attributes) the modules as recorded; null stands for None."""
    for path in [path for path, record in records.items() if record and path not in modules]:
        raise ValueError(f"{OTHER} it has no module {path!r}")
    beside = runpy.run_path(f"{Path(__file__).parent}/stand_in.py")
    stand_in, like = beside["stand_in"], beside["like"]
    gone: tuple[str, ...] = ()  # what lies in a removed or silenced module is not there any more
    for path, module in modules.items():
        record, (owner, _, name) = records.get(path), path.rpartition(".")
        if path.startswith(gone):
            pass
        elif record and type(module).__name__ == record["class"]:
            vars(module).update({key: like(vars(module).get(key), size) for key, size in record["sizes"].items()})
        elif record and record["class"] not in ("Identity", "Threshold", "GraphModule"):
            raise ValueError(f"{OTHER} {path!r} must be a {record['class']}, is a {type(module).__name__}")
        else:
            gone = (*gone, f"{path}.")
            options = record and (record["sizes"].get("meta") or {"zeros": record["class"] == "Threshold"})
            setattr(modules[owner], name, stand_in(**options) if options else None)
            if path not in records:
                delattr(modules[owner], name)
