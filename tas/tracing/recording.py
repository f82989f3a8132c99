"""One real forward under a dispatch mode: every operator with its tensors, module, source line and identities."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from functools import cached_property, partial, reduce
from operator import or_
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from tas.tracing.calls import noting_calls, noting_functions
from tas.tracing.dynamic import Decisions, Noting
from tas.tracing.findings import Findings
from tas.tracing.identity import Rows
from tas.tracing.leaves import memory_of, tensors_of, with_paths
from tas.tracing.literals import numbers_in
from tas.tracing.lookups import EVERYTHING, Lookups
from tas.tracing.places import Key, loose_tensors
from tas.tracing.records import Call, CallSite, Record, Site, Span, Value
from tas.tracing.watching import Watching
from tas.tracing.whole import Whole

Handler = Callable[..., None]
_Held = TypeVar("_Held")
_OWN = f"{Path(__file__).parent}/"
_TORCH = f"{Path(torch.__file__).parent}/"
_switched: list[bool] = []  # whether each use of `plain_attention` that lasts found the fused path on
_switching = Lock()
_TORCHS = ("aten", "prims", "torchvision", "")  # namespaces of operators; the last: functions that count as one


class Recorder(Watching, Findings):
    """Runs a network once and keeps what it did. Handlers (tas.tracing.handlers) call `rows`, `put` and `unify`."""

    def __init__(
        self, network: nn.Module, handlers: dict[str, Handler], fallback: Handler, own: Mapping[str, Handler]
    ) -> None:
        Watching.__init__(self)
        Findings.__init__(self)
        self.own = own  # the user's, by "name" or "namespace::name"
        self.network, self.handlers, self.fallback = network, handlers, fallback
        self.records: list[Record] = []
        self.calls: list[Call] = []
        self.spans: list[Span] = []
        self.applied: dict[CallSite, list[tuple[int, Span]]] = {}  # calls of functions, numbered in a module's forward
        self.needed = 0  # bit set of the records that outputs descend from
        self.reads: dict[str, int] = {}  # first name of a parameter or buffer -> bit set of the records that read it
        self.outputs: list[tuple[str, Value]] = []  # of the network, with the path to each
        self.freed: list[Value] = []  # those of the outputs whose sizes a rule makes searchable
        self.named: set[str] = set()  # every name that a choice has had
        self.written: frozenset[tuple[str, str]] = frozenset()  # attributes with settings that a forward changes
        self.lookups: Lookups = {}  # the attributes that were looked up
        self.current: Record
        self._met = ""  # a tensor that the operator at work reads and that nothing cuts
        self.decisions: Decisions
        self._rows = WeakIdKeyDictionary()
        self._maker = WeakIdKeyDictionary()
        self._descends = WeakIdKeyDictionary()
        # the parameter behind a tensor: its name, and its dimensions for each dimension
        self._origin = WeakIdKeyDictionary()
        self._written: dict[int, tuple[int, int]] = {}  # storage -> last in-place record and what that descends from
        self._promised = WeakIdKeyDictionary()  # identities that become one when a tensor is read
        # tensors that are no parameters or buffers, and their views: where they are
        self._loose = WeakIdKeyDictionary()
        for name, module in network.named_modules():
            for key, tensor in loose_tensors(module):
                self._loose[tensor] = f"{'.'.join(map(str, key))} of {name or 'the network'}"
        self._whole = Whole(partial(self._observe, in_place=False, pointwise=False))
        self.stack: list[str] = [""]
        self._first_name: dict[str, str] = {}  # shared parameters have several names
        self.names = {id(module): name for name, module in network.named_modules()}
        first: dict[int, str] = {}
        for name, tensor in _named_tensors(network):
            self._first_name[name] = first.setdefault(id(tensor), name)
            if tensor in self._rows:
                self.tensors[name] = self._rows[tensor]
            elif is_real(tensor):
                rows = tuple(self.identities.fresh(n) if n > 1 else None for n in tensor.shape)
                self._rows[tensor] = self.tensors[name] = rows
                self._origin[tensor] = (name, tuple((d,) for d in range(tensor.dim())))

    # -- what handlers use -----------------------------------------------------------------------------------------
    def rows(self, tensor: Tensor) -> list[Rows]:
        known = self._rows.get(tensor)
        return list(known) if known is not None and len(known) == tensor.dim() else [None] * tensor.dim()

    def put(self, tensor: Tensor, rows: Sequence[Rows]) -> None:
        for size, part in zip(tensor.shape, rows, strict=True):
            assert part is None or len(part) == size, (
                f"{self.current.where()}: {size} positions, {len(part)} identities"
            )
        self._rows[tensor] = tuple(self.identities.canonical(part) for part in rows)

    def unify(self, left: Rows, right: Rows) -> None:
        met = self._met and (left is None or right is None)
        told = f"{self._met}, which is no buffer (register it as one): " if met else ""
        self.identities.unify(left, right, f"{told}{self.current.where()}")

    @property
    def sums_over_one(self) -> bool:
        """Whether the operator at work is an `einsum` over one position: a product, though computed elementwise."""
        return self._whole.summing

    def made_by(self, tensor: Tensor) -> Record | None:
        """The record that computed a tensor last."""
        index = self.value(tensor).made_by
        return None if index < 0 else self.records[index]

    def when_read(self, tensor: Tensor, pairs: list[tuple[Rows, Rows]]) -> None:
        """Merge these identities, but only if anything reads the tensor."""
        self._promised[tensor] = pairs

    def _read(self, tensors: list[Tensor]) -> None:
        for tensor in tensors if len(self._promised) else ():
            for left, right in self._promised.pop(tensor, ()):
                self.identities.unify(left, right, "they are stacked in one tensor that is read")

    def freeze(self, *parts: Rows, why: str = "") -> None:
        for part in parts:
            self.identities.freeze(part, f"{why}{': ' if why else ''}{self.current.where()}")

    def sites(self, tensor: Tensor) -> tuple[tuple[Site, ...], ...]:
        """Behind each dimension of a tensor the parameter dimensions, if that is a parameter seen through views: one,
        or those that a view has joined."""
        name, dims = self._origin.get(tensor) or ("", ((),) * tensor.dim())
        return tuple(tuple((name, d) for d in each) for each in dims)

    def site(self, tensor: Tensor | None, dim: int) -> tuple[Site, ...]:
        """The parameter dimensions behind one dimension of a tensor."""
        return () if tensor is None else self.sites(tensor)[dim]

    def scaling(self, *axes: tuple[Tensor | None, int]) -> tuple[Site, ...]:
        """The parameter dimensions that scale an output together; none where one of the tensors is not a parameter
        seen through views (a weight that was computed)."""
        given = [self.site(tensor, dim) for tensor, dim in axes if tensor is not None]
        return tuple(site for sites in given for site in sites) if all(given) else ()

    def keep_origin(self, source: Tensor, target: Tensor, dims: Sequence[int | Sequence[int] | None]) -> None:
        """`target` is a view of `source`; `dims[i]` are the dimensions of source that dimension i of target shows,
        whole or in part: none, one, or several in one."""
        known = self._origin.get(source)
        if known is not None:
            each = [() if dim is None else (dim,) if isinstance(dim, int) else dim for dim in dims]
            self._origin[target] = (known[0], tuple(tuple(o for d in some for o in known[1][d]) for some in each))

    def tie_heads(self, query: Tensor, heads: int, weight: Tensor) -> None:
        """torch's own attention, with the weight of its output layer, computes the head size as embedding // heads: the
        embedding is heads x head size."""
        name = self.stack[-1]
        why = f"the embedding is heads x head size: {name}"
        embedding, made_of = query.shape[-1], self.rows(weight)[1]
        self.tie_counts(self.rows(query)[-1], made_of, why)
        sizes = [heads, embedding // heads]
        inside = self.identities.factor(made_of, sizes, why, [True, True])[1]
        if isinstance(self.network.get_submodule(name), nn.MultiheadAttention):
            self.grouped[name] = (embedding, made_of), (sizes[1], inside)

    # -- the forward -----------------------------------------------------------------------------------------------
    def run(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], beside: AbstractContextManager[Any] | None = None
    ) -> Any:
        """The network's output. A mode `beside` this one sees the network's operators, and none that are run here."""
        noting, functions, beside = Noting(self.network), noting_functions(self), beside or nullcontext()
        with torch.no_grad(), noting_calls(self), plain_attention(), self._whole, functions, noting, self, beside:
            output = self.network(*args, **kwargs)
        self.decisions = noting.decisions
        given_back = with_paths(output)
        self._read([tensor for _, tensor in given_back])
        for path, tensor in given_back:
            self.needed |= self.ancestors(tensor)
            self.outputs.append((path.removeprefix("."), self.value(tensor)))
        return output

    def also(self) -> Recorder:
        """One for another forward of the same network, whose findings are this one's as well."""
        other = Recorder(self.network, self.handlers, self.fallback, self.own)
        for shared in fields(Findings):
            setattr(other, shared.name, getattr(self, shared.name))
        for name, tensor in _named_tensors(self.network):
            if name in self.tensors:
                other._rows[tensor] = self.tensors[name]
        return other

    @cached_property
    def spans_of(self) -> dict[str, list[Span]]:
        """The calls of every module, in order."""
        found: dict[str, list[Span]] = {}
        for span in sorted(self.spans, key=lambda span: (span.first, -span.last)):
            found.setdefault(span.module, []).append(span)
        return found

    @cached_property
    def call_sites(self) -> frozenset[CallSite]:
        """Where functions were called."""
        return frozenset(self.applied)

    def looked_up(self, module: str, held: Iterator[tuple[Key, _Held]]) -> Iterator[tuple[Key, _Held]]:
        """Of what a module holds, that which its code could have read."""
        known = self.lookups[module]
        return ((key, value) for key, value in held if key[0] in known or EVERYTHING in known)

    @cached_property
    def overwrites(self) -> bool:
        """Whether the forward writes into a parameter."""
        return any(memory_of(parameter) in self._written for parameter in self.network.parameters())

    @property
    def unread(self) -> list[str]:
        """The parameters that the forward never reads."""
        return [name for name, _ in self.network.named_parameters() if not self.reads.get(name)]

    def freeze_unneeded(self) -> None:
        """Sizes that only parameters have that no output depends on: a search could cut them for nothing."""
        reads = {name: self.reads.get(self._first_name[name], 0) for name in self.tensors}
        alive = [part for name, rows in self.tensors.items() if reads[name] & self.needed for part in rows]
        known = [part.ravel() for part in map(self.identities.canonical, alive) if part is not None]
        atoms = np.unique(np.concatenate(known)) if known else np.zeros(0, int)
        for name, rows in self.tensors.items():
            for part in map(self.identities.canonical, rows if not reads[name] & self.needed else ()):
                if part is not None:
                    why = "no output of the network depends on it" if reads[name] else "the forward never reads it"
                    self.identities.freeze(part[~np.isin(part, atoms).any(1)], why)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._whole.inside:
            return func(*args, **(kwargs or {}))
        writes = any(r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns)
        draws = torch.Tag.nondeterministic_seeded in func.tags and not self.network.training
        before = self._generators() if draws else []
        out = self._observe(func._schema.name, func, args, kwargs or {}, writes, torch.Tag.pointwise in func.tags)
        if not all(map(torch.equal, before, self._generators() if before else [])):
            for tensor in tensors_of(out):  # of another shape they would be other numbers
                self.freeze(*self.rows(tensor), why="random numbers are drawn in eval mode")
        return out

    def _generators(self) -> list[Tensor]:
        """The states of the global generators that the network can draw from."""
        devices = {parameter.device for parameter in self.network.parameters() if parameter.is_cuda}
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]

    def _observe(self, name: str, func: Any, args: Any, kwargs: Any, in_place: bool, pointwise: bool) -> Any:
        given, operator = dict(kwargs), name.rpartition("::")[2]
        target = given.pop("out", None)
        inputs = tensors_of((args, given))
        self._read(inputs)
        values = tuple(self.value(tensor) for tensor in inputs)
        before = [self.ancestors(tensor) for tensor in inputs]
        shown = self._as_it_was(args[0]) if torch.Tag.inplace_view in getattr(func, "tags", ()) else None
        out = func(*args, **kwargs)
        args = args if shown is None else (shown, *args[1:])
        index = len(self.records)
        (source, owners, path), numbers = self._called_from(), numbers_in(operator, (args, given))
        self.current = Record(index, operator, self.stack[-1], source, values, tuple(before), owners, numbers, path)
        for tensor in inputs:
            known = self._origin.get(tensor)
            if known is not None:
                self.reads[known[0]] = self.reads.get(known[0], 0) | (1 << index)
        loose = [self._loose.get(tensor) for tensor in inputs]
        self._met = next(filter(None, loose), "")
        if loose and all(loose):
            self._loose.update((tensor, self._met) for tensor in tensors_of(out))
        overwritten = [(tensor, self.rows(tensor)) for tensor in tensors_of(target)]
        handler = self._handler(name)
        (handler or (self.handlers["pointwise"] if pointwise else self.fallback))(self, out, *args, **given)
        for tensor, before_it in overwritten:  # out=: what is written goes with what the memory was made for
            for left, right in zip(before_it, self.rows(tensor), strict=False):
                self.unify(left, right)
        self._note_outputs(out, inputs, reduce(or_, before, 1 << index), in_place)
        self.records.append(self.current)
        return out

    def _called_from(self) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
        """The innermost line of Python that is neither torch's nor ours, as file:line; and since the running module's
        forward began, innermost first, the modules whose methods were at work and the lines."""
        running, frame, line, owners, path = self.stack[-1], sys._getframe(2), "", list[str](), list[str]()
        within = True
        while frame is not None and (within or not line):
            code = frame.f_code
            others = code.co_filename.startswith((_TORCH, _OWN, "<"))
            if within and not code.co_filename.startswith(_OWN):
                path.append(f"{code.co_filename}:{frame.f_lineno}")
            if not line and not others:
                line = f"{Path(code.co_filename).name}:{frame.f_lineno}"
            if within and code.co_argcount and (not others or code.co_name == "forward"):
                name = self.names.get(id(frame.f_locals.get(code.co_varnames[0])), "?")
                within = name != running
                owners += [name] if within and name != "?" and name not in owners else []
            frame = frame.f_back  # type: ignore[assignment]
        return line or "?", tuple(owners), tuple(path)

    def _as_it_was(self, tensor: Tensor) -> Tensor:
        """A view with the shape and identities that a tensor has before its shape is changed in place."""
        view = tensor.detach()
        for known in (self._rows, self._origin):
            if tensor in known:
                known[view] = known[tensor]
        return view

    def _handler(self, name: str) -> Handler | None:
        """The user's own by either name; ours for torch's own operators, and by the whole name: another library's `add`
        is not known."""
        namespace, _, operator = name.rpartition("::")
        found = self.own.get(name) or self.own.get(operator) or self.handlers.get(name)
        if found is None and namespace in _TORCHS:
            found = self.handlers.get(operator) or self.handlers.get(operator.rstrip("_"))
        return found

    def _note_outputs(self, out: Any, inputs: list[Tensor], descends: int, in_place: bool) -> None:
        storages = {memory_of(tensor) for tensor in inputs}
        for tensor in tensors_of(out):
            self._descends[tensor] = descends
            self._maker[tensor] = self.current.index
            if in_place:
                self._written[memory_of(tensor)] = (self.current.index, descends)
            elif memory_of(tensor) not in storages:
                self._written.pop(memory_of(tensor), None)  # new memory at an old address
        self.current.outputs = tuple(self.value(tensor) for tensor in tensors_of(out))

    def value(self, tensor: Tensor) -> Value:
        made_by = max(self._maker.get(tensor, -1), self._written.get(memory_of(tensor), (-1, 0))[0])
        return Value(tuple(tensor.shape), tuple(self.rows(tensor)), made_by, is_real(tensor), self.sites(tensor))

    def ancestors(self, tensor: Tensor) -> int:
        return int(self._descends.get(tensor, 0)) | self._written.get(memory_of(tensor), (-1, 0))[1]


@contextmanager
def plain_attention() -> Iterator[None]:
    """Off with the fused transformer path: it is one opaque operator. The setting is the process's, of all threads."""
    with _switching:
        _switched.append(torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _switching:
            found = _switched.pop()  # that of the first one is left for the last
            torch.backends.mha.set_fastpath_enabled(found)


def _named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)


def is_real(tensor: Tensor) -> bool:
    """Whether it holds numbers that a factor makes sense for: real or complex, as opposed to whole."""
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex
