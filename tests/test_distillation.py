from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from tas.distillation import decoupled, distill, kd, relational, soft_targets
from tas.errors import BadNetwork, BadRecipe
from tas.objectives import Objective
from tas.training import TrainingPlan


def network(width: int = 8, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 20, 4, generator=generator)
    return [(x, x[:, :3].argmax(1)) for x in inputs]


PLAN = TrainingPlan(epochs=3, batch=20, lr=0.05)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize(("alpha", "temperature"), [(0.9, 4.0), (0.3, 1.5), (0.0, 2.0), (1.0, 4.0)])
def test_the_loss_is_the_equation_derived_with_numpy(alpha: float, temperature: float) -> None:
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64) * 3
    targets = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    p, q = softmax(teacher.numpy() / temperature), softmax(student.numpy() / temperature)
    divergence = (p * (np.log(p) - np.log(q))).sum() / 7
    entropy = -np.log(softmax(student.numpy())[np.arange(7), targets.numpy()]).mean()
    expected = (1 - alpha) * entropy + alpha * temperature**2 * divergence
    assert float(kd(student, teacher, targets, alpha, temperature)) == pytest.approx(expected, rel=1e-12)


def test_the_defaults_are_those_of_tas() -> None:
    student, teacher = torch.randn(2, 7, 5, generator=seeded())
    targets = torch.zeros(7, dtype=torch.long)
    assert kd(student, teacher, targets).equal(kd(student, teacher, targets, alpha=0.9, temperature=4.0))


def test_soft_targets_vanish_where_both_agree_and_have_the_gradient_of_temperature_times_difference() -> None:
    teacher = torch.randn(6, 5, dtype=torch.float64, generator=seeded())
    student = torch.zeros(6, 5, dtype=torch.float64, requires_grad=True)
    assert float(soft_targets(teacher, teacher)) == pytest.approx(0, abs=1e-12)
    soft_targets(student, teacher, 4.0).backward()
    expected = 4 * (softmax(student.detach().numpy() / 4) - softmax(teacher.numpy() / 4)) / 6
    np.testing.assert_allclose(student.grad, expected, atol=1e-12)


def logits(batch: int = 7, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    student, teacher = torch.randn(2, batch, classes, generator=seeded(), dtype=torch.float64) * 2
    return student, teacher, torch.arange(batch) % classes


def test_soft_targets_of_pixels_are_the_mean_of_those_of_every_pixel() -> None:
    student, teacher = torch.randn(2, 3, 5, 4, 6, dtype=torch.float64, generator=seeded())
    pixels = [logits.movedim(1, -1).reshape(-1, 5) for logits in (student, teacher)]
    assert float(soft_targets(student, teacher)) == pytest.approx(float(soft_targets(*pixels)), rel=1e-12)


def test_decoupled_targets_are_the_equation_derived_with_numpy() -> None:
    student, teacher, targets = logits()
    value = 0.0
    for s, t, y in zip(softmax(student.numpy() / 3), softmax(teacher.numpy() / 3), targets.tolist(), strict=True):
        pair = sum(a * np.log(a / b) for a, b in ((t[y], s[y]), (1 - t[y], 1 - s[y])))
        rest = np.arange(5) != y
        a, b = t[rest] / (1 - t[y]), s[rest] / (1 - s[y])
        value += 9 * (2 * pair + 6 * (a * np.log(a / b)).sum()) / 7
    found = decoupled(student, teacher, targets, 3.0, target=2, others=6)
    assert float(found) == pytest.approx(value, rel=1e-10)


def test_soft_targets_decouple_as_in_the_paper() -> None:
    """KL = TCKD + (1 - p) NCKD, example by example, p the teacher's probability of the true class."""
    student, teacher, targets = logits()
    for s, t, y in zip(student.split(1), teacher.split(1), targets.split(1), strict=True):
        p = float(torch.softmax(t / 4, 1)[0, y])
        assert float(soft_targets(s, t)) == pytest.approx(float(decoupled(s, t, y, others=1 - p)), rel=1e-9)


def test_relational_distillation_is_one_minus_correlations_of_rows_and_columns() -> None:
    student, teacher, _ = logits()
    ours, theirs = softmax(student.numpy() / 2), softmax(teacher.numpy() / 2)
    rows = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)])
    columns = np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in zip(ours.T, theirs.T, strict=True)])
    found = relational(student, teacher, 2.0, inter=1.5, intra=0.5)
    assert float(found) == pytest.approx(4 * (1.5 * rows + 0.5 * columns), rel=1e-6)
    assert float(relational(student[:1], teacher[:1], 2.0)) == pytest.approx(
        4 * (1 - np.corrcoef(ours[0], theirs[0])[0, 1]), rel=1e-6
    )


def test_both_vanish_with_their_gradient_where_student_and_teacher_agree() -> None:
    _, teacher, targets = logits()
    for loss in (lambda s: decoupled(s, teacher, targets), lambda s: relational(s, teacher)):
        student = teacher.clone().requires_grad_()
        value = loss(student)
        value.backward()
        assert float(value.detach()) == pytest.approx(0, abs=1e-9)
        assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("soft", ["kd", "dkd", "dist"])
def test_every_loss_brings_the_student_to_the_teachers_answers(soft: str) -> None:
    teacher, student = network(32, seed=1).eval(), network(seed=2)
    x = torch.cat([inputs for inputs, _ in batches()])

    def agree() -> float:
        with torch.no_grad():
            return float((student.eval()(x).argmax(1) == teacher(x).argmax(1)).float().mean())

    before, plan = agree(), TrainingPlan(epochs=20, batch=20, lr=0.05)
    distill(student, teacher, batches(), plan, generator=seeded(), alpha=1.0, soft=soft)
    assert agree() > max(before, 0.7)


