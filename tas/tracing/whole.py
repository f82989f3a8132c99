"""Functions of torch that count as one operator, whatever a device makes of them.

A recurrent layer is an opaque operator on one machine and thousands of small ones, several a time step, on another.
Attention with fewer keys' heads than queries' is one operator, or many that depend on how often a head is repeated.
And `einsum`, which is many operators, computes a sum over one position as an elementwise product: whether it is running
one is known here alone. Of `reshape` and `unflatten` with sizes that do not fit no operator would tell what was asked:
they raise before there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

Observer = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
_LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
_UNFLATTEN = (torch.unflatten, Tensor.unflatten)
_RESHAPE = (torch.reshape, Tensor.reshape)
_NAMES = {getattr(torch, name): name for name in (*_LAYERS, *(f"{layer}_cell" for layer in _LAYERS))}


class Whole(TorchFunctionMode):
    """Hands calls of these functions to `observe(name, function, args, kwargs)`, which has to run them; `inside` says
    that one is running, so that what it does goes unobserved. `summing`: an `einsum` over one position is running. It
    serves one `with`."""

    def __init__(self, observe: Observer) -> None:
        super().__init__()
        self.observe, self.inside, self.summing = observe, False, False

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        del self.observe  # a method of what holds this mode: the two would keep a network until garbage is collected

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.einsum and is_of_several(*args):
            return in_pairs(partial(self.__torch_function__, func, types), *args)
        if func in _UNFLATTEN:
            _require_unflattened(*args, **(kwargs or {}))
        if func in _RESHAPE:
            _require_reshaped(*args, **(kwargs or {}))
        name = _name(func, kwargs or {})
        if name is None:
            self.summing = func is torch.einsum and sums_over_one(*args)
            try:
                return func(*args, **(kwargs or {}))
            finally:
                self.summing = False

        def run(*args: Any, **kwargs: Any) -> Any:
            self.inside = True
            try:
                return func(*args, **kwargs)
            finally:
                self.inside = False

        return self.observe(name, run, args, kwargs or {})


def _name(func: Any, options: dict[str, Any]) -> str | None:
    """What a function counts as, where it counts as one operator."""
    grouped = func is scaled_dot_product_attention and options.get("enable_gqa")
    return "scaled_dot_product_attention" if grouped else _NAMES.get(func)


def _require_unflattened(input: Tensor, dim: int | str, sizes: Sequence[int]) -> None:
    """Raises as the operator `view` does where the sizes, one of which may be -1, do not fit."""
    if not isinstance(dim, str):
        before = range(input.dim())[dim]
        if not _fit(input.shape[before], sizes):
            input.view(*input.shape[:before], *sizes, *input.shape[before + 1 :])


def _require_reshaped(input: Tensor, *sizes: Any, shape: Sequence[int] = ()) -> None:
    """The same of the sizes, given one by one, in a tuple or by name."""
    wanted = tuple(sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes or shape)
    if not _fit(input.numel(), wanted):
        input.view(wanted)


def _fit(whole: int, sizes: Sequence[int]) -> bool:
    """Whether so many positions come in these sizes, one of which may be -1; not asked where one is 0."""
    known = prod(size for size in sizes if size != -1)
    return not known or (whole % known == 0 if -1 in sizes else whole == known)


def is_of_several(equation: Any, *operands: Any) -> bool:
    """Whether an `einsum` has more than two tensors, and all of their dimensions have names."""
    named = isinstance(equation, str) and "->" in equation and "." not in equation
    return named and len(_operands(operands)) > 2


def in_pairs(einsum: Callable[[tuple[Any, ...]], Any], equation: str, *operands: Any) -> Any:
    """An `einsum` of several tensors as several of two, first come first served: torch's own order may follow sizes,
    and what it sums over one position midway would go unseen."""
    given, _, made = equation.replace(" ", "").partition("->")
    names, tensors = given.split(","), [*_operands(operands)]
    while len(tensors) > 2:
        left = dict.fromkeys(name for name in names[0] + names[1] if name in made + "".join(names[2:]))
        tensors[:2] = [einsum((f"{names[0]},{names[1]}->{''.join(left)}", *tensors[:2]))]
        names[:2] = ["".join(left)]
    return einsum((f"{names[0]},{names[1]}->{made}", *tensors))


def sums_over_one(equation: Any, *operands: Any) -> bool:
    """Whether all that an `einsum` of two tensors sums over has size one."""
    tensors = _operands(operands)
    if not isinstance(equation, str) or len(tensors) != 2:
        return False
    given, _, made = equation.replace(" ", "").partition("->")
    first, second = (_sizes(names, x.shape) for names, x in zip(given.split(","), tensors, strict=True))
    summed = (first.keys() & second.keys()) - set(made)
    return bool(summed) and all(first[name] == second[name] == 1 for name in summed)


def _operands(given: tuple[Any, ...]) -> Sequence[Any]:
    """The tensors of an `einsum`, given one by one or as a list."""
    return given[0] if len(given) == 1 and isinstance(given[0], (list, tuple)) else given


def _sizes(names: str, shape: torch.Size) -> dict[str, int]:
    """Of each letter; what an ellipsis stands for has none."""
    before, _, behind = names.partition("...")
    return {**dict(zip(before, shape, strict=False)), **dict(zip(behind[::-1], shape[::-1], strict=False))}
