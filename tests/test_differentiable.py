import json
import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tiny_task import recipe_values
from torch import nn
from toys import asked, data, network

import tas
from search_spaces.cifar_resnet import resnet20
from search_spaces.cifar_resnet_supernet import CifarSupernet
from tas import cost
from tas.data import Data, InMemory, Split
from tas.distribution import ArchitectureDistribution
from tas.errors import BadRecipe, Caution, Infeasible
from tas.methods import bilevel, differentiable
from tas.methods.baselines import uniform
from tas.methods.bilevel import astray
from tas.methods.differentiable import Settings
from tas.methods.learned import candidates
from tas.objectives import Objective, top1
from tas.recipe import parse
from tas.reporting.progress import Display
from tas.runner import run
from tas.space import Budget, Choice, Factor, LayerCost, SearchSpace, Term

DATA = data()
SHORT = Settings(epochs=3, batch=32, rows=2, candidates=4, images=64)


def traced() -> tas.Traced:
    return tas.trace(network(), torch.zeros(2, 1, 8, 8))


def run_of(supernet, budget, objective=None, **options) -> bilevel.Run:
    """The state of a search before its first step."""
    settings = Settings(**{"batch": 32, "epochs": 2, **options})
    distribution = ArchitectureDistribution(supernet.space, torch.Generator().manual_seed(0))
    optimizers = differentiable._optimizers(supernet, distribution, settings)
    halves = differentiable.search_splits(DATA)
    rest = {} if objective is None else {"objective": objective}
    what, device = asked(supernet, DATA, budget, settings, **rest), torch.device("cpu")
    return bilevel.Run(what, *halves, device, supernet, distribution, *optimizers)


def search(*given: Any, **rest: Any) -> tas.SearchResult:
    return differentiable.search(asked(*given, **rest))


class Dial(nn.Module):
    """A supernet whose output is its expected width: what a search must find is known."""

    def __init__(self) -> None:
        super().__init__()
        choices = (Choice("w", "width", tuple(range(1, 9))), Choice("d", "depth", (1, 2, 3)))
        cost_of_w = LayerCost("w", "macs", (Term(100_000, (Factor("w", "power", 1),)),))
        self.space = SearchSpace(choices, (cost_of_w,))
        self.offset = nn.Parameter(torch.zeros(()))

    def weight_parameters(self):
        return [self.offset]

    @contextmanager
    def frozen_weights(self):
        self.offset.requires_grad_(False)
        yield
        self.offset.requires_grad_(True)

    def forward(self, x, draw):
        mixed = [(pick.weights * torch.tensor(pick.values, dtype=torch.float32)).sum() for pick in draw.values()]
        return torch.stack(mixed) + 0 * self.offset + 0 * x.sum()


def dial_data() -> Data:
    return Data("dial", Split("train", InMemory(torch.zeros(64, 1), torch.zeros(64))))


def squared_distance(width: float, depth: float, strength: float = 1.0) -> Objective:
    def loss(outputs, targets):
        return strength * ((outputs - torch.tensor([width, depth])) ** 2).sum()

    return Objective(loss, loss, "distance", higher_is_better=False)


def test_the_search_finds_the_sizes_that_the_loss_wants():
    settings = Settings(epochs=60, batch=8, architecture_lr=0.05, candidates=1)
    budget = Budget((("macs", 800_000.0),), slack=1.0)
    for width, depth in ((3.0, 1.0), (6.0, 3.0)):
        found = search(Dial(), dial_data(), budget, settings, objective=squared_distance(width, depth))
        assert dict(found.architecture) == {"w": width, "d": depth}
        assert found.candidates == ()


def test_the_budget_bends_what_the_loss_wants():
    settings = Settings(epochs=60, batch=8, architecture_lr=0.05, candidates=1)
    found = search(
        Dial(), dial_data(), Budget((("macs", 400_000.0),)), settings, objective=squared_distance(7.0, 2.0, 0.02)
    )
    assert dict(found.architecture) == {"w": 4, "d": 2}
    assert found.course[-1]["macs_mode"] <= 400_000
    assert found.course[0]["macs_expected"] == pytest.approx(450_000, rel=0.1)


