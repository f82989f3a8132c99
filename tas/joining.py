"""Another process at the study of a run: same recipe, original and storage; nothing else of the run is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tas.errors import BadRecipe
from tas.folder import check_owner, checkpoint_in
from tas.judging import trained
from tas.preparation import prepare
from tas.recipe import read
from tas.reporting.progress import Display
from tas.searching import asked_search
from tas.stages import weighted
from tas.synthesizing import from_run

_STUDIES = ("optuna", "tuned")


def join(folder: Path, overrides: Sequence[str] = (), display: Display | None = None) -> dict[str, Any]:
    """Take part in the study of the run in `folder` until it has its trials; how many this process and all did.

    `BadRecipe` where the folder holds no run, its search is no study, or its original has not been trained yet.
    overrides: of the section `machine`, such as machine.device=cuda:1.
    """
    if not (folder / "recipe.yaml").is_file():
        raise BadRecipe(f"join takes the folder of a run, {folder} has no recipe.yaml: begin one with `tas run`")
    recipe = read(folder / "recipe.yaml", overrides)
    check_owner(folder, recipe)
    if recipe.search.method not in _STUDIES:
        raise BadRecipe(
            f"only studies are shared, search.method {' and '.join(_STUDIES)}, got {recipe.search.method!r}"
        )
    prepared = prepare(recipe)
    network = trained(prepared, folder)
    prepared = from_run(prepared, network, folder)
    source = weighted(prepared, network)
    rows: list[Mapping[str, Any]] = []
    with (display or Display()).bar("search") as bar:

        def on_row(row: Mapping[str, Any]) -> None:
            rows.append(row)
            bar(row["step"], row["steps"], "")

        found = asked_search(prepared, source, checkpoint_in(folder, "search"), on_row)
    trials = sum(len(one.course) for one in found)
    return {"run": str(folder), "trials": len(rows), "of": trials, "best": found[0].candidates[0].recalibrated}
