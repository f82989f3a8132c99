"""The state of a training on disk: written whole or not at all, read without unpickling code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tas.errors import BadRecipe
from tas.files import whole
from tas.training.plan import TrainingPlan


@dataclass(frozen=True)
class Run:
    """All that changes during a training."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None
    generator: torch.Generator
    history: list[dict[str, float]]


def write(run: Run, plan: TrainingPlan, path: Path) -> None:
    """Replace `path` at once (`files.whole`)."""
    state = {
        "plan": asdict(plan),
        "network": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "average": None if run.average is None else run.average.state_dict(),
        "generator": run.generator.get_state(),
        "history": run.history,
    }
    with whole(path) as beside:
        torch.save(state, beside)


def resume(run: Run, plan: TrainingPlan, path: Path) -> None:
    """Bring `run` to where `path` was written; BadRecipe where that belongs to another plan or network."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    asked = asdict(plan)
    changed = sorted(key for key in asked if state["plan"].get(key) != asked[key])
    if changed:
        found = ", ".join(f"{key} = {state['plan'].get(key)!r} (now {asked[key]!r})" for key in changed)
        raise BadRecipe(f"a training is resumed with its own plan, but {path} has {found}; remove it to start anew")
    try:
        run.network.load_state_dict(state["network"])
    except RuntimeError as error:
        raise BadRecipe(f"{path} belongs to another network; remove it to start anew") from error
    run.optimizer.load_state_dict(state["optimizer"])
    if run.average is not None:
        run.average.load_state_dict(state["average"])
    run.generator.set_state(state["generator"])
    run.history.extend(state["history"])
