"""What the laws are checked against: an independent count, and a draw at full width by hooks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import multi_head_attention_forward, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from tas.distribution import Draw
from tas.extraction import extract
from tas.supernet import Supernet
from tas.tracing import Traced, as_call
from tas.tracing.callsites import CallSites
from tas.tracing.copying import copy_sharing
from tas.tracing.independent import independent_macs
from tas.tracing.records import CallSite, Feed, Site
from tas.tracing.undoing import buffers_unchanged, hooked, parameters_unchanged
from tas.tracing.units import Group

__all__ = ["drawn_wide", "independent_macs", "randomize", "same_noise", "without_noise"]

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_CHANNELS_SECOND = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding)


def randomize(network: nn.Module, generator: torch.Generator) -> None:
    """Scales and all that is positive in [0.5, 1.5], other vectors in [-0.2, 0.2], constant matrices with as much noise
    on top; in place. Zero-initialised branches would otherwise count for nothing."""
    with torch.no_grad():
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            if not tensor.is_floating_point() or not tensor.numel():
                continue
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
            scale = name.endswith(("gamma", "layer_scale", "scale")) or (name.endswith("weight") and tensor.dim() == 1)
            if scale or (tensor.dim() == 1 and bool((tensor > 0).all())):
                tensor.copy_(0.5 + noise)
            elif tensor.dim() == 1:
                tensor.copy_((noise - 0.5) * 0.4)
            elif bool((tensor == tensor.flatten()[0]).all()):
                tensor.add_((noise - 0.5) * 0.4)


def drawn_wide(supernet: Supernet, traced: Traced, draw: Draw, inputs: Any) -> Any:
    """The supernet's outputs at a draw, by hooks on a whole network, of which no parameter is cut or scaled: each
    channel is multiplied behind its affine (or before its reader) by the summed weight of the candidates that have it,
    and the end of each residual branch by the weight of the depths that keep its block.

    The network is as wide as the original; where the space's `notes` tell of norms or means over channels, as the
    widest candidates, since what these see of a channel cannot be masked.
    """
    kept: Callable[[np.ndarray], np.ndarray] | None = None
    network = copy_sharing(supernet.network)
    if not traced.exact:
        widest = {name: pick.values[-1] for name, pick in draw.items()}
        network, mask = extract(supernet, widest), traced.keep_mask(widest)
        kept = lambda rows: rows[mask[rows].all(1)]  # noqa: E731
    wide = _Wide(network, inputs)
    for group, fold in traced.folds.items():
        factor = _group_factor(draw, traced.groups[group])
        for feed in fold.feeds:
            positions = feed.rows if kept is None else kept(feed.rows)
            wide.feed(feed, _along(positions, traced.first[group], factor))
        along = {}
        for name, dim in fold.sites:
            rows = traced.rows[name][dim]
            assert rows is not None
            along[name, dim] = _along(rows if kept is None else kept(rows), traced.first[group], factor)
        wide.multiply(along)
    for choice, modules in traced.runs.items():
        for index, block in enumerate(modules[: draw[choice].values[-1]] if kept is not None else modules):
            alive = _factor(draw, choice, index + 1)[index]
            wide.multiply(dict.fromkeys(traced.branch_folds[block], alive))
    return wide.run(inputs)


def _factor(draw: Draw, choice: str, size: int) -> Tensor:
    """[size]: for unit or block u, the summed weight of the candidates above u."""
    pick = draw[choice]
    weights = pick.weights if pick.weights is not None else torch.ones(1, dtype=torch.float64)
    has = torch.tensor([[value > u for value in pick.values] for u in range(size)], dtype=weights.dtype)
    return has @ weights


def _group_factor(draw: Draw, group: Group) -> Tensor:
    """[size]: for unit u, the summed weight of the combinations of candidates that keep more than u."""
    kept = [(group.times, torch.ones((), dtype=torch.float64))]
    for choice, power in group.choices:
        pick = draw[choice]
        weights = pick.weights if pick.weights is not None else torch.ones(1, dtype=torch.float64)
        kept = [(n * v**power, w * q) for n, w in kept for v, q in zip(pick.values, weights, strict=True)]
    return torch.stack([torch.stack([w * (n > unit) for n, w in kept]).sum() for unit in range(group.size)])


def _along(rows: np.ndarray, first: int, factor: Tensor) -> Tensor:
    """The factor of every position of a dimension: the product over those of its units that belong to the choice."""
    mine = (rows >= first) & (rows < first + len(factor))
    padded = torch.cat([factor, factor.new_ones(1)])
    return padded[torch.from_numpy(np.where(mine, rows - first, len(factor)))].prod(1)


class _Wide:
    """A network with multiplications hung behind or before its layers; parameters of other modules are scaled."""

    def __init__(self, network: nn.Module, inputs: Any) -> None:
        self.network = network
        self.scaled: dict[str, Tensor] = {}
        self._fed: list[tuple[Feed, Tensor]] = []  # of functions
        self._tensors: dict[str, Tensor] = {}  # a parameter that modules share has a name in each of them
        self._names: dict[int, list[str]] = {}
        for owner, module in network.named_modules():
            of_module = module.named_parameters(owner, recurse=False), module.named_buffers(owner, recurse=False)
            for key, tensor in chain(*of_module):
                self._tensors[key] = tensor
                self._names.setdefault(id(tensor), []).append(key)
        self._called: set[str] = set()  # multi-head attention, for one, never calls its output layer
        handles = [
            module.register_forward_hook(lambda *_, name=name: self._called.add(name))
            for name, module in network.named_modules()
        ]
        with hooked(handles), torch.no_grad(), buffers_unchanged(network), parameters_unchanged(network):
            self.run(inputs)

    def multiply(self, factors: Mapping[Site, Tensor]) -> None:
        """As scaling these dimensions of parameters would; a layer once for its weight and bias together."""
        tensors = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        factors = {(n, dim): f for (name, dim), f in factors.items() for n in self._names[id(tensors[name])]}
        for owner in dict.fromkeys(name.rpartition(".")[0] for name, _ in factors):
            module = self.network.get_submodule(owner)
            mine = {site: factor for site, factor in factors.items() if site[0].rpartition(".")[0] == owner}
            weights = {dim: factor for (name, dim), factor in mine.items() if name.endswith("weight")}
            known = (
                isinstance(module, _CHANNELS_SECOND + _CHANNELS_LAST) and _is_plain(module) and owner in self._called
            )
            if known and weights and all(name.endswith((".weight", ".bias")) for name, _ in mine):
                makes = 1 if getattr(module, "transposed", False) or isinstance(module, nn.Embedding) else 0
                for dim, factor in weights.items():
                    self._hang(module, factor, behind=dim == makes or isinstance(module, _NORMS))
            else:
                for (name, dim), factor in mine.items():
                    tensor = self.scaled.get(name, self._tensors[name])
                    shape = [-1 if d == dim else 1 for d in range(tensor.dim())]
                    factor = factor.to(tensor.dtype)
                    self.scaled[name] = tensor * (factor.reshape(shape) if factor.dim() else factor)

    def feed(self, feed: Feed, factor: Tensor) -> None:
        """Multiply what a module or function is given."""
        if isinstance(feed.to, CallSite):
            self._fed.append((feed, factor))
        else:
            hook = partial(_given_with, feed, factor)
            self.network.get_submodule(feed.to).register_forward_pre_hook(
                lambda _, args, kwargs: hook(args, kwargs), with_kwargs=True
            )

    def _apply(self, site: CallSite, number: int, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        for feed, factor in self._fed:
            if feed.to == site and (feed.call is None or feed.call[0] == number):
                args, kwargs = _given_with(feed, factor, args, kwargs)
        return func(*args, **kwargs)

    def _hang(self, module: nn.Module, factor: Tensor, behind: bool) -> None:
        if not behind and factor.dim():  # the columns of a grouped convolution serve every group
            factor = factor.repeat(getattr(module, "groups", 1))
        second = isinstance(module, _CHANNELS_SECOND)  # a hook that names its module would keep both until collected

        def shaped(x: Tensor) -> Tensor:
            channels = 1 if second else x.dim() - 1
            shape = [-1 if d == channels else 1 for d in range(x.dim())]
            return x * (factor.reshape(shape) if factor.dim() else factor).to(x.dtype)

        if behind:
            module.register_forward_hook(lambda _, __, out: shaped(out))
        else:
            module.register_forward_pre_hook(lambda _, given: (shaped(given[0]), *given[1:]))

    def run(self, inputs: Any) -> Any:
        args, kwargs = as_call(inputs)
        with same_noise(), CallSites(self.network, self._apply) if self._fed else nullcontext():
            return functional_call(self.network, self.scaled, args, kwargs, tie_weights=False)


def _given_with(feed: Feed, factor: Tensor, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """The arguments of a call, one of them with the factor; by code of its own, not `tas.feeding`."""
    given = {**dict(enumerate(args)), **kwargs}
    last = given[feed.argument].movedim(feed.dim, -1)
    along = factor.to(last.dtype)[torch.arange(last.shape[-1]) // feed.times % len(factor)]
    given[feed.argument] = (last * along).movedim(-1, feed.dim)
    return tuple(given[place] for place in range(len(args))), {name: given[name] for name in kwargs}


def _is_plain(module: nn.Module) -> bool:
    """Whether its forward is torch's own: that of a subclass may go on behind the affine, with an activation say, or
    hold channels elsewhere."""
    return type(module).forward.__module__.startswith("torch.nn.modules.")


@contextmanager
def same_noise(seed: int = 0) -> Iterator[None]:
    """Two runs of the same shapes draw the same noise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _arguments(func: Callable[..., Any]) -> tuple[str, ...]:
    if func is scaled_dot_product_attention:  # it has no signature in Python
        return "query", "key", "value", "attn_mask", "dropout_p", "is_causal"
    return tuple(inspect.signature(func).parameters)


