"""Networks whose sizes follow from data: detectors, and small ones that can fail in each way."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.ops import nms, roi_align

import tas
from tas.testing import check_space
from tas.tracing import Traced
from tas.tracing.dynamic import Holding, decisions_of
from tas.tracing.replay import Replay

Boxes = list[dict[str, Tensor]]


class TinyDetector(nn.Module):
    """Two stages: every position proposes a box with a score; those that survive are cut out of the features, and a
    head with a width of its own gives each its classes."""

    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.propose, self.margin = nn.Conv2d(6, 5, 1), 0.0
        self.hidden, self.classes = nn.Linear(6 * 4, hidden), nn.Linear(hidden, 3)

    def forward(self, images: list[Tensor]) -> Boxes:
        x = self.features(torch.stack(images))
        found = self.propose(x).flatten(2).transpose(1, 2)
        outputs = []
        for picture, one in zip(x, found, strict=True):
            mask = one[:, 4] > one[:, 4].mean() + self.margin
            corner = torch.cartesian_prod(*map(torch.arange, picture.shape[1:]))[mask] + one[mask, :2].sigmoid()
            boxes, one = torch.cat([corner, corner + 1 + one[mask, 2:4].sigmoid() * 3], 1), one[mask]
            kept = nms(boxes, one[:, 4], 0.3)[:60]
            regions = roi_align(picture[None], [boxes[kept]], (2, 2), sampling_ratio=1)
            outputs.append({"boxes": boxes[kept], "logits": self.classes(self.hidden(regions.flatten(1)).relu())})
        return outputs


class Masked(nn.Module):
    """Only tokens that pass a gate go through a layer, and are written back where they came from."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(5, 8), nn.Linear(5, 1)
        self.inner, self.outer, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.gate(x)[..., 0] > 0
        x = self.embed(x)
        y = torch.zeros_like(x)
        y[mask] = self.outer(self.inner(x[mask]).relu())
        return self.head(y)


def pictures(size: int = 12, count: int = 2, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(3, size, size, generator=generator) for _ in range(count)]


def with_targets(size: int = 64) -> tuple[list[Tensor], Boxes]:
    boxes = torch.tensor([[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.9]]) * size
    return pictures(size), [{"boxes": boxes, "labels": torch.tensor([1, 3])} for _ in range(2)]


def small(name: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    build = getattr(detection, name)
    return build(weights=None, weights_backbone=None, **options)


def sides(size: int) -> dict[str, int]:
    return {"min_size": size, "max_size": size}


def names(traced: Traced) -> list[str]:
    return [choice.name for choice in traced.space.choices]


def test_laws_of_a_two_stage_detector() -> None:
    traced = check_space(TinyDetector(), (pictures(),))
    assert names(traced) == ["features.0", "hidden"]
    assert {kept.name for kept in traced.space.kept} == {
        "features.0.weight[1]", "propose.weight[0]", "classes.weight[0]",
    }  # fmt: skip
    (note,) = traced.space.notes
    assert "sizes that follow from data" in note
    assert "nms" in note
    assert traced.exact


def test_laws_where_a_mask_picks_tokens() -> None:
    traced = check_space(Masked(), torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0)))
    assert names(traced) == ["embed", "inner"]  # `zeros_like` makes the outer layer as wide as the first


