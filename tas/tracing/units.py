"""From atoms to choices: atoms that appear in the same places are the units of one choice; sizes become formulas."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from math import prod

import numpy as np

from tas.space import Choice
from tas.tracing import limits
from tas.tracing.counts import Powers, Size, equalize
from tas.tracing.identity import Array, Rows
from tas.tracing.recording import Recorder
from tas.tracing.records import Site
from tas.tracing.rules import Rules

_Placed = tuple[Site | str, Array]  # where a dimension is met first, and its identities


@dataclass(frozen=True)
class Group:
    """Units that are alike, in one order of their own. How many of them are kept is `times` x the product of choices,
    each to a power: a choice of that name alone, unless the code computes the number from others (`counts`)."""

    name: str
    size: int
    times: int
    choices: Powers

    def kept(self, architecture: Mapping[str, int]) -> int:
        return self.times * prod(architecture[name] ** power for name, power in self.choices)


@dataclass
class Units:
    """Every searchable unit of a network has an index; units of one group are consecutive, in their present order.

    Index `total`, one more than the last unit, stands for what is always kept; it is owned by no group.
    """

    recorder: Recorder
    groups: list[Group]
    rules: Rules
    owner: Array  # [total + 1]: the number of the group that a unit belongs to, len(groups) for none
    unit: Array  # [atoms]: the unit that a free atom is
    _known: dict[int, tuple[Rows, Rows]] = field(default_factory=dict)  # by id, with what keeps the id taken
    _groups: dict[int, frozenset[str]] = field(default_factory=dict)
    _sizes: dict[int, Size] = field(default_factory=dict)

    @property
    def choices(self) -> list[Choice]:
        """A width choice for every group whose size is not computed from those of others."""
        return [limits.choice(name, "width", sizes, self.full(name)) for name, sizes in limits.candidates(self).items()]

    def substitute(self, name: str, times: int, choices: Powers) -> None:
        """Choice `name` is no longer free: its size is `times` x the product of others."""
        for number, group in enumerate(self.groups):
            power = dict(group.choices).get(name, 0)
            if power:
                powers = Counter({key: p for key, p in group.choices if key != name})
                powers.update({key: p * power for key, p in choices})
                changed = group.times * times**power, tuple(sorted(powers.items()))
                self.groups[number] = replace(group, times=changed[0], choices=changed[1])
        self._sizes.clear()

    @property
    def total(self) -> int:
        return len(self.owner) - 1

    def start(self, number: int) -> int:
        """The first unit of a group."""
        return int(np.searchsorted(self.owner, number))

    def atoms(self, number: int) -> Array:
        """The identities [n, 1] of a group's units."""
        return np.flatnonzero(self.owner[self.unit] == number)[:, None]

    def rows(self, rows: Rows) -> Rows:
        """Identities as units [n, k]; None where every position is always kept."""
        if id(rows) not in self._known:
            atoms = self.recorder.identities.canonical(rows)
            units = None if atoms is None else self.unit[atoms]
            self._known[id(rows)] = rows, None if units is None or (units == self.total).all() else units
        return self._known[id(rows)][1]

    def groups_of(self, rows: Rows) -> frozenset[str]:
        """Names of the groups that decide which positions are kept."""
        units = self.rows(rows)
        if units is None:
            return frozenset()
        if id(units) not in self._groups:
            numbers = np.flatnonzero(np.bincount(self.owner[units].ravel()))
            self._groups[id(units)] = frozenset(self.groups[n].name for n in numbers if n < len(self.groups))
        return self._groups[id(units)]

    def full(self, name: str) -> int:
        """The original's size of a choice."""
        return next(group.size for group in self.groups if group.name == name)

    def size(self, n: int, rows: Rows) -> Size:
        """The number of kept positions of a dimension as a polynomial in the choices' sizes."""
        units = self.rows(rows)
        if units is None:
            return {(): n}
        if id(units) not in self._sizes:
            self._sizes[id(units)] = self._size(units)
        return self._sizes[id(units)]

    def _size(self, units: Array) -> Size:
        size: Size = defaultdict(int)
        for pattern, count in zip(*distinct(np.sort(self.owner[units], 1)), strict=True):
            groups = [self.groups[number] for number in pattern if number < len(self.groups)]
            powers: Counter[str] = Counter()
            for group in groups:
                powers.update(dict(group.choices))
            coefficient = int(count) // prod(group.size for group in groups) * prod(group.times for group in groups)
            size[tuple(sorted(powers.items()))] += coefficient
        return dict(size)


def find_units(recorder: Recorder, rules: Rules) -> Units:
    """Group atoms. Those whose combinations are not whole products are frozen, sizes that must be equal and cannot be
    made so by a formula are made of the same units, and all is done again."""
    while True:
        axes = _axes(recorder)
        units = _group(recorder, rules, axes)
        entangled = _entangled(units, axes)
        for rows, where in entangled:
            recorder.identities.freeze(rows, f"its combinations with other sizes are irregular: {where}")
        unequal = [] if entangled else equalize(units)
        for left, right, why in unequal:
            recorder.identities.unify(left, right, why)
        if not entangled and not unequal:
            limits.tie(units)
            return units


