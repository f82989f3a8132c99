"""From an unmodified network to its search space: one real forward, channel identities, proof by replay."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tas.space import Factor, SearchSpace
from tas.tracing import costs, limits
from tas.tracing.attributes import AttributeRule, in_units
from tas.tracing.fitness import copied, require_module
from tas.tracing.folding import Fold, fold_regions, fold_widths
from tas.tracing.halves import find_halves, innermost, outside, whole_blocks
from tas.tracing.identity import Array, Rows
from tas.tracing.keeping import kept_sizes
from tas.tracing.observing import observe
from tas.tracing.proof import prove
from tas.tracing.recording import Recorder
from tas.tracing.records import Site
from tas.tracing.regions import Region, chain, find_regions
from tas.tracing.rules import Rules
from tas.tracing.skipping import skips_exactly, those_that_skip
from tas.tracing.traced import Traced
from tas.tracing.undoing import leaves_traces
from tas.tracing.units import Units, find_units

__all__ = ["Rules", "Traced", "trace"]


@contextmanager
def _no_full_collections() -> Iterator[None]:
    """A trace makes so many objects that Python would look for cycles among all of the process, torch's too, several
    times: a fifteenth of its time, for nothing, since what it makes has none. Young objects are still looked at, for
    what the network's own forward leaves."""
    before = gc.get_threshold()
    gc.set_threshold(*before[:2], 1_000_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


@_no_full_collections()
def trace(
    network: nn.Module,
    example_inputs: Any,
    rules: Rules | None = None,
    handlers: Mapping[str, Callable[..., None]] | None = None,
) -> Traced:
    """Find out what can be searched in a network, by one forward of a copy on example inputs.

    `example_inputs`: a tensor, a tuple of positional arguments, or a dict of keyword arguments; the first dimension of
    the first tensor is the batch (of 2 or more, so that it is not mistaken for a size of 1). For a detector that takes
    a list of pictures, and in train mode of targets: `([picture, picture],)` or `([picture, picture], targets)`; what
    lies behind a size that follows from data (proposals, kept boxes) is counted as often as in this forward, and a note
    of the space says so. The network is not changed. What cannot be followed is kept, with the reason, in
    `.space.kept`.

    `rules`: what the user decides about the space. `handlers`: how channels go through operators that tas does not
    know, the user's own `torch.library.custom_op`, by name ("scaled", or "mylib::scaled"). One is a function
    `(recorder, out, *args)`, called with what the operator gave and was given. It says where each position of `out`
    comes from, by

        recorder.rows(tensor)           the identities of a tensor, one entry a dimension; None: all its positions stay
        recorder.put(out, rows)         gives an output its identities, one entry a dimension
        recorder.unify(some, others)    two dimensions of one size lose the same positions
        recorder.freeze(some, why="")   a dimension keeps its size

    For an operator `mylib::scaled(x, weight)` that multiplies channels, x [batch, channels, ...], weight [channels]:

        def scaled(recorder, out, x, weight):
            rows = recorder.rows(x)
            recorder.unify(rows[1], recorder.rows(weight)[0])
            recorder.put(out, rows)

        traced = tas.trace(network, inputs, handlers={"mylib::scaled": scaled})

    `tas.testing.check_space(network, inputs, handlers=...)` shows whether a handler is right. Without one, all sizes
    that reach the operator are kept. (A product inside such an operator is not among the MACs: no counter sees it.)

    Raises `BadNetwork` where the network refuses the inputs or is not fit to be traced, `BadRecipe` where a rule
    contradicts another or names nothing.
    """
    args, kwargs = as_call(example_inputs)
    rules = rules or Rules()
    require_module(network)
    original = copied(network)
    recorder = observe(original, args, kwargs, rules, handlers or {})
    caching = leaves_traces(network, recorder.network)
    attribute_rules, doubted = list[AttributeRule](), list[AttributeRule]()
    while True:
        units = find_units(recorder, rules)
        folds, unmixable = fold_widths(recorder, units)
        for identities, why in unmixable:
            recorder.identities.freeze(identities, why)
        if unmixable:
            continue
        traced = _widths(recorder, units, original, args, kwargs, caching, folds)
        if prove(recorder, units, traced, attribute_rules, doubted):
            break
    whole = _with_depth(recorder, units, replace(traced, attribute_rules=in_units(attribute_rules, units)), rules)
    limits.check_names(rules, recorder.named, units, list(whole.runs), whole.space.kept)
    return whole


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as positional and keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)), {}


