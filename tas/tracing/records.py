"""What is noted of one forward: operators, their tensors, and the calls of modules around them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tas.tracing.identity import Array, Rows

# How a channel factor m >= 0 on an operator's inputs shows in its output:
#   pass      zero stays zero on every channel (relu, pooling, cat, views)
#   add       so it does where every operand carries the factor
#   multiply  one operand with the factor is enough (squeeze-excite, gates)
#   norm      normalised away, then scaled by an affine of its own
#   product   a linear operator with weights; `contracted` names what is summed over (convolution, linear, attention)
#   other     anything else
Flow = Literal["pass", "add", "multiply", "norm", "product", "other"]
Site = tuple[str, int]  # a parameter's name and one of its dimensions
Axis = tuple[int, Rows]  # size and identities of one dimension


@dataclass(frozen=True)
class CallSite:
    """Where a function of torch is called: in which module's forward, and at which line."""

    module: str
    function: str
    line: str


@dataclass(frozen=True, eq=False)
class Feed:
    """One dimension of what a module is given at every call, or a function of torch at one place: of the tensor that
    is the argument of that number or keyword. rows: which units its positions need; `turns` times over, and each
    `times` in a row, where the dimension joins channels with a batch or with pixels. call: which of how many calls at
    that place in one forward, None for all of them. known: where the traced forward called functions."""

    to: str | CallSite
    argument: int | str
    dim: int
    rows: Array
    turns: int = 1
    times: int = 1
    call: tuple[int, int] | None = None
    known: frozenset[CallSite] = frozenset()

    @property
    def module(self) -> str:
        return self.to if isinstance(self.to, str) else self.to.module


@dataclass(frozen=True)
class Value:
    """One tensor as an operator read or wrote it: `made_by` is the record that computed it last (-1: given)."""

    shape: tuple[int, ...]
    rows: tuple[Rows, ...]
    made_by: int
    real: bool  # of floating point, or complex
    sites: tuple[tuple[Site, ...], ...]  # for each dimension, the parameter dimensions that it shows: several in one

    @property
    def shown(self) -> tuple[Site, ...]:
        """All parameter dimensions that it shows."""
        return tuple(site for sites in self.sites for site in sites)

    def axes(self) -> list[Axis]:
        return list(zip(self.shape, self.rows, strict=True))


@dataclass
class Record:
    """One operator of the forward."""

    index: int
    operator: str
    module: str
    source: str
    inputs: tuple[Value, ...]
    input_before: tuple[int, ...]  # for every input the bit set of the records that it descends from
    owners: tuple[str, ...] = ()  # modules whose methods called it, other than by a forward of theirs; innermost first
    numbers: tuple[float, ...] = ()  # among its arguments
    path: tuple[str, ...] = ()  # the lines at work since the running module's forward began, innermost first
    outputs: tuple[Value, ...] = ()
    flow: Flow = "other"
    products: list[list[Axis]] = field(default_factory=list)  # one multiply-accumulate per point of these axes
    scales: tuple[Site, ...] = ()  # parameters that scale every output channel: gamma and beta, or rows and bias
    contracted: tuple[tuple[int, Rows, tuple[Site, ...]], ...] = ()  # which input, what is summed over, what it meets
    met_by: int | None = None  # the input that a contracted one is multiplied with: a factor may come with either

    def where(self) -> str:
        return f"{self.operator} in {self.module or 'the network'} ({self.source})"


@dataclass(frozen=True)
class Span:
    """One call of a module, or of a function of torch in its forward: the tensors given to it; records first..last-1
    belong to it. places: the argument or keyword that each tensor is, None for one inside a list or another object."""

    module: str
    first: int
    last: int
    inputs: tuple[Value, ...]
    places: tuple[int | str | None, ...]


@dataclass(frozen=True)
class Call:
    """One call of a module that takes a tensor first and gives one, alone or in a tuple before `nones` times None:
    records first..last-1 belong to it."""

    module: str
    first: int
    last: int
    input: Value
    output: Value
    input_descends_from: int
    argument: int | str  # where the tensor is given: 0, or its keyword where all is given by keyword
    alone: bool  # nothing else is given
    nones: int  # -1: no tuple