class _NoNoise(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if "dropout" in name:
            return args[0] if args else (kwargs or {})["input"]
        if name in ("randn_like", "rand_like", "randn", "rand", "normal", "normal_", "uniform_", "bernoulli"):
            return torch.zeros_like(func(*args, **(kwargs or {})))  # of a cut size it would be other noise
        if func in (scaled_dot_product_attention, multi_head_attention_forward):  # they drop attention weights inside
            return func(**{**dict(zip(_arguments(func), args, strict=False)), **(kwargs or {}), "dropout_p": 0.0})
        return func(*args, **(kwargs or {}))


@contextmanager
def without_noise(network: nn.Module) -> Iterator[None]:
    """Without dropout, with zeros for all other noise, and without modules named after drop paths or stochastic depth,
    in train mode too: noise has the shape of what it is laid on."""
    flags = [
        (m, m.training) for m in network.modules() if "Drop" in type(m).__name__ or "Stochastic" in type(m).__name__
    ]
    between = [(m, m.dropout) for m in network.modules() if isinstance(m, nn.RNNBase)]
    for module, _ in flags:
        module.training = False
    for layer, _ in between:
        layer.dropout = 0.0
    try:
        with _NoNoise():
            yield
    finally:
        for module, flag in flags:
            module.training = flag
        for layer, share in between:
            layer.dropout = share
