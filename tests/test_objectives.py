import math

import pytest
import torch
from torch import Tensor, nn

import tas
from tas.errors import BadNetwork, BadRecipe
from tas.objectives import Objective, default_objective, objective


def half_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs() / 2


NOT_CALLABLE = 3


def test_the_default_is_cross_entropy_in_nats_and_top1_in_percent() -> None:
    chosen = default_objective()
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 1.0]])
    targets = torch.tensor([0, 1, 1])
    by_hand = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(4))) / 3
    assert float(chosen.loss(logits, targets)) == pytest.approx(by_hand, rel=1e-6)
    assert chosen.metric(logits, targets).tolist() == [100, 100, 0]
    assert (chosen.name, chosen.higher_is_better) == ("top1", True)
    assert objective() == chosen


def test_loss_and_metric_come_by_import_path_with_a_name_and_a_direction() -> None:
    chosen = objective("torch.nn.functional:mse_loss", f"{__name__}:half_error", direction="min")
    outputs, targets = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0])
    assert float(chosen.loss(outputs, targets)) == 5
    assert chosen.metric(outputs, targets).tolist() == [0.5, 1.5]
    assert (chosen.name, chosen.higher_is_better) == ("half_error", False)
    assert objective(metric=f"{__name__}:half_error", name="error").name == "error"


def test_a_loss_module_is_instantiated() -> None:
    chosen = objective("torch.nn:L1Loss")
    assert float(chosen.loss(torch.tensor([3.0]), torch.tensor([1.0]))) == 2


@pytest.mark.parametrize("path", ["torch.nn.functional:cross_entropy", "torch.nn:CrossEntropyLoss"])
def test_torchs_own_cross_entropy_is_the_default(path: str) -> None:
    assert objective(path) == default_objective()


class Focal(nn.CrossEntropyLoss):
    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        sure = outputs.log_softmax(1).gather(1, targets[:, None])[:, 0]
        return -((1 - sure.exp()) ** 2 * sure).mean()


summed = nn.CrossEntropyLoss(reduction="sum")
weighed = nn.CrossEntropyLoss(torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("name", ["Focal", "summed", "weighed"])
def test_cross_entropies_of_other_kinds_stay_what_they_are(name: str) -> None:
    own = globals()[name]
    logits, targets = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([1, 1])
    expected = (own() if isinstance(own, type) else own)(logits, targets)
    assert float(objective(f"{__name__}:{name}").loss(logits, targets)) == float(expected)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_module_at_all:f", "no_such_module_at_all"),
        ("torch.nn.functional:no_such_loss", "no_such_loss"),
        ("torch.nn.functional.mse_loss", "package.module:"),
        (f"{__name__}:NOT_CALLABLE", "is a int"),
    ],
)
def test_a_wrong_import_path_says_what_is_wrong(path: str, words: str) -> None:
    for role in ("loss", "metric"):
        with pytest.raises(BadRecipe, match=words):
            objective(**{role: path})


def test_a_wrong_direction_is_refused() -> None:
    with pytest.raises(BadRecipe, match="'max' or 'min', got 'up'"):
        objective(direction="up")


def test_several_outputs_need_an_objective_of_their_own() -> None:
    with pytest.raises(BadNetwork, match="returns tuple; pass an objective"):
        default_objective().loss((torch.zeros(1, 2), torch.zeros(1, 2)), torch.tensor([0]))


def test_outputs_without_classes_need_an_objective_of_their_own() -> None:
    for role in (default_objective().loss, default_objective().metric):
        with pytest.raises(BadNetwork, match=r"returns \[4\]; pass an objective"):
            role(torch.zeros(4), torch.zeros(4))


def test_a_direction_in_words_is_no_answer_to_yes_or_no() -> None:
    chosen = default_objective()
    with pytest.raises(BadRecipe, match="higher_is_better is True or False, got 'min': False for an error"):
        tas.Objective(chosen.loss, chosen.metric, "error", "min")  # type: ignore[arg-type]


def test_better_follows_the_direction() -> None:
    chosen = default_objective()
    error = Objective(chosen.loss, chosen.metric, "error", higher_is_better=False)
    assert chosen.better(2, than=1)
    assert not chosen.better(1, than=1)
    assert error.better(1, than=2)