def test_decoupled_targets_need_true_classes() -> None:
    student, teacher, targets = logits()
    with pytest.raises(BadNetwork, match="one true class an example"):
        decoupled(student, teacher, torch.softmax(teacher, 1))
    with pytest.raises(BadNetwork, match="of one shape"):
        decoupled(student, teacher[:, :3], targets)
    with pytest.raises(BadRecipe, match="kd, dkd, dist, got 'crd'"):
        distill(network(), network(), batches(), PLAN, generator=seeded(), soft="crd")


def test_the_teacher_is_the_same_bit_for_bit_and_the_student_learns_from_it() -> None:
    teacher, student = network(32, seed=1).train(), network(seed=2)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    inputs = torch.cat([x for x, _ in batches()])

    def disagreement() -> float:
        with torch.no_grad():
            return float(soft_targets(student.eval()(inputs), teacher.eval()(inputs)))

    at_first = disagreement()
    teacher.train()
    history = distill(student, teacher, batches(), TrainingPlan(epochs=20, batch=20, lr=0.05), generator=seeded())
    assert all(tensor.equal(before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())
    assert all(module.training for module in teacher.modules())
    assert len(history) == 20
    assert disagreement() < at_first / 2


def test_the_teacher_runs_in_eval_mode() -> None:
    modes = []
    teacher = network()
    teacher[3].register_forward_hook(lambda module, inputs, output: modes.append(module.training))
    distill(network(seed=3), teacher, batches(), PLAN, generator=seeded())
    assert set(modes) == {False}


def test_alpha_zero_is_plain_training_and_alpha_one_ignores_the_targets() -> None:
    def weights(alpha: float, data: list[tuple[Tensor, Tensor]], teacher_seed: int) -> Tensor:
        student = network()
        distill(student, network(seed=teacher_seed), data, PLAN, generator=seeded(), alpha=alpha)
        return torch.cat([parameter.flatten() for parameter in student.parameters()])

    other = [(x, (y + 1) % 3) for x, y in batches()]
    assert weights(0.0, batches(), 1).equal(weights(0.0, batches(), 2))
    assert not weights(0.0, batches(), 1).equal(weights(0.0, other, 1))
    assert weights(1.0, batches(), 1).equal(weights(1.0, other, 1))
    assert not weights(1.0, batches(), 1).equal(weights(1.0, batches(), 2))


class Boxes(nn.Module):
    """Two outputs in a dict, no classes anywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.layer(x)
        return {"place": h[:, :4], "score": h[:, 4]}


REGRESSION = Objective(
    lambda outputs, targets: functional.mse_loss(outputs["place"], targets),
    lambda outputs, targets: (outputs["place"] - targets).abs().mean(1),
    "error",
    higher_is_better=False,
)


def test_other_outputs_need_a_soft_loss_and_work_with_one() -> None:
    data = [(x, x.flip(1)) for x, _ in batches()]
    with pytest.raises(BadNetwork, match="got dict and dict; pass soft_loss"):
        distill(Boxes(), Boxes(), data, PLAN, REGRESSION, generator=seeded())
    torch.manual_seed(0)
    student, teacher = Boxes(), Boxes()
    history = distill(
        student,
        teacher,
        data,
        TrainingPlan(epochs=30, lr=0.1, weight_decay=0.0),
        REGRESSION,
        generator=seeded(),
        alpha=0.5,
        soft_loss=lambda ours, theirs: functional.mse_loss(ours["score"], theirs["score"]),
    )
    assert history[-1]["loss"] < 0.01
    torch.testing.assert_close(student.layer.weight[4], teacher.layer.weight[4], atol=0.05, rtol=0)
    torch.testing.assert_close(student.layer.weight[:4], torch.eye(4).flip(1), atol=0.05, rtol=0)


def test_other_outputs_work_with_images_in_memory_too() -> None:
    inputs = torch.cat([x for x, _ in batches()])
    data = TensorDataset(inputs, inputs.flip(1))  # of which logits would be kept

    def soft_loss(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional.mse_loss(ours["score"], theirs["score"])

    history = distill(Boxes(), Boxes(), data, PLAN, REGRESSION, generator=seeded(), soft_loss=soft_loss)
    assert history[-1]["loss"] < history[0]["loss"]


def test_student_and_teacher_with_other_classes_are_refused() -> None:
    teacher = nn.Linear(4, 10)
    with pytest.raises(BadNetwork, match=r"got \[2, 3\] and \[2, 10\]; take a teacher of the same classes"):
        distill(network(), teacher, batches(), PLAN, generator=seeded())


def test_wrong_options_are_refused() -> None:
    for options in ({"alpha": 1.5}, {"temperature": 0.0}):
        with pytest.raises(BadRecipe, match="alpha in"):
            distill(network(), network(), batches(), PLAN, generator=seeded(), **options)


def test_a_distillation_resumes_to_the_same_student(tmp_path: Path) -> None:
    whole, halted = network(), network()
    teacher = network(16, seed=5)
    distill(whole, teacher, batches(), PLAN, generator=seeded())

    def interrupt(at: object) -> None:
        if at.epoch == 2:
            raise KeyboardInterrupt

    path = tmp_path / "distill.pt"
    with pytest.raises(KeyboardInterrupt):
        distill(halted, teacher, batches(), PLAN, generator=seeded(), checkpoint=path, progress=interrupt)
    resumed = network(seed=9)
    distill(resumed, teacher, batches(), PLAN, generator=torch.Generator(), checkpoint=path)
    for ours, theirs in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        assert ours.equal(theirs)
