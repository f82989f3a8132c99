"""Teachers: several as one, refused before training where they do not fit, and asked once where images stay."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import toys
from torch import Tensor, nn

from tas.augment import Augment
from tas.distillation import Ensemble, distill
from tas.distillation.teachers import ask
from tas.errors import BadNetwork, BadRecipe
from tas.objectives import default_objective
from tas.training import TrainingPlan

PLAN = TrainingPlan(epochs=3, batch=32, lr=0.05)


class Counted(nn.Module):
    """Counts the examples that it is asked about."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.layers = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 4))
        self.asked: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(len(x))
        return self.layers(x)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def weights(student: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])


def taught(teacher: nn.Module | list[nn.Module], data: object, plan: TrainingPlan = PLAN, **options: object) -> Tensor:
    student = toys.network()
    distill(student, teacher, data, plan, generator=seeded(), **options)
    return weights(student)


def test_an_ensemble_teaches_the_mean_of_softened_probabilities() -> None:
    members, x = [Counted(), toys.network()], torch.randn(5, 1, 8, 8)
    with torch.no_grad():
        answer = Ensemble(members, 3.0).eval()(x).numpy() / 3
        each = [np.exp(member.eval()(x).numpy() / 3) for member in members]
    found = np.exp(answer) / np.exp(answer).sum(1, keepdims=True)
    np.testing.assert_allclose(found, sum(e / e.sum(1, keepdims=True) for e in each) / 2, rtol=1e-5)


def test_an_ensemble_of_one_twice_is_that_one_and_members_matter() -> None:
    data = toys.data(64)
    one = taught(Counted(), data)
    torch.testing.assert_close(taught([Counted(), Counted()], data), one, rtol=1e-3, atol=1e-4)
    assert not taught([Counted(), toys.network()], data).allclose(one, rtol=1e-2, atol=1e-3)


def test_without_augmentation_the_teacher_is_asked_once_an_image_and_says_the_same() -> None:
    data, teacher = toys.data(128), Counted()
    once = taught(teacher, data)
    assert teacher.asked == [2, 32, 32, 32, 32]  # the check before the training, and one pass; not three
    batches = list(data.train.batches(32))  # a user's own batches: nothing says that they stay the same
    live, fresh = Counted(), Counted()
    unshuffled = replace(data, train=replace(data.train, source=data.train.source))
    assert len(batches) == 4
    augmented = replace(unshuffled, augment=Augment())  # draws nothing, changes nothing: but it might
    torch.testing.assert_close(taught(live, augmented), once, rtol=1e-5, atol=1e-6)
    assert live.asked == [2] + [32] * 12
    taught(fresh, batches)
    assert fresh.asked == [2] + [32] * 12


@pytest.mark.parametrize("change", [{"mixup": 0.2}, {"cutmix": 1.0}])
def test_what_is_mixed_is_asked_about_anew(change: dict[str, float]) -> None:
    teacher = Counted()
    taught(teacher, toys.data(64), replace(PLAN, **change))
    assert teacher.asked == [2] + [32] * 6


def test_alpha_zero_asks_nobody() -> None:
    teacher = Counted()
    taught(teacher, toys.data(64), alpha=0.0)
    assert teacher.asked == []


def test_kept_answers_come_with_their_own_images() -> None:
    """The teacher's answers, not the labels, say what a picture is: labels are of no use here."""
    data = toys.data(256)
    student, right = toys.network(), data.train.targets
    teacher = toys.network()
    distill(teacher, nn.Identity(), data, replace(PLAN, epochs=6), generator=seeded(), alpha=0.0)
    blind = replace(data, train=replace(data.train, source=replace(data.train.source, targets=right.roll(1))))
    distill(student, teacher, blind, replace(PLAN, epochs=6), generator=seeded(), alpha=1.0)
    inputs, _ = next(data.train.batches(256))
    with torch.no_grad():
        assert float((student.eval()(inputs).argmax(1) == right).float().mean()) > 0.9


def test_half_precision_rounds_the_teacher_and_nothing_else() -> None:
    teacher, x = toys.network().eval(), torch.randn(16, 1, 8, 8)
    full, half = ask(teacher, x), ask(teacher, x, "bfloat16")
    assert half.dtype == torch.float32
    assert 0 < float((full - half).abs().max()) < 0.05 * float(full.abs().max())
    seen: list[torch.dtype] = []
    teacher.linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    student = toys.network()
    student.linear.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    data = replace(toys.data(32), augment=Augment())
    one = replace(PLAN, epochs=1)
    for plan, dtype, ours, theirs in (
        (one, None, torch.float32, torch.float32),
        (one, "bfloat16", torch.float32, torch.bfloat16),
        (replace(one, dtype="bfloat16"), None, torch.bfloat16, torch.bfloat16),
        (replace(one, dtype="bfloat16"), "float32", torch.bfloat16, torch.float32),
    ):
        seen.clear()
        distill(student, teacher, data, plan, generator=seeded(), teacher_dtype=dtype)
        assert seen[-2:] == [ours, theirs]


def test_a_teacher_that_does_not_fit_is_refused_before_training() -> None:
    student, data = toys.network(), toys.data(64)
    before = weights(student)
    other_classes = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    other_size = nn.Sequential(nn.Flatten(), nn.Linear(49, 4))
    for teacher, said in (
        (other_classes, r"got \[2, 4\] and \[2, 10\]; take a teacher of the same classes"),
        (other_size, r"takes the student's inputs, \[2, 1, 8, 8\], but Sequential refuses them: mat1 and mat2"),
        ([toys.network(), other_classes], r"one shape each, got \[2, 4\], \[2, 10\]"),
    ):
        with pytest.raises(BadNetwork, match=said):
            distill(student, teacher, data, PLAN, generator=seeded())
        assert weights(student).equal(before)
    with pytest.raises(BadRecipe, match="tap_weight from 0"):
        distill(student, toys.network(), data, PLAN, generator=seeded(), tap_weight=-1.0)


def test_an_ensemble_is_left_as_it_was() -> None:
    members = [Counted().train(), toys.network().train()]
    before = [weights(member).clone() for member in members]
    taught(members, toys.data(64), PLAN)
    assert all(weights(member).equal(known) for member, known in zip(members, before, strict=True))
    assert all(module.training for member in members for module in member.modules())
    assert default_objective().name == "top1"