def test_a_weight_step_moves_weights_only_and_an_architecture_step_logits_only():
    supernet = tas.Supernet(traced())
    run = run_of(supernet, cost.budget(supernet.space, macs=0.5))
    batch = next(run.weights_half.batches(32))
    weights = [parameter.detach().clone() for parameter in supernet.weight_parameters()]
    logits = run.distribution.logits.detach().clone()

    def moved() -> tuple[bool, bool]:
        now = supernet.weight_parameters()
        return any(not torch.equal(a, b) for a, b in zip(now, weights, strict=True)), not torch.equal(
            run.distribution.logits, logits
        )

    bilevel._architecture_step(run, *batch, torch.Generator().manual_seed(0), 5.0)
    assert moved() == (False, True)
    assert all(parameter.grad is None for parameter in supernet.weight_parameters())
    logits = run.distribution.logits.detach().clone()
    bilevel._weight_step(run, *batch, torch.Generator().manual_seed(0), 5.0)
    assert moved() == (True, False)


def test_the_architecture_gradient_is_that_of_loss_plus_twice_the_penalty():
    """Against central differences of the whole sum, at fixed noise, in float64."""
    supernet = tas.Supernet(traced()).double().eval()
    budget = cost.budget(supernet.space, macs=0.4)
    run = run_of(supernet, budget, architecture_decay=0.0)
    run.distribution.double()
    inputs, targets = next(run.weights_half.batches(16))
    logits = run.distribution.logits
    before = logits.detach().clone()

    def total(values: torch.Tensor) -> float:
        with torch.no_grad():
            logits.copy_(values)
            draw = run.distribution.draw(torch.Generator().manual_seed(1), 2.0)
            loss = nn.functional.cross_entropy(supernet(inputs.double(), draw), targets)
            expected = cost.expected(supernet.space, run.distribution.probabilities()) / 1e6
            mode = cost.count(supernet.space, run.distribution.probabilities().argmax(-1))
            limit, original = budget.limits[0][1], cost.macs(supernet.space, supernet.space.largest())
            sign = 1 if mode > limit else -1 if mode < limit - 0.05 * original else 0
            return float(loss + 2 * sign * torch.log(expected))

    bilevel._architecture_step(run, inputs.double(), targets, torch.Generator().manual_seed(1), 2.0)
    gradient = logits.grad.clone()
    for place in [(0, 1), (1, 3), (2, 7), (4, 0), (4, 2)]:
        step = torch.zeros_like(before)
        step[place] = 1e-5
        slope = (total(before + step) - total(before - step)) / 2e-5
        assert float(gradient[place]) == pytest.approx(slope, abs=1e-6)


def test_temperature_and_learning_rate_follow_the_paper():
    supernet = Dial()
    run = run_of(supernet, Budget((("macs", 8e5),)), epochs=10, anneal="epoch", weight_lr=0.1)
    for epoch in range(10):
        run.epoch = epoch
        for part in (0.0, 0.7):
            assert bilevel._anneal(run, part) == pytest.approx(0.1 + 4.9 * (1 + math.cos(math.pi * epoch / 10)) / 2)
        assert run.weight_optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * epoch / 10)))


def test_every_row_says_where_the_search_stands():
    source, rows = traced(), []
    budget = cost.budget(source.space, macs=0.5)
    found = search(source, DATA, budget, SHORT, on_row=rows.append)
    assert found.course == tuple(rows)
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    assert {row["steps"] for row in rows} == {12}
    assert rows[0]["temperature"] > rows[-1]["temperature"] > 0.1
    assert set(rows[0]["expected"]) == {choice.name for choice in source.space.choices}
    assert json.loads(json.dumps(rows)) == rows
    table = [found.probabilities[choice.name] for choice in source.space.choices]
    widest = max(map(len, table))
    padded = torch.tensor([[*row, *[0.0] * (widest - len(row))] for row in table], dtype=torch.float64)
    assert rows[-1]["macs_expected"] == pytest.approx(float(cost.expected(source.space, padded)), rel=1e-5)
    assert rows[-1]["entropy"] == pytest.approx(float(torch.special.entr(padded).sum(-1).mean()), rel=1e-5)


