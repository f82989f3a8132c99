"""The channel factors of a draw, multiplied with what modules and functions are given where no parameter takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from tas.errors import BadNetwork
from tas.tracing.callsites import CallSites
from tas.tracing.records import CallSite, Feed

Fed = tuple[Feed, Tensor]  # the factor of every position in its `rows`
# functions that may sum over channels
_SUMS = {
    *("linear", "bilinear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "inner", "addmm", "addmm_", "addbmm", "baddbmm"),
    *("einsum", "tensordot", "linalg_multi_dot", "linalg_vecdot", "scaled_dot_product_attention", "sum", "mean"),
    *("multi_head_attention_forward", "cdist", "pairwise_distance", "cosine_similarity"),
    *("norm", "normalize", "linalg_norm", "linalg_vector_norm"),
}


@contextmanager
def feeding(network: nn.Module, feeds: Sequence[Fed]) -> Iterator[None]:
    """Inside, around one forward of the network, what the feeds name is multiplied by their factors.

    `BadNetwork` where a forward calls a function that is to be fed at other lines or not as often as when it was
    traced: a factor would be missing."""
    of_functions: dict[CallSite, list[Fed]] = {}
    with ExitStack() as stack:
        for feed, factor in feeds:
            if isinstance(feed.to, CallSite):
                of_functions.setdefault(feed.to, []).append((feed, factor))
            else:
                hook = partial(_given, feeds=[(feed, factor)])
                receiver = network.get_submodule(feed.to)
                stack.callback(receiver.register_forward_pre_hook(hook, with_kwargs=True).remove)
        if not of_functions:
            yield
            return

        def called(site: CallSite, number: int, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            mine = [(f, m) for f, m in of_functions.get(site, ()) if f.call is None or f.call[0] == number]
            args, kwargs = _given(None, args, kwargs, mine)
            return func(*args, **kwargs)

        with CallSites(network, called, _SUMS | {site.function for site in of_functions}) as sites:
            yield
        for site, fed in of_functions.items():
            _require_as_traced(site, [feed for feed, _ in fed], sites.ended)


def _require_as_traced(site: CallSite, feeds: Sequence[Feed], forwards: Sequence[Counter[CallSite]]) -> None:
    """Whether the forwards of a module made the calls that they made when it was traced. (One may make none, where a
    module is called in two ways. All may, where there is nothing to do; but then no call may stand for them.)"""
    wanted = next((feed.call[1] for feed in feeds if feed.call), None)
    made = [calls[site] for calls in forwards if calls[site]]
    other = next((number for number in made if wanted not in (None, number)), None)
    if other is not None or (not made and any(calls.keys() - feeds[0].known for calls in forwards)):
        often = "at other lines" if other is None else f"{other} times, {wanted} when it was traced"
        raise BadNetwork(
            f"a search mixes widths at {_named(feeds[0])}, which a forward called {often} (does train mode go another "
            "way?): fix the choice concerned by a rule"
        )


def _given(_: nn.Module | None, args: Any, kwargs: Any, feeds: Sequence[Fed]) -> tuple[Any, Any]:
    """The arguments of a call with these factors: a forward pre-hook."""
    args, kwargs = list(args), dict(kwargs)
    for feed, factor in feeds:
        held: Any = kwargs if isinstance(feed.argument, str) else args
        if feed.argument not in (kwargs if held is kwargs else range(len(args))):
            raise BadNetwork(
                f"a search mixes widths by argument {feed.argument!r} of {_named(feed)}, "
                "which a forward called without it: fix the choice concerned by a rule"
            )
        tensor = held[feed.argument]
        held[feed.argument] = times(tensor, _along(feed, factor.to(tensor.dtype), tensor.shape[feed.dim]), feed.dim)
    return tuple(args), kwargs


def _named(feed: Feed) -> str:
    where = feed.module or "the network"
    return where if isinstance(feed.to, str) else f"{feed.to.function} in {where} ({feed.to.line})"


def _along(feed: Feed, factor: Tensor, size: int) -> Tensor:
    """The factor of every position of a dimension of that size: with another batch or other pixels than were traced it
    may be another."""
    turns = size // len(factor) if feed.turns > 1 else 1
    times = size // len(factor) if feed.times > 1 else 1
    if turns * len(factor) * times != size:
        raise BadNetwork(
            f"a search mixes widths along a dimension in {feed.module or 'the network'} that has {size} positions, "
            f"{turns * len(factor) * times} expected: trace the network on inputs of the size that it is given"
        )
    return factor.repeat_interleave(times).repeat(turns) if size != len(factor) else factor


def times(tensor: Tensor, factor: Tensor, dim: int) -> Tensor:
    """A tensor with a factor for every position of a dimension."""
    return tensor * factor.reshape([-1 if d == dim else 1 for d in range(tensor.dim())])
