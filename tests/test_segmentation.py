"""Networks of torchvision that give a dict of score maps."""

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import segmentation

import tas
from tas.testing import check_space


def small(name: str, **options: bool) -> nn.Module:
    torch.manual_seed(0)
    return getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=4, **options)


def images() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "options", "free"),
    [
        ("lraspp_mobilenet_v3_large", {}, {"classifier.cbr.0", "backbone.0.0"}),
        ("deeplabv3_mobilenet_v3_large", {"aux_loss": True}, {"classifier.0.project.0", "aux_classifier.0"}),
        pytest.param(
            "fcn_resnet50",
            {"aux_loss": True},
            {"classifier.0", "aux_classifier.0", "backbone.conv1"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_all_but_colours_and_classes_is_free(name: str, options: dict[str, bool], free: set[str]) -> None:
    space = tas.trace(small(name, **options), images()).space
    assert free <= {choice.name for choice in space.choices}
    assert any(choice.kind == "depth" for choice in space.choices)
    assert {kept.size for kept in space.kept} == {3, 4}
    assert tas.macs(space, space.smallest()) <= 0.25 * tas.macs(space, space.largest())


def test_a_student_gives_the_same_names_and_trains() -> None:
    traced = tas.trace(small("lraspp_mobilenet_v3_large"), images())
    for architecture in (traced.space.smallest(), traced.space.largest()):
        student = tas.extract(traced, architecture).train()
        outputs = student(images())
        assert {name: tuple(x.shape) for name, x in outputs.items()} == {"out": (2, 4, 64, 64)}
        outputs["out"].square().mean().backward()
        assert all(p.grad is not None for p in student.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lraspp_mobilenet_v3_large", {}),
        ("deeplabv3_mobilenet_v3_large", {"aux_loss": True}),
        ("fcn_resnet50", {"aux_loss": True}),
        ("deeplabv3_resnet50", {"aux_loss": True}),
    ],
)
def test_laws(name: str, options: dict[str, bool]) -> None:
    check_space(small(name, **options), images(), architectures=1)
