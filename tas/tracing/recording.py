"""One real forward under a dispatch mode: every operator with its tensors, module, source line and identities."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from functools import cached_property, partial
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import multi_head_attention_forward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from tas.tracing.dynamic import Decisions, Noting
from tas.tracing.identity import Array, Identities, Rows, same
from tas.tracing.places import loose_tensors
from tas.tracing.records import Axis, Call, Record, Site, Span, Value
from tas.tracing.watching import Watching
from tas.tracing.whole import Whole

Handler = Callable[..., None]
_OWN = f"{Path(__file__).parent}/"
_TORCH = f"{Path(torch.__file__).parent}/"
_ARITHMETIC = {"add", "sub", "rsub", "mul", "div", "pow", "remainder", "fmod", "floor_divide"}
_TORCHS = ("aten", "prims", "torchvision", "")  # namespaces of operators; the last: functions that count as one


class Recorder(Watching):
    """Runs a network once and keeps what it did. Handlers (tas.tracing.operators) call `rows`, `put` and `unify`."""

    def __init__(
        self, network: nn.Module, handlers: dict[str, Handler], fallback: Handler, own: Mapping[str, Handler]
    ) -> None:
        super().__init__()
        self.own = own  # the user's, by "name" or "namespace::name"
        self.network, self.handlers, self.fallback = network, handlers, fallback
        self.identities = Identities()
        self.records: list[Record] = []
        self.calls: list[Call] = []
        self.spans: list[Span] = []
        self.tensors: dict[str, tuple[Rows, ...]] = {}  # parameters and buffers
        self._inexact: list[tuple[str, tuple[Rows, ...]]] = []
        self.counts: list[tuple[Array, Array, str]] = []  # dimensions of which the code needs equally many positions
        self.ordered: list[Rows] = []  # dimensions whose positions must keep their neighbours
        self.joined: set[Site] = set()  # dimensions of parameters that a view joins to the one in front
        self.steps: list[tuple[Rows, int]] = []  # dimensions that a kernel takes in multiples of a number alone
        self.apart: list[Rows] = []  # positions that were taken out of others: units in and outside are no longer alike
        self.grouped: dict[
            str, tuple[Axis, Axis]
        ] = {}  # grouped layers: input channels, and those of one group or head
        self.needed = 0  # bit set of the records that outputs descend from
        self.reads: dict[str, int] = {}  # first name of a parameter or buffer -> bit set of the records that read it
        self.outputs: list[tuple[str, Value]] = []  # of the network, with the path to each
        self.freed: list[Value] = []  # those of the outputs whose sizes a rule makes searchable
        self.named: set[str] = set()  # every name that a choice has had
        self.written: frozenset[tuple[str, str]] = frozenset()  # attributes with settings that a forward changes
        self.current: Record
        self._met = ""  # a tensor that the operator at work reads and that nothing cuts
        self.decisions: Decisions
        self._rows = WeakIdKeyDictionary()
        self._maker = WeakIdKeyDictionary()
        self._descends = WeakIdKeyDictionary()
        self._origin = (
            WeakIdKeyDictionary()
        )  # parameter behind a tensor: its name, and its dimensions for each dimension
        self._written: dict[int, tuple[int, int]] = {}  # storage -> last in-place record and what that descends from
        self._promised = WeakIdKeyDictionary()  # identities that become one when a tensor is read
        self._loose = (
            WeakIdKeyDictionary()
        )  # tensors that are no parameters or buffers, and their views: where they are
        for name, module in network.named_modules():
            for key, tensor in loose_tensors(module):
                self._loose[tensor] = f"{'.'.join(map(str, key))} of {name or 'the network'}"
        self._whole = Whole(partial(self._observe, in_place=False, pointwise=False))
        self._stack: list[str] = [""]
        self._first_name: dict[str, str] = {}  # shared parameters have several names
        self._names = {id(module): name for name, module in network.named_modules()}
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
        index = self._value(tensor).made_by
        return None if index < 0 else self.records[index]

    def when_read(self, tensor: Tensor, pairs: list[tuple[Rows, Rows]]) -> None:
        """Merge these identities, but only if anything reads the tensor."""
        self._promised[tensor] = pairs

    def _read(self, tensors: list[Tensor]) -> None:
        for tensor in tensors if len(self._promised) else ():
            for left, right in self._promised.pop(tensor, ()):
                self.identities.unify(left, right, "they are stacked in one tensor that is read")

    def tie_counts(self, left: Rows, right: Rows, why: str) -> bool:
        """The code needs as many kept positions of one as of the other: whether that was not known."""
        left, right = self.identities.canonical(left), self.identities.canonical(right)
        if left is None or right is None:
            self.identities.unify(left, right, why)
            return left is not right
        known = [(self.identities.canonical(a), self.identities.canonical(b)) for a, b, _ in self.counts]
        if same(left, right) or any(same(left, a) and same(right, b) for a, b in known):
            return False
        self.counts.append((left, right, why))
        return True

    def freeze(self, *parts: Rows, why: str = "") -> None:
        for part in parts:
            self.identities.freeze(part, f"{why}{': ' if why else ''}{self.current.where()}")

    def carries(self, rows: Rows) -> bool:
        return self.identities.canonical(rows) is not None

    def mark_inexact(self, why: str, *rows: Rows) -> None:
        """Cut channels would matter other than by being zero, as long as any of these dimensions can be cut."""
        self._inexact.append((why, rows))

    @property
    def inexact(self) -> tuple[str, ...]:
        found = (why for why, rows in self._inexact if not rows or any(map(self.carries, rows)))
        return tuple(dict.fromkeys(found))

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
        name = self._stack[-1]
        why = f"the embedding is heads x head size: {name}"
        embedding, made_of = query.shape[-1], self.rows(weight)[1]
        self.tie_counts(self.rows(query)[-1], made_of, why)
        sizes = [heads, embedding // heads]
        inside = self.identities.factor(made_of, sizes, why, [True, True])[1]
        if isinstance(self.network.get_submodule(name), nn.MultiheadAttention):
            self.grouped[name] = (embedding, made_of), (sizes[1], inside)

    # -- the forward -----------------------------------------------------------------------------------------------
    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        noting = Noting(self.network)
        with torch.no_grad(), _hooks(self), plain_attention(), self._whole, _Attention(self), noting, self:
            output = self.network(*args, **kwargs)
        self.decisions = noting.decisions
        given_back = _everything(output)
        self._read([tensor for _, tensor in given_back])
        for path, tensor in given_back:
            self.needed |= self._ancestors(tensor)
            self.outputs.append((path.removeprefix("."), self._value(tensor)))
        return output

    def also(self) -> Recorder:
        """One for another forward of the same network, whose findings about identities are this one's as well."""
        other = Recorder(self.network, self.handlers, self.fallback, self.own)
        for shared in ("identities", "tensors", "counts", "_inexact", "ordered", "joined", "steps", "apart", "grouped"):
            setattr(other, shared, getattr(self, shared))
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
            for tensor in tensors_in(out):  # of another shape they would be other numbers
                self.freeze(*self.rows(tensor), why="random numbers are drawn in eval mode")
        return out

    def _generators(self) -> list[Tensor]:
        """The states of the global generators that the network can draw from."""
        devices = {parameter.device for parameter in self.network.parameters() if parameter.is_cuda}
        return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]

    def _observe(self, name: str, func: Any, args: Any, kwargs: Any, in_place: bool, pointwise: bool) -> Any:
        given, operator = dict(kwargs), name.rpartition("::")[2]
        target = given.pop("out", None)
        inputs = tensors_in((args, given))
        self._read(inputs)
        values = tuple(self._value(tensor) for tensor in inputs)
        before = [self._ancestors(tensor) for tensor in inputs]
        shown = self._as_it_was(args[0]) if torch.Tag.inplace_view in getattr(func, "tags", ()) else None
        out = func(*args, **kwargs)
        args = args if shown is None else (shown, *args[1:])
        union = 0
        for bits in before:
            union |= bits
        index = len(self.records)
        (source, owners), numbers = self._called_from(), numbers_in(operator, (args, given))
        self.current = Record(index, operator, self._stack[-1], source, values, union, tuple(before), owners, numbers)
        for tensor in inputs:
            known = self._origin.get(tensor)
            if known is not None:
                self.reads[known[0]] = self.reads.get(known[0], 0) | (1 << index)
        loose = [self._loose.get(tensor) for tensor in inputs]
        self._met = next(filter(None, loose), "")
        if loose and all(loose):
            self._loose.update((tensor, self._met) for tensor in tensors_in(out))
        overwritten = [(tensor, self.rows(tensor)) for tensor in tensors_in(target)]
        handler = self._handler(name)
        (handler or (self.handlers["pointwise"] if pointwise else self.fallback))(self, out, *args, **given)
        for tensor, before_it in overwritten:  # out=: what is written goes with what the memory was made for
            for left, right in zip(before_it, self.rows(tensor), strict=False):
                self.unify(left, right)
        self._note_outputs(out, inputs, union | (1 << index), in_place)
        self.records.append(self.current)
        return out

    def _called_from(self) -> tuple[str, tuple[str, ...]]:
        """The innermost line of Python that is neither torch's nor ours, as file:line; and the modules whose methods
        were at work since the running module's forward began, innermost first."""
        running, frame, line, owners = self._stack[-1], sys._getframe(2), "", list[str]()
        within = True
        while frame is not None and (within or not line):
            code = frame.f_code
            others = code.co_filename.startswith((_TORCH, _OWN, "<"))
            if not line and not others:
                line = f"{Path(code.co_filename).name}:{frame.f_lineno}"
            if within and code.co_argcount and (not others or code.co_name == "forward"):
                name = self._names.get(id(frame.f_locals.get(code.co_varnames[0])), "?")
                within = name != running
                owners += [name] if within and name != "?" and name not in owners else []
            frame = frame.f_back  # type: ignore[assignment]
        return line or "?", tuple(owners)

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
        storages = {_storage(tensor) for tensor in inputs}
        for tensor in tensors_in(out):
            self._descends[tensor] = descends
            self._maker[tensor] = self.current.index
            if in_place:
                self._written[_storage(tensor)] = (self.current.index, descends)
            elif _storage(tensor) not in storages:
                self._written.pop(_storage(tensor), None)  # new memory at an old address
        self.current.outputs = tuple(self._value(tensor) for tensor in tensors_in(out))

    def _value(self, tensor: Tensor) -> Value:
        made_by = max(self._maker.get(tensor, -1), self._written.get(_storage(tensor), (-1, 0))[0])
        return Value(tuple(tensor.shape), tuple(self.rows(tensor)), made_by, is_real(tensor), self.sites(tensor))

    def _ancestors(self, tensor: Tensor) -> int:
        return int(self._descends.get(tensor, 0)) | self._written.get(_storage(tensor), (-1, 0))[1]


