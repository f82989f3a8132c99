"""From an unmodified network to its search space: one real forward, channel identities, proof by replay."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tas.errors import BadNetwork
from tas.space import Choice, Factor, Kept, LayerCost, SearchSpace, Term
from tas.tracing.attributes import AttributeRule, in_units, with_integer
from tas.tracing.counts import Size, terms, times
from tas.tracing.folding import fold_regions, fold_widths
from tas.tracing.identity import Array, Rows
from tas.tracing.operators import HANDLERS, unknown
from tas.tracing.proof import leaves_traces, prove, skips_exactly
from tas.tracing.recording import Recorder, Site
from tas.tracing.regions import Region, chain, find_regions
from tas.tracing.slicing import Cut, copy_sharing, cut_parameters, cut_size, cuts_of, layer_attributes
from tas.tracing.units import Group, Rules, Units, find_units

__all__ = ["Rules", "Traced", "trace"]

Alive = list[tuple[Region, Factor]]  # skippable modules, and when they are there


@dataclass(frozen=True)
class Traced:
    """A network with its search space, and what is needed to run or build it at any architecture.

    `rows` says, for every parameter and buffer, which units each position of each dimension needs ([positions, k],
    indices of units; `units` stands for "always kept"; dimensions with the same units share their array). The
    `attribute_rules` say which integers of modules are sizes; modules in `caching` keep something from a forward.
    `groups` are the units that one prefix or keep set selects from, `first` the first unit of each: one for every width
    choice, and those whose size is a product of choices. An operator slides over those of the `ordered` groups, so that
    only prefixes of them make sense. `runs` gives the modules of each depth choice, in order. `folds` names the
    parameter dimensions that a group's channel factors multiply, `branch_folds` those that scale the branch of a
    skippable module.
    """

    network: nn.Module
    space: SearchSpace
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    rows: Mapping[str, tuple[Rows, ...]]
    units: int
    first: Mapping[str, int]
    groups: Mapping[str, Group]
    ordered: frozenset[str]
    grouped: Mapping[str, tuple[tuple[int, Rows], tuple[int, Rows]]]
    attribute_rules: tuple[AttributeRule, ...]
    caching: tuple[str, ...]
    runs: Mapping[str, tuple[str, ...]]
    folds: Mapping[str, tuple[Site, ...]]
    branch_folds: Mapping[str, tuple[Site, ...]]
    seconds: float = 0.0

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The original's size of every group of units."""
        return {name: group.size for name, group in self.groups.items()}

    def keep_mask(self, architecture: Mapping[str, int], keep: Mapping[str, Any] | None = None) -> Array:
        """Which units stay: the first ones of every group, or the indices given in `keep` by its name.

        Raises ValueError where `keep` names no group of units, or other than as many distinct units as that keeps.
        """
        mask = np.zeros(self.units + 1, bool)
        mask[-1] = True
        chosen = dict(keep or {})
        for name, size in self.sizes.items():
            first, count = self.first[name], self.groups[name].kept(architecture)
            if name not in chosen:
                mask[first : first + count] = True
                continue
            kept = np.asarray(chosen.pop(name), dtype=int)
            if len(np.unique(kept)) != count or kept.size != count or kept.min() < 0 or kept.max() >= size:
                raise ValueError(f"keep[{name!r}] lists {count} distinct units of 0..{size - 1}, got {kept.tolist()}")
            if name in self.ordered and sorted(kept.tolist()) != list(range(count)):
                raise ValueError(
                    f"of {name!r} the first units are kept: an operator slides over it; got {kept.tolist()}"
                )
            mask[first + kept] = True
        if chosen:
            raise ValueError(f"keep names groups of units, width choices for the most part; got {sorted(chosen)}")
        return mask

    def cuts(self, mask: Array) -> dict[str, Cut]:
        """What stays of every parameter and buffer that loses something."""
        return cuts_of(self.rows, mask)

    def attributes(self, network: nn.Module, cuts: Mapping[str, Cut], mask: Array) -> dict[str, dict[str, Any]]:
        """By module, the attributes that must be set to run at these cuts."""
        touched = dict.fromkeys(name.rpartition(".")[0] for name in cuts)
        found = {}
        for name in touched:
            module = network.get_submodule(name)
            shapes = {}
            for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                cut = cuts.get(f"{name}.{key}" if name else key, {})
                shapes[key] = tuple(cut_size(n, cut.get(d)) for d, n in enumerate(tensor.shape))
            groups = None
            if name in self.grouped:
                reads, inside = (_count(n, rows, mask) for n, rows in self.grouped[name])
                groups = reads // inside
            found[name] = layer_attributes(module, shapes, groups)
        for rule in self.attribute_rules:
            own, (name, index) = found.setdefault(rule.module, {}), rule.key
            old = own.get(name, getattr(network.get_submodule(rule.module), name))
            own[name] = with_integer(old, index, rule.was * _count(rule.full, rule.rows, mask) // rule.full)
        return found

    def cut(self, mask: Array, share: bool = False) -> nn.Module:
        """A copy of the network with cut parameters and buffers, all blocks present; with `share`, the
        parameters that lose nothing are the network's own."""
        cuts = self.cuts(mask)
        named = self.network.named_parameters(remove_duplicate=False)
        network = copy_sharing(self.network, [tensor for name, tensor in named if share or name in cuts])
        for name, attributes in self.attributes(network, cuts, mask).items():
            for key, value in attributes.items():
                setattr(network.get_submodule(name), key, value)
        cut_parameters(network, cuts)
        return network

    def dead(self, architecture: Mapping[str, int]) -> list[str]:
        """The modules that an architecture leaves out."""
        return [module for name, run in self.runs.items() for module in run[architecture[name] :]]


def _count(n: int, rows: Rows, mask: Array) -> int:
    return n if rows is None else int(mask[rows].all(1).sum())


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
        folds=folds,
        branch_folds={},
    )