def test_the_best_candidate_wins_and_all_meet_the_budget():
    source = traced()
    budget = cost.budget(source.space, macs=0.4)
    before = {name: value.clone() for name, value in source.network.state_dict().items()}
    found = search(source, DATA, budget, SHORT)
    assert len(found.candidates) == 4
    assert found.architecture == found.candidates[0].architecture
    assert found.candidates[0].recalibrated == max(scored.recalibrated for scored in found.candidates)
    for scored in found.candidates:
        assert cost.macs(source.space, scored.architecture) <= budget.limits[0][1]
    assert all(torch.equal(value, before[name]) for name, value in source.network.state_dict().items())


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("rows_seen", [1, 3, 5])
def test_an_interrupted_search_goes_on_to_the_same_result(tmp_path, rows_seen):
    source = traced()
    budget = cost.budget(source.space, macs=0.5)
    whole = search(source, DATA, budget, SHORT, seed=3)
    seen = []

    def interrupt(row) -> None:
        seen.append(row)
        if len(seen) == rows_seen:
            raise Interrupted

    with pytest.raises(Interrupted):
        search(source, DATA, budget, SHORT, seed=3, checkpoint=tmp_path / "search.pt", on_row=interrupt)
    assert not list(tmp_path.glob(".*.part"))
    resumed = search(source, DATA, budget, SHORT, seed=3, checkpoint=tmp_path / "search.pt")
    assert resumed == whole
    assert resumed.course == whole.course
    states = whole.supernet.state_dict(), resumed.supernet.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    again = search(source, DATA, budget, SHORT, seed=3, checkpoint=tmp_path / "search.pt")  # nothing left to do
    assert again == whole


def test_a_checkpoint_of_another_search_is_refused(tmp_path):
    source, path = traced(), tmp_path / "search.pt"
    budget = cost.budget(source.space, macs=0.5)
    short = Settings(epochs=1, batch=64, candidates=1)
    search(source, DATA, budget, short, checkpoint=path)
    with pytest.raises(BadRecipe, match=r"\['settings'\] differ"):
        search(source, DATA, budget, Settings(epochs=2, batch=64, candidates=1), checkpoint=path)
    with pytest.raises(BadRecipe, match=r"\['budget', 'seed'\] differ"):
        search(source, DATA, cost.budget(source.space, macs=0.6), short, checkpoint=path, seed=1)
    other = Objective(nn.functional.cross_entropy, top1, "accuracy")
    with pytest.raises(BadRecipe, match=r"\['objective'\] differ"):
        search(source, DATA, budget, short, checkpoint=path, objective=other)
    with torch.no_grad():
        source.network.conv.weight.mul_(2)
    with pytest.raises(BadRecipe, match=r"\['weights'\] differ"):
        search(source, DATA, budget, short, checkpoint=path)


def test_from_scratch_starts_at_other_weights():
    """Zero steps are not possible, so the rates are next to nothing."""
    source = traced()
    budget = cost.budget(source.space, macs=0.5)
    still = {"epochs": 1, "batch": 64, "candidates": 1, "weight_lr": 1e-30}
    warm = search(source, DATA, budget, Settings(**still)).supernet.network
    cold = search(source, DATA, budget, Settings(**still, warm_start=False)).supernet.network
    assert torch.equal(warm.conv.weight, source.network.conv.weight)
    assert not torch.equal(cold.conv.weight, source.network.conv.weight)
    assert cold.blocks[0].conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (12 * 9)), rel=0.1)
    assert torch.equal(cold.bn.weight, torch.ones(12))


