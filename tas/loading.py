"""Rebuild a student: call its original's factory, then give every part the student's size. A copy of this file lies in
every student folder as `load.py`, so it needs torch and safetensors alone, and raises ValueError."""

import json
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import fx, nn

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
    gone: tuple[str, ...] = ()  # what lies in a removed or silenced module is not there any more
    for path, module in modules.items():
        record, (owner, _, name) = records.get(path), path.rpartition(".")
        if path.startswith(gone):
            pass
        elif record and type(module).__name__ == record["class"]:
            vars(module).update({key: _like(vars(module).get(key), size) for key, size in record["sizes"].items()})
        elif record and record["class"] not in ("Identity", "Threshold", "GraphModule"):
            raise ValueError(f"{OTHER} {path!r} must be a {record['class']}, is a {type(module).__name__}")
        else:
            gone = (*gone, f"{path}.")
            setattr(modules[owner], name, _left_out(record) if record else None)
            if path not in records:
                delattr(modules[owner], name)


def _left_out(record: Mapping[str, Any]) -> nn.Module:
    return stand_in(**record["sizes"].get("meta") or {"zeros": record["class"] == "Threshold"})


def stand_in(zeros: bool, argument: int | str = 0, nones: int = -1, alone: bool = True) -> nn.Module:
    """A torch module in the place of one that is left out. It gives back the tensor that it is given, or zeros of that
    shape. `argument`: where it is given it, 0 or a keyword; `alone`: and nothing else; `nones`: how many times None
    follow it in the tuple that is returned, -1 for no tuple."""
    if alone and nones < 0 and argument == 0:
        return nn.Threshold(float("inf"), 0.0) if zeros else nn.Identity()  # what is not above infinity becomes 0
    graph = fx.Graph()  # torch's layers take one argument: a forward of two lines, written by torch.fx, takes any
    places = {int: graph.placeholder("*args"), str: graph.placeholder("**kwargs")}
    tensor = graph.call_function(operator.getitem, (places[type(argument)], argument))
    given = graph.call_function(torch.zeros_like, (tensor,)) if zeros else tensor
    graph.output(given if nones < 0 else (given, *[None] * nones))
    module = fx.GraphModule(nn.Module(), graph)
    module.meta.update(zeros=zeros, argument=argument, nones=nones, alone=alone)
    return module


def _like(old: Any, new: Any) -> Any:
    """A value read from JSON in the types of the one it replaces: tuples again, and keys that are no text."""
    if isinstance(old, dict):
        return {key: _like(value, new[str(key)]) for key, value in old.items()}
    if not isinstance(old, list | tuple):
        return new
    items = map(_like, old, new) if len(old) == len(new) else new
    return type(old)(*items) if hasattr(old, "_fields") else type(old)(items)
