"""Functions of torch that count as one operator, whatever a device makes of them.

A recurrent layer is an opaque operator on one machine and thousands of small ones, several a time step, on another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

Observer = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
_LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
NAMES = {getattr(torch, name): name for name in (*_LAYERS, *(f"{layer}_cell" for layer in _LAYERS))}


class Whole(TorchFunctionMode):
    """Hands calls of these functions to `observe(name, function, args, kwargs)`, which has to run them; `inside` says
    that one is running, so that what it does goes unobserved."""

    def __init__(self, observe: Observer) -> None:
        super().__init__()
        self.observe, self.inside = observe, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in NAMES:
            return func(*args, **(kwargs or {}))

        def run(*args: Any, **kwargs: Any) -> Any:
            self.inside = True
            try:
                return func(*args, **kwargs)
            finally:
                self.inside = False

        return self.observe(NAMES[func], run, args, kwargs or {})
