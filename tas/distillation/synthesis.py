"""A set of synthesized images, batch by batch: resumable where it has a folder, and how far it resembles real ones."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from tas.calibration import modes_restored
from tas.data import Data, InMemory, Split, noise
from tas.data.tensors import digest
from tas.distillation.inversion import Settings, bounds_of, invert, require_batch_norm, statistics_distances
from tas.errors import BadData, BadRecipe
from tas.files import write_bytes, write_json
from tas.objectives import cross_entropy, top1

RECORD = "synthesis.json"
_JUDGED = 1000  # images of each kind whose statistics are measured


def synthesize(
    network: nn.Module,
    shape: Sequence[int],
    classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    settings: Settings | None = None,
    *,
    generator: torch.Generator,
    student: nn.Module | None = None,
    folder: Path | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int, float], None] | None = None,
) -> Split:
    """Images that `network` takes for its own data, as a training split: uint8 [images, *shape] and their classes.

    shape: of an image, [1 or 3, height, width]. mean, std: a number a channel, for pixels in [0, 1], as the network was
    trained with. student: see `invert`. folder: every batch is a file there, written whole; what is there is not made
    again, and gives the same images as one call. progress(step, steps, loss) counts steps over all batches. `BadRecipe`
    where the folder holds images of other settings or networks; `BadNetwork` where the network has no batch norm.
    """
    settings = settings or Settings()
    require_batch_norm(network)
    check_settings(settings, shape, classes)
    _check_scale(shape, mean, std)
    seeds = torch.randint(2**62, (-(-settings.images // settings.batch),), generator=generator).tolist()
    if folder is not None:
        said = {"shape": list(shape), "classes": classes, "mean": list(mean), "std": list(std), "seeds": seeds}
        weights = {"network": _weights(network), "student": student and _weights(student)}
        _sign(folder, {"settings": asdict(settings), **said, **weights})
    network.to(device)
    if student is not None:
        student.to(device)
    labels = torch.arange(settings.images) % classes
    made: list[Tensor] = []
    each = settings.coarse_steps + settings.steps
    for number, (seed, targets) in enumerate(zip(seeds, labels.split(settings.batch), strict=True)):
        path = None if folder is None else folder / f"batch-{number:04d}.npz"
        if path is None or not path.is_file():
            own = torch.Generator().manual_seed(seed)  # of each batch: what comes before it may have been read
            start = _normalised(noise(len(targets), shape, mean, std, own), mean, std).to(device)

            def on_step(done: int, loss: float, before: int = number * each) -> None:
                if progress is not None:
                    progress(before + done, len(seeds) * each, loss)

            bounds = bounds_of(mean, std, device)
            pixels = _pixels(
                invert(network, start, targets.to(device), bounds, settings, own, student, on_step), mean, std
            )
            if path is not None:
                _write(path, pixels, targets)
            made.append(pixels)
        else:
            made.append(_read(path, targets, shape))
    return Split("train", InMemory(torch.cat(made), labels), tuple(mean), tuple(std))


def beside(data: Data, synthetic: Split, real_images: int = 0) -> Data:
    """`data` with the synthesized images in place of its training images, and `real_images` of these (a stratified
    sample, at most all) beside them."""
    source = synthetic.source
    assert isinstance(source, InMemory)
    if real_images:
        kept = data.train.take(real_images)
        real = list(replace(kept, mean=None, std=None).batches(1024))  # as they are stored
        inputs, targets = (torch.cat(parts) for parts in zip(*real, strict=True))
        if inputs.dtype != torch.uint8 or inputs.shape[1:] != source.inputs.shape[1:]:
            raise BadData(f"real images beside synthesized ones must be pixels of one shape, got {list(inputs.shape)}")
        source = InMemory(torch.cat([source.inputs, inputs]), torch.cat([source.targets, targets]))
    return replace(data, train=replace(synthetic, name="train", source=source))


def resemblance(
    network: nn.Module, splits: Mapping[str, Split], batch: int, device: torch.device | str = "cpu"
) -> list[dict[str, Any]]:
    """For each kind of images what `network` makes of them: the distance of its batch-norm statistics (sum over norms,
    mean over batches of `batch`, unweighted), cross-entropy (nats) and top-1 (percent) towards their labels."""
    rows = []
    with modes_restored(network), torch.no_grad():
        network.eval()
        for kind, split in splits.items():
            split = split.take(min(len(split), max(batch, _JUDGED // batch * batch)))
            size = min(batch, len(split))
            shuffled = torch.Generator().manual_seed(0)  # a batch of one class has other statistics
            values = []
            for inputs, targets in split.batches(size, shuffled, drop_last=True, device=device):
                with statistics_distances(network) as distances:
                    logits = network(inputs)
                judged = (torch.stack(distances).sum(), cross_entropy(logits, targets), top1(logits, targets).mean())
                values.append(torch.stack([value.double() for value in judged]))
            distance, entropy, right = torch.stack(values).mean(0).tolist()
            row = {"images": kind, "count": len(values) * size, "distance": distance}
            rows.append({**row, "cross_entropy": entropy, "top1": right})
    return rows


def check_settings(settings: Settings, shape: Sequence[int], classes: int) -> None:
    """`BadData` or `BadRecipe` where images of this shape and so many classes cannot be made."""
    if len(shape) != 3 or min(shape) < 1:
        raise BadData(f"images are made of the shape [channels, height, width], got {list(shape)}")
    if classes < 2:
        raise BadData(f"images are made for two classes at least, got {classes}")
    if settings.images < classes:
        raise BadRecipe(f"every class needs an image: raise synthesize.images, {settings.images} for {classes} classes")
    if settings.images % settings.batch == 1:
        raise BadRecipe(
            f"a batch of one image has no statistics: {settings.images} images in batches of {settings.batch} leave one"
        )
    if settings.coarse_steps and min(shape[1:]) < 2:
        raise BadRecipe(f"coarse_steps halve the images, which {list(shape)} cannot be: set them to 0")


def _check_scale(shape: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
    if not {len(mean), len(std)} <= {1, shape[0]} or min(std) <= 0:
        raise BadData(f"mean and std have a number a channel, std above 0; got {mean=} and {std=} for {shape[0]}")


def _sign(folder: Path, record: Mapping[str, Any]) -> None:
    """Note what the folder's images are made of; `BadRecipe` where it holds others."""
    path, record = folder / RECORD, json.loads(json.dumps(record))
    if not path.is_file():
        write_json(path, record)
        return
    try:
        known = json.loads(path.read_text())
    except ValueError as problem:
        raise BadRecipe(f"{path} is not JSON: {problem}; remove the folder, and the images are made anew") from problem
    if changed := sorted(key for key in record if known.get(key) != record[key]):
        raise BadRecipe(
            f"{folder} holds images of other {', '.join(changed)}; remove it to make new ones, or choose another folder"
        )


def _weights(network: nn.Module) -> str:
    return digest(network.state_dict().values())[:16]


def _normalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return next(Split("noise", InMemory(pixels, pixels), tuple(mean), tuple(std)).batches(len(pixels)))[0]


def _pixels(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    means, stds = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (mean, std))
    return ((images * stds + means) * 255).round().clamp(0, 255).byte().cpu()


def _write(path: Path, pixels: Tensor, labels: Tensor) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=pixels.numpy(), labels=labels.numpy())
    write_bytes(path, buffer.getvalue())


def _read(path: Path, labels: Tensor, shape: Sequence[int]) -> Tensor:
    try:
        with path.open("rb") as raw, np.load(raw) as file:  # opened here: numpy leaves a broken one open
            images, known = torch.from_numpy(file["images"]), torch.from_numpy(file["labels"])
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as problem:
        raise BadData(f"cannot read the images in {path}: {problem}; remove it, and they are made again") from problem
    if images.dtype != torch.uint8 or images.shape != (len(labels), *shape) or not known.equal(labels):
        raise BadData(f"{path} holds {images.dtype} {list(images.shape)}, not this batch; remove it to make it again")
    return images
