"""What is noted around operators: the calls of modules, and of functions of torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from inspect import signature
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.functional import multi_head_attention_forward
from torch.nn.modules import module as calling

from tas.tracing.callsites import CallSites
from tas.tracing.leaves import tensors_of
from tas.tracing.records import Call, CallSite, Span, Value
from tas.tracing.undoing import hooked

if TYPE_CHECKING:
    from tas.tracing.recording import Recorder

_Given = tuple[tuple[Value, ...], tuple[int | str | None, ...]]
_NOTHING: _Given = ((), ())


def noting_functions(recorder: Recorder) -> CallSites:
    """Note the calls of functions, and torch's own attention, which modules other than torch's call as well."""
    own = set(_forwards(Function))  # of what has a backward of its own, which knows of no factor

    def called(site: CallSite, number: int, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        first = len(recorder.records)
        out = func(*args, **kwargs)
        given = _NOTHING
        if any(record.contracted for record in recorder.records[first:]) and not _called_by(own):
            with suppress(NotImplementedError):  # inside torch.vmap tensors have no memory, and other dimensions
                given = _given(recorder, args, kwargs)
        span = Span(site.module, first, len(recorder.records), *given)
        recorder.applied.setdefault(site, []).append((number, span))
        if func is multi_head_attention_forward:
            named = signature(func).bind(*args, **kwargs).arguments
            recorder.tie_heads(named["query"], named["num_heads"], named["out_proj_weight"])
        return out

    return CallSites(recorder.network, called)


@contextmanager
def noting_calls(recorder: Recorder) -> Iterator[None]:
    """Follow the module stack, and note the calls of modules that take a tensor first and give one."""
    opened: list[tuple[nn.Module, int, _Given, tuple[Value, int] | None, int | str | None, bool]] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        recorder.stack.append(recorder.names.get(id(module), recorder.stack[-1]))
        at = _leading(args, kwargs)
        values = _given(recorder, args, kwargs)
        stream = None if at is None else args[0] if args else kwargs[at]
        taken = None if stream is None else (recorder.value(stream), recorder.ancestors(stream))
        opened.append((module, len(recorder.records), values, taken, at, len(args) == 1 and not kwargs))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if not opened or opened[-1][0] is not module:
            return  # an earlier pre-hook raised: it was not entered
        name = recorder.stack.pop()
        _, first, values, taken, at, alone = opened.pop()
        recorder.spans.append(Span(name, first, len(recorder.records), *values))
        nones = len(output) - 1 if type(output) is tuple and all(other is None for other in output[1:]) else -1
        made = output[0] if nones >= 0 else output
        if at is not None and taken is not None and isinstance(made, Tensor):
            last, made = len(recorder.records), recorder.value(made)
            recorder.calls.append(Call(name, first, last, taken[0], made, taken[1], at, alone, nones))

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in recorder.network.modules()]
    handles += [module.register_forward_hook(leave, always_call=True) for module in recorder.network.modules()]
    with hooked(handles):
        yield


def _forwards(kind: type[Any]) -> Iterator[Any]:
    """The code of the forward of a class and of all that descend from it."""
    yield getattr(getattr(kind, "forward", None), "__code__", None)
    for descends in kind.__subclasses__():
        yield from _forwards(descends)


def _called_by(codes: Set[Any]) -> bool:
    """Whether one of these is at work in the forward of the running module."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_code not in codes and frame.f_code.co_filename != calling.__file__:
        frame = frame.f_back
    return frame is not None and frame.f_code in codes


def _given(recorder: Recorder, args: Any, kwargs: Any) -> _Given:
    """The tensors of a call, and which argument each is (see `Span`)."""
    each = [(place, x, leaf) for place, x in (*enumerate(args), *kwargs.items()) for leaf in tensors_of(x)]
    return tuple(recorder.value(leaf) for *_, leaf in each), tuple(p if x is leaf else None for p, x, leaf in each)


def _leading(args: Any, kwargs: Any) -> int | str | None:
    """Where a module is given its first tensor: as its first argument, or by which keyword where it has no others."""
    if args:
        return 0 if isinstance(args[0], Tensor) else None
    return next((key for key, value in kwargs.items() if isinstance(value, Tensor)), None)
