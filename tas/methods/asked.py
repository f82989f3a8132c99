"""What a search is asked for, whichever method it is, and by what an interrupted one knows its own files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from tas.data import Data
from tas.data.tensors import digest
from tas.methods.result import OnRow, OnScore
from tas.objectives import Objective, default_objective
from tas.scoring import Judge, Score, judge
from tas.space import Budget, SearchSpace
from tas.supernet import Supernet
from tas.tracing import Traced

S = TypeVar("S")


@dataclass(frozen=True, eq=False)
class Asked(Generic[S]):
    """The arguments of `tas.search`, with the `Settings` of its method in the place of the options."""

    source: Traced | Supernet
    data: Data
    budgets: tuple[Budget, ...]
    settings: S
    objective: Objective = field(default_factory=default_objective)
    seed: int = 0
    device: torch.device | str = "cpu"
    checkpoint: Path | None = None
    on_row: OnRow | None = None
    on_score: OnScore | None = None

    @property
    def space(self) -> SearchSpace:
        return self.source.space

    @property
    def budget(self) -> Budget:
        """The first one."""
        return self.budgets[0]

    def at(self, *budgets: Budget, **changes: Any) -> Asked[S]:
        """The same at other budgets."""
        return replace(self, budgets=budgets, **changes)

    def counting(self, count: int) -> Callable[[Score], None]:
        """A listener for `count` scores that tells `on_score`."""
        done = itertools.count(1)

        def note(_: Score) -> None:
            if self.on_score:
                self.on_score(next(done), count)

        return note

    @cached_property
    def judge(self) -> Judge:
        """What scores all candidates: the weights of the source, and images as the settings have them. Made when it is
        first asked for: a study that is complete is only read."""
        settings: Any = self.settings
        return judge(
            self.source,
            self.data,
            objective=self.objective,
            calibration_images=settings.calibration_images,
            images=settings.images,
            merge=settings.merge,
            seed=self.seed,
            device=self.device,
        )

    def identity(self, **more: Any) -> dict[str, Any]:
        """What two searches must share for one to go on where the other stopped, with what a method adds: JSON values
        that tell spaces, budgets, data, weights, objectives and seeds apart."""
        weights = (self.source.network if isinstance(self.source, Traced) else self.source).state_dict()
        return {
            "space": digest([json.dumps(self.space.to_dict()["choices"])]),
            "budget": json.dumps(asdict(self.budget)),
            "data": self.data.digest,
            "weights": digest(weights.values()),
            "objective": [self.objective.name, self.objective.higher_is_better],
            "seed": self.seed,
            **more,
        }


def differing(identity: Mapping[str, Any], known: Any) -> list[str]:
    """The parts of an identity that are others in the one that a file holds (None: it holds none)."""
    return [name for name, value in identity.items() if (known or {}).get(name) != value]
