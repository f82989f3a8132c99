import time

import pytest
import torch
from torch.nn import functional

from tas.augment import Augment, apply
from tas.errors import BadRecipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, height: int = 5, width: int = 7, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(1, 255, (count, 3, height, width), generator=seeded(1)).to(dtype)


def views(image: torch.Tensor, padding: int, flip: bool) -> dict[tuple[int, int, bool], torch.Tensor]:
    """Every crop that may come out, written with slices."""
    padded = functional.pad(image, [padding] * 4)
    _, height, width = image.shape
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            crop = padded[:, top : top + height, left : left + width]
            found[top, left, False] = crop
            if flip:
                found[top, left, True] = crop.flip(-1)
    return found


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_every_image_gets_a_crop_and_flip_of_its_own_and_all_of_them_occur(dtype: torch.dtype) -> None:
    source = images(1, dtype=dtype).expand(600, -1, -1, -1)
    result = apply(source, Augment(padding=1, flip=True), seeded())
    assert result.dtype == dtype
    counts = dict.fromkeys(views(source[0], 1, True), 0)
    for image in result:
        (place,) = [place for place, view in views(source[0], 1, True).items() if view.equal(image)]
        counts[place] += 1
    assert min(counts.values()) > 10  # 18 views, 33 expected each
    assert max(counts.values()) < 65


def test_different_images_are_not_mixed() -> None:
    source = images(50)
    for before, after in zip(source, apply(source, Augment(padding=2, flip=True), seeded()), strict=True):
        assert any(view.equal(after) for view in views(before, 2, True).values())


def test_cutout_erases_one_clipped_square_around_any_pixel() -> None:
    source = images(400, 8, 9)
    fill = torch.tensor([1.0, 2.0, 3.0])
    source[source < 4] = 4
    result = apply(source, Augment(cutout=3), seeded(), fill)
    centres = set()
    for before, after in zip(source, result, strict=True):
        erased = (before != after).all(0)
        rows, columns = erased.any(1).nonzero().flatten(), erased.any(0).nonzero().flatten()
        assert erased.sum() == len(rows) * len(columns)
        assert after[:, erased].float().mean(1).equal(fill)
        assert after[:, ~erased].equal(before[:, ~erased])
        assert rows.max() - rows.min() + 1 == len(rows) <= 3
        assert len(rows) == 3 or rows.min() == 0 or rows.max() == 7
        centres.add((int(rows.min()), int(columns.min()), len(rows), len(columns)))
    assert len(centres) == 8 * 9


def test_the_same_generator_gives_the_same_images_and_the_source_stays() -> None:
    source = images(20)
    copy = source.clone()
    augment = Augment(padding=2, flip=True, cutout=2)
    first, again, other = (apply(source, augment, seeded(seed)) for seed in (3, 3, 4))
    assert first.equal(again)
    assert not first.equal(other)
    assert source.equal(copy)


def test_no_augmentation_is_the_identity() -> None:
    source = images(3)
    assert apply(source, Augment(), seeded()).equal(source)


def test_negative_sizes_are_refused() -> None:
    with pytest.raises(BadRecipe, match="at least 0; got -1 and 0"):
        Augment(padding=-1)


def test_augmenting_a_cifar_batch_costs_far_less_than_one_convolution_step() -> None:
    batch = torch.randint(0, 255, (128, 3, 32, 32), dtype=torch.uint8)
    inputs = torch.randn(128, 16, 32, 32, requires_grad=True)
    weight = torch.randn(16, 16, 3, 3, requires_grad=True)

    def fastest(work: object) -> float:
        times = []
        for _ in range(5):
            started = time.perf_counter()
            work()
            times.append(time.perf_counter() - started)
        return min(times)

    augmented = fastest(lambda: apply(batch, Augment(padding=4, flip=True, cutout=8), seeded()))
    convolved = fastest(lambda: functional.conv2d(inputs, weight, padding=1).sum().backward())
    assert augmented < convolved  # ResNet-20 has 19 of them
