"""Pictures through torchvision (imported only here, and only when asked for): its data sets by name, and folders."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tas.data.images import from_arrays, from_pictures, mode_of
from tas.data.splits import Split
from tas.errors import BadData


def torchvision_set(
    name: str, root: Path, download: bool, kwargs: Mapping[str, Any], size: int | None, workers: int
) -> dict[str, Split]:
    """The splits of torchvision.datasets.<name>; sets without a `train` or `split` argument give "train" alone."""
    from torchvision import datasets

    factory = getattr(datasets, name, None)
    if name not in datasets.__all__ or factory is None:
        known = {known.lower(): known for known in datasets.__all__}
        near = [known[match] for match in get_close_matches(name.lower(), known, n=3)]
        raise BadData(
            f"data is 'mnist5k', 'npz', 'folder', package.module:name or a class of torchvision.datasets, got {name!r}"
            + (f"; did you mean {' or '.join(near)}?" if near else "")
        )
    accepted = inspect.signature(factory).parameters
    arguments = {key: value for key, value in {"root": str(root), "download": download}.items() if key in accepted}
    arguments |= kwargs
    if "train" in accepted:
        choices: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in accepted:
        choices = {split: {"split": split} for split in ("train", "val", "test")}
    else:
        choices = {"train": {}}
    splits = {}
    for split, choice in choices.items():
        try:
            dataset = factory(**arguments, **choice)
        except ValueError:
            if split == "train":
                raise
            continue  # this set has no such split
        except (TypeError, RuntimeError, OSError) as error:
            raise BadData(f"{name} cannot be read from {root}: {_first_line(error)}{_hint(download)}") from error
        splits[split] = _split(split, dataset, size, workers)
    return splits


def _split(name: str, dataset: Any, size: int | None, workers: int) -> Split:
    raw = getattr(dataset, "data", None)
    labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if size is None and labels is not None and isinstance(raw, (np.ndarray, Tensor)) and raw.ndim in (3, 4):
        return from_arrays(name, raw, labels)
    return from_pictures(name, dataset, mode_of(dataset[0][0]), size, workers)


def image_folder(root: Path, size: int | None, workers: int, train: bool = True) -> dict[str, Split]:
    """root/train/<class>/*, with root/val and root/test where they exist; or root/<class>/* as "train" alone.
    train: whether root/train must be there."""
    from torchvision.datasets import ImageFolder

    if not root.is_dir():
        raise BadData(f"data must be a folder of pictures, there is none at {root}")
    folders = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
    if train and folders and "train" not in folders:
        raise BadData(f"a folder of pictures needs root/train beside {sorted(folders)}, {root} has no train")
    splits: dict[str, Split] = {}
    classes: list[str] = []
    for name, folder in (folders or {"train": root}).items():
        try:
            pictures = ImageFolder(str(folder), loader=_open)
        except OSError as error:
            raise BadData(f"pictures must lie in {folder}/<class>/: {_first_line(error)}") from error
        classes = classes or pictures.classes
        if pictures.classes != classes:
            unshared = sorted(set(classes) ^ set(pictures.classes))
            raise BadData(f"all splits must have the same classes, {folder} differs from {root}/train in {unshared}")
        splits[name] = from_pictures(name, pictures, mode_of(pictures[0][0]), size, workers)
    return splits


def _open(path: str) -> Any:
    from PIL import Image

    try:
        with open(path, "rb") as file:
            picture = Image.open(file)
            picture.load()
    except OSError as error:
        raise BadData(f"{path} is not a readable picture") from error
    return picture


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _hint(download: bool) -> str:
    return "" if download else "; set `root` to the folder that holds it, or `download: true`"
