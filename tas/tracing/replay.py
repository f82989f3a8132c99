"""A cut network run beside the record of the whole one: the first operator that gives another shape than predicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import takewhile
from typing import Any

from torch import nn

from tas.tracing.dynamic import Holding
from tas.tracing.leaves import tensors_of
from tas.tracing.literals import LITERAL, numbers_in
from tas.tracing.recording import Recorder
from tas.tracing.records import Axis, Record, Span
from tas.tracing.undoing import hooked
from tas.tracing.watching import Watching
from tas.tracing.whole import Whole

# contiguity and sizes of one decide whether these appear: never compare on them
_COMES_AND_GOES = {"clone", "_to_copy", "alias", "detach", LITERAL, "contiguous", "copy_"}
_ALIKE = {"_unsafe_view": "view", "_reshape_alias": "view", "reshape": "view", "unsafe_split": "split"}


class _Differs(Exception):
    pass


class Replay(Watching):
    """Compares each operator's output shapes with the prediction. Where operators differ it goes on without comparing
    until the next module begins or ends, but for the numbers of what it passes over; `strayed` are the places of the
    record where that happened."""

    def __init__(self, recorder: Recorder, kept: Callable[[Axis], int]) -> None:
        super().__init__()
        self.recorder, self.kept = recorder, kept
        self.position, self.aligned = 0, True
        self.strayed: set[int] = set()
        self.compared = 0  # operators
        self._aliases = 0  # up to where those of the record have been met
        self._calls: Counter[str] = Counter()
        self._unaligned: Counter[tuple[str, str]] = Counter()  # operators and their numbers since it strayed
        self._whole = Whole(self._compare)
        self._holding = Holding(recorder.decisions)
        self._literals: list[tuple[float, ...]] = []  # as many as in the record, or they are not compared
        self.asked: list[int] | None = None  # the sizes that a failing operator was given
        self.error: str | None = None

    def run(self, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        try:
            with self._aligning(network), self._whole, self:
                network(*args, **kwargs)
            self._pass_over(len(self.recorder.records))
            self._compare_literals()
        except _Differs as error:
            self.error = str(error)
        except Exception as error:  # whatever the user's forward raises at a wrong size
            lines = str(error).strip().splitlines()
            self.error = f"{type(error).__name__}: {lines[0] if lines else ''}"

    def comes_further_than(self, other: Replay) -> bool:
        """Whether it fails later, or, where it does not fail, compares more."""
        if self.error is None:
            return self.position > other.position or self.compared > other.compared
        return other.error is not None and self.position > other.position

    def _compare_literals(self) -> None:
        records = [record for record in self.recorder.records if record.operator == LITERAL]
        if len(records) == len(self._literals):
            for record, numbers in zip(records, self._literals, strict=True):
                self._compare_numbers(record, numbers)

    def _compare_numbers(self, record: Record, numbers: tuple[float, ...]) -> None:
        if (record.numbers or numbers) and repr(record.numbers) != repr(numbers):
            # NaN is NaN; a scale computed from the head size, say
            self.recorder.mark_inexact(f"a number follows a width: {record.where()}")

    def _align(self, position: int) -> None:
        """Go on at a place of the record, if it strayed."""
        if not self.aligned:
            self._pass_over(position)
            self.position, self.aligned = position, True

    def _pass_over(self, position: int) -> None:
        """Numbers of the record up to there that were not met since it strayed are taken to be others: einsum is made
        of other operators at a size of one, the scale after it is not."""
        if self.aligned:
            return
        for record in self.recorder.records[self.position : position]:
            key = record.operator, repr(record.numbers)
            if record.numbers and record.operator != LITERAL and not self._unaligned[key]:
                self.recorder.mark_inexact(f"a number follows a width: {record.where()}")
            self._unaligned[key] -= 1
        self._unaligned.clear()

    def _note(self, name: str, args: Any, kwargs: Any) -> None:
        self._unaligned[name, repr(numbers_in(name, (args, kwargs)))] += 1

    @contextmanager
    def _aligning(self, network: nn.Module) -> Iterator[None]:
        """Calls of modules come in the same order in the record, whatever operators they are made of."""
        spans = self.recorder.spans_of
        open_calls: list[Span | None] = []

        def enter(name: str) -> None:
            calls, number = spans.get(name, []), self._calls[name]
            self._calls[name] += 1
            span = calls[number] if number < len(calls) else None
            open_calls.append(span)
            if span is not None:
                self._align(span.first)

        def leave() -> None:
            span = open_calls.pop()
            if span is not None:
                self._align(span.last)

        handles = []
        for name, module in network.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
            handles.append(module.register_forward_hook(lambda *_: leave()))
        with hooked(handles):
            yield

    def at(self) -> Record:
        """The operator that is due, or failed."""
        records = self.recorder.records
        while self.position < len(records) - 1 and records[self.position].operator in _COMES_AND_GOES:
            self.position += 1
        return records[min(self.position, len(records) - 1)]

    def _meet_alias(self) -> bool:
        """Note that an alias was met: whether it is a slice up to the end or beyond, and not one that was an alias in
        the record as well."""
        due = self.at()
        passed = takewhile(lambda r: r.operator in _COMES_AND_GOES, reversed(self.recorder.records[: due.index]))
        met = [record.index for record in passed if record.operator == "alias" and record.index >= self._aliases]
        self._aliases = min(met, default=self._aliases - 1) + 1
        return not met and due.operator == "slice"

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._whole.inside:
            return self._holding.call(func, args, kwargs or {})

        def run(*args: Any, **kwargs: Any) -> Any:
            return self._holding.call(func, args, kwargs)

        return self._compare(_operator(func), run, args, kwargs or {})

    def _compare(self, name: str, run: Any, args: Any, kwargs: Any) -> Any:
        self.asked = _asked(name, args)
        out = run(*args, **kwargs)
        if name == LITERAL:
            self._literals.append(numbers_in(name, (args, kwargs)))
        if not self.aligned:
            self._note(name, args, kwargs)
            return out
        whole = name == "alias" and self._meet_alias()
        if name in _COMES_AND_GOES and not whole:
            return out
        record = self.at()
        if _ALIKE.get(record.operator, record.operator) != _ALIKE.get(name, name) and not whole:
            return self._stray(name, args, kwargs, out)
        for tensor, value in zip(tensors_of(out), record.outputs, strict=False):
            wanted = tuple(self.kept(axis) for axis in value.axes())
            if tuple(tensor.shape) != wanted and value.real:
                if 1 in wanted and sorted(tensor.shape) == sorted(wanted):
                    return self._stray(name, args, kwargs, out)  # einsum moves sizes of one elsewhere
                raise _Differs(f"it gives {tuple(tensor.shape)} where {wanted} was due")
        self._compare_numbers(record, numbers_in(record.operator, (args, kwargs)))
        self.position += 1
        self.compared += 1
        self.asked = None
        return out

    def _stray(self, name: str, args: Any, kwargs: Any, out: Any) -> Any:
        """A size of one can change what an operator is made of: the forward still has to finish."""
        self.aligned = False
        self.strayed.add(self.position)
        self._note(name, args, kwargs)
        return out


@cache
def _operator(func: Any) -> str:
    return str(func._schema.name.split("::")[-1])


def _asked(operator: str, args: Sequence[Any]) -> list[int] | None:
    """The sizes that an operator is given: of a view, or of the parts that it takes."""
    if operator == "slice":
        start, stop = (args[2] or 0, args[3]) if len(args) > 3 else (0, None)
        return None if stop is None or min(start, stop) < 0 else [stop - start]
    if operator == "split" and isinstance(args[1], int):
        return [args[1]]
    return list(args[1]) if len(args) > 1 and isinstance(args[1], (list, tuple)) else None
