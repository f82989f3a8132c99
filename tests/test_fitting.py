"""What network, data, losses and metric do to one another is seen on two examples, before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_task import TinyNet, recipe_values
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import tas
from tas import recipe
from tas.cautions import few_images
from tas.data import Data, Examples, InMemory, Split, as_data
from tas.distillation import distill, soft_targets
from tas.errors import BadData, BadNetwork, BadRecipe, TasError
from tas.fitting import require_labelled
from tas.judging import evaluate_target
from tas.objectives import Objective, default_objective
from tas.preparation import prepare
from tas.reporting.numbers import figures
from tas.reporting.progress import Display
from tas.runner import run
from tas.training import TrainingPlan, evaluate

HERE = __name__


class Heights(nn.Module):
    """A regression of two features, or of one."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Flat(Heights):
    """One number an example, and no dimension for it."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 0]


def heights(outputs: int = 2) -> dict[str, TensorDataset]:
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    y = 1e-3 * (x[:, :outputs] if outputs else x[:, 0])
    return {"train": TensorDataset(x[:64], y[:64]), "test": TensorDataset(x[64:], y[64:])}


def error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs().mean(1)


def of_other_sizes(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.mse_loss(outputs.reshape(-1, 7), targets)


def a_float(outputs: Tensor, targets: Tensor) -> float:
    return 0.5


def of_three(outputs: Tensor, targets: Tensor) -> Tensor:
    return torch.ones(3)


def a_value_an_example(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs, targets, reduction="none")


def regression(*overrides: str, network: str = "Heights") -> recipe.Recipe:
    values: dict[str, Any] = {
        "network": {"name": f"{HERE}:{network}"},
        "data": {"name": f"{HERE}:heights"},
        "objective": {"loss": "torch.nn.functional:mse_loss", "metric": f"{HERE}:error", "direction": "min"},
        "budget": {"macs": "60%"},
        "original": {"epochs": 2, "batch": 32, "lr": 0.01},
        "search": {"method": "adaptive_bn", "candidates": 2, "images": 32},
        "distill": {"epochs": 2, "batch": 32, "lr": 0.01, "loss": "torch.nn.functional:mse_loss"},
        "machine": {"threads": 1},
    }
    return recipe.parse(values, overrides)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("objective.loss=HERE:of_other_sizes", r"objective.loss .* outputs \[2, 3\] and .* targets \[2\], but of_oth"),
        ("objective.loss=HERE:a_value_an_example", r"objective.loss gives the mean over the batch.*got \[2\]"),
        ("objective.loss=HERE:a_float", "objective.loss gives the mean over the batch.*got float"),
        ("objective.metric=HERE:of_other_sizes", "objective.metric is a function .* but of_other_sizes fails"),
        ("objective.metric=HERE:a_float", "objective.metric gives a tensor, one number an example.*got float"),
        ("objective.metric=HERE:of_three", r"objective.metric gives a tensor, one number an example.*got \[3\]"),
        ("distill.loss=HERE:of_other_sizes", r"distill.loss is a function .* the teacher's \[2, 3\], but"),
        ("distill.loss=HERE:nothing", "has no attribute 'nothing'"),
        ("distill.loss=mse", "distill.loss is one of kd, dkd, dist, or the import path .* got 'mse'"),
    ],
)
def test_a_loss_or_metric_that_cannot_be_taken_is_refused_before_anything_is_written(
    tmp_path: Path, override: str, message: str
) -> None:
    with pytest.raises(BadRecipe, match=message):
        run(recipe.parse(recipe_values(tmp_path), [override.replace("HERE", HERE)]), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Labelled(torch.utils.data.Dataset[Any]):
    """Three classes, but one example of another; `known`: without decoding."""

    def __init__(self, odd: int, known: bool = False, at: int = 29, count: int = 64) -> None:
        self.labels_held = [index % 3 for index in range(count)]
        self.labels_held[at] = odd
        if known:
            self.targets = self.labels_held

    def __len__(self) -> int:
        return len(self.labels_held)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((6,), float(index)), self.labels_held[index]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("odd", [3, -1])
def test_a_label_without_an_output_is_named(odd: int, known: bool) -> None:
    train = Split("train", Examples(Labelled(odd, known)))
    where = f"{'' if known else 'a batch of '}.train. has {odd} at index 29"
    losses = [tas.objectives.cross_entropy, nn.functional.cross_entropy, nn.CrossEntropyLoss()]
    for loss in losses:
        with pytest.raises(BadData, match=rf"labels must lie in 0\.\.2 for a network of 3 classes, {where}"):
            evaluate(Heights(3), train, Objective(loss, tas.objectives.top1, "top1"))
    assert evaluate(Heights(3), train, Objective(ignoring(odd), tas.objectives.top1, "top1"))["loss"] > 0


def ignoring(label: int) -> nn.Module:
    return nn.CrossEntropyLoss(ignore_index=label)


def odd_and_unknown(split: str = "train", at: int = 29, count: int = 64) -> dict[str, Any]:
    held = {"train": Labelled(0), "test": Labelled(0)}
    return {**held, split: Labelled(3, at=at, count=count)}


def classification(*overrides: str) -> recipe.Recipe:
    default = (f"data.name={HERE}:odd_and_unknown", "network.kwargs={outputs: 3}", "objective={}", "distill.loss=kd")
    return regression(*default, *overrides)


@pytest.mark.parametrize("loss", ["null", "torch.nn.functional:cross_entropy", "torch.nn:CrossEntropyLoss"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_label_that_only_decoding_shows_is_named_before_anything_is_written(
    tmp_path: Path, loss: str, split: str
) -> None:
    with pytest.raises(BadData, match=rf"0\.\.2 for a network of 3 classes, a batch of '{split}' has 3 at index"):
        run(classification(f"data.kwargs={{split: {split}}}", f"objective.loss={loss}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["differentiable", "adaptive_bn", "optuna", "netadapt"])
def test_a_label_that_is_met_in_a_search_only_is_one_line(method: str) -> None:
    """Nothing looks at examples before it where there is no recipe."""
    data = Labelled(0)
    data.labels_held[::7] = [3] * 10
    split = Split("train", Examples(data))
    traced = tas.trace(Heights(3), torch.zeros(2, 6))
    options: dict[str, Any] = {} if method == "netadapt" else {"candidates": 2}
    with pytest.raises(BadData, match=r"0\.\.2 for a network of 3 classes, a batch of '\w+' has 3 at index"):
        tas.search(traced, split, tas.budget(traced.space, macs=0.5), method, images=64, **options)


def same(outputs: int = 3, count: int = 64) -> dict[str, Any]:
    one = Labelled(0)
    one.labels_held = [1] * count
    return {"train": Labelled(0), "test": one}


@pytest.mark.parametrize(("count", "seen"), [(64, ""), (65, ", as far as they were looked at,")])
def test_labels_that_are_all_the_same_are_doubted(tmp_path: Path, count: int, seen: str) -> None:
    asked = classification(f"data={{name: '{HERE}:same', kwargs: {{count: {count}}}}}")
    assert any(f"All 64 labels of 'test'{seen} are 1:" in said for said in prepare(asked).doubts)


def test_labels_of_small_batches_are_looked_at_together() -> None:
    """The first batch of two may well have a single class."""
    batches = [(torch.zeros(2, 6), torch.tensor([label, label])) for label in (0, 1) * 20]
    train, judge = as_data(batches).train, default_objective()
    assert require_labelled(train, judge, torch.zeros(2, 2)) == ""
    one = as_data(batches[::2]).train
    assert "All 40 labels of 'train' are 0:" in require_labelled(one, judge, torch.zeros(2, 2))
    with pytest.raises(BadData, match=r"0\.\.0 for a network of 1 classes"):
        require_labelled(train, judge, torch.zeros(2, 1))


def test_one_or_two_images_more_or_less_are_said_to_be_few(tmp_path: Path) -> None:
    asked = classification("data.kwargs={split: test, at: 0, count: 4}", "network.kwargs={outputs: 4}")
    run(asked, tmp_path / "run", until="original", display=Display(Console(quiet=True)))
    told = (tmp_path / "run" / "run.json").read_text()
    assert "'test' has only 4 examples: each is 25 % of every figure on it" in told
    few = Split("train", InMemory(torch.zeros(12, 6), torch.arange(12) % 3))
    data = Data("few", few, classes=3)
    assert [said for said in few_images(data, 2000, 2560, 0) if "'architecture' has only 6 examples" in said]


def lonely() -> dict[str, TensorDataset]:
    return {name: TensorDataset(*held[:1]) for name, held in heights().items()}


def test_one_example_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="two examples at least; it has 1"):
        run(regression(f"data.name={HERE}:lonely"), tmp_path / "run", display=Display(Console(quiet=True)))
    assert not (tmp_path / "run").exists()


class Divides(Heights):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0


def of_nothing(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.mse_loss(outputs, targets) * float("nan")


def torn() -> dict[str, TensorDataset]:
    """One input of 64 is no number: one that the two examples do not show."""
    held = heights()
    held["train"].tensors[0][5, 2] = float("nan")
    return held


@pytest.mark.parametrize(
    ("override", "kind", "message"),
    [
        (f"network.name={HERE}:Divides", BadNetwork, "Divides gives NaN or infinity for finite inputs"),
        (f"objective.loss={HERE}:of_nothing", BadRecipe, "of_nothing gives NaN or infinity for finite outputs"),
        (f"data.name={HERE}:torn", BadData, "the input of example 5 of 'train' holds NaN"),
    ],
)
def test_a_loss_that_is_no_number_is_blamed_on_what_brings_it_in(
    tmp_path: Path, override: str, kind: type[TasError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run(regression(override), tmp_path / "run", display=Display(Console(quiet=True)))


def test_a_search_that_meets_no_number_in_the_data_says_so(tmp_path: Path) -> None:
    torch.save(Heights().state_dict(), tmp_path / "heights.pt")
    asked = regression(
        f"data.name={HERE}:torn",
        f"network.weights={tmp_path / 'heights.pt'}",
        "search={method: differentiable, epochs: 1, batch: 16}",
    )
    with pytest.raises(BadData, match="the input of example 5 of 'train' holds NaN"):
        run(asked, tmp_path / "run", display=Display(Console(quiet=True)))


class Logarithm(Heights):
    """NaN for inputs whose sum is below 0."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.sum(1, keepdim=True).log()