class _Attention(TorchFunctionMode):
    """Tells of torch's own attention, which modules other than torch's call as well."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is multi_head_attention_forward:
            given = signature(func).bind(*args, **(kwargs or {})).arguments
            self.recorder.tie_heads(given["query"], given["num_heads"], given["out_proj_weight"])
        return out


_Given = tuple[tuple[Value, ...], tuple[int | str | None, ...]]


@contextmanager
def _hooks(recorder: Recorder) -> Iterator[None]:
    """Follow the module stack, and note the calls of modules that take a tensor first and give one."""
    opened: list[tuple[int, _Given, tuple[Value, int] | None, int | str | None, bool]] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        recorder._stack.append(recorder._names.get(id(module), recorder._stack[-1]))
        at = _leading(args, kwargs)
        each = [(place, x, leaf) for place, x in (*enumerate(args), *kwargs.items()) for leaf in tensors_in(x)]
        values = (
            tuple(recorder._value(leaf) for _, _, leaf in each),
            tuple(p if x is leaf else None for p, x, leaf in each),
        )
        stream = None if at is None else args[0] if args else kwargs[at]
        taken = None if stream is None else (recorder._value(stream), recorder._ancestors(stream))
        opened.append((len(recorder.records), values, taken, at, len(args) == 1 and not kwargs))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        name = recorder._stack.pop()
        first, values, taken, at, alone = opened.pop()
        recorder.spans.append(Span(name, first, len(recorder.records), *values))
        nones = len(output) - 1 if type(output) is tuple and all(other is None for other in output[1:]) else -1
        made = output[0] if nones >= 0 else output
        if at is not None and taken is not None and isinstance(made, Tensor):
            last, made = len(recorder.records), recorder._value(made)
            recorder.calls.append(Call(name, first, last, taken[0], made, taken[1], at, alone, nones))

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in recorder.network.modules()]
    handles += [module.register_forward_hook(leave) for module in recorder.network.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _leading(args: Any, kwargs: Any) -> int | str | None:
    """Where a module is given its first tensor: as its first argument, or by which keyword where it has no others."""
    if args:
        return 0 if isinstance(args[0], Tensor) else None
    return next((key for key, value in kwargs.items() if isinstance(value, Tensor)), None)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Off with the fused transformer path: it is one opaque operator."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def _named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters(remove_duplicate=False)
    yield from network.named_buffers(remove_duplicate=False)


def is_real(tensor: Tensor) -> bool:
    """Whether it holds numbers that a factor makes sense for: real or complex, as opposed to whole."""
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


LITERAL = "lift_fresh"


def numbers_in(operator: str, tree: Any) -> tuple[float, ...]:
    """The numbers among an operator's arguments that it computes with: fractions, and whole ones in arithmetic (sizes
    and dimensions elsewhere); what `torch.tensor(number)` in a forward makes a tensor of."""
    if operator == LITERAL:
        return tuple(float(x.item()) for x in tensors_in(tree) if x.numel() == 1 and x.is_cpu and not x.is_complex())
    kinds = (float, int) if operator.rstrip("_") in _ARITHMETIC else (float,)
    return tuple(_numbers(tree, kinds))


def _numbers(tree: Any, kinds: tuple[type, ...]) -> list[float]:
    found: list[float] = []
    for part in tree.values() if isinstance(tree, dict) else tree:
        if isinstance(part, (tuple, list, dict)):  # torch's own flattening takes a third of a replay
            found += _numbers(part, kinds)
        elif type(part) in kinds:
            found.append(part)
    return found


def tensors_in(tree: Any) -> list[Tensor]:
    return [tree] if isinstance(tree, Tensor) else [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _everything(output: Any) -> list[tuple[str, Tensor]]:
    """The tensors that a network gives back, each with the path to it, also those in objects that torch does not know
    how to look into."""
    found, waiting, seen = list[tuple[str, Tensor]](), [("", output)], dict[int, Any]()
    while waiting:
        path, leaf = waiting.pop(0)
        if id(leaf) not in seen and isinstance(leaf, Tensor):
            found.append((path, leaf))
        elif id(leaf) not in seen and not isinstance(leaf, (type, nn.Module)):
            waiting += [(path + step, part) for step, part in _parts(leaf)]
        seen[id(leaf)] = leaf  # held, or another object could come to have its number
    return found


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f".{key}", part) for key, part in value.items())
    elif isinstance(value, (tuple, list)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    else:
        yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())
        yield from ((f".{name}", getattr(value, name, None)) for name in getattr(value, "__slots__", ()))
        leaves = () if is_dataclass(value) else tree_leaves(value)  # what torch was told how to look into
        yield from (("", leaf) for leaf in leaves if leaf is not value)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
