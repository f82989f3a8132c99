"""Where functions of torch are called: the same place in every forward, whatever the widths."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from tas.tracing.records import CallSite

_TORCHS = ("overrides.py", "functional.py", "_tensor.py", "nn/functional.py", "utils/_device.py")
_BETWEEN = (f"{Path(__file__).parent}/", *(f"{Path(torch.__file__).parent}/{file}" for file in _TORCHS))
_OF_A_GRAPH = "<eval_with_key>"  # the forward that torch.fx writes; a number behind it tells copies of a network apart
Called = Callable[[CallSite, int, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class CallSites(TorchFunctionMode):
    """Hands every call of a function of torch (of these names, where some are given) that a network's forward makes to
    `called(site, number, function, args, kwargs)`, which has to run it; `number` calls were made there before in the
    same forward of the module. It serves one `with`, around one forward."""

    def __init__(self, network: nn.Module, called: Called, names: Container[str] | None = None) -> None:
        super().__init__()
        self._network, self._called, self._names = network, called, names
        self._running: list[tuple[str, Counter[CallSite]]] = [("", Counter())]
        # the calls in each forward of a module, first those in none (a class may have its own `__call__`)
        self.ended: list[Counter[CallSite]] = [self._running[0][1]]
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> CallSites:
        for name, module in self._network.named_modules():
            self._handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
            self._handles.append(
                module.register_forward_hook(lambda *_, name=name: self._leave(name), always_call=True)
            )
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        for handle in self._handles:
            handle.remove()
        del self._called, self._network  # a method of what holds this mode: the two would wait for the collector

    def _enter(self, name: str) -> None:
        self._running.append((name, Counter()))

    def _leave(self, name: str) -> None:
        if self._running[-1][0] == name:  # else an earlier pre-hook raised, and it was not entered
            self.ended.append(self._running.pop()[1])

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if self._names is not None and name not in self._names:
            return func(*args, **(kwargs or {}))
        module, counts = self._running[-1]
        site = CallSite(module, name, _line())
        counts[site] += 1
        return self._called(site, counts[site] - 1, func, args, kwargs or {})


def _line() -> str:
    """The innermost line of Python outside this package and what torch has between a function and its mode."""
    frame: Any = sys._getframe(2)
    while frame.f_code.co_filename.startswith(_BETWEEN):
        frame = frame.f_back
    file = frame.f_code.co_filename
    return f"{_OF_A_GRAPH if file.startswith(_OF_A_GRAPH) else file}:{frame.f_lineno}"
