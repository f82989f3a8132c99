"""What stays whatever a forward says: outputs, constants, and what the user's rules protect."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tas.errors import BadRecipe
from tas.tracing.identity import Rows
from tas.tracing.recording import Recorder
from tas.tracing.rules import Rules, inside, matches, require_match


def freeze_fixed(recorder: Recorder, rules: Rules) -> None:
    """`BadRecipe` where a rule names nothing, or contradicts another."""
    _keep_constants(recorder)
    _protect(recorder, rules)
    _keep_outputs(recorder, rules)


def _protect(recorder: Recorder, rules: Rules) -> None:
    modules = [name for name, _ in recorder.network.named_modules() if name]
    require_match("protect", rules.protect, modules)
    for name, rows in recorder.tensors.items():
        owner = name.rpartition(".")[0]
        if inside(owner, rules.protect):
            for part in rows:
                recorder.identities.freeze(part, f"a rule protects {owner}")


def _keep_constants(recorder: Recorder) -> None:
    """What buffers hold and no parameter makes, a table of coordinates say, is no size that anybody would search."""
    parameters = dict(recorder.network.named_parameters(remove_duplicate=False))
    made = np.zeros(recorder.identities.capacity, bool)  # by atom
    for atoms in _makers(recorder, parameters).values():
        made[atoms] = True
    for name in recorder.tensors.keys() - parameters.keys():
        for part in map(recorder.identities.canonical, recorder.tensors[name]):
            if part is not None:
                why = f"{name} holds it, and no parameter makes it"
                recorder.identities.freeze(np.where(made[part], 0, part), why)


def _keep_outputs(recorder: Recorder, rules: Rules) -> None:
    """Outputs keep their sizes, but for those made by a layer that `rules.free` names."""
    identities = recorder.identities
    makers = _makers(recorder, recorder.tensors)
    found = [(path, identities.canonical(part)) for path, value in recorder.outputs for part in value.rows]
    out = np.zeros(identities.capacity, bool)  # by atom
    for _, part in found:
        if part is not None:
            out[part[part > 0]] = True
    made = {name: theirs[out[theirs]] for name, theirs in makers.items()}
    named = [name for name, theirs in made.items() if len(theirs)]
    require_match("free", rules.free, named)
    both = [name for name in named if matches(name, rules.free) and rules.fixes(name)]
    if both:
        raise BadRecipe(f"space.fix and space.free contradict each other about {both[0]!r}: name it in one of them")
    free = np.unique(np.concatenate([made[n] for n in named if matches(n, rules.free)] or [np.zeros(0, int)]))
    for path, part in found:
        if part is not None:
            where = f" ({'output' if path.startswith('[') else ''}{path})" if path else ""
            identities.freeze(np.where(np.isin(part, free), 0, part), f"it is an output of the network{where}")
    for _, value in recorder.outputs:
        if any(part is not None and np.isin(part, free).any() for part in map(identities.canonical, value.rows)):
            recorder.freed.append(value)
            recorder.ordered += [part for part in value.rows if part is not None]  # outputs change no places
            recorder.mark_inexact("an output is as wide as a choice, by a rule")


def _makers(recorder: Recorder, tensors: Iterable[str]) -> dict[str, np.ndarray]:
    """By layer, the identities of the channels that it makes: those that these of its parameters and buffers scale, as
    rows and bias or as gamma and beta; a parameter that makes none by itself under its own name."""
    sites = {site for record in recorder.records for site in record.scales}
    scaling = {name for name, _ in sites}
    found: dict[str, list[np.ndarray]] = {}

    def add(name: str, rows: Rows) -> None:
        known = recorder.identities.canonical(rows)
        if known is not None:
            found.setdefault(name, []).append(known[known > 0])

    for name in tensors:
        dims = recorder.tensors.get(name, ())
        for dim, rows in enumerate(dims):
            if (name, dim) in sites:
                add(name.rpartition(".")[0] or name, rows)
        if name not in scaling:
            for rows in dims:
                add(name, rows)
    return {name: np.unique(np.concatenate(parts)) for name, parts in found.items()}
