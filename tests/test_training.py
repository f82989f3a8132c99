import copy
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tas.augment import Augment
from tas.data import Data, InMemory, Split
from tas.errors import BadData, BadNetwork, BadRecipe, Diverged
from tas.objectives import Objective, default_objective
from tas.training import Progress, TrainingPlan, call, evaluate, learning_rate, optimizer_for, train


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(6 * 16, 3)
    )


def data(count: int = 70) -> Data:
    """The class says in which third of the rows the bright stripe is."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 120, (count, 1, 6, 6), generator=generator)
    for index, label in enumerate(labels):
        pixels[index, :, 2 * label : 2 * label + 2] += 130
    split = Split("train", InMemory(pixels.to(torch.uint8), labels), (0.4,), (0.2,))
    return Data("stripes", split, test=split, classes=3, augment=Augment(padding=1, flip=True))


PLAN = TrainingPlan(epochs=4, batch=16, lr=0.05, warmup_epochs=1.0)
OBJECTIVE = default_objective()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(tensor.equal(second[name]) for name, tensor in first.items())


def trained(plan: TrainingPlan = PLAN, seed: int = 0) -> dict[str, Tensor]:
    module = network()
    train(module, data(), plan, OBJECTIVE, seeded(seed))
    return state(module)


def test_training_learns_and_says_so() -> None:
    module = network()
    before = evaluate(module, data().test, OBJECTIVE)
    history = train(module, data(), TrainingPlan(epochs=20, batch=16, lr=0.05), OBJECTIVE, seeded())
    after = evaluate(module, data().test, OBJECTIVE)
    assert after["top1"] > 95 > before["top1"]
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert [row["epoch"] for row in history] == list(range(1, 21))
    assert module.training


def test_the_same_seed_gives_the_same_weights_whatever_the_global_state() -> None:
    first = trained()
    torch.rand(17)
    assert same(first, trained())
    assert not same(first, trained(seed=1))


def test_training_leaves_global_randomness_alone() -> None:
    module = network()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(module, data(), PLAN, OBJECTIVE, seeded())
    assert torch.rand(3).equal(expected)


@pytest.mark.parametrize("change", [{}, {"ema": 0.9}, {"optimizer": "adamw", "lr": 0.01, "clip": 0.5}])
def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path: Path, change: dict[str, object]) -> None:
    plan = TrainingPlan(**{"epochs": 4, "batch": 16, "lr": 0.05, **change})
    path = tmp_path / "run" / "train.pt"

    def interrupt(at: Progress) -> None:
        if at.epoch == 3 and at.step % (at.steps // at.epochs) == 0:
            raise KeyboardInterrupt

    module = network()
    with pytest.raises(KeyboardInterrupt):
        train(module, data(), plan, OBJECTIVE, seeded(), progress=interrupt, checkpoint=path)
    assert len(torch.load(path, weights_only=True)["history"]) == 2
    other, generator = network(seed=3), seeded(99)  # neither its weights nor its generator may matter
    history = train(other, data(), plan, OBJECTIVE, generator, checkpoint=path)
    assert same(state(other), trained(plan))
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert [file.name for file in path.parent.iterdir()] == ["train.pt"]
    finished = network(seed=4)
    assert train(finished, data(), plan, OBJECTIVE, generator, checkpoint=path) == history
    assert same(state(finished), state(other))


def test_a_crash_while_writing_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train.pt"
    train(network(), data(), PLAN, OBJECTIVE, seeded(), checkpoint=path)

    def crash(value: object, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    unfinished = torch.load(path, weights_only=True)
    unfinished["history"] = unfinished["history"][:3]
    torch.save(unfinished, path)
    before = path.read_bytes()
    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        train(network(), data(), PLAN, OBJECTIVE, seeded(), checkpoint=path)
    assert path.read_bytes() == before


def test_a_checkpoint_of_another_plan_or_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "train.pt"
    train(network(), data(), PLAN, OBJECTIVE, seeded(), checkpoint=path)
    plan = TrainingPlan(epochs=4, batch=16, lr=0.5, warmup_epochs=1.0)
    with pytest.raises(BadRecipe, match=r"lr = 0.05 \(now 0.5\); remove it"):
        train(network(), data(), plan, OBJECTIVE, seeded(), checkpoint=path)
    with pytest.raises(BadRecipe, match="another network"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), data(), PLAN, OBJECTIVE, seeded(), checkpoint=path)


def test_the_rate_warms_up_linearly_and_falls_as_a_cosine_to_zero() -> None:
    plan = TrainingPlan(epochs=10, lr=0.2, warmup_epochs=2.0)
    rates = [learning_rate(plan, step, 5) for step in range(50)]
    assert rates[:10] == pytest.approx([0.02 * step for step in range(1, 11)])
    assert rates[10] == pytest.approx(0.2)
    assert rates[30] == pytest.approx(0.1)
    assert rates[49] == pytest.approx(0.1 * (1 + math.cos(math.pi * 39 / 40)))
    fractional = [learning_rate(TrainingPlan(epochs=1, lr=1.0, warmup_epochs=0.5), step, 5) for step in range(5)]
    assert fractional[:2] == pytest.approx([0.4, 0.8])
    assert max(fractional) <= 1
    assert fractional[2:] == sorted(fractional[2:], reverse=True)


def test_the_rate_reaches_the_optimizer() -> None:
    history = train(network(), data(), PLAN, OBJECTIVE, seeded())
    assert [row["lr"] for row in history] == pytest.approx([learning_rate(PLAN, 4 * e + 3, 4) for e in range(4)])


def test_sgd_steps_follow_the_nesterov_equations() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    batches = [(torch.tensor([[1.0]]), torch.tensor([[0.0]]))]
    square = Objective(lambda y, t: ((y - t) ** 2).mean(), lambda y, t: (y - t).abs(), "error", False)
    plan = TrainingPlan(epochs=3, batch=1, lr=0.1, momentum=0.5, weight_decay=0.01)
    train(layer, batches, plan, square, seeded())
    weight, velocity = 1.0, 0.0
    for step in range(3):
        gradient = 2 * weight + 0.01 * weight
        velocity = 0.5 * velocity + gradient
        weight -= 0.05 * (1 + math.cos(math.pi * step / 3)) * (gradient + 0.5 * velocity)
    assert float(layer.weight.detach()) == pytest.approx(weight, rel=1e-5)


def test_norms_and_biases_can_be_kept_from_decay() -> None:
    module = network()
    module[0].weight.requires_grad_(False)
    decayed, exempt = optimizer_for(module, TrainingPlan(decay_norms=False)).param_groups
    assert [p.shape for p in decayed["params"]] == [module[5].weight.shape]
    assert (decayed["weight_decay"], exempt["weight_decay"], len(exempt["params"])) == (5e-4, 0.0, 4)
    everything, nothing = optimizer_for(module, TrainingPlan()).param_groups
    assert (len(everything["params"]), nothing["params"]) == (5, [])


def test_clipping_bounds_the_step() -> None:
    plan = TrainingPlan(epochs=1, batch=70, lr=1.0, momentum=0.0, weight_decay=0.0, clip=0.01)
    module = network()
    before = torch.cat([p.detach().flatten().clone() for p in module.parameters()])
    train(module, data(), plan, OBJECTIVE, seeded())
    after = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert float((after - before).norm()) == pytest.approx(0.01, rel=1e-3)


def test_the_average_is_what_the_network_has_at_the_end() -> None:
    def run(ema: float | None) -> tuple[list[Tensor], Tensor]:
        """The weights before every step, and at the end."""
        module, seen = network(), []
        module[5].register_forward_pre_hook(lambda layer, inputs: seen.append(layer.weight.detach().clone()))
        train(module, data(), TrainingPlan(epochs=2, batch=16, lr=0.05, ema=ema), OBJECTIVE, seeded())
        return seen, module[5].weight.detach()

    before, last = run(None)
    average, *rest = [*before[1:], last]
    for weight in rest:
        average = 0.8 * average + 0.2 * weight
    torch.testing.assert_close(run(0.8)[1], average)
    assert not last.allclose(average)


def test_label_smoothing_changes_cross_entropy_and_is_refused_elsewhere() -> None:
    smooth = TrainingPlan(epochs=1, batch=16, label_smoothing=0.2)
    first = train(network(), data(), smooth, OBJECTIVE, seeded())[0]["loss"]
    assert first != train(network(), data(), TrainingPlan(epochs=1, batch=16), OBJECTIVE, seeded())[0]["loss"]
    own = Objective(lambda outputs, targets: outputs.mean(), OBJECTIVE.metric, "top1")
    with pytest.raises(BadRecipe, match="cross-entropy only"):
        train(network(), data(), smooth, own, seeded())


def test_half_precision_and_channels_last_train_and_leave_plain_weights() -> None:
    module = network()
    plan = TrainingPlan(epochs=20, batch=16, lr=0.05, dtype="bfloat16", channels_last=True)
    train(module, data(), plan, OBJECTIVE, seeded())
    assert evaluate(module, data().split("test"), OBJECTIVE)["top1"] > 90
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in module.parameters())


def test_progress_counts_steps_and_the_seconds_left() -> None:
    told: list[Progress] = []
    train(network(), data(), PLAN, OBJECTIVE, seeded(), progress=told.append)
    ends = [at for at in told if at.step % 4 == 0]
    assert [(at.epoch, at.epochs, at.step, at.steps) for at in ends] == [(e, 4, 4 * e, 16) for e in range(1, 5)]
    assert ends[-1].seconds_left == 0 < ends[0].seconds_left
    assert all(math.isfinite(at.loss) for at in told)


def test_evaluation_is_a_mean_over_examples_and_restores_modes() -> None:
    module = network()
    module[1].eval()
    split = data(70).split("test")
    whole = evaluate(module, split, OBJECTIVE, batch=70)
    parts = evaluate(module, split, OBJECTIVE, batch=16)  # the last batch has 6
    assert parts == pytest.approx(whole, rel=1e-5)
    ((inputs, targets),) = split.batches(70)
    right = (module.eval()(inputs).argmax(1) == targets).sum()
    assert whole["top1"] == pytest.approx(100 * int(right) / 70)
    module.train()
    module[1].eval()
    evaluate(module, split, OBJECTIVE)
    assert [m.training for m in module] == [True, False, True, True, True, True]


def test_a_metric_may_be_a_mean_and_the_forward_another_callable() -> None:
    split = data(70).split("test")
    mean = Objective(OBJECTIVE.loss, lambda y, t: (y.argmax(1) == t).float().mean(), "accuracy")
    always_one = torch.tensor([0.0, 1.0, 0.0])
    found = evaluate(network(), split, mean, 16, forward=lambda x: always_one.expand(len(x), 3))
    assert found["accuracy"] == pytest.approx(23 / 70)


def test_a_network_without_a_parameter_to_train_is_refused() -> None:
    still = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).requires_grad_(False)
    with pytest.raises(BadNetwork, match="no parameter of it requires gradients: where it is made, call"):
        train(still, data(), PLAN, OBJECTIVE, seeded())


def test_labels_without_an_output_are_refused_before_the_loss_sees_them() -> None:
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    for attempt in (
        lambda: evaluate(narrow, data().train, OBJECTIVE),
        lambda: train(narrow, data(), PLAN, OBJECTIVE, seeded()),
    ):
        with pytest.raises(BadData, match=r"0\.\.1 for a network of 2 classes, 'train' has 2"):
            attempt()


def test_several_inputs_go_in_by_position_or_name() -> None:
    def combine(a: Tensor, b: Tensor) -> Tensor:
        return a - b

    a, b = torch.tensor(3.0), torch.tensor(1.0)
    assert call(combine, (a, b)) == call(combine, {"b": b, "a": a}) == 2
    assert call(torch.neg, a) == -3


class Noisy(Dataset[tuple[Tensor, int]]):
    """A Dataset with a random transform."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.rand(1, 6, 6) + index % 3, index % 3