class Lagged(nn.Module):
    """Channels are rolled by a lag that other channels decide on."""

    def __init__(self) -> None:
        super().__init__()
        self.lag, self.value, self.out = nn.Conv1d(8, 6, 1), nn.Conv1d(8, 8, 1), nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        lag = int(self.lag(x).sum((0, 1)).argmax())
        return self.out(torch.roll(self.value(x), lag, -1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv1d(3, 8, 3), Lagged(), nn.Conv1d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(x + self.branch(x))


@pytest.mark.parametrize("seed", [0, 2])  # in which the one random architecture leaves it out
def test_laws_where_what_is_left_out_decides(seed: int) -> None:
    traced = check_space(Residual(), torch.randn(2, 3, 9), seed=seed)
    assert "branch.depth" in names(traced)


def test_cost_counts_the_proposals_of_the_trace() -> None:
    """By hand: what the head costs a picture, with as many regions as the forward of the example had."""
    torch.manual_seed(0)
    network, images = TinyDetector(), pictures()
    space = tas.trace(network, (images,)).space
    with torch.no_grad():
        regions = sum(len(one["boxes"]) for one in network.eval()(images)) / 2
    pixels = 12 * 12
    largest = space.largest()
    assert tas.macs(space, largest) == round(pixels * (3 * 9 * 6 + 6 * 5) + regions * (24 * 8 + 8 * 3))
    assert tas.cost.by_layer(space, largest)["hidden"] == regions * 24 * 8


def test_a_student_decides_for_itself() -> None:
    """Decisions are only held where networks are compared: a student keeps as many boxes as it finds."""
    torch.manual_seed(0)
    network, images = TinyDetector().eval(), pictures(12)
    traced = tas.trace(network, (images,))
    student = tas.extract(traced, traced.space.smallest())
    with torch.no_grad():
        counts = [[len(one["boxes"]) for one in each(images)] for each in (network, student)]
    assert counts[0] != counts[1]
    assert all(sum(found) for found in counts)


def test_held_decisions_give_the_original_its_own_outputs() -> None:
    network, (args,) = TinyDetector().eval(), (([p.double() for p in pictures()],),)
    network.double()
    decisions = decisions_of(network, args, {})
    with torch.no_grad():
        wanted = network(*args)
        with Holding(decisions) as held:
            got = network(*args)
        for one, other in zip(got, wanted, strict=True):
            assert torch.equal(one["boxes"], other["boxes"])
            assert torch.equal(one["logits"], other["logits"])
        assert held.seen
        assert all(tensor.is_floating_point() for tensor in held.seen)
        other = copy.deepcopy(network)
        other.margin = 0.05
        with Holding(decisions):
            assert [one["boxes"].shape for one in other(*args)] == [one["boxes"].shape for one in wanted]
        assert [len(one["boxes"]) for one in other(*args)] != [len(one["boxes"]) for one in wanted]


@pytest.mark.parametrize("name", ["topk", "sort", "max", "kthvalue"])
def test_held_selections_carry_gradients_of_the_noted_places(name: str) -> None:
    class Picks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

        def forward(self, x: Tensor) -> Tensor:
            y = x * self.scale
            given = {"topk": (2,), "kthvalue": (2,), "sort": (-1,), "max": (-1,)}[name]
            return getattr(torch, name)(y, *given)[0]

    network, x = Picks(), torch.tensor([[3.0, 1.0, 0.5]])
    decisions = decisions_of(network, (x,), {})
    other = torch.tensor([[0.1, 1.0, 2.0]])
    index = getattr(torch, name)(x * network.scale.detach(), *{"topk": (2,), "kthvalue": (2,)}.get(name, (-1,)))[1]
    with Holding(decisions):
        values = network(other)
    values.sum().backward()
    picked = torch.zeros(3).index_put((index.ravel(),), torch.tensor(1.0))
    assert torch.equal(values.detach().ravel(), (other * network.scale.detach())[0, index.ravel()])
    assert network.scale.grad is not None
    assert torch.equal(network.scale.grad, other[0] * picked)


class WrongBehind(TinyDetector):
    """A hard-coded size that only shows behind a `nms`."""

    def forward(self, images: list[Tensor]) -> Boxes:
        outputs = super().forward(images)
        for one in outputs:
            one["logits"] = (one["logits"] @ self.classes.weight).view(-1, 8)
        return outputs


def test_a_size_that_the_code_does_not_follow_is_found_behind_a_suppression() -> None:
    traced = tas.trace(WrongBehind(), (pictures(),))
    assert names(traced) == ["features.0", "classes"]  # not the hidden layer


def test_the_replay_compares_what_lies_behind_a_suppression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the held decisions the replay would see other counts, and freeze what cannot be helped by it."""
    torch.manual_seed(0)
    network, images = TinyDetector(), pictures()
    free = names(tas.trace(network, (images,)))
    run = Replay.run

    def honest(self: Replay, *args: Any) -> None:
        self.recorder.decisions.taken.clear()
        run(self, *args)

    monkeypatch.setattr(Replay, "run", honest)
    assert free == ["features.0", "hidden"] != names(tas.trace(network, (images,)))


def test_a_list_of_pictures_is_a_batch() -> None:
    torch.manual_seed(0)
    two, three = (tas.trace(TinyDetector(), (pictures(count=count),)).space for count in (2, 3))
    counts = [tas.cost.by_layer(space, space.largest())["propose"] for space in (two, three)]
    assert counts == [12 * 12 * 6 * 5] * 2


@pytest.mark.parametrize(
    ("name", "options", "free", "share"),
    [
        ("fasterrcnn_mobilenet_v3_large_320_fpn", sides(64), "roi_heads.box_head.fc6", 0.25),
        pytest.param("ssdlite320_mobilenet_v3_large", {}, "backbone.extra", 0.25, marks=pytest.mark.slow),
        pytest.param("retinanet_resnet50_fpn", sides(64), "backbone.fpn.layer_blocks", 0.25, marks=pytest.mark.slow),
    ],
)
def test_heads_and_pyramid_are_searched_and_outputs_are_not(
    name: str, options: dict[str, Any], free: str, share: float
) -> None:
    space = tas.trace(small(name, **options), (pictures(64),)).space
    assert any(choice.name.startswith(free) for choice in space.choices)
    ends = ("cls_logits", "bbox_pred", "bbox_reg", "cls_score", "module_list")
    stem = [kept for kept in space.kept if kept.size == 3]
    others = [kept for kept in space.kept if kept not in stem]
    assert len(stem) == 1
    assert others
    assert all(any(end in kept.name for end in ends) for kept in others)
    assert tas.macs(space, space.smallest()) <= share * tas.macs(space, space.largest())


def test_a_smaller_detector_trains() -> None:
    network = small("fasterrcnn_mobilenet_v3_large_320_fpn", **sides(64))
    images, targets = with_targets()
    traced = tas.trace(network, (images, targets))
    student = tas.extract(traced, traced.space.smallest()).train()
    assert type(student) is type(network)
    supernet = tas.Supernet(traced).train()
    for losses in (student(images, targets), supernet((images, targets), traced.space.smallest())):
        sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    found = student.eval()(images)
    assert [sorted(one) for one in found] == [["boxes", "labels", "scores"]] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ssdlite320_mobilenet_v3_large", {}),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", sides(64)),
        ("fasterrcnn_resnet50_fpn", sides(64)),
        ("retinanet_resnet50_fpn", sides(64)),
        ("fcos_resnet50_fpn", sides(64)),
    ],
)
def test_laws_of_detectors(name: str, options: dict[str, Any]) -> None:
    check_space(small(name, **options), with_targets(), architectures=1)


@pytest.mark.slow
def test_laws_of_a_thin_ssd() -> None:
    """Its pictures always have 300 x 300 pixels: 35 G MACs in the original, an eighth of them in the smallest."""
    traced = tas.trace(small("ssd300_vgg16"), (pictures(64),))
    check_space(tas.extract(traced, traced.space.smallest()), with_targets(), architectures=1)
