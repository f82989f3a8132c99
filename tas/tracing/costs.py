"""What every layer costs, as polynomials of the choices, counted while the blocks around it are there."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

from tas.space import Factor, LayerCost, Term
from tas.tracing.counts import Size, terms, times
from tas.tracing.recording import Recorder
from tas.tracing.regions import Removal
from tas.tracing.units import Units

Alive = list[tuple[Removal, Factor]]  # modules that can be left out, and when they are there


def macs(recorder: Recorder, units: Units, alive: Alive, batch: int) -> list[LayerCost]:
    costs = []
    for record in recorder.records:
        within = tuple(factor for removal, factor in alive if removal.first <= record.index < removal.last)
        found: list[Term] = []
        for product in record.products:
            size: Size = times(*(units.size(n, rows) for n, rows in product))
            found += terms(size, within, batch)
        if found:
            costs.append(LayerCost(record.module, "macs", tuple(found)))
    return costs


def params(recorder: Recorder, units: Units, alive: Alive) -> list[LayerCost]:
    """A parameter counts while one of the blocks that have it does: by inclusion and exclusion."""
    names: dict[int, list[str]] = {}
    for name, parameter in recorder.network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    costs = []
    for name, parameter in recorder.network.named_parameters():
        rows = recorder.tensors.get(name, (None,) * parameter.dim())
        size = times(*(units.size(n, part) for n, part in zip(parameter.shape, rows, strict=True)))
        owners = {
            _all_above(factor for removal, factor in alive if alias.startswith(f"{removal.module}."))
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
