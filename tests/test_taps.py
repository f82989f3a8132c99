"""What a student's modules say is compared with their twins in the original, on the channels that both have."""

from __future__ import annotations

import copy

import pytest
import torch
import toys
from tiny_task import TinyNet
from torch import Tensor, nn

import tas
from tas.distillation import Taps, distill, find_taps
from tas.distillation.taps import Heard, listening
from tas.errors import BadRecipe
from tas.training import TrainingPlan


def both(traced: tas.Traced, architecture: dict[str, int], taps: Taps, x: Tensor) -> tuple[Heard, Heard, nn.Module]:
    """What the student at an architecture and the original say, in eval mode."""
    student = tas.extract(traced, architecture).eval()
    with listening(student, taps.kept) as ours:
        student(x)
    return ours, taps.ask(x)[1], student


def convnet() -> tuple[tas.Traced, Tensor]:
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return tas.reorder(tas.trace(toys.network(), x[:2])), x


def transformer() -> tuple[tas.Traced, Tensor]:
    vision = pytest.importorskip("torchvision.models.vision_transformer")
    torch.manual_seed(0)
    net = vision.VisionTransformer(16, 4, num_layers=2, num_heads=2, hidden_dim=12, mlp_dim=16, num_classes=4)
    nn.init.normal_(net.heads.head.weight)
    x = torch.randn(4, 3, 16, 16)
    return tas.reorder(tas.trace(net.eval(), x[:2])), x