@pytest.mark.parametrize("method", ["adaptive_bn", "optuna"])
@pytest.mark.parametrize(
    ("broken", "kind", "message"),
    [
        ("input", BadData, "the input of example 5 of 'train' holds NaN"),
        ("weight", BadNetwork, r"weights must be finite numbers, 'body.0.weight' of Heights holds NaN"),
        ("forward", BadNetwork, "Logarithm gives NaN or infinity for finite inputs: look for a division"),
    ],
)
def test_scores_that_are_no_numbers_are_blamed_on_what_brings_that_in(
    method: str, broken: str, kind: type[TasError], message: str
) -> None:
    given = (torn() if broken == "input" else heights())["train"]
    traced = tas.trace(Logarithm() if broken == "forward" else Heights(), torch.ones(2, 6))
    if broken == "weight":
        nn.init.constant_(traced.network.get_parameter("body.0.weight"), float("nan"))
    judge = Objective(nn.functional.mse_loss, error, "error", False)
    options = {"candidates": 4, "images": 64}
    with pytest.raises(kind, match=message):
        tas.search(traced, given, tas.budget(traced.space, macs=0.6), method, objective=judge, seed=1, **options)


def test_netadapt_asks_the_network_where_its_first_score_is_no_number() -> None:
    traced = tas.trace(Logarithm(), torch.ones(2, 6))
    judge = Objective(nn.functional.mse_loss, error, "error", False)
    budget = tas.budget(traced.space, macs=0.6)
    with pytest.raises(BadNetwork, match="Logarithm gives NaN or infinity for finite inputs"):
        tas.search(traced, heights()["train"], budget, "netadapt", objective=judge, images=64)


