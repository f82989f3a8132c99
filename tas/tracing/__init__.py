"""From an unmodified network to its search space: one real forward, channel identities, proof by replay."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tas.errors import BadNetwork
from tas.space import Choice, Factor, Kept, SearchSpace
from tas.tracing import costs
from tas.tracing.attributes import AttributeRule, in_units
from tas.tracing.folding import fold_regions, fold_widths
from tas.tracing.halves import find_halves, innermost, is_made_of
from tas.tracing.identity import Array, Rows
from tas.tracing.operators import HANDLERS, unknown
from tas.tracing.proof import prove
from tas.tracing.recording import Recorder
from tas.tracing.records import Site
from tas.tracing.regions import Region, chain, find_regions
from tas.tracing.replay import leaves_traces
from tas.tracing.rules import Rules
from tas.tracing.skipping import skips_exactly
from tas.tracing.slicing import copy_sharing
from tas.tracing.traced import Traced
from tas.tracing.units import Units, find_units

__all__ = ["Rules", "Traced", "trace"]


def trace(network: nn.Module, example_inputs: Any, rules: Rules | None = None) -> Traced:
    """Find out what can be searched in a network, by one forward of a copy on example inputs.

    `example_inputs`: a tensor, a tuple of positional arguments, or a dict of keyword arguments; the first dimension of
    the first tensor is the batch (of 2 or more, so that it is not mistaken for a size of 1). The network is not
    changed. What cannot be followed is kept, with the reason, in `.space.kept`.

    Raises `BadNetwork` where the network refuses the inputs.
    """
    args, kwargs = as_call(example_inputs)
    rules = rules or Rules()
    original = copy.deepcopy(network)
    recorder = Recorder(copy_sharing(original, list(original.parameters())).eval(), HANDLERS, unknown)
    try:
        recorder.run(args, kwargs)
    except Exception as error:
        raise BadNetwork(
            f"the network must run on the example inputs {_shapes(args, kwargs)}, got {type(error).__name__}: "
            f"{_first_line(error)}"
        ) from error
    caching = leaves_traces(network, recorder.network)
    attribute_rules: list[AttributeRule] = []
    while True:
        units, kept = find_units(recorder, rules)
        folds, unmixable = fold_widths(recorder, units)
        for identities, why in unmixable:
            recorder.identities.freeze(identities, why)
        if unmixable:
            continue
        traced = _widths(recorder, units, kept, original, args, kwargs, caching, folds)
        if prove(recorder, units, traced, attribute_rules):
            break
    return _with_depth(recorder, units, replace(traced, attribute_rules=in_units(attribute_rules, units)), rules)


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Example inputs as positional and keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    return (tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,)), {}


def _widths(
    recorder: Recorder,
    units: Units,
    kept: list[Kept],
    network: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    caching: tuple[str, ...],
    folds: dict[str, tuple[Site, ...]],
) -> Traced:
    """The trace as far as a proof needs it: widths without costs, attribute rules and depth."""
    return Traced(
        network=network,
        space=SearchSpace(tuple(units.choices), (), tuple(kept), tuple(recorder.inexact)),
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
        attribute_rules=(),
        caching=caching,
        runs={},
        removals={},
        folds=folds,
        branch_folds={},
    )


def _with_depth(recorder: Recorder, units: Units, traced: Traced, rules: Rules) -> Traced:
    """The whole trace: depth choices, and what everything costs."""
    runs, branch_folds = _depth(recorder, traced) if rules.depth else ([], {})
    depths = {_run_name(run): run for run in runs}
    alive = [
        (removal, Factor(name, "above", index))
        for name, run in depths.items()
        for index, region in enumerate(run)
        for removal in region.removed
    ]
    blocks = tuple(Choice(name, "depth", tuple(range(len(run) + 1))) for name, run in depths.items())
    batch = _batch(traced.args, traced.kwargs)
    charged = (*costs.macs(recorder, units, alive, batch), *costs.params(recorder, units, alive))
    return replace(
        traced,
        space=replace(
            traced.space, choices=traced.space.choices + blocks, costs=charged, notes=tuple(recorder.inexact)
        ),
        runs={name: tuple(region.module for region in run) for name, run in depths.items()},
        removals={region.module: region.removed for run in runs for region in run},
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

    def proved(regions: list[Region]) -> list[Region]:
        foldable = [region for region in regions if folds[region.module]]
        return skips_exactly(traced.network, traced.args, traced.kwargs, folds, foldable)

    halves = proved(halves)
    blocks = proved([block for block in blocks if not is_made_of(block, halves)])
    halves = [half for half in halves if not any(block.first <= half.last < block.last for block in blocks)]
    runs = sorted(chain(blocks) + chain(halves), key=lambda run: run[0].first)
    return runs, {region.module: folds[region.module] for run in runs for region in run}


def _run_name(run: list[Region]) -> str:
    """The modules of the run, as first..last without the path that they share: "layer1.0..2"."""
    first, last = run[0].module.split("."), run[-1].module.split(".")
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    return f"{run[0].module}..{'.'.join(last[shared:])}.depth" if len(run) > 1 else f"{run[0].module}.depth"


def _batch(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
    return 1 if first is None or not first.dim() else first.shape[0]


def _shapes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    named = [*(("", a) for a in args), *((f"{k}=", v) for k, v in kwargs.items())]
    return ", ".join(f"{k}{tuple(a.shape) if isinstance(a, torch.Tensor) else a!r}" for k, a in named)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