class Joined(nn.Module):
    """Two convolutions side by side: the kept channels of the join are no prefix."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)
        self.join, self.head = nn.ReLU(), nn.Conv2d(14, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.join(torch.cat([self.one(x), self.two(x)], 1))).mean((2, 3))


NETWORKS = [
    (convnet, ["bn", "blocks.*", "linear"]),
    (transformer, ["encoder.layers.*", "encoder.ln", "conv_proj"]),
]


@pytest.mark.parametrize(("make", "names"), NETWORKS)
def test_at_the_largest_architecture_with_the_originals_weights_taps_say_the_same(make, names) -> None:  # type: ignore[no-untyped-def]
    traced, x = make()
    taps = find_taps(traced, traced.space.largest(), names)
    assert len(taps.kept) > 3
    ours, theirs, student = both(traced, traced.space.largest(), taps, x)
    assert float(taps.loss(ours, theirs).detach()) < 1e-12
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(1.5)
    with listening(student, taps.kept) as changed:
        student(x)
    assert float(taps.loss(changed, theirs).detach()) > 1e-4


@pytest.mark.parametrize(("make", "names"), NETWORKS)
def test_gradients_of_taps_alone_reach_the_student_and_not_the_original(make, names) -> None:  # type: ignore[no-untyped-def]
    traced, x = make()
    architecture = traced.space.uniform(0.5)
    taps = find_taps(traced, architecture, names)
    ours, theirs, student = both(traced, architecture, taps, x)
    taps.loss(ours, theirs).backward()
    before_the_head = [p for name, p in student.named_parameters() if not name.startswith(("linear", "heads"))]
    assert sum(p.grad is not None and bool(p.grad.abs().max() > 0) for p in before_the_head) > 0.8 * len(
        before_the_head
    )
    assert all(p.grad is None for p in taps.original.parameters())


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
def test_the_kept_channels_are_those_that_the_student_computes(ratio: float) -> None:
    """A network in which what is cut is zero says, on the kept channels, exactly what the student says."""
    torch.manual_seed(0)
    net, x = Joined().eval(), torch.randn(4, 1, 8, 8)
    traced = tas.trace(net, x)
    architecture = traced.space.uniform(ratio)
    taps = find_taps(traced, architecture, ["join", "one", "head"])
    first, second = architecture["one"], architecture["two"]
    assert taps.kept["join"][1].tolist() == [*range(first), *range(6, 6 + second)]
    assert taps.kept["one"][1].tolist() == list(range(first))
    assert taps.kept["head"] == {}
    student = tas.extract(traced, architecture).eval()
    with torch.no_grad():
        expected = torch.cat([net.one(x)[:, :first], net.two(x)[:, :second]], 1).relu()
        torch.testing.assert_close(net.join(torch.cat([net.one(x), net.two(x)], 1))[:, taps.kept["join"][1]], expected)
        torch.testing.assert_close(student.join(torch.cat([student.one(x), student.two(x)], 1)), expected)


def test_the_loss_is_the_squared_difference_over_the_square_of_the_original() -> None:
    taps = Taps(nn.Identity(), {"a": {1: torch.tensor([0, 2])}, "b": {}}, {})
    ours = {"a": [torch.tensor([[1.0, 2.0]])], "b": [torch.tensor([[3.0]])]}
    theirs = {"a": [torch.tensor([[1.0, 9.0, 4.0]])], "b": [torch.tensor([[4.0]])]}
    assert float(taps.loss(ours, theirs)) == pytest.approx(((0 + 4) / (1 + 16) + 1 / 16) / 2)


def test_left_out_blocks_have_no_twin_and_are_skipped_with_the_reason() -> None:
    traced, x = convnet()
    architecture = {**traced.space.uniform(0.5), "blocks.0..2.depth": 1}
    taps = find_taps(traced, architecture, ["blocks", "blocks.?"])
    assert set(taps.kept) == {"blocks", "blocks.0"}
    assert taps.skipped == dict.fromkeys(("blocks.1", "blocks.2"), "the student leaves it out")
    ours, theirs, _ = both(traced, architecture, taps, x)
    assert [each.shape[1] for each in (ours["blocks"][0], theirs["blocks"][0])] == [architecture["conv"], 12]
    assert float(taps.loss(ours, theirs).detach()) > 0


def test_modules_whose_output_is_no_real_tensor_are_skipped_too() -> None:
    traced, _ = transformer()
    name = "encoder.layers.encoder_layer_0.self_attention.out_proj"  # torch calls its weights, never the module
    assert find_taps(traced, traced.space.largest(), [name]).skipped == {
        name: "its forward gives no tensor of real numbers"
    }


def test_wrong_names_name_the_nearest() -> None:
    traced, _ = convnet()
    with pytest.raises(BadRecipe, match=r"'block\.0' matches none; the nearest names: 'blocks\.0'"):
        find_taps(traced, traced.space.largest(), ["block.0"])


def test_taps_alone_bring_the_student_closer_to_the_original_and_leave_that_as_it_is() -> None:
    x = torch.randn(2, 1, 8, 8)
    torch.manual_seed(0)
    traced = tas.trace(TinyNet(4).eval(), x)
    architecture = traced.space.uniform(0.75)
    taps = find_taps(traced, architecture, ["stem", "block"])
    before = copy.deepcopy(taps.original.state_dict())
    data, apart = toys.data(128), {}
    inputs, _ = next(data.train.batches(128))
    for weight in (0.0, 1.0):
        student = tas.extract(traced, architecture)
        distill(
            student,
            taps.original,
            data,
            TrainingPlan(epochs=4, batch=32, lr=0.02),
            generator=torch.Generator().manual_seed(0),
            taps=taps,
            tap_weight=weight,
        )
        with listening(student.eval(), taps.kept) as ours, torch.no_grad():
            student(inputs)
        apart[weight] = float(taps.loss(ours, taps.ask(inputs)[1]))
        assert not any(module._forward_hooks for module in student.modules())
    assert apart[1.0] < 0.8 * apart[0.0]
    assert all(tensor.equal(before[name]) for name, tensor in taps.original.state_dict().items())


def test_an_original_that_is_the_teacher_runs_once_a_batch() -> None:
    traced, _ = convnet()
    architecture = traced.space.uniform(0.5)
    taps = find_taps(traced, architecture, ["blocks.0"])
    runs: list[int] = []
    taps.original.register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    plan = TrainingPlan(epochs=2, batch=32)
    for teacher, more in ((taps.original, 0), (toys.network(), 0)):
        runs.clear()
        student = tas.extract(traced, architecture)
        distill(student, teacher, toys.data(128), plan, generator=torch.Generator().manual_seed(0), taps=taps)
        assert [count for count in runs if count == 32] == [32] * (8 + more)
