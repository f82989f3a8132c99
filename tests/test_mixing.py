"""Mixed batches against hand computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tas.distillation import distill, soft_targets
from tas.errors import BadRecipe
from tas.mixing import Mixed, mixed, of_both
from tas.objectives import default_objective
from tas.training import TrainingPlan, train


def batches(count: int = 40) -> list[tuple[Tensor, Tensor]]:
    """Pictures that are filled with their label, so that a mixed pixel says what it is mixed of."""
    found = []
    for start in range(count):
        labels = (torch.arange(8) * 3 + start) % 10
        found.append((labels.float().view(8, 1, 1, 1).expand(8, 2, 6, 7), labels))
    return found


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_mixup_blends_inputs_by_the_share_that_its_targets_have() -> None:
    shares = []
    for inputs, targets in mixed(batches(), 0.4, 0.0, seeded()):
        assert isinstance(targets, Mixed)
        blend = targets.share * targets.first + (1 - targets.share) * targets.second
        torch.testing.assert_close(inputs, blend.float().view(8, 1, 1, 1).expand(8, 2, 6, 7))
        shares.append(targets.share)
    assert min(shares) < 0.2 < 0.8 < max(shares)  # Beta(0.4, 0.4) is u-shaped
    near = [targets.share for _, targets in mixed(batches(), 50.0, 0.0, seeded())]
    assert 0.3 < min(near) <= max(near) < 0.7  # Beta(50, 50) has a spread of 0.05


def test_cutmix_pastes_one_box_and_its_share_is_what_is_left() -> None:
    cuts = 0
    for inputs, targets in mixed(batches(), 0.0, 1.0, seeded()):
        foreign = (inputs != targets.first.view(8, 1, 1, 1)) & (inputs == targets.second.view(8, 1, 1, 1))
        assert ((inputs == targets.first.view(8, 1, 1, 1)) | foreign).all()
        differ = targets.first != targets.second
        for picture in foreign[differ]:
            assert float(picture.float().mean()) == pytest.approx(1 - targets.share, abs=1e-6)
            rows, columns = picture[0].any(1).nonzero().flatten(), picture[0].any(0).nonzero().flatten()
            if len(rows):
                cuts += 1
                assert picture[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()  # no holes: a box
    assert cuts > 20


def test_both_together_take_turns_and_neither_changes_nothing() -> None:
    given = batches()
    pairs = zip(given, mixed(given, 0.4, 1.0, seeded()), strict=True)
    whole = [bool((inputs == inputs.round()).all()) for _, (inputs, _) in pairs]
    assert 8 < sum(whole) < 32
    assert all(a is b for a, b in zip(given, mixed(given, 0.0, 0.0, seeded()), strict=True))


def test_the_same_seed_mixes_the_same_way() -> None:
    torch.rand(3)
    first, again, other = ([x for x, _ in mixed(batches(), 0.4, 1.0, seeded(seed))] for seed in (0, 0, 1))
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


def test_the_loss_of_mixed_targets_is_cross_entropy_at_the_mixed_labels() -> None:
    logits = torch.randn(5, 4, generator=seeded(), dtype=torch.float64)
    first, second = torch.tensor([0, 1, 2, 3, 0]), torch.tensor([3, 1, 0, 2, 1])
    labels = 0.3 * np.eye(4)[first] + 0.7 * np.eye(4)[second]
    powers = np.exp(logits.numpy())
    by_hand = -(labels * np.log(powers / powers.sum(1, keepdims=True))).sum(1).mean()
    found = of_both(lambda targets: functional.cross_entropy(logits, targets), Mixed(first, second, 0.3))
    assert float(found) == pytest.approx(by_hand, rel=1e-12)


def losses_seen(plan: TrainingPlan, soft: str | None, alpha: float = 0.6) -> tuple[float, float]:
    """The loss that one step reports, and the same from what went in and came out."""
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Flatten(), nn.Linear(84, 10)) for _ in range(2))
    start = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    inputs, seen = [], []
    student.register_forward_pre_hook(lambda module, given: inputs.append(given[0].clone()))
    teacher.register_forward_pre_hook(lambda module, given: seen.append(given[0].clone()))
    generator, data = seeded(), batches(1)
    if soft is None:
        history = train(student, data, plan, default_objective(), generator)
    else:
        history = distill(student, teacher, data, plan, generator=generator, alpha=alpha, soft=soft)
        assert seen[-1].equal(inputs[-1])  # the teacher sees the very pictures that the student does
    pixels, labels = inputs[-1][:, 0], data[0][1]
    student.load_state_dict(start)
    with torch.no_grad():
        logits = student(inputs[-1])
        hard = 0.0
        for row, picture, label in zip(
            logits, pixels, labels, strict=True
        ):  # what a picture is made of, pixel by pixel
            share = float((picture == label).float().mean())
            others = picture[picture != label]
            other = int(others[0]) if len(others) else int(label)
            hard -= (share * row.log_softmax(0)[label] + (1 - share) * row.log_softmax(0)[other]) / 8
        if soft is None:
            return history[0]["loss"], float(hard)
        return history[0]["loss"], float((1 - alpha) * hard + alpha * soft_targets(logits, teacher(inputs[-1])))


def test_a_training_step_has_the_loss_of_its_mixed_pictures() -> None:
    plan = TrainingPlan(epochs=1, batch=8, cutmix=1.0)
    found, by_hand = losses_seen(plan, None)
    assert found == pytest.approx(by_hand, rel=1e-4)
    assert found != pytest.approx(losses_seen(TrainingPlan(epochs=1, batch=8), None)[0], rel=1e-3)


def test_soft_targets_are_the_teachers_answers_to_mixed_pictures() -> None:
    found, by_hand = losses_seen(TrainingPlan(epochs=1, batch=8, cutmix=1.0), "kd")
    assert found == pytest.approx(by_hand, rel=1e-4)


def test_decoupled_targets_take_mixed_labels_too() -> None:
    plain = losses_seen(TrainingPlan(epochs=1, batch=8, mixup=1.0), "dkd")[0]
    assert np.isfinite(plain)


def test_what_cannot_be_mixed_is_refused() -> None:
    tokens = [(torch.ones(4, 6, dtype=torch.int64), torch.arange(4))]
    with pytest.raises(BadRecipe, match=r"mixup blends one tensor of real numbers, got \[4, 6\] of torch.int64; set"):
        next(mixed(tokens, 0.2, 0.0, seeded()))
    with pytest.raises(BadRecipe, match=r"cutmix blends pictures .* got \[4, 6\]"):
        next(mixed([(torch.ones(4, 6), torch.arange(4))], 0.0, 1.0, seeded()))
    with pytest.raises(BadRecipe, match="got dict"):
        next(mixed([({"a": torch.ones(4, 6)}, torch.arange(4))], 0.2, 0.0, seeded()))
    for wrong in ({"mixup": -0.1}, {"cutmix": -1.0}):
        with pytest.raises(BadRecipe, match="must be at least 0"):
            TrainingPlan(**wrong)
