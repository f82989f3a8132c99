"""Proof by a run that something can be left out: its branch scaled by 0 gives what the network without it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tas.tracing.copying import copy_sharing
from tas.tracing.dynamic import outputs_under
from tas.tracing.recording import plain_attention
from tas.tracing.records import Site
from tas.tracing.regions import Region, leave_out
from tas.tracing.slicing import unfused
from tas.tracing.traced import Traced
from tas.tracing.undoing import parameters_unchanged, same_draws


def those_that_skip(check: Callable[[list[Region]], bool], regions: list[Region]) -> list[Region]:
    """Those for which `check` holds: all at once, else each half of them by itself."""
    if check(regions):
        return regions
    middle = len(regions) // 2
    halves = (regions[:middle], regions[middle:]) if middle else ()
    return [region for half in halves for region in those_that_skip(check, half)]


def skips_exactly(traced: Traced, folds: Mapping[str, tuple[Site, ...]], regions: list[Region]) -> bool:
    """Whether leaving these out together equals scaling their branches by 0."""
    if not regions:
        return True
    network, args, kwargs = traced.network, traced.args, traced.kwargs
    names = {name for region in regions for name, _ in folds[region.module]}
    alike = {name for name, p in network.named_parameters() if _is_constant(p)}
    without = copy_sharing(network, [p for name, p in network.named_parameters() if name not in alike]).eval()
    noise = torch.Generator().manual_seed(0)
    removed = [removal for region in regions for removal in region.removed]
    with torch.no_grad():  # zero-initialised heads and gammas would make everything equal
        for name, parameter in without.named_parameters():
            if name in alike:
                parameter.add_(torch.randn(parameter.shape, generator=noise).to(parameter), alpha=0.05)
        scaled = copy_sharing(without, [p for name, p in without.named_parameters() if name not in names])
        for name, parameter in scaled.named_parameters():
            if name in names:
                parameter.zero_()
    fused = unfused(without, [removal.module for removal in removed])
    leave_out(without, removed)
    if fused and not _runs(without, args, kwargs):  # torch's layers ask for the attention as well
        return False
    try:
        with torch.no_grad(), plain_attention():
            outputs = [outputs_under(traced.decisions, n, args, kwargs) for n in (scaled, without)]
    except Exception:  # the network needs something else of the module: it cannot be left out
        return False
    if len(outputs[0]) != len(outputs[1]):  # what is left out decides something itself (a mask of windows)
        with torch.no_grad(), plain_attention():
            outputs = [tree_leaves(n(*args, **kwargs)) for n in (scaled, without)]
    pairs = zip(*outputs, strict=True)
    same = all(torch.equal(a, b) for a, b in pairs if isinstance(a, Tensor))
    return same and (_runs(without.train(), args, kwargs) or not _runs(scaled.train(), args, kwargs))


def _is_constant(parameter: Tensor) -> bool:
    """Whether all numbers are the same; two are looked at before all are."""
    ahead = parameter.flatten()[:2]
    return bool(ahead.numel() and ahead.min() == ahead.max() and parameter.min() == parameter.max())


def _runs(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether it runs as it is, where code may ask for what is in a module that was left out."""
    with torch.no_grad(), parameters_unchanged(network), same_draws(network):
        try:
            network(*args, **kwargs)
        except Exception:
            return False
    return True
