"""What holds the examples of a split: `InMemory` tensors, `Examples` of a torch Dataset, or the user's own `Batches`.

No base class: they answer the same calls (`len`, `steps`, `labels`, `read`, `evidence`), and those but `Batches` can
also `pick` single examples. `Answered` is `InMemory` with a teacher's answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from tas.data.tensors import digest, examples_in, map_tensors
from tas.errors import BadData, TasError, failure

_LOOKED_AT = 64  # examples in memory that enter a digest
_DECODED = 16  # examples of a Dataset that do: decoding them all would take as long as an epoch
_COMPARED = 64  # examples whose targets tell the order of a pass


@dataclass(frozen=True, eq=False)
class InMemory:
    """inputs [N, ...] and targets [N, ...]; images as uint8 [N, C, H, W] are augmented and normalised when read."""

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        if len(self.inputs) != len(self.targets):
            raise BadData(f"every input needs a target, got {len(self.inputs)} inputs and {len(self.targets)} targets")

    def __len__(self) -> int:
        return len(self.inputs)

    def steps(self, size: int, drop_last: bool) -> int:
        return len(self) // size if drop_last else -(-len(self) // size)

    def labels(self) -> Tensor | None:
        return _as_labels(self.targets, len(self))

    def read(
        self, size: int, generator: torch.Generator | None, drop_last: bool, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = self.inputs.to(device), self.targets.to(device)  # once a pass, not once a batch
        order = _order(len(self), generator)
        order = None if order is None else order.to(device)
        for start in range(0, self.steps(size, drop_last) * size, size):
            picked = slice(start, start + size) if order is None else order[start : start + size]
            yield inputs[picked], targets[picked]

    def pick(self, indices: Tensor) -> InMemory:
        return InMemory(self.inputs[indices], self.targets[indices])

    def evidence(self) -> Iterator[Any]:
        yield from (len(self), self.targets, self.inputs[:: max(1, len(self) // _LOOKED_AT)])


@dataclass(frozen=True, eq=False)
class WithAnswer:
    """Targets of a batch, and what a teacher says to its inputs [batch, ...]."""

    targets: Tensor
    answers: Tensor


@dataclass(frozen=True, eq=False)
class Answered:
    """Examples in memory, with what a teacher says to each: batches (inputs, `WithAnswer`). answers [N, ...]."""

    examples: InMemory
    answers: Tensor

    def __len__(self) -> int:
        return len(self.examples)

    def steps(self, size: int, drop_last: bool) -> int:
        return self.examples.steps(size, drop_last)

    def labels(self) -> Tensor | None:
        return self.examples.labels()

    def read(
        self, size: int, generator: torch.Generator | None, drop_last: bool, device: torch.device
    ) -> Iterator[tuple[Tensor, WithAnswer]]:
        targets, answers = self.examples.targets.to(device), self.answers.to(device)
        numbered = InMemory(self.examples.inputs, torch.arange(len(self)))
        for inputs, which in numbered.read(size, generator, drop_last, device):
            yield inputs, WithAnswer(targets[which], answers[which])

    def pick(self, indices: Tensor) -> Answered:
        return Answered(self.examples.pick(indices), self.answers[indices])

    def evidence(self) -> Iterator[Any]:
        yield from self.examples.evidence()


@dataclass(frozen=True, eq=False)
class Told(Dataset[Any]):
    """The user's Dataset of a split `name`, which may fail at any example: `BadData` says at which."""

    dataset: Dataset[Any]
    name: str

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    @property
    def targets(self) -> Tensor | None:
        return labels_of(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except TasError:
            raise
        except Exception as error:  # the user's code may fail in any way
            raise BadData(
                f"every example of a Dataset must be readable, {self.name!r} fails at index {index}: {failure(error)}"
            ) from error

    def __getitems__(self, indices: list[int]) -> list[Any]:
        together = getattr(self.dataset, "__getitems__", None)  # what some read faster than one by one
        if together is not None:
            with suppress(Exception):  # one by one tells at which example
                return list(together(indices))
        return [self[index] for index in indices]


@dataclass(frozen=True, eq=False)
class Examples:
    """A torch Dataset of (input, target) pairs, decoded by `workers` processes (0: by this one)."""

    dataset: Dataset[Any]
    workers: int = 0

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def steps(self, size: int, drop_last: bool) -> int:
        return len(self) // size if drop_last else -(-len(self) // size)

    def labels(self) -> Tensor | None:
        return labels_of(self.dataset)

    def read(
        self, size: int, generator: torch.Generator | None, drop_last: bool, device: torch.device
    ) -> Iterator[tuple[Any, Any]]:
        order = _order(len(self), generator)
        # The seed of the workers' random transforms; without it the loader would draw one from torch's global state.
        seed = 0 if generator is None else int(torch.randint(2**62, (), generator=generator, device=generator.device))
        loader = DataLoader(
            self.dataset,
            batch_size=size,
            sampler=None if order is None else order.tolist(),
            drop_last=drop_last,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
            generator=torch.Generator().manual_seed(seed),
        )
        try:
            yield from loader
        except BadData as problem:  # a worker sends its whole traceback, the last line of which is the message
            raise BadData(str(problem).rpartition(f"{BadData.__module__}.BadData: ")[2].strip()) from problem

    def pick(self, indices: Tensor) -> Examples:
        return Examples(Subset(self.dataset, indices.tolist()), self.workers)

    def evidence(self) -> Iterator[Any]:
        yield from (len(self), self.labels())
        with torch.random.fork_rng(devices=[]):  # the Dataset may draw random transforms
            torch.manual_seed(0)
            for index in range(0, len(self), max(1, len(self) // _DECODED)):
                yield self.dataset[index]


@dataclass(frozen=True, eq=False)
class Batches:
    """The user's own iterable of (inputs, targets) batches, of the split `name`: their size and order are the user's.
    It may fail at any batch: `BadData` says at which."""

    batches: Iterable[Any]
    name: str = "batches"

    def __post_init__(self) -> None:
        one_shot = False
        with suppress(Exception):  # what fails is told where it is read
            one_shot = iter(self.batches) is self.batches
        if one_shot:
            raise BadData(
                f"batches are read again every epoch, got a one-shot {type(self.batches).__name__}; pass a list, "
                "a DataLoader, or an object whose __iter__ starts anew"
            )

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        done = 0
        try:
            for batch in self.batches:
                if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                    raise BadData(f"a batch is a pair (inputs, targets), {self.name!r} gives a {type(batch).__name__}")
                yield batch[0], batch[1]
                done += 1
        except TasError:
            raise
        except Exception as error:  # the user's code may fail in any way
            raise BadData(
                f"every batch must be readable, {self.name!r} fails at batch {done}: {failure(error)}"
            ) from error

    @cached_property
    def _sizes(self) -> list[int]:
        return [examples_in(targets) for _, targets in self]

    def __len__(self) -> int:
        """Number of examples, not of batches; the batches are read once to count them."""
        return sum(self._sizes)

    def steps(self, size: int, drop_last: bool) -> int:
        return len(self._sizes)

    def labels(self) -> Tensor | None:
        return None

    def read(
        self, size: int, generator: torch.Generator | None, drop_last: bool, device: torch.device
    ) -> Iterator[tuple[Any, Any]]:
        return iter(self)

    def same_order(self) -> bool:
        """Whether two passes begin with the same targets; those of 64 examples tell a shuffled loader."""
        with torch.random.fork_rng(devices=[]):  # the loader may draw its order from torch's own generator
            one, other = (digest(targets for _, targets in self.first(_COMPARED)) for _ in range(2))
        return one == other

    def first(self, count: int) -> Batches:
        """The first `count` examples, held in memory."""
        held: list[Any] = []
        for inputs, targets in self:
            held.append(map_tensors(itemgetter(slice(count)), (inputs, targets)))
            count -= examples_in(targets)
            if count <= 0:
                break
        return Batches(held, self.name)

    def evidence(self) -> Iterator[Any]:
        yield from islice(self, 1)


@dataclass(frozen=True)
class Dealt:
    """Every batch of which `batches` deals a `fraction` to the first of two hands: one of the hands, as an iterable."""

    batches: Batches
    fraction: float
    first: bool

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        for index, batch in enumerate(self.batches):
            if (int((index + 1) * self.fraction) > int(index * self.fraction)) == self.first:
                yield batch


def _order(total: int, generator: torch.Generator | None) -> Tensor | None:
    return None if generator is None else torch.randperm(total, generator=generator, device=generator.device)


def _collate(examples: list[tuple[Any, Any]]) -> Any:
    shapes = {tuple(inputs.shape) for inputs, _ in examples if isinstance(inputs, Tensor)}
    if len(shapes) > 1:
        raise BadData(f"all inputs must have one shape, got {sorted(shapes)[:4]}; set `size` to resize images")
    return default_collate(examples)


def labels_of(dataset: Dataset[Any]) -> Tensor | None:
    """Labels as torchvision's data sets keep them, seen through Subsets: int64 [N]."""
    if isinstance(dataset, Subset):
        labels = labels_of(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices)]
    found = getattr(dataset, "targets", getattr(dataset, "labels", None))
    return None if found is None else _as_labels(found, len(dataset))  # type: ignore[arg-type]


def _as_labels(values: Any, total: int) -> Tensor | None:
    """int64 [total], or None where the values are not one whole number an example."""
    try:
        labels = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    if labels.is_floating_point() or labels.dim() != 1 or len(labels) != total:
        return None
    return labels.long()
