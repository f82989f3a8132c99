"""Which attributes of its modules a network looks up while it runs: no others can be sizes that its code uses."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import nn

Lookups = dict[str, set[str]]  # module -> names
EVERYTHING = "__dict__"  # looked up by code that reads attributes behind the back of a lookup
_COPIES = ("__getstate__", "__reduce_ex__")  # what looks up these copies a module, and may read the copy
MODE = "training"
_TORCH, _OURS = Path(torch.__file__).parent, f"{Path(__file__).parent}/"
# who may look these up unnoted: torch's code, and that of its layers which drop or renew statistics in train mode
_UNNOTED = {
    EVERYTHING: (f"{_TORCH}/", _OURS),
    MODE: (*(f"{_TORCH}/nn/modules/{name}.py" for name in ("activation", "batchnorm", "dropout")), _OURS),
}
_noting: list[dict[int, set[str]]] = []  # what is noted now, by the identity of modules; threads may trace at once
_changing = Lock()
_plain = nn.Module.__getattribute__


@contextmanager
def noting_lookups(network: nn.Module) -> Iterator[Lookups]:
    """The names that are looked up from here on, by module. All modules' lookups go through a function meanwhile: 7 %
    more time for a forward of timm's vit_tiny at 224 pixels."""
    modules = dict(network.named_modules())
    # what has lookups of its own may go past this one
    found = {name: {EVERYTHING} if _has_own_lookups(type(module)) else set() for name, module in modules.items()}
    names = {id(module): found[name] for name, module in modules.items()}
    with _changing:
        _noting.append(names)
        _install(nn.Module)
    try:
        yield found
    finally:
        with _changing:
            _noting[:] = [others for others in _noting if others is not names]
            _install(nn.Module)


def _install(kind: Any) -> None:
    if _noting:
        kind.__getattribute__ = _look_up
    else:
        del kind.__getattribute__


def _has_own_lookups(kind: type[nn.Module]) -> bool:
    own = {name for base in kind.__mro__ if base not in (nn.Module, object) for name in vars(base)}
    return not own.isdisjoint(("__getattribute__", "__getattr__"))


def _look_up(module: nn.Module, name: str) -> Any:
    asked = EVERYTHING if name in _COPIES else name
    for names in _noting:
        known = names.get(id(module))
        if known is not None and not (
            asked in _UNNOTED and sys._getframe(1).f_code.co_filename.startswith(_UNNOTED[asked])
        ):
            known.add(asked)
    return _plain(module, name)
