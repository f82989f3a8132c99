"""The numbers that operators compute with, other than tensors."""

from __future__ import annotations

from typing import Any

from tas.tracing.leaves import tensors_of

LITERAL = "lift_fresh"
_ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "pow", "remainder", "fmod", "floor_divide"}


def numbers_in(operator: str, tree: Any) -> tuple[float, ...]:
    """The numbers among an operator's arguments that it computes with: fractions, and whole ones in arithmetic (sizes
    and dimensions elsewhere); what `torch.tensor(number)` in a forward makes a tensor of."""
    if operator == LITERAL:
        return tuple(float(x.item()) for x in tensors_of(tree) if x.numel() == 1 and x.is_cpu and not x.is_complex())
    kinds = (float, int) if operator.rstrip("_") in _ARITHMETIC else (float,)
    return tuple(_numbers(tree, kinds))


def _numbers(tree: Any, kinds: tuple[type, ...]) -> list[float]:
    found: list[float] = []
    for part in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(part, (tuple, list, dict)):  # torch's own flattening takes a third of a replay
            found += _numbers(part, kinds)
        elif type(part) in kinds:
            found.append(part)
    return found