def where_known(outputs: Tensor, targets: Tensor) -> Tensor:
    known = ~targets.isnan()
    return nn.functional.mse_loss(outputs[known], targets[known])


def test_targets_that_a_loss_leaves_out_may_be_no_numbers() -> None:
    train = heights()["train"]
    train.tensors[1][::2, 0] = float("nan")
    traced = tas.trace(Heights(), torch.ones(2, 6))
    judge = Objective(where_known, where_known, "error", False)
    [found] = tas.score(traced, traced.space.smallest(), train, objective=judge)
    assert found.valid


@pytest.mark.parametrize(("network", "outputs"), [("Flat", 0), ("Heights", 1)])
def test_one_output_has_no_soft_targets(tmp_path: Path, network: str, outputs: int) -> None:
    """The softmax of one number is 1, so their loss would be 0 for every student."""
    overrides = [
        "distill.loss=kd",
        "objective.metric=torch.nn.functional:l1_loss",
        f"data.kwargs={{outputs: {outputs}}}",
    ]
    if outputs:
        overrides.append("network.kwargs={outputs: 1}")
    with pytest.raises(BadNetwork, match=r"two classes at least.*mse_loss, or set alpha to 0"):
        run(regression(*overrides, network=network), tmp_path / "run")
    with pytest.raises(BadNetwork, match="two classes at least"):
        soft_targets(torch.zeros(4, 1), torch.ones(4, 1))
    with pytest.raises(BadNetwork, match="two classes at least"):
        distill(Heights(1), Heights(1), heights(1), TrainingPlan(epochs=1), generator=torch.Generator())


class Tokens(nn.Module):
    """Of every token one of 7 classes: [batch, length, 7], or as cross-entropy takes them, [batch, 7, length]."""

    def __init__(self, classes_first: bool = False) -> None:
        super().__init__()
        self.classes_first = classes_first
        self.body = nn.Sequential(nn.Embedding(7, 16), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 7))

    def forward(self, tokens: Tensor) -> Tensor:
        logits = self.body(tokens)
        return logits.movedim(-1, 1) if self.classes_first else logits