def test_random_transforms_of_a_dataset_follow_the_seed() -> None:
    def weights() -> dict[str, Tensor]:
        module = network()
        train(module, Noisy(), TrainingPlan(epochs=2, batch=10), OBJECTIVE, seeded())
        return state(module)

    first = weights()
    torch.rand(5)
    assert same(first, weights())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"epochs": 0}, "^epochs must be at least 1, got 0"),  # in Python there is no section
        ({"lr": 0.0}, "lr must be above 0"),
        ({"optimizer": "lion"}, "'sgd' or 'adamw', got 'lion'"),
        ({"warmup_epochs": 30.0}, "epochs = 30"),
        ({"dtype": "float16"}, "got 'float16'"),
        ({"ema": 1.0}, "ema must be in"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
    ],
)
def test_a_wrong_plan_is_refused(option: dict[str, object], words: str) -> None:
    with pytest.raises(BadRecipe, match=words):
        TrainingPlan(**option)


def exploding(step: int) -> Objective:
    """Cross-entropy that is no number at the 1-based `step`."""
    seen = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(1)
        return OBJECTIVE.loss(outputs, targets) * (float("nan") if len(seen) == step else 1.0)

    return Objective(loss, OBJECTIVE.metric, "top1")


def test_a_loss_that_is_no_number_stops_at_the_last_good_epoch_and_says_the_step(tmp_path: Path) -> None:
    path, module, good = tmp_path / "train.pt", network(), []
    ends = lambda at: good.append(state(module)) if at.step == 8 else None  # noqa: E731
    with pytest.raises(Diverged) as caught:
        train(module, data(), PLAN, exploding(11), seeded(), progress=ends, checkpoint=path)
    said = str(caught.value)
    assert "the loss is no number at step 11 of 16 (epoch 3 of 4, lr " in said
    assert f"as it was after epoch 2, which {path} holds. Lower lr (0.05), or set clip" in said
    assert same(state(module), good[0])
    assert len(torch.load(path, weights_only=True)["history"]) == 2
    train(
        module, data(), PLAN, OBJECTIVE, seeded(9), checkpoint=path
    )  # a chance event, such as of a loader: it goes on
    assert same(state(module), trained())


