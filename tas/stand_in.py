"""What stands in a student for a module that is left out, and for the sizes of the original: a copy lies in every
student folder, beside the loader."""

import copy
import operator
from typing import Any

import torch
from torch import fx, nn


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


def like(old: Any, new: Any) -> Any:
    """A value from JSON in the types of the one it replaces: tuples, NumPy's and torch's numbers, keys that are no
    text, objects of settings."""
    if isinstance(old, list | tuple):
        items = map(like, old, new) if len(old) == len(new) else new
        return type(old)(*items) if hasattr(old, "_fields") else type(old)(items)
    if type(new) is int and isinstance(old, torch.Tensor):
        return torch.full_like(old, new)
    if type(new) is int and type(old).__module__ == "numpy":
        return type(old)(new)
    if not isinstance(new, dict) or old is None:
        return new
    made = copy.copy(old)  # modules may share it
    if isinstance(old, dict):
        made.update({key: like(value, new[str(key)]) for key, value in old.items() if str(key) in new})
        return made
    for name, value in new.items():
        object.__setattr__(made, name, like(getattr(made, name, None), value))  # what is frozen refuses `setattr`
    return made
