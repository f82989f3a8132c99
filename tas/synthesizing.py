"""Images from the original's batch norms in a run: made once, kept in its folder, used in place of training images."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tas.calibration import modes_restored
from tas.comparison import saved
from tas.data import InMemory, Split, noise
from tas.distillation.inversion import Settings
from tas.distillation.synthesis import RECORD, beside, resemblance, synthesize
from tas.errors import BadRecipe
from tas.files import write_bytes
from tas.folder import check_owner
from tas.originals import check_runs
from tas.preparation import Prepared, prepare
from tas.recipe import Recipe, Synthesize
from tas.reporting import write_report
from tas.reporting.progress import Bar, Display
from tas.reporting.synthesis import FOLDER, SHEET, sheet
from tas.stages import Run, judged_on, opened, original


def make(recipe: Recipe, folder: str | Path, display: Display | None = None) -> dict[str, Any]:
    """Synthesize the images of a recipe into a run folder, where `run` will use them; what `tas synthesize` prints."""
    if recipe.synthesize is None:
        raise BadRecipe("the recipe needs a section `synthesize`, such as --set synthesize.images=2000")
    check_owner(folder, recipe)
    prepared = prepare(recipe)
    judged_on(prepared.data)
    rival(prepared)
    current = opened(prepared, folder, display)
    try:
        network, _ = original(current)
        synthesized(current, network)
    finally:
        current.events.close()
        write_report(current.folder.path)
    return {"rows": current.folder.state["stages"]["synthesize"]["rows"], "sheet": str(current.folder.path / SHEET)}


def synthesized(current: Run, network: nn.Module) -> Run:
    """The same run; where its recipe says so, with images made from the original in the place of training images."""
    prepared, how = current.prepared, current.recipe.synthesize
    if how is None:
        return current
    with current.display.bar("synthesize") as bar:

        def made() -> Split:
            return _images(prepared, network, current.folder.path / FOLDER, bar)

        def work() -> dict[str, Any]:
            images = made()
            assert isinstance(images.source, InMemory)
            write_bytes(current.folder.path / SHEET, sheet(images.source.inputs, prepared.data.classes or 1))
            return {"rows": _rows(prepared, network, images, how)}

        current.staged("synthesize", work)
        images = made()  # read again: every batch is a file
    return replace(current, prepared=replace(prepared, data=beside(prepared.data, images, how.real_images)))


def from_run(prepared: Prepared, network: nn.Module, run: Path | None) -> Prepared:
    """For commands beside a run: `prepared` with the images that the run in that folder has made, if its recipe asks
    for some. `BadRecipe` where they are not all there."""
    how = prepared.recipe.synthesize
    if how is None:
        return prepared
    batches = -(-how.images // how.batch)
    if run is None or len(list((run / FOLDER).glob("batch-*.npz"))) < batches or not (run / FOLDER / RECORD).is_file():
        raise BadRecipe(
            "the recipe trains on synthesized images: make them first, `tas synthesize RECIPE --out RUN`, and name RUN"
        )
    images = _images(prepared, network, run / FOLDER)
    return replace(prepared, data=beside(prepared.data, images, how.real_images))


def planned(prepared: Prepared) -> Prepared:
    """`prepared` with as many images of noise as will be synthesized, to time what is done with them."""
    how, train = prepared.recipe.synthesize, prepared.data.train
    if how is None:
        return prepared
    pixels, labels = _noise(prepared, how.images)
    images = Split("train", InMemory(pixels, labels), train.mean, train.std)
    return replace(prepared, data=beside(prepared.data, images, how.real_images))


def _images(prepared: Prepared, network: nn.Module, folder: Path, bar: Bar | None = None) -> Split:
    how, train, shape = prepared.recipe.synthesize, prepared.data.train, _shape(prepared)
    assert how is not None
    assert train.mean is not None
    assert train.std is not None
    settings = Settings(**{field.name: getattr(how, field.name) for field in fields(Settings)})
    return synthesize(
        network,
        shape,
        prepared.data.classes or 0,
        train.mean,
        train.std,
        settings,
        generator=torch.Generator().manual_seed(prepared.recipe.seed),
        student=rival(prepared),
        folder=folder,
        device=prepared.device,
        progress=None if bar is None else lambda step, steps, loss: bar(step, steps, f"loss {loss:.3f}"),
    )


def rival(prepared: Prepared) -> nn.Module | None:
    """The student that images are made against, after it has been seen to take them; None where there is none."""
    how = prepared.recipe.synthesize
    if how is None or how.against is None:
        return None
    network, _ = saved(how.against)
    inputs, _ = next(prepared.data.train.take(2).batches(2))
    check_runs(network, inputs)
    with torch.no_grad(), modes_restored(prepared.original):
        outputs = [each.cpu().eval()(inputs) for each in (network, prepared.original)]
    if outputs[0].shape != outputs[1].shape:
        raise BadRecipe(f"synthesize.against must be a student of this original, {how.against} has other outputs")
    return network


def _rows(prepared: Prepared, network: nn.Module, images: Split, how: Synthesize) -> list[dict[str, Any]]:
    """What the original makes of real images, where there are some, of the synthesized ones, and of noise."""
    pixels, labels = _noise(prepared, min(len(images), 1000))
    splits = {"synthesized": images, "noise": replace(images, source=InMemory(pixels, labels))}
    if prepared.data.has_training:
        splits = {"real": prepared.data.train, **splits}
    return resemblance(network, splits, min(how.batch, *map(len, splits.values())), prepared.device)


def _noise(prepared: Prepared, count: int) -> tuple[Tensor, Tensor]:
    train, generator = prepared.data.train, torch.Generator().manual_seed(prepared.recipe.seed)
    pixels = noise(count, _shape(prepared), train.mean or (), train.std or (), generator)
    return pixels, torch.arange(count) % (prepared.data.classes or 1)


def _shape(prepared: Prepared) -> tuple[int, ...]:
    inputs, _ = next(prepared.data.train.take(1).batches(1))
    return tuple(inputs.shape[1:])
