"""What stands in for a module that is left out: a copy lies in every student folder, beside the loader."""

import operator

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
