from typing import Any

import adversarial_layers
import adversarial_wiring
import pytest
import torch
from adversarial import Basic, conv_bn, head, images
from torch import nn

import tas
from tas.tracing import Traced


class Mine(nn.Module):
    """A class of the user's own, with attributes of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = conv_bn(3, 8), nn.Sequential(Basic(8, 8), Basic(8, 8))
        self.head, self.note = head(8), {"by": "me"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(torch.relu(self.stem(x))))


def traced() -> Traced:
    torch.manual_seed(0)
    return tas.trace(Mine(), images())


def test_students_are_of_the_originals_class_with_layers_that_say_their_size() -> None:
    t = traced()
    student: Any = tas.extract(t, {**t.space.largest(), "stem.0": 4, "blocks.0.conv1": 2})
    assert type(student) is Mine
    assert student.note == {"by": "me"}
    stem, norm, inner, linear = student.stem[0], student.stem[1], student.blocks[0].conv1, student.head[2]
    assert (stem.in_channels, stem.out_channels, norm.num_features) == (3, 4, 4)
    assert (inner.in_channels, inner.out_channels, linear.in_features) == (4, 2, 4)
    assert inner.weight.shape == (2, 4, 3, 3)


def test_blocks_that_are_left_out_keep_the_names_of_the_others() -> None:
    t = traced()
    student: Any = tas.extract(t, {**t.space.largest(), "blocks.0..1.depth": 1})
    assert isinstance(student.blocks[1], nn.Identity)
    assert set(student.state_dict()) == {k for k in t.network.state_dict() if not k.startswith("blocks.1.")}


def test_kept_units_are_the_first_or_those_asked_for() -> None:
    t = traced()
    original: Any = t.network
    a = {**t.space.largest(), "blocks.0.conv1": 3}
    first: Any = tas.extract(t, a)
    assert torch.equal(first.blocks[0].conv1.weight, original.blocks[0].conv1.weight[:3])
    picked: Any = tas.extract(t, a, keep={"blocks.0.conv1": [6, 1, 4]})
    assert torch.equal(picked.blocks[0].conv1.weight, original.blocks[0].conv1.weight[[1, 4, 6]])
    assert torch.equal(picked.blocks[0].bn1.running_mean, original.blocks[0].bn1.running_mean[[1, 4, 6]])
    assert torch.equal(picked.blocks[0].conv2.weight, original.blocks[0].conv2.weight[:, [1, 4, 6]])


@pytest.mark.parametrize("keep", [[0, 1], [0, 1, 2, 3], [0, 1, 1], [0, 1, 8], [-1, 0, 1]])
def test_wrong_keep_sets_are_refused(keep: list[int]) -> None:
    t = traced()
    with pytest.raises(ValueError, match=r"keep\['blocks.0.conv1'\] lists 3 distinct units of 0..7"):
        tas.extract(t, {**t.space.largest(), "blocks.0.conv1": 3}, keep={"blocks.0.conv1": keep})


def test_keep_names_widths_only() -> None:
    t = traced()
    for name in ("nonsense", "blocks.0..1.depth"):
        with pytest.raises(ValueError, match="keep names groups of units"):
            tas.extract(t, t.space.largest(), keep={name: [0]})


def test_architectures_of_another_space_are_refused() -> None:
    t = traced()
    with pytest.raises(ValueError, match="takes one of"):
        tas.extract(t, {**t.space.largest(), "stem.0": 100})


def test_students_share_no_memory_with_the_original() -> None:
    t = traced()
    before = {name: tensor.clone() for name, tensor in t.network.state_dict().items()}
    for a in (t.space.smallest(), t.space.largest()):
        student: Any = tas.extract(t, a)
        student.note["by"] = "another"
        with torch.no_grad():
            for tensor in student.state_dict().values():
                tensor.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in t.network.state_dict().items())
    assert t.network.note == {"by": "me"}


def test_students_train_on() -> None:
    t = traced()
    student = tas.extract(t, t.space.uniform(0.5)).train()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
    targets, losses = torch.tensor([0, 1]), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(student(images()), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.is_leaf and p.is_contiguous() and p.grad is not None for p in student.parameters())
    assert losses[-1] < 0.5 * losses[0]


def test_flags_of_parameters_and_modules_are_taken_over() -> None:
    net = Mine().train()
    net.stem[1].eval()
    net.stem[0].weight.requires_grad_(False)
    student: Any = tas.extract(tas.trace(net, images()), tas.trace(net, images()).space.smallest())
    assert student.training
    assert not student.stem[1].training
    assert not student.stem[0].weight.requires_grad
    assert student.head[2].weight.requires_grad


def test_extraction_from_a_supernet_takes_its_present_weights() -> None:
    supernet = tas.Supernet(traced())
    with torch.no_grad():
        supernet.network.stem[0].weight.fill_(3)
    student: Any = tas.extract(supernet, supernet.space.smallest())
    assert (student.stem[0].weight == 3).all()


def test_groups_of_a_student_follow() -> None:
    for case in (adversarial_layers.grouped(), adversarial_layers.transposed_grouped()):
        t = tas.trace(case.network, case.inputs)
        student = tas.extract(t, {**t.space.largest(), "0.0.groups": 1})
        layer = next(m for m in student.modules() if isinstance(m, nn.modules.conv._ConvNd) and m.weight.shape[0] < 12)
        assert layer.groups in (1, 2)
        assert student(case.inputs).shape == (2, 5)


def test_students_can_be_traced_and_cut_again() -> None:
    t = traced()
    again = tas.trace(tas.extract(t, t.space.uniform(0.5)), images())
    assert {c.name: c.size for c in again.space.choices if c.kind == "width"} == {
        c.name: t.space.uniform(0.5)[c.name] for c in t.space.choices if c.kind == "width"
    }
    assert tas.macs(again.space, again.space.largest()) == tas.macs(t.space, t.space.uniform(0.5))


def test_a_plain_list_of_modules_follows_its_registered_ones() -> None:
    case = adversarial_wiring.modules_in_a_plain_list()
    t = tas.trace(case.network, case.inputs)
    student: Any = tas.extract(t, t.space.smallest())
    assert student.order[0] is student.a
    assert student.order[0] is not t.network.a
