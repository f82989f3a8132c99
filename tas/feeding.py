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

Fed = tuple[Feed, Tensor]  # the factor of every position of its dimension


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

        with CallSites(network, called, {site.function for site in of_functions}) as sites:
            yield
        for module, calls in sites.ended:
            for site, ((feed, _), *_rest) in of_functions.items():
                if site.module == module:
                    _require_as_traced(feed, site, calls)


def _require_as_traced(feed: Feed, site: CallSite, calls: Counter[CallSite]) -> None:
    """Whether one forward of a module made the calls that it made when it was traced."""
    elsewhere = any(other.function == site.function and other != site for other in calls)
    if calls[site] != feed.call[1] if feed.call else not calls[site] and elsewhere:
        often = f"{calls[site]} times, {feed.call[1]} when it was traced" if feed.call else "at other lines"
        raise BadNetwork(
            f"a search mixes widths at {site.function} in {site.module or 'the network'} ({site.line}), which a "
            f"forward called {often} (does train mode go another way?): fix the choice concerned by a rule"
        )


def _given(_: nn.Module | None, args: Any, kwargs: Any, feeds: Sequence[Fed]) -> tuple[Any, Any]:
    """The arguments of a call with these factors: a forward pre-hook."""
    args, kwargs = list(args), dict(kwargs)
    for feed, factor in feeds:
        held: Any = kwargs if isinstance(feed.argument, str) else args
        held[feed.argument] = times(held[feed.argument], factor.to(held[feed.argument].dtype), feed.dim)
    return tuple(args), kwargs


def times(tensor: Tensor, factor: Tensor, dim: int) -> Tensor:
    """A tensor with a factor for every position of a dimension."""
    return tensor * factor.reshape([-1 if d == dim else 1 for d in range(tensor.dim())])
