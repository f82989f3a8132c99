"""Every recipe that ships is read, names things that exist, and has a feasible budget."""

from pathlib import Path

import pytest
import torch
import yaml

from tas import describing, parts, recipe

ROOT = Path(__file__).parents[1]
SHAPES = {  # by the first word of the file's name
    "quickstart": (2, 1, 28, 28),
    "cifar10": (2, 3, 32, 32),
    "mnist": (2, 1, 28, 28),
    "scenes": (2, 1, 48, 48),
}
PATHS = sorted((ROOT / "configs").glob("*.yaml"))


def test_there_are_recipes() -> None:
    assert ROOT / "configs" / "quickstart.yaml" in PATHS


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_recipe_that_ships_is_complete_and_feasible(path: Path) -> None:
    read = recipe.read(path)
    assert read.title
    original = parts.original_of(read.network.model_copy(update={"weights": None}), read.seed)
    inputs = torch.randn(SHAPES[path.stem.split("_")[0]], generator=torch.Generator().manual_seed(0))
    space = parts.source_of(read, original, inputs).space
    describing.require_choices(space, read.space)
    budgets = describing.budgets_of(space, read.budgets)
    limits = dict(next(iter(budgets.values())).limits)
    assert describing.feasibility(space, budgets)["uniform"]["macs"] <= limits["macs"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_no_machine_path_or_secret_ships(path: Path) -> None:
    def texts(value: object) -> list[str]:
        if isinstance(value, dict):
            return [text for part in value.values() for text in texts(part)]
        return [value] if isinstance(value, str) else []

    assert not [text for text in texts(yaml.safe_load(path.read_text())) if text.startswith(("/", "~"))]
