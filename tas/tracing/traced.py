"""A traced network: its space, and how to cut it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
from torch import nn

from tas.space import SearchSpace
from tas.tracing.attributes import AttributeRule
from tas.tracing.copying import copy_sharing
from tas.tracing.dynamic import Decisions
from tas.tracing.folding import Fold
from tas.tracing.identity import Array, Rows
from tas.tracing.places import with_integer
from tas.tracing.records import Axis, Site
from tas.tracing.regions import Removal
from tas.tracing.slicing import Cut, cut_parameters, cut_size, cuts_of, layer_attributes, unfused
from tas.tracing.units import Group


@dataclass(frozen=True)
class Traced:
    """A network with its search space, and what is needed to run or build it at any architecture.

    `rows` says, for every parameter and buffer, which units each position of each dimension needs ([positions, k],
    indices of units; `units` stands for "always kept"; dimensions with the same units share their array). The
    `attribute_rules` say which integers of modules are sizes; modules in `caching` keep something from a forward.
    `groups` are the units that one prefix or keep set selects from, `first` the first unit of each: one for every width
    choice, and those whose size is a product of choices. An operator slides over those of the `ordered` groups, so that
    only prefixes of them make sense. `joined` are the dimensions of parameters that a view of the forward joins to the
    one in front: it needs what is left of them in one piece of memory. `runs` gives the blocks or branches of each
    depth choice, in order, by names for which `removals` lists the modules that go with them. `folds` says what a
    group's channel factors multiply, `branch_folds` names the parameter dimensions that scale what such a block or
    branch adds.
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
    joined: frozenset[Site]
    attribute_rules: tuple[AttributeRule, ...]
    caching: tuple[str, ...]
    runs: Mapping[str, tuple[str, ...]]
    removals: Mapping[str, tuple[Removal, ...]]
    folds: Mapping[str, Fold]
    branch_folds: Mapping[str, tuple[Site, ...]]
    decisions: Decisions = field(default_factory=Decisions)

    @property
    def exact(self) -> bool:
        """Whether a cut network computes what the whole one does with zeros for what is cut. Norms and means over
        channels do not, by their nature."""
        return all(note == self.decisions.note() for note in self.space.notes)

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
        found, done = {}, set[int]()
        kept = partial(_count, mask=mask)
        # layers that other code applies
        in_groups = {rule.module: rule for rule in self.attribute_rules if rule.key == ("groups",)}
        for name in touched:
            module = network.get_submodule(name)
            if id(module) in done:  # under another name, by which nothing is known of it
                continue
            done.add(id(module))
            shapes = {}
            for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                cut = cuts.get(f"{name}.{key}" if name else key, {})
                shapes[key] = tuple(cut_size(n, cut.get(d)) for d, n in enumerate(tensor.shape))
            groups = in_groups[name].value(kept) if name in in_groups else None
            if name in self.grouped:
                reads, inside = map(kept, self.grouped[name])
                groups = reads // inside
            found[name] = layer_attributes(module, shapes, groups)
        odd = [name for name, own in found.items() if own.get("num_heads", 0) % 2]
        for name, off in unfused(network, odd).items():
            found.setdefault(name, {}).update(off)
        for rule in self.attribute_rules:
            own, (name, *steps) = found.setdefault(rule.module, {}), rule.key
            old = own.get(name, getattr(network.get_submodule(rule.module), name))
            own[name] = with_integer(old, tuple(steps), rule.value(kept))
        return found

    def cut(self, mask: Array, share: bool = False) -> nn.Module:
        """A copy of the network with cut parameters and buffers, all blocks present; with `share`, for one that nothing
        is written to, parameters are the network's own where that needs no copy."""
        cuts = self.cuts(mask)
        named = self.network.named_parameters(remove_duplicate=False)
        network = copy_sharing(self.network, [tensor for name, tensor in named if share or name in cuts])
        for name, attributes in self.attributes(network, cuts, mask).items():
            module = network.get_submodule(name)
            for key, value in attributes.items():
                setattr(module, key, value)
        cut_parameters(network, cuts, share)
        return network

    def dead(self, architecture: Mapping[str, int]) -> list[Removal]:
        """What an architecture leaves out."""
        gone = [part for name, run in self.runs.items() for part in run[architecture[name] :]]
        return [removal for part in gone for removal in self.removals[part]]


def _count(axis: Axis, mask: Array) -> int:
    n, rows = axis
    return n if rows is None else int(mask[rows].all(1).sum())
