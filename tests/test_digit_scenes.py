import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from search_spaces.digit_scenes import CLASSES, mean_iou, pixel_loss, scenes, unet
from tas import cost
from tas.data import load
from tas.testing import check_space


def parts(split: object) -> tuple[Tensor, Tensor]:
    assert isinstance(split, TensorDataset)
    images, masks = split.tensors
    return images, masks


def test_scenes_show_two_digits_and_their_masks() -> None:
    images, masks = parts(scenes(train=40, test=5)["train"])
    assert images.shape == (40, 1, 48, 48)
    assert images.dtype == torch.uint8
    assert masks.shape == (40, 48, 48)
    shown = [len(mask.unique()) - 1 for mask in masks]
    assert set(shown) <= {1, 2}  # twice the same digit, or two
    assert max(shown) == 2
    assert (images[:, 0][masks > 0] > 96).all()  # the ink of a digit


def test_digits_of_test_scenes_are_in_no_training_scene() -> None:
    """Every test scene is made of test digits alone: their pixels are found on it, at some place."""
    digits = load("mnist5k")
    assert digits.test is not None
    source = digits.test.source.inputs  # type: ignore[union-attr]
    image, mask = (part[0] for part in parts(scenes(train=2, test=1)["test"]))
    alone = [int(c) for c in mask.unique() if c]
    assert alone
    windows = image[0].unfold(0, 28, 1).unfold(1, 28, 1)  # [21, 21, 28, 28]
    ink = source[:, 0] > 96
    found = sum(
        bool(((windows >= digit) | ~on).flatten(2).all(2).any()) for digit, on in zip(source[:, 0], ink, strict=True)
    )
    assert found >= 1


def test_the_same_seed_gives_the_same_scenes() -> None:
    first, again, other = (parts(scenes(4, 4, seed=seed)["train"]) for seed in (0, 0, 1))
    assert first[0].equal(again[0])
    assert not first[0].equal(other[0])


def test_mean_iou_is_that_of_sets() -> None:
    targets = torch.zeros(2, 2, 4, dtype=torch.int64)
    targets[:, :, 2:] = 3
    outputs = torch.zeros(2, CLASSES, 2, 4)
    outputs[0, 3, :, 2:] = 1  # class 0 elsewhere: all right
    outputs[1, 3] = 1  # everything is class 3: of class 0 nothing, of class 3 a half
    assert mean_iou(outputs, targets).tolist() == [100.0, 25.0]


def test_the_loss_is_lowest_at_the_truth() -> None:
    targets = torch.randint(CLASSES, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    right = torch.nn.functional.one_hot(targets, CLASSES).movedim(-1, 1) * 10.0
    assert pixel_loss(right, targets) < 0.01 < pixel_loss(torch.zeros_like(right), targets)


def test_the_laws_hold_for_the_network() -> None:
    traced = check_space(unet((4, 8, 8), in_channels=1), torch.randn(2, 1, 8, 8), architectures=1)
    assert cost.macs(traced.space, traced.space.smallest()) <= 0.25 * cost.macs(traced.space, traced.space.largest())
