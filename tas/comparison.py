"""The last stage of a run: the student, and what it is compared with at the same budget, trained the same way."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map

from tas.describing import costs, costs_of_original
from tas.errors import BadNetwork
from tas.exporting import facts, load, save
from tas.importing import imported
from tas.loading import RECORD
from tas.methods.baselines import random, uniform
from tas.originals import build
from tas.recipe import Network
from tas.space import Architecture, Budget
from tas.stages import Run, judged_on, numbers
from tas.teaching import started, taught
from tas.tracing.undoing import same_draws
from tas.training import call

_PLACES = ("student", "students/*", "original", "baselines/*")  # of networks in a run folder


def baselines(current: Run, budget: Budget) -> dict[str, list[Architecture]]:
    """For every baseline of the recipe one architecture a repeat."""
    prepared, repeats = current.prepared, current.recipe.report.repeats
    # a stream of its own: from the recipe's seed, adaptive_bn would draw the same networks among its candidates
    generator = torch.Generator().manual_seed(current.recipe.seed + 1_000_003)
    found = {
        "uniform": lambda: [uniform(prepared.space, budget)] * repeats,
        "random": lambda: random(prepared.space, budget, generator, repeats),
    }
    return {name: found[name]() for name in current.recipe.report.baselines}


def distilled(
    current: Run, name: str, place: str, architectures: list[Architecture], source: Any, original: nn.Module
) -> dict[str, Any]:
    """The row of one rival: mean over the repeats, with their spread. The first one is saved at `place` in the folder.

    Rivals of one repeat differ in their architecture alone: same start of the weights, same batches in the same order.
    """
    rows, weights = [], started(current, source, original)
    for repeat, architecture in enumerate(architectures):
        stage = f"distill {name}" if len(architectures) == 1 else f"distill {name} {repeat + 1}"

        def work(repeat: int = repeat, architecture: Architecture = architecture, stage: str = stage) -> dict[str, Any]:
            seed, saved = current.recipe.seed + 1 + repeat, current.folder.checkpoint(stage)
            student = taught(current, stage, architecture, source, original, seed, weights=weights, checkpoint=saved)
            facts = {**current.judged(student), **costs(current.prepared.space, architecture)}
            if repeat == 0:
                _save_checked(current, student, current.folder.path / place, architecture, facts)
            saved.unlink(missing_ok=True)  # not before: an interruption would train it again
            return facts

        saved_at = current.folder.path / place if repeat == 0 else None
        rows.append(numbers(current.staged(stage, work, leaves=saved_at), current))
    values = [row[current.prepared.objective.name] for row in rows]
    mean = {key: statistics.fmean(row[key] for row in rows) for key in rows[0]}
    mean |= {key: round(mean[key]) for key in ("macs", "params")}
    return mean if len(rows) == 1 else {**mean, "spread": statistics.stdev(values), "n": len(rows)}


def rebuild(section: Network, architecture: Mapping[str, int] | None) -> nn.Module:
    """What `tas.load` cuts a student from: the original, or, where it has rules of its own, the network they build."""
    original = build(section.name, section.kwargs)
    if section.supernet is None or architecture is None:
        return original
    return imported(section.supernet, BadNetwork)(original).student(architecture)


def saved(folder: str | Path) -> tuple[nn.Module, Network]:
    """The network that `tas.save` wrote into a folder, and the section `network` that it was cut from."""
    if not (Path(folder) / RECORD).is_file():
        inside = [path.parent for place in _PLACES for path in sorted(Path(folder).glob(f"{place}/{RECORD}"))]
        if inside:
            named = ", ".join(map(str, inside[:4]))
            raise BadNetwork(f"a network lies in a folder with a {RECORD}, {folder} is a run: name one in it, {named}")
    known = facts(folder)
    if "network" not in known:
        raise BadNetwork(
            f"{folder} does not say which network its student was cut from: load it by tas.load(factory, folder), or "
            'save it with tas.save(student, folder, network={"name": "module:factory"})'
        )
    section = Network.model_validate_json(json.dumps(known["network"]))
    return load(lambda: rebuild(section, known.get("architecture")), folder), section


def _save_checked(
    current: Run, student: nn.Module, place: Path, architecture: Architecture, facts: Mapping[str, Any]
) -> None:
    """Save, read again, and compare: a student that cannot be read back the same must not be reported as done."""
    section, judged = current.recipe.network, numbers(current.folder.state["stages"]["original"], current)
    save(
        student,
        place,
        architecture=dict(architecture),
        metrics=dict(facts),
        original={**judged, **costs_of_original(current.prepared.space)},
        network=section.model_dump(mode="json"),
        provenance=_provenance(current),
    )
    again = load(lambda: rebuild(section, architecture), place).to(current.prepared.device)
    inputs, _ = next(judged_on(current.prepared.data).batches(4, device=current.prepared.device))
    outputs = [_answer(network, inputs) for network in (student.eval(), again)]
    if not all(tree_leaves(tree_map(torch.equal, *outputs))):
        raise BadNetwork(
            f"the student saved in {place} computes something else when it is loaded again: what its forward reads "
            "must be in its state dict, or be the same whenever the network is built"
        )


def _answer(network: nn.Module, inputs: Any) -> Any:
    """What it gives in its mode; the same every time, though it draws random numbers of torch."""
    with torch.no_grad(), same_draws(network):
        return call(network, inputs)


def _provenance(current: Run) -> dict[str, Any]:
    """What it takes to find the student again: seed, digests of recipe and data, versions, commit."""
    environment = json.loads((current.folder.path / "environment.json").read_text())
    recipe = sha256((current.folder.path / "recipe.yaml").read_bytes()).hexdigest()
    data = {"data": current.prepared.data.name, "data_digest": current.prepared.data.digest}
    names = ("tas", "torch", "commit", "seed", "device")
    known = {name: environment[name] for name in names if environment.get(name) is not None}
    return {**data, "recipe_digest": recipe, **known}
