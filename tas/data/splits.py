"""A split: a named set of examples that can be read in batches, sampled and halved, whatever holds the examples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from tas.augment import Augment, apply
from tas.data.holders import Answered, Batches, Dealt, Examples, InMemory
from tas.data.tensors import digest, examples_in, map_tensors, no_numbers, stratified, tensors_in
from tas.errors import BadData

_READ_TOGETHER = 256


@dataclass(frozen=True, eq=False)
class Split:
    """A named set of examples.

    mean, std: per channel, for pixels in [0, 1]; uint8 inputs [N, C, H, W] are normalised with them, others are not.
    """

    name: str
    source: InMemory | Answered | Examples | Batches
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, Batches) and len(self.source) == 0:
            raise BadData(f"a split needs at least one example, {self.name!r} has none")

    def __len__(self) -> int:
        return len(self.source)

    def steps(self, size: int, drop_last: bool = False) -> int:
        """Number of batches that `batches` yields."""
        return self.source.steps(size, drop_last)

    @cached_property
    def targets(self) -> Tensor | None:
        """Class labels, int64 [N], where they are known without decoding the examples."""
        return self.source.labels()

    @cached_property
    def digest(self) -> str:
        """sha256 over the number of examples, labels and a sample of the inputs: tells data sets apart, cheaply."""
        return digest(self.source.evidence())

    def batches(
        self,
        size: int,
        generator: torch.Generator | None = None,
        augment: Augment | None = None,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[Any, Any]]:
        """One pass in batches of `size` (inputs, targets) on `device`: shuffled by `generator`, in order without one.

        `augment` draws from the same generator. The user's own batches keep their size and order, and none is dropped.
        """
        device = torch.device(device)
        normalisation = self._normalisation(device)
        for batch in self.source.read(size, generator, drop_last, device):
            inputs, targets = map_tensors(lambda tensor: tensor.to(device, non_blocking=True), tuple(batch))
            pixels = normalisation is not None and isinstance(inputs, Tensor) and inputs.dtype == torch.uint8
            if augment is not None:
                if generator is None:
                    raise ValueError("augmentation is random: pass a generator")
                inputs = apply(inputs, augment, generator, self._mean_colour() if pixels else 0)
            if normalisation is not None and pixels:
                inputs = inputs.float().mul_(normalisation[0]).add_(normalisation[1])
            yield inputs, targets

    def _mean_colour(self) -> Tensor:
        return torch.tensor(self.mean).mul(255).round()

    def _normalisation(self, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """(x / 255 - mean) / std as one multiplication and one addition, each [C, 1, 1]."""
        if self.mean is None or self.std is None:
            return None
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in (self.mean, self.std))
        return 1 / (255 * std), -mean / std

    def require_numbers(self) -> None:
        """BadData with the first example that holds NaN or infinity: what else explains a loss that is no number is to
        be looked for where this finds nothing. Reads all examples, unless they are whole numbers."""
        start = 0
        for batch in self.source.read(_READ_TOGETHER, None, False, torch.device("cpu")):
            if not any(tensor.is_floating_point() for tensor in tensors_in(tuple(batch))):
                return
            for what, value in zip(("input", "target"), batch, strict=True):
                for tensor in tensors_in(value):
                    wrong = no_numbers(tensor).nonzero()
                    if len(wrong) and tensor.dim():
                        found = "NaN" if tensor[tuple(wrong[0])].isnan() else "infinity"
                        raise BadData(
                            f"all numbers must be finite, the {what} of example {start + int(wrong[0, 0])} of "
                            f"{self.name!r} holds {found}: correct or leave out such examples"
                        )
            start += examples_in((batch[1], batch[0]))

    def take(self, which: int | Tensor) -> Split:
        """The examples at the indices `which`, or, for a number, a fixed stratified sample of that many.

        A sample and not the first ones, for many data sets are sorted by class. The user's own batches can only give
        their first examples.
        """
        if isinstance(self.source, Batches):
            if isinstance(which, Tensor):
                raise BadData(f"single examples of {self.name!r} cannot be picked: it is an iterable of batches")
            return replace(self, source=self.source.first(which))
        if isinstance(which, int):
            if which >= len(self):
                return self
            which = stratified(self.targets, len(self), which, torch.Generator().manual_seed(0))
        return replace(self, source=self.source.pick(which))


def require_two(split: Split) -> None:
    """BadData unless `split` has two examples: a search trains on one half, and judges on the other."""
    if (found := len(split.take(2))) < 2:
        raise BadData(
            f"{split.name!r} is dealt into two parts, none of them empty, so it needs two examples at least; it has "
            f"{found}: give more examples"
        )


def halves(split: Split, generator: torch.Generator, fraction: float = 0.5) -> tuple[Split, Split]:
    """Two disjoint stratified parts: "weights" with `fraction` of the examples and "architecture" with the rest.

    The user's own batches are dealt out whole, which keeps the parts apart only if every pass has the same order;
    BadData where it has not, and where there are no two examples.
    """
    require_two(split)
    if isinstance(split.source, Batches):
        if not split.source.same_order():
            raise BadData(
                f"batches of {split.name!r} are dealt into two parts, one of which must not see the other's examples, "
                "but two passes give different ones: pass the Dataset itself, or a loader with shuffle=False"
            )
        parts = [
            replace(split, source=Batches(Dealt(split.source, fraction, first), split.name)) for first in (True, False)
        ]
        if not all(map(len, parts)):
            raise BadData(f"{split.name!r} is dealt into two parts, so it needs more batches than {split.steps(1)}")
    else:
        count = min(max(1, round(fraction * len(split))), len(split) - 1)  # neither part is empty
        chosen = stratified(split.targets, len(split), count, generator)
        rest = torch.ones(len(split), dtype=torch.bool).index_fill(0, chosen, False).nonzero().flatten()
        parts = [split.take(chosen), split.take(rest)]
    return replace(parts[0], name="weights"), replace(parts[1], name="architecture")


@dataclass(frozen=True, eq=False)
class Data:
    """A named data set: `classes` is None where targets are not class labels; `augment` applies to `train` only."""

    name: str
    train: Split
    val: Split | None = None
    test: Split | None = None
    classes: int | None = None
    augment: Augment | None = None

    def __post_init__(self) -> None:
        for split in self.splits:
            if self.classes is not None and split.targets is not None:
                _check_range(f"{split.name!r} of {self.name!r}", split.targets, self.classes)
        labels = self.train.targets
        if self.classes is not None and labels is not None and labels.min() == labels.max():
            raise BadData(f"{self.name!r} needs examples of two classes at least, 'train' has only class {labels[0]}")

    @property
    def has_training(self) -> bool:
        """Whether there are training images, not noise in their place (`load` with train=False)."""
        return self.train.name != "noise"

    @property
    def splits(self) -> tuple[Split, ...]:
        return tuple(split for split in (self.train, self.val, self.test) if split is not None)

    def split(self, name: str) -> Split:
        """The split "train", "val" or "test"; BadData where there is none of that name."""
        found = {"train": self.train if self.has_training else None, "val": self.val, "test": self.test}.get(name)
        if found is None:
            raise BadData(f"{self.name!r} has the splits {[s.name for s in self.splits]}, but {name!r} was asked for")
        return found

    @cached_property
    def digest(self) -> str:
        """sha256 over the digests of the splits."""
        return digest(split.digest for split in self.splits)


def _check_range(where: str, labels: Tensor, classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise BadData(f"labels of {classes} classes must lie in 0..{classes - 1}, but {where} has {low}..{high}")
