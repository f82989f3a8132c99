"""A search on disk: what to go on from after an interruption."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from tas.errors import BadRecipe
from tas.files import whole
from tas.methods.asked import differing
from tas.methods.result import Row


class Stateful(Protocol):
    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


def save(path: Path, identity: Mapping[str, Any], parts: Mapping[str, Stateful], course: list[Row]) -> None:
    """The file is whole or not there (`files.whole`), and loads with weights_only=True."""
    states = {name: part.state_dict() for name, part in parts.items()}
    with whole(path) as beside:
        torch.save({"identity": dict(identity), "states": states, "course": course}, beside)


def resume(path: Path, identity: Mapping[str, Any], parts: Mapping[str, Stateful]) -> list[Row]:
    """Give the parts their saved states; returns the course so far. BadRecipe where the file is of another search."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    if changed := differing(identity, content["identity"]):
        raise BadRecipe(f"{path} must be of this search, but {changed} differ: remove it, or use another folder")
    for name, part in parts.items():
        part.load_state_dict(content["states"][name])
    return content["course"]