def test_candidates_are_distinct_feasible_and_led_by_the_most_probable():
    space = traced().space
    table = ArchitectureDistribution(space, torch.Generator().manual_seed(2), std=1.0).probabilities().detach().double()
    budget = cost.budget(space, macs=0.9)
    found = candidates(space, table, budget, 10, torch.Generator().manual_seed(0))
    assert len(found) == len(set(found)) == 10
    assert found[0] == space.architecture(table.argmax(-1).tolist())
    tight = candidates(space, table, cost.budget(space, macs=0.2), 10, torch.Generator().manual_seed(0))
    assert all(cost.macs(space, one) <= 0.2 * cost.macs(space, space.largest()) for one in [*tight])


def test_the_papers_own_network_is_searched_by_the_same_loop():
    supernet = CifarSupernet(resnet20(shortcut="tas"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (32, 3, 32, 32), generator=generator, dtype=torch.uint8)
    noise = Data("noise", Split("train", InMemory(images, torch.arange(32) % 10), (0.5,) * 3, (0.2,) * 3), classes=10)
    budget = cost.budget(supernet.space, macs=0.55)
    found = search(supernet, noise, budget, Settings(epochs=1, batch=8, candidates=1, anneal="epoch"))
    assert found.supernet is supernet
    assert cost.macs(supernet.space, found.architecture) <= budget.limits[0][1]


def test_an_impossible_budget_is_refused_before_training():
    with pytest.raises(Infeasible, match="smallest reachable cost"):
        search(Dial(), dial_data(), Budget((("macs", 1.0),)), SHORT)


def test_settings_name_the_value_that_is_wrong():
    with pytest.raises(BadRecipe, match=r"search\.epochs is at least 1, got 0"):
        Settings(epochs=0)
    with pytest.raises(BadRecipe, match=r"search\.weight_lr is above 0, got -1"):
        Settings(weight_lr=-1)


def test_a_search_starts_at_uniform_widths_or_flat():
    source = traced()
    budget = cost.budget(source.space, macs=0.5)
    started = search(source, DATA, budget, Settings(epochs=1, batch=64, candidates=1, architecture_lr=1e-9))
    assert started.architecture == uniform(source.space, budget)
    flat = search(source, DATA, budget, Settings(epochs=1, batch=64, candidates=1, architecture_lr=1e-9, start="noise"))
    assert all(max(row) < 1.1 * min(row) for row in flat.probabilities.values())


def test_a_search_whose_loss_runs_away_says_so(tmp_path: Path) -> None:
    source, options = traced(), {"epochs": 1, "batch": 32, "candidates": 1, "rows": 1}
    told = r"went from .* where guessing has 1.39: its supernet has diverged.*weight_lr \(20\)"
    with pytest.warns(Caution, match=told):
        tas.search(source, DATA, tas.budget(source.space, macs=0.5), weight_lr=20.0, **options)
    values = {**recipe_values(tmp_path), "network": {"name": "tiny_task:TinyNet", "weights": None}}
    values["search"] |= {"weight_lr": 50.0}
    run(parse(values), tmp_path / "run", until="search", display=Display(Console(quiet=True)))
    said = json.loads((tmp_path / "run" / "run.json").read_text())["warnings"]
    assert any("its supernet has diverged" in each for each in said)
    assert "its supernet has diverged" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.parametrize(
    ("losses", "classes", "far"),
    [
        ((0.1, 1.0), 10, False),  # a memorised original, cut to a tight budget
        ((0.1, 2.3), 10, True),  # a dead supernet guesses
        ((2.3, 2.3), 10, False),  # fresh weights
        ((90.0, 5.0), 10, True),
        ((0.1, 0.9), None, False),
        ((0.1, 1.1), None, True),
    ],
)
def test_a_loss_has_run_away_where_it_is_no_better_than_guessing(
    losses: tuple[float, float], classes: int | None, far: bool
) -> None:
    assert bool(astray([{"train_loss": loss} for loss in losses], classes, 0.1)) == far
    assert astray([], classes, 0.1) == ""
