"""Other tools that make unchanged networks smaller, driven the way their own documentation does.

A tool here is a function (network, inputs, keep) -> smaller network: `keep` is the share of the MACs to aim at, 0 asks
for the smallest. Channels go in steps of 8 where a tool has such steps, so that no small network is refused for that.
What a tool tells its users to mend in the smaller network by hand is not mended: the question is what works unchanged.
"""

from __future__ import annotations

import contextlib
import copy
import io
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import tas
from tas.methods.baselines import uniform
from tas.tracing import as_call
from tas.tracing.independent import independent_macs

# Of a tool without candidates of its own; tas's narrowest is 0.3 too.
WIDTHS = (0.8, 0.75, 0.7, 0.65, 0.6, 0.5, 0.4, 0.3)
STEP = 8
Row = dict[str, Any]
Tool = Callable[[nn.Module, Any, float], nn.Module]


def judge(cut: Tool, build: Callable[[], nn.Module], inputs: Any) -> Iterator[Row]:
    """The shares of the MACs (counted by torch) that are left when half and, in a second row, when least is asked for,
    the smallest of both; there also how many processor seconds the latter took. ValueError where a smaller network
    gives outputs of other shapes than the original's, or does not train."""
    whole = independent_macs(build().eval(), inputs)
    shapes = [tuple(t.shape) for t in _tensors(_call(build().eval(), inputs))]
    row: Row = {}
    for name, keep in (("half", 0.5), ("smallest", 0.0)):
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            network = cut(build().eval(), inputs, keep)
        seconds = round(time.process_time() - start, 2)
        found = [tuple(t.shape) for t in _tensors(_call(network.eval(), inputs))]
        if found != shapes:
            raise ValueError(f"outputs have shapes {found[:3]}, the original's {shapes[:3]}")
        _trains(network, inputs)
        share = round(independent_macs(network.eval(), inputs) / whole, 4)
        row = {**row, name: min([share, *row.values()])}  # some cut less where they are asked for more
        yield row if keep else {**row, "seconds": seconds}


def ours(network: nn.Module, inputs: Any, keep: float) -> nn.Module:
    """Uniform widths at the budget; or the smallest architecture."""
    traced = tas.trace(network, inputs)
    space = traced.space
    chosen = uniform(space, tas.budget(space, macs=keep)) if keep else space.smallest()
    return tas.extract(traced, chosen)


def torch_pruning(network: nn.Module, inputs: Any, keep: float) -> nn.Module:
    """One ratio for all layers: the first that meets `keep`, or the largest."""
    whole = independent_macs(network, inputs)
    for width in WIDTHS if keep else WIDTHS[-1:]:
        smaller = _pruned(copy.deepcopy(network), inputs, 1 - width)
        if independent_macs(smaller, inputs) <= keep * whole:
            break
    return smaller


def _pruned(network: nn.Module, inputs: Any, ratio: float) -> nn.Module:
    """Layers that make the outputs are left alone; numbers of heads are given for layers called `qkv`."""
    import torch_pruning as tp

    classes = {t.shape[1] for t in _tensors(_call(network, inputs)) if t.dim() > 1}
    layers = (nn.Linear, nn.modules.conv._ConvNd)
    attention = [m for m in network.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")]
    pruner = tp.pruner.BasePruner(
        network,
        inputs,
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=ratio,
        ignored_layers=[m for m in network.modules() if isinstance(m, layers) and m.weight.shape[0] in classes],
        num_heads={m.qkv: m.num_heads for m in attention},
        round_to=STEP,
    )
    pruner.step()
    return network


def modelopt(network: nn.Module, inputs: Any, keep: float) -> nn.Module:
    """The search space of FastNAS without its search: the widths nearest to one ratio of all, or the narrowest."""
    import modelopt.torch.nas as mtn
    from modelopt.torch.prune.fastnas import FastNASConfig

    config = FastNASConfig().model_dump()
    for rules in config.values():
        for options in rules.values():
            options.update({name: STEP for name in options if name.endswith("_divisor")})
    network = mtn.convert(network, mode=[("fastnas", config)])
    whole, found = independent_macs(network, inputs), {}
    for ratio in [r / 20 for r in range(1, 21)] if keep else [0.0]:
        chosen = mtn.sample(
            network, lambda widths, ratio=ratio: min(widths, key=lambda w: abs(w - ratio * max(widths)))
        )
        found[abs(independent_macs(network, inputs) / whole - keep)] = chosen
    mtn.select(network, found[min(found)])
    return mtn.export(network)


def _call(network: nn.Module, inputs: Any) -> Any:
    args, kwargs = as_call(inputs)
    return network(*args, **kwargs)


def _tensors(outputs: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor)]


def _trains(network: nn.Module, inputs: Any) -> None:
    """A step in train mode, with gradients that are numbers."""
    torch.manual_seed(0)
    losses = [t.square().mean() for t in _tensors(_call(network.train(), inputs)) if t.requires_grad]
    torch.stack(losses).sum().backward()
    if not all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None):
        raise ValueError("a gradient of the smaller network is not finite")


PEERS = {"tas": ours, "torch-pruning": torch_pruning, "modelopt": modelopt}
MODULES = {"tas": "tas", "torch-pruning": "torch_pruning", "modelopt": "modelopt.torch.nas"}
PACKAGES = {"tas": "tas", "torch-pruning": "torch-pruning", "modelopt": "nvidia-modelopt"}
