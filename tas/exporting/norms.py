"""Batch norms folded into the layers before them: the same function with fewer operators, for inference alone."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._pytree import tree_leaves, tree_map

Pair = tuple[str, str]  # a layer, and the norm that reads its output


def fold_norms(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[str]:
    """Fold every batch norm that follows a convolution or linear layer into it, in place; the names of those norms.

    W <- W x gamma / sqrt(var + eps), b <- (b - mean) x gamma / sqrt(var + eps) + beta; norms become `nn.Identity`. The
    network is in eval mode and stays there: it can no longer be trained with batch statistics. Pairs are found by one
    forward on the inputs. Somebody else may read a layer's output too, so a fold is kept only where outputs in float64
    stay the same.
    """
    pairs = _pairs(network, args, kwargs)
    exact = copy.deepcopy(network).double()
    given = tree_map(_double, (args, dict(kwargs)))
    wanted = _outputs(exact, *given)

    def same(some: Sequence[Pair]) -> bool:
        trial = copy.deepcopy(exact)
        _fold(trial, some)
        found = _outputs(trial, *given)
        return all(torch.allclose(a, b, rtol=1e-7, atol=1e-7) for a, b in zip(wanted, found, strict=True))

    if not same(pairs):
        pairs = [pair for pair in pairs if same([pair])]
    _fold(network, pairs)
    return [norm for _, norm in pairs]


def _pairs(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Pair]:
    """Layers whose output object is the input object of a norm, where both are called once."""
    made: dict[int, tuple[str, Tensor]] = {}  # by id of the output; the tensor is held so that no id comes back
    calls: dict[str, int] = {}
    pairs: list[Pair] = []
    handles = []

    def after(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        if not isinstance(module, _BatchNorm):
            made[id(output)] = (name, output)
        elif module.running_var is not None and inputs and id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], name))

    for name, module in network.named_modules():
        plain = not is_parametrized(module) and not module._forward_pre_hooks  # whose weight is the weight
        if isinstance(module, (_BatchNorm, _ConvNd, nn.Linear)) and plain:
            handles.append(module.register_forward_hook(lambda *found, name=name: after(name, *found)))
    try:
        _outputs(network, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return [pair for pair in pairs if calls[pair[0]] == calls[pair[1]] == 1 and _fits(network, pair)]


def _fits(network: nn.Module, pair: Pair) -> bool:
    layer, norm = (network.get_submodule(name) for name in pair)
    return norm.num_features == getattr(layer, "out_channels", getattr(layer, "out_features", None))


def _fold(network: nn.Module, pairs: Sequence[Pair]) -> None:
    for layer_name, norm_name in pairs:
        layer, norm = network.get_submodule(layer_name), network.get_submodule(norm_name)
        fuse: Any = fuse_linear_bn_weights
        if not isinstance(layer, nn.Linear):
            fuse = partial(fuse_conv_bn_weights, transpose=bool(layer.transposed))
        statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        layer.weight, layer.bias = fuse(layer.weight, layer.bias, *statistics)
        network.set_submodule(norm_name, nn.Identity())


def _outputs(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(network(*args, **kwargs)) if isinstance(leaf, Tensor)]


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