def _axes(recorder: Recorder) -> list[_Placed]:
    """Every dimension whose size costs something, parameters first; and parts of dimensions that the code takes out and
    treats otherwise than the rest. Of those with the same identities, most, the first."""
    places: Iterator[tuple[Site | str, Rows]] = chain(
        (((name, dim), rows) for name, dims in recorder.tensors.items() for dim, rows in enumerate(dims)),
        ((r.where(), rows) for r in recorder.records for product in r.products for _, rows in product),
        (("a slice", rows) for rows in recorder.apart),
    )
    found: dict[tuple[tuple[int, ...], bytes], _Placed] = {}
    for place, rows in places:
        known = recorder.identities.canonical(rows)
        if known is not None:
            found.setdefault((known.shape, known.tobytes()), (place, known))
    return list(found.values())


def _group(recorder: Recorder, rules: Rules, axes: list[_Placed]) -> Units:
    """Atoms with the same signature (how often they appear in which dimension) belong to one choice."""
    identities = recorder.identities
    atoms = identities.capacity
    signature, first, axis = np.zeros(atoms, np.uint64), np.full(atoms, -1), np.full(atoms, -1)
    scramble = np.random.default_rng(0)
    order = 0
    for number, (_, known) in enumerate(axes):
        members, at, counts = np.unique(known, return_index=True, return_counts=True)
        weight = scramble.integers(1, 1 << 63, dtype=np.uint64)
        live = members > 0
        members, at, counts = members[live], at[live], counts[live]
        signature[members] += weight * counts.astype(np.uint64)  # modulo 2^64: a random hash of (dimension, count)
        new = first[members] < 0
        first[members[new]], axis[members[new]] = order + at[new], number
        order += known.size
    groups = _alike(signature, np.argsort(first, kind="stable")[(first < 0).sum() :])
    sites = [axes[axis[alike[0]]] for alike in groups]
    for alike, (_, rows) in zip(groups, sites, strict=True):
        if len(alike) == 1:
            identities.freeze(alike[:, None], _alone(recorder, int(alike[0]), rows))
    found: list[Group] = []
    free = [np.zeros(0, int)]
    for alike, site in zip(groups, sites, strict=True):
        if len(alike) > 1:
            name = _name(site, alike, [group.name for group in found])
            recorder.named.add(name)
            if rules.fixes(name):
                identities.freeze(alike[:, None], "a rule fixes it")
            else:
                found.append(Group(name, len(alike), 1, ((name, 1),)))
                free.append(alike)
    owner = np.repeat(np.arange(len(free)), [*map(len, free[1:]), 1])
    unit = np.full(atoms, len(owner) - 1)
    unit[np.concatenate(free)] = np.arange(len(owner) - 1)
    return Units(recorder, found, rules, owner, unit)


def _alike(signature: Array, atoms: Array) -> list[Array]:
    """The atoms of each signature, in their order; in that of its first atom."""
    _, first, number = np.unique(signature[atoms], return_index=True, return_inverse=True)
    leads = first[number]
    order = np.argsort(leads, kind="stable")
    return np.split(atoms[order], np.flatnonzero(np.diff(leads[order])) + 1) if len(atoms) else []


def _alone(recorder: Recorder, atom: int, rows: Array) -> str:
    """Why a unit that is like no other stays, given a dimension that it is in."""
    positions, why = int((rows == atom).any(1).sum()), recorder.identities.tied(atom)
    if positions == 1 or not why:
        return "one unit alone cannot shrink"
    return f"its {positions} positions are one unit, which alone cannot shrink; the first are tied by: {why}"


def _name(place: _Placed, members: Array, taken: list[str]) -> str:
    """The layer that makes these units; of a grouped layer `.groups` (outer) or `.inside` (inner)."""
    where, rows = place
    if isinstance(where, str):
        name = where.split(" (")[0]
    else:
        tensor, dim = where
        name = tensor.rpartition(".")[0] or tensor
        name += "" if dim == 0 else f".in{dim}"
    if rows.shape[1] > 1:
        column = next(c for c in range(rows.shape[1]) if members[0] in rows[:, c])
        changes = [int((np.diff(rows[:, c]) != 0).sum()) for c in range(rows.shape[1])]
        name += ".groups" if changes[column] == min(changes) else ".inside"
    unique, number = name, 2
    while unique in taken:
        unique, number = f"{name}#{number}", number + 1
    return unique


def _entangled(units: Units, axes: list[_Placed]) -> list[tuple[Array, str]]:
    """Dimensions in which some combination of units is missing, or appears more often than the others."""
    bad: list[tuple[Array, str]] = []
    sizes = [*(group.size for group in units.groups), 1]
    starts = np.cumsum([0, *sizes[:-1]])
    for place, rows in axes:
        known = units.unit[rows]
        numbers = units.owner[known]
        order = np.argsort(numbers, 1, kind="stable")
        numbers, known = np.take_along_axis(numbers, order, 1), np.take_along_axis(known, order, 1)
        for pattern, count in zip(*distinct(numbers), strict=True):
            mine = known[(numbers == pattern).all(1)] - starts[pattern]
            shape = [sizes[number] for number in pattern]
            each, rest = divmod(int(count), prod(shape))
            if rest or (np.bincount(np.ravel_multi_index([*mine.T], shape), minlength=prod(shape)) != each).any():
                bad.append((rows, place if isinstance(place, str) else f"{place[0]}, dimension {place[1]}"))
                break
    return bad


def distinct(rows: Array) -> tuple[Array, Array]:
    """The distinct rows, sorted, and how often each appears. (Of one column, as most are, numpy needs a tenth of the
    time where it is told so.)"""
    if rows.shape[1] > 1:
        found, counts = np.unique(rows, axis=0, return_counts=True)
        return found, counts
    found, counts = np.unique(rows[:, 0], return_counts=True)
    return found[:, None], counts