def _with_depth(recorder: Recorder, units: Units, traced: Traced, rules: Rules) -> Traced:
    """The whole trace: depth choices, and what everything costs."""
    runs, branch_folds = _depth(recorder, traced) if rules.depth else ([], {})
    depths = {_run_name(run): run for run in runs}
    alive = [(region, Factor(name, "above", index)) for name, run in depths.items() for index, region in enumerate(run)]
    blocks = tuple(Choice(name, "depth", tuple(range(len(run) + 1))) for name, run in depths.items())
    batch = _batch(traced.args, traced.kwargs)
    costs = (*_macs(recorder, units, alive, batch), *_params(recorder, units, alive))
    return replace(
        traced,
        space=replace(traced.space, choices=traced.space.choices + blocks, costs=costs, notes=tuple(recorder.inexact)),
        runs={name: tuple(region.module for region in run) for name, run in depths.items()},
        branch_folds=branch_folds,
    )


def _shared(tensors: Mapping[str, list[Rows]]) -> dict[str, tuple[Rows, ...]]:
    """Equal arrays become one, so that what follows from one is worked out once."""
    known: dict[tuple[tuple[int, ...], bytes], Array] = {}

    def one(rows: Rows) -> Rows:
        return None if rows is None else known.setdefault((rows.shape, rows.tobytes()), rows)

    return {name: tuple(one(rows) for rows in dims) for name, dims in tensors.items()}


def _depth(recorder: Recorder, traced: Traced) -> tuple[list[list[Region]], dict[str, tuple[Site, ...]]]:
    """Runs of regions that can be skipped: leaving one out equals scaling its branch by 0, shown by running both."""
    regions = find_regions(recorder)
    folds = fold_regions(recorder, regions)
    names = [region.module for region in regions if folds[region.module]]
    proved = skips_exactly(traced.network, traced.args, traced.kwargs, folds, names)
    regions = [region for region in regions if region.module in proved]
    return chain(regions), {region.module: folds[region.module] for region in regions}


def _run_name(run: list[Region]) -> str:
    """The modules of the run, as first..last: "layer1.0..2"."""
    first, last = run[0].module, run[-1].module
    parent, _, tail = last.rpartition(".")
    return (
        f"{first}..{tail if first.rpartition('.')[0] == parent else last}.depth" if len(run) > 1 else f"{first}.depth"
    )


def _macs(recorder: Recorder, units: Units, alive: Alive, batch: int) -> list[LayerCost]:
    costs = []
    for record in recorder.records:
        within = tuple(factor for region, factor in alive if region.first <= record.index < region.last)
        found: list[Term] = []
        for product in record.products:
            size: Size = times(*(units.size(n, rows) for n, rows in product))
            divide = batch if all(c % batch == 0 for c in size.values()) else 1
            found += terms(size, within, divide)
        if found:
            costs.append(LayerCost(record.module, "macs", tuple(found)))
    return costs


def _params(recorder: Recorder, units: Units, alive: Alive) -> list[LayerCost]:
    """A parameter counts while one of the blocks that have it does: by inclusion and exclusion."""
    names: dict[int, list[str]] = {}
    for name, parameter in recorder.network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    costs = []
    for name, parameter in recorder.network.named_parameters():
        rows = recorder.tensors.get(name, (None,) * parameter.dim())
        size = times(*(units.size(n, part) for n, part in zip(parameter.shape, rows, strict=True)))
        owners = {
            _all_above(factor for region, factor in alive if alias.startswith(f"{region.module}."))
            for alias in names[id(parameter)]
        }
        owners = {mine for mine in owners if not any(_implied(other, mine) for other in owners - {mine})}
        found: list[Term] = []
        for count in range(1, len(owners) + 1):
            for some in combinations(sorted(owners, key=repr), count):
                signed = {powers: c * (-1) ** (count + 1) for powers, c in size.items()}
                found += terms(signed, _all_above(factor for factors in some for factor in factors))
        costs.append(LayerCost(name.rpartition(".")[0], "params", tuple(found)))
    return costs


def _all_above(factors: Iterable[Factor]) -> tuple[Factor, ...]:
    """Blocks of one run are all there when the last of them is."""
    last = {factor.choice: factor for factor in sorted(factors, key=lambda f: f.number)}
    return tuple(last[name] for name in sorted(last))


def _implied(weaker: tuple[Factor, ...], stronger: tuple[Factor, ...]) -> bool:
    numbers = {factor.choice: factor.number for factor in stronger}
    return all(factor.number <= numbers.get(factor.choice, -1) for factor in weaker)


def _batch(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
    return 1 if first is None or not first.dim() else first.shape[0]


def _shapes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    named = [*(("", a) for a in args), *((f"{k}=", v) for k, v in kwargs.items())]
    return ", ".join(f"{k}{tuple(a.shape) if isinstance(a, torch.Tensor) else a!r}" for k, a in named)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