def tokens(length: int = 5) -> dict[str, TensorDataset]:
    words = torch.randint(0, 7, (48, length), generator=torch.Generator().manual_seed(0))
    return {"train": TensorDataset(words[:32], words[:32].flip(1)), "test": TensorDataset(words[32:], words[32:])}


def of_every_token(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def between_tokens(student: Tensor, teacher: Tensor) -> Tensor:
    return nn.functional.mse_loss(student.log_softmax(2), teacher.log_softmax(2))


CLASSES_LAST = r"outputs \[2, 5, 7\] for targets \[2, 5\] have them last.*movedim\(-1, 1\).*distill\.loss"


@pytest.mark.parametrize("soft", ["kd", "dist"])
def test_soft_targets_over_positions_in_place_of_classes_are_refused(tmp_path: Path, soft: str) -> None:
    asked = regression(
        f"distill.loss={soft}",
        f"data.name={HERE}:tokens",
        f"objective={{loss: '{HERE}:of_every_token', metric: '{HERE}:of_every_token', direction: min}}",
        network="Tokens",
    )
    with pytest.raises(BadNetwork, match=CLASSES_LAST):
        run(asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_where_classes_stand_is_seen_in_the_targets_alone() -> None:
    def taught(data: Any, classes_first: bool = False, **options: Any) -> None:
        judge = Objective(nn.functional.cross_entropy if classes_first else of_every_token, of_every_token, "loss")
        student, teacher = Tokens(classes_first), Tokens(classes_first)
        plan = TrainingPlan(epochs=1, batch=16)
        distill(student, teacher, data, plan, judge, generator=torch.Generator(), **options)

    with pytest.raises(BadNetwork, match=CLASSES_LAST):
        taught(tokens())
    taught(tokens(), classes_first=True)
    taught(tokens(), soft_loss=between_tokens)
    taught(tokens(), alpha=0.0)
    taught(tokens(length=7), classes_first=True)  # as many positions as classes: cross-entropy's own reading holds


def test_a_loss_of_both_outputs_by_import_path_draws_the_student_to_the_teacher(tmp_path: Path) -> None:
    """Targets are near 0 and count nothing; the teacher answers 3 whatever it sees."""
    torch.manual_seed(0)
    teacher = Heights()
    nn.init.zeros_(teacher.body[4].weight)
    nn.init.constant_(teacher.body[4].bias, 3.0)
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    taught = regression(
        f"distill.teacher={{name: {HERE}:Heights, weights: {tmp_path / 'teacher.pt'}}}",
        "distill.alpha=1.0",
        "distill.epochs=30",
        "distill.optimizer=adamw",
    )
    metrics = run(taught, tmp_path / "run", display=Display(Console(quiet=True)))
    assert metrics["student"]["error"] == pytest.approx(3.0, abs=0.3)
    assert "real numbers" not in (tmp_path / "run" / "run.json").read_text()


def test_soft_targets_beside_real_targets_are_doubted(tmp_path: Path) -> None:
    run(regression("distill.loss=kd"), tmp_path / "run", until="original", display=Display(Console(quiet=True)))
    assert "targets are real numbers, and distill.loss kd" in (tmp_path / "run" / "run.json").read_text()


def test_several_teachers_need_probabilities() -> None:
    with pytest.raises(BadRecipe, match=r"mean of their probabilities.*leave one"):
        regression("distill.teacher=[{name: original}, {name: original}]")


def test_small_errors_keep_their_figures(tmp_path: Path) -> None:
    metrics = run(regression(), tmp_path / "run", display=Display(Console(quiet=True)))
    losses = [row["loss"] for row in metrics.values()]
    assert any(round(loss, 4) != loss for loss in losses), losses
    form = figures(row["error"] for row in metrics.values())
    assert f">{metrics['student']['error']:{form}}<" in (tmp_path / "run" / "report.html").read_text()


def test_a_student_on_data_of_another_kind_is_one_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(TinyNet().state_dict(), tmp_path / "tiny.pt")
    values = recipe_values(tmp_path) | {"network": {"name": "tiny_task:TinyNet", "weights": str(tmp_path / "tiny.pt")}}
    for override, message in (
        (f"data={{name: {HERE}:heights}}", "the network refuses an input of shape"),
        (f"objective.metric={HERE}:of_other_sizes", "objective.metric is a function"),
    ):
        with pytest.raises(TasError, match=message):
            evaluate_target("tiny.yaml", "test", lambda _, o=override: recipe.parse(values, [o]))
