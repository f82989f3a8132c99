"""NetAdapt on a network in which it is known where something can be lost for nothing: it takes from there first.

The network is to give what it gives already, so whatever is read costs something, and what nothing reads costs nothing.
"""

import pytest
import torch
from torch import Tensor, nn
from toys import Block, Net, asked, data, network

import tas
from tas.calibration import recalibrate
from tas.data import Data, InMemory, Split
from tas.methods.netadapt import Settings, search
from tas.objectives import Objective
from tas.scoring import search_splits
from tas.space import Architecture


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square().mean(1)


OBJECTIVE = Objective(lambda outputs, targets: squared(outputs, targets).mean(), squared, "error", False)


def settled() -> Net:
    """With the batch-norm statistics that a recalibration finds, so that it changes nothing."""
    net = network()
    weights = search_splits(data(), 0)[0]
    recalibrate(net, [inputs for inputs, _ in weights.batches(len(weights))])
    return net


def own_answers(net: Net) -> Data:
    """The images of the toy data; the targets are the network's outputs."""
    known = data()
    ((inputs, _),) = known.train.batches(len(known.train))
    with torch.no_grad():
        return Data("own answers", Split("train", InMemory(inputs, net(inputs))))


def with_copies(net: Net, block: int) -> Net:
    """The same function; inside one block every channel has a twin that nothing reads, made by smaller weights."""
    wide = Net()
    wide.load_state_dict(net.state_dict())
    inner = wide.blocks[block]
    assert isinstance(inner, Block)
    conv1, bn1, conv2 = inner.conv1, inner.bn1, inner.conv2
    inner.conv1, inner.bn1 = nn.Conv2d(12, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
    inner.conv2 = nn.Conv2d(24, 12, 3, padding=1, bias=False)
    with torch.no_grad():
        inner.conv1.weight.copy_(torch.cat([0.5 * conv1.weight, conv1.weight]))
        for name, tensor in inner.bn1.state_dict().items():
            if tensor.dim():
                tensor.copy_(torch.cat(2 * [bn1.state_dict()[name]]))
        inner.conv2.weight.copy_(torch.cat([torch.zeros_like(conv2.weight), conv2.weight], 1))
    return wide.eval()


@pytest.mark.parametrize(("block", "steps"), [(0, 0), (1, 0), (2, 0), (1, 2)])
def test_channels_that_nothing_reads_go_first(block: int, steps: int) -> None:
    narrow = settled()
    wide, x = with_copies(narrow, block), torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(wide(x), narrow(x))
    traced = tas.trace(wide, x[:2], tas.Rules(depth=False, divisor=4))
    planted = f"blocks.{block}.conv1"
    budget = tas.budget(traced.space, macs=0.6)
    largest = traced.space.largest()
    assert dict(budget.limits)["macs"] < tas.macs(traced.space, {**largest, planted: 12})  # copies do not suffice
    settings = Settings(0.06, 1.0, steps, 32, 1e-5, images=128, calibration_images=128)
    found = search(asked(traced, own_answers(narrow), budget, settings, objective=OBJECTIVE))
    sizes = [Architecture.of(row["architecture"])[planted] for row in found.course]
    free = next(number for number, size in enumerate(sizes) if size <= 12)
    assert {row["choice"] for row in found.course[: free + 1]} == {planted}
    assert found.course[-1]["recalibrated"] > 10 * found.course[free]["recalibrated"]