def batch_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """How many examples a call holds: the first size of its first tensor, or the number of pictures in its first list
    of pictures [channels, height, width]."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value.shape[0] if value.dim() else 1
        if isinstance(value, (list, tuple)) and value and all(isinstance(x, Tensor) and x.dim() == 3 for x in value):
            return len(value)
    first = next((leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)), None)
    return 1 if first is None or not first.dim() else first.shape[0]


def _widths(
    recorder: Recorder,
    units: Units,
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    caching: tuple[str, ...],
    folds: dict[str, Fold],
) -> Traced:
    """The trace as far as a proof needs it: widths without costs, attribute rules and depth."""
    return Traced(
        network=network,
        space=SearchSpace(tuple(units.choices), (), (), recorder.inexact),
        args=args,
        kwargs=kwargs,
        rows=_shared({name: [units.rows(part) for part in rows] for name, rows in recorder.tensors.items()}),
        units=units.total,
        ordered=frozenset(name for rows in recorder.ordered for name in units.groups_of(rows)),
        first={group.name: units.start(number) for number, group in enumerate(units.groups)},
        groups={group.name: group for group in units.groups},
        grouped={
            name: tuple((n, units.rows(rows)) for n, rows in axes)  # type: ignore[misc]
            for name, axes in recorder.grouped.items()
        },
        joined=frozenset(recorder.joined),
        attribute_rules=(),
        caching=caching,
        runs={},
        removals={},
        folds=folds,
        branch_folds={},
        decisions=recorder.decisions,
    )


def _with_depth(recorder: Recorder, units: Units, traced: Traced, rules: Rules) -> Traced:
    """The whole trace: depth choices, and what everything costs."""
    runs, branch_folds = _depth(recorder, traced) if rules.depth else ([], {})
    depths, refused = limits.allowed_runs(runs, _run_name, rules, recorder.network)
    alive = [
        (removal, Factor(name, "above", index))
        for name, run in depths.items()
        for index, region in enumerate(run)
        for removal in region.removed
    ]
    blocks = tuple(limits.depth(rules, name, len(run)) for name, run in depths.items())
    batch = batch_of(traced.args, traced.kwargs)
    notes = tuple(filter(None, (*recorder.inexact, recorder.decisions.note())))
    charged = (*costs.macs(recorder, units, alive, batch), *costs.params(recorder, units, alive))
    return replace(
        traced,
        space=replace(
            traced.space,
            choices=traced.space.choices + blocks,
            costs=charged,
            kept=(*kept_sizes(recorder, units), *refused),
            notes=notes,
        ),
        runs={name: tuple(region.module for region in run) for name, run in depths.items()},
        removals={region.module: region.removed for run in depths.values() for region in run},
        branch_folds=branch_folds,
    )


def _shared(tensors: Mapping[str, list[Rows]]) -> dict[str, tuple[Rows, ...]]:
    """Equal arrays become one, so that what follows from one is worked out once."""
    known: dict[tuple[tuple[int, ...], bytes], Array] = {}

    def one(rows: Rows) -> Rows:
        return None if rows is None else known.setdefault((rows.shape, rows.tobytes()), rows)

    return {name: tuple(one(rows) for rows in dims) for name, dims in tensors.items()}


def _depth(recorder: Recorder, traced: Traced) -> tuple[list[list[Region]], dict[str, tuple[Site, ...]]]:
    """Runs of what can be left out: doing so equals scaling its branch by 0, shown by running both. Blocks of several
    branches that can all be left out alone give way to these."""
    blocks = find_regions(recorder)
    halves = innermost(find_halves(recorder), blocks)
    folds = fold_regions(recorder, [*halves, *blocks])
    halves, blocks = ([region for region in some if folds[region.module]] for some in (halves, blocks))
    check = partial(skips_exactly, traced, folds)
    whole = whole_blocks(blocks, halves)
    if not check([*whole, *outside(halves, whole)]):  # as a rule all of them can be left out, which one run shows
        halves = those_that_skip(check, halves)
        whole = those_that_skip(check, whole_blocks(blocks, halves))
    runs = sorted(chain(whole) + chain(outside(halves, whole)), key=lambda run: run[0].first)
    return runs, {region.module: folds[region.module] for run in runs for region in run}


def _run_name(run: list[Region]) -> str:
    """The modules of the run, as first..last without the path that they share: "layer1.0..2"."""
    first, last = run[0].module.split("."), run[-1].module.split(".")
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return f"{run[0].module}..{'.'.join(last[shared:])}.depth" if len(run) > 1 else f"{run[0].module}.depth"