def test_without_a_checkpoint_or_a_finished_epoch_nothing_is_promised(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"step 3 of 16 .* no checkpoint was asked for, so"):
        train(network(), data(), PLAN, exploding(3), seeded())
    with pytest.raises(Diverged, match="no epoch was finished before"):
        train(network(), data(), PLAN, exploding(3), seeded(), checkpoint=tmp_path / "train.pt")
    assert not (tmp_path / "train.pt").exists()


def test_a_weight_that_is_no_number_is_not_written_either(tmp_path: Path) -> None:
    """The loss of the last step is a number, its gradient is not."""
    square = Objective(lambda y, t: (y - t).abs().sqrt().mean(), lambda y, t: (y - t).abs(), "error", False)
    layer = nn.Linear(1, 1)
    nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    with pytest.raises(Diverged, match="'weight' holds something else than numbers after step 1 of 2"):
        train(layer, [(torch.ones(1, 1), torch.zeros(1, 1))], TrainingPlan(epochs=2), square, seeded())


@pytest.mark.slow
def test_a_compiled_forward_trains_the_same_network() -> None:
    pytest.importorskip("torch._inductor")
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    plain, compiled = copy.deepcopy(module), module
    for each, plan in ((plain, PLAN), (compiled, replace(PLAN, compile=True))):
        train(each, data(), plan, OBJECTIVE, seeded())
    torch.testing.assert_close(compiled[1].weight, plain[1].weight, rtol=1e-4, atol=1e-5)


def test_a_metric_is_not_taken_of_examples_that_hold_no_numbers() -> None:
    """argmax of NaN is class 0, so that a top-1 would look like any other."""
    inputs = torch.randn(6, 1, 6, 6)
    inputs[4, 0, 2, 2] = math.nan
    with pytest.raises(BadData, match="the input of example 4 of 'test' holds NaN"):
        evaluate(network(), Split("test", InMemory(inputs, torch.arange(6) % 3)), OBJECTIVE, batch=4)
