"""Copies of networks: as deep as those of `copy.deepcopy`, with the tensors that they are asked to share."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from tas.tracing.copying import copy_sharing


class Wrapped(nn.Module):
    """Copied by a call of its class, which asks for what is in the module that it is given."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module, self.training = module, module.training

    def __reduce__(self) -> Any:
        return Wrapped, (self.module,)

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)


class Counted(nn.Module):
    """Says itself what a copy is."""

    copies = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Counted":
        twin = Counted()
        twin.copies = self.copies + 1
        return twin


def test_modules_that_say_how_they_are_copied() -> None:
    network = nn.Sequential(nn.Linear(3, 4), Wrapped(nn.Sequential(nn.Linear(4, 4))), Counted()).eval()
    twin = copy_sharing(network)
    assert twin[2].copies == 1
    assert not twin[1].training
    assert twin[1].module is not network[1].module
    x = torch.randn(2, 3)
    assert torch.equal(twin[:2](x), network[:2](x))


def test_what_is_one_object_stays_one() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    network[1].weight = network[0].weight
    network[0].store, network[1].store, network[2].store = (cache := OrderedDict()), cache, OrderedDict()
    network[0].pair = [network[1], {"size": (4, 4)}]
    twin = copy_sharing(network, [network[0].bias])

    assert twin[0].bias is network[0].bias
    assert twin[1].bias is not network[1].bias
    assert twin[0].weight is twin[1].weight
    assert twin[0].weight is not network[0].weight
    assert twin[0].store is twin[1].store
    assert twin[0].store is not cache
    assert twin[2].store is not twin[0].store
    assert twin[0].pair[0] is twin[1]
    assert twin[0].pair[1] is not network[0].pair[1]
    assert twin[2]._forward_hooks is not network[2]._forward_hooks
    assert twin.state_dict().keys() == copy.deepcopy(network).state_dict().keys()
