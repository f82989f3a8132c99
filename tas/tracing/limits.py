"""The candidates of all choices under the user's rules, and choices that a rule ties."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from itertools import groupby, product
from math import gcd, lcm, prod
from typing import TYPE_CHECKING, Literal

from torch import nn

from tas.errors import BadRecipe
from tas.space import Choice, Kept
from tas.tracing.counts import Powers
from tas.tracing.rules import Rules, matches, require_match

if TYPE_CHECKING:
    from tas.tracing.regions import Region
    from tas.tracing.units import Units

Demand = tuple[int, Powers, int]  # times x product of choices has to be a multiple of the last number


def choice(name: str, kind: Literal["width", "depth"], candidates: tuple[int, ...], size: int) -> Choice:
    return Choice(name, kind, candidates, size if size > candidates[-1] else 0)


def candidates(units: Units) -> dict[str, tuple[int, ...]]:
    """Ascending, by name of the free choices; the last one is the original's size, unless a bound lies below.

    `BadRecipe` where rules leave none."""
    free = [group for group in units.groups if group.choices == ((group.name, 1),)]
    multiples = _multiples(units, {group.name: group.size for group in free})
    return {group.name: _candidates(units, group.name, group.size, multiples[group.name]) for group in free}


def _candidates(units: Units, name: str, size: int, multiple: int) -> tuple[int, ...]:
    """Of one choice: it also obeys the rules for widths that are made equal to it, or to a multiple of it."""
    low, high, rules = 1, size, units.rules
    for group in units.groups:
        if group.choices == ((name, 1),):
            least, most = rules.range_of(group.name, group.size)
            low, high = max(low, -(-least // group.times)), min(high, most // group.times)
    top = size if high == size else high // multiple * multiple
    if low > top:
        told = f", in multiples of {multiple}" if multiple > 1 else ""
        raise BadRecipe(f"the rules of space leave no size for {name!r}: at least {low}, at most {high}{told}")
    cut = {int(size * ratio + 1e-9) // multiple * multiple for ratio in rules.ratios}
    return tuple(sorted({n for n in cut if low <= n < top} | {top}))


def _multiples(units: Units, sizes: dict[str, int]) -> dict[str, int]:
    """What every choice has to be a multiple of, so that all demands are met (`Rules.divisor`, `Findings.steps`)."""
    found = dict.fromkeys(sizes, 1)
    for times, powers, divisor in _demands(units, sizes):
        rest = divisor // gcd(divisor, times * prod(found[name] ** power for name, power in powers))
        parts = [n for n in range(1, rest + 1) if rest % n == 0]
        options = [
            {name: lcm(found[name], part) for (name, _), part in zip(powers, some, strict=True)}
            for some in product(parts, repeat=len(powers))
        ]
        fitting = [o for o in options if times * prod(o[name] ** power for name, power in powers) % divisor == 0]
        found.update(max(fitting, key=partial(_worth, units.rules, sizes)))
    return found


def _worth(rules: Rules, sizes: Mapping[str, int], multiples: Mapping[str, int]) -> tuple[bool, int]:
    """Whether the original's sizes are multiples as well, and how many combinations remain."""
    whole = all(sizes[name] % multiple == 0 for name, multiple in multiples.items())
    left = [
        len({int(sizes[name] * ratio + 1e-9) // multiple * multiple for ratio in rules.ratios} - {0} | {sizes[name]})
        for name, multiple in multiples.items()
    ]
    return whole, prod(left)


def _demands(units: Units, sizes: dict[str, int]) -> list[Demand]:
    """Widths with one factor first, then products of several."""
    found = _of_kernels(units) | (_of_rules(units, sizes) if units.rules.divisor != 1 else set())
    return sorted(found, key=lambda demand: (len(demand[1]), demand))


def _of_kernels(units: Units) -> set[Demand]:
    return {
        (times, powers, step)
        for rows, step in units.recorder.steps
        if rows is not None
        for powers, times in units.size(len(rows), rows).items()
        if powers
    }


def _of_rules(units: Units, sizes: dict[str, int]) -> set[Demand]:
    rules = units.rules
    seen = _monomials(units)
    named = [(group.times, group.choices, rules.divisor_of(group.name)) for group in units.groups]
    found = {demand for demand in named if len(demand[1]) > 1 or demand[0] > 1}
    for powers in seen:
        divisors = {rules.divisor_of(name) for name, _ in powers}
        if len(powers) > 1 and len(divisors) == 1:
            found.add((1, powers, divisors.pop()))
    factors = {(name, divisor) for _, powers, divisor in found if len(powers) > 1 for name, _ in powers}
    for name in sizes:  # a number of heads that each width has four times is no width itself
        divisor = rules.divisor_of(name)
        if (name, divisor) not in factors:
            found.add((seen.get(((name, 1),), 1), ((name, 1),), divisor))
    return found


def _monomials(units: Units) -> dict[Powers, int]:
    """The products of choices that dimensions of parameters are made of, each with its smallest coefficient."""
    found: dict[Powers, int] = {}
    for name, rows in units.recorder.tensors.items():
        for n, part in zip(_shape(units, name), rows, strict=True):
            for powers, times in units.size(n, part).items():
                found[powers] = min(times, found.get(powers, times))
    return found


def _shape(units: Units, name: str) -> tuple[int, ...]:
    owner, _, key = name.rpartition(".")
    return tuple(getattr(units.recorder.network.get_submodule(owner), key).shape)


def tie(units: Units) -> None:
    """Make the choices of each group of `Rules.tie` one. `BadRecipe` where they differ in size."""
    for globs in units.rules.tie:
        tied = [g for g in units.groups if g.choices == ((g.name, 1),) and matches(g.name, globs)]
        if len({group.size for group in tied}) > 1:
            listed = ", ".join(f"{group.name} {group.size}" for group in tied)
            raise BadRecipe(f"space.tie takes choices of one size, {list(globs)} matches {listed}: tie each size alone")
        for group in tied[1:]:
            units.substitute(group.name, 1, ((tied[0].name, 1),))


def depth(rules: Rules, name: str, blocks: int) -> Choice:
    """The choice of how many of a run's blocks are kept."""
    low, high = rules.range_of(name, blocks, lowest=0)
    return choice(name, "depth", tuple(range(low, high + 1)), blocks)


def allowed_runs(
    runs: Sequence[list[Region]], name_of: Callable[[list[Region]], str], rules: Rules, network: nn.Module
) -> tuple[dict[str, list[Region]], list[Kept]]:
    """By name, the runs of blocks that rules leave to a depth choice: without protected blocks, where a run ends; and
    what they do not leave."""
    protected = [name for name, _ in network.named_modules() if name and matches(name, rules.protect)]
    found: dict[str, list[Region]] = {}
    kept: list[Kept] = []
    for run in runs:
        for free, part in groupby(run, lambda region: not _touches(region, protected)):
            some = list(part)
            name = name_of(some)
            if not free or rules.fixes(name):
                kept.append(Kept(name, len(some), "a rule fixes it" if free else "a rule protects it"))
            else:
                found[name] = some
    return found, kept


def _touches(region: Region, protected: Sequence[str]) -> bool:
    removed = [removal.module for removal in region.removed]
    return any(f"{one}.".startswith(f"{other}.") for m in removed for p in protected for one, other in ((m, p), (p, m)))


def check_names(
    rules: Rules, named: Collection[str], units: Units, depths: Collection[str], kept: Sequence[Kept]
) -> None:
    """`BadRecipe` where a glob matches nothing, or rules contradict one another. `named`: whatever was the name of a
    width choice while rules were applied."""
    widths = [group.name for group in units.groups]
    still = [name for size in kept for name in (size.name, size.name.rpartition(".")[0]) if name]
    require_match("fix", rules.fix, [*named, *depths, *still])
    plain = [group.name for group in units.groups if len(group.choices) < 2]
    _refuse_products(rules, units)
    for name, by_glob, known in (
        ("bound", rules.bound, [*plain, *depths]),
        ("minimum", rules.minimum, [*widths, *depths]),
        ("divisor", rules.divisor, widths),
    ):
        require_match(name, by_glob if isinstance(by_glob, Mapping) else (), known)
    for globs in rules.tie:
        require_match("tie", globs, named)
        fixed = next((name for name in named if matches(name, globs) and rules.fixes(name)), None)
        if fixed is not None:
            raise BadRecipe(f"space.fix and space.tie contradict each other about {fixed!r}: name it in one of them")
        if sum(matches(name, globs) for name in widths) < 2:
            raise BadRecipe(f"space.tie takes two width choices or more, {list(globs)} matches fewer")


def _refuse_products(rules: Rules, units: Units) -> None:
    for glob in rules.bound:
        hit = [group for group in units.groups if matches(group.name, (glob,))]
        if hit and all(len(group.choices) > 1 for group in hit):
            factors = " x ".join(repr(name) for name, _ in hit[0].choices)
            raise BadRecipe(f"space.bound cannot bound {hit[0].name!r}, whose size is {factors}: bound these")
