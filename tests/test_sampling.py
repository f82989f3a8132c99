import itertools
import time

import pytest
import torch

from tas import cost, sampling
from tas.errors import Infeasible
from tas.sampling import (
    draws,
    filled,
    in_band,
    most_probable,
    most_probable_feasible,
    project,
    rates,
    sample,
    sample_many,
    spent,
    tilt,
)
from tas.space import Budget, Choice, Factor, LayerCost, SearchSpace, Term


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def power(name: str) -> Factor:
    return Factor(name, "power", 1)


def resnet50() -> SearchSpace:
    """The widths of EagleEye's ResNet-50 (stem, 16 + 16 inner, 4 stages) and its 54 layers, by hand: 4.089 G MACs."""
    choices, costs = [], []

    def width(name: str, size: int) -> str:
        choices.append(Choice(name, "width", tuple(int(size * tenth / 10) for tenth in range(2, 11))))
        return name

    def layer(name: str, work: int, *sides: str) -> None:
        costs.append(LayerCost(name, "macs", (Term(work, tuple(map(power, sides))),)))

    before = width("stem", 64)
    layer("stem", 3 * 49 * 112**2, before)
    for stage, (blocks, channels, side) in enumerate([(3, 64, 56), (4, 128, 28), (6, 256, 14), (3, 512, 7)]):
        out = width(f"out{stage}", 4 * channels)
        for block in range(blocks):
            inner = [width(f"{stage}.{block}.{index}", channels) for index in range(2)]
            stride = 2 if block == 0 and stage else 1
            layer(f"{stage}.{block}.1", (side * stride) ** 2, before, inner[0])
            layer(f"{stage}.{block}.2", 9 * side**2, *inner)
            layer(f"{stage}.{block}.3", side**2, inner[1], out)
            if block == 0:
                layer(f"{stage}.shortcut", side**2, before, out)
            before = out
    layer("classifier", 1000, before)
    return SearchSpace(tuple(choices), tuple(costs))


def small(parameters: bool = False) -> SearchSpace:
    """Four choices, small enough for enumeration."""
    choices = (
        Choice("a", "width", (2, 5, 7, 10)),
        Choice("b", "width", (1, 4, 9)),
        Choice("c", "width", (3, 6, 8)),
        Choice("d", "depth", (0, 1, 2)),
    )
    costs = [
        LayerCost("first", "macs", (Term(10, (power("a"),)),)),
        LayerCost("second", "macs", (Term(1, (power("a"), power("b"))),)),
        LayerCost("third", "macs", (Term(2, (power("b"), power("c"), Factor("d", "above", 0))), Term(40, ()))),
    ]
    if parameters:
        costs.append(LayerCost("first", "params", (Term(3, (power("a"),)), Term(7, (power("c"),)))))
    return SearchSpace(choices, tuple(costs))


def grid(space: SearchSpace) -> torch.Tensor:
    return torch.tensor(list(itertools.product(*(range(len(choice.candidates)) for choice in space.choices))))


RESNET50 = resnet50()


def test_the_handmade_resnet50_is_the_real_one():
    assert len(RESNET50.choices) == 37
    assert len(RESNET50.costs) == 54
    assert cost.macs(RESNET50, RESNET50.largest()) == 4_089_184_256


def test_rates_are_those_of_eagleeye_by_simulation():
    choice = Choice("w", "width", (19, 25, 32, 38, 44, 51, 57, 64))
    space = SearchSpace((choice, Choice("d", "depth", (1, 2, 3))), ())
    table = rates(space, 0.0, 0.7)
    assert table[1].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0, 0, 0, 0])
    kept = 64 - (0.7 * torch.rand(200_000, generator=generator()) * 64).floor()
    nearest = (kept[:, None] - torch.tensor(choice.candidates)).abs().argmin(-1)
    torch.testing.assert_close(torch.bincount(nearest) / len(nearest), table[0].float(), atol=0.004, rtol=0)


def test_draws_follow_their_table_and_never_take_a_candidate_of_probability_zero():
    table = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.0, 1.0, 0.0, 0.0]]).double()
    found = draws(table, generator(), 50_000)
    frequency = torch.bincount(found[:, 0], minlength=4) / len(found)
    torch.testing.assert_close(frequency, table[0].float(), atol=0.01, rtol=0)
    assert (found[:, 1] == 1).all()


def test_without_a_budget_the_whole_range_is_drawn():
    found = sample_many(RESNET50, generator(), 500)
    assert found.shape == (500, 37)
    assert found.min() == 0
    assert found.max() == 8


@pytest.mark.parametrize("aim", ["tilt", "project", "reject"])
@pytest.mark.parametrize("ratio", [0.15, 0.5, 0.75])
def test_every_draw_lies_in_the_band(aim, ratio):
    budget = cost.budget(RESNET50, macs=ratio)
    found = sample_many(RESNET50, generator(), 200, budget, aim=aim)
    share = cost.count(RESNET50, found) / cost.macs(RESNET50, RESNET50.largest())
    assert found.shape == (200, 37)
    assert (share <= ratio + 1e-9).all()
    assert (share >= ratio - 0.05).all()
    assert len(found.unique(dim=0)) > 190


def test_all_terms_of_a_budget_hold():
    space = small(parameters=True)
    budget = Budget((("macs", 200.0), ("params", 60.0)))
    found = sample_many(space, generator(), 300, budget)
    assert (cost.count(space, found, "macs") <= 200).all()
    assert (cost.count(space, found, "params") <= 60).all()
    assert len(found.unique(dim=0)) > 1


def test_tilting_moves_the_mean_cost_and_keeps_impossible_candidates_impossible():
    table = rates(RESNET50)
    table[3, :4] = 0
    for ratio in (0.2, 0.5, 0.8):
        tilted = tilt(RESNET50, table, cost.budget(RESNET50, macs=ratio))
        mean = cost.expected(RESNET50, tilted) / cost.macs(RESNET50, RESNET50.largest())
        assert float(mean) == pytest.approx(ratio - 0.025, abs=1e-3)
        assert (tilted[3, :4] == 0).all()


def test_tilted_draws_resemble_the_conditional_distribution():
    """Where costs add up, independent draws given their cost are the tilted draws: compare with brute rejection."""
    choices = tuple(Choice(f"w{i}", "width", tuple(range(1, 9))) for i in range(30))
    layers = tuple(
        LayerCost(c.name, "macs", (Term(1 + index % 3, (power(c.name),)),)) for index, c in enumerate(choices)
    )
    space = SearchSpace(choices, layers)
    budget = cost.budget(space, macs=0.52, slack=0.02)
    plain = torch.full((30, 8), 1 / 8, dtype=torch.float64)
    brute = draws(plain, generator(1), 400_000)
    brute = brute[in_band(space, brute, budget)]
    tilted = sample_many(space, generator(2), 20_000, budget, table=plain)
    assert len(brute) > 5000
    torch.testing.assert_close(brute.double().mean(0), tilted.double().mean(0), atol=0.15, rtol=0)


def test_projection_ends_where_nothing_more_fits():
    space = small()
    budget = Budget((("macs", 150.0),))
    found = project(space, grid(space), budget, generator())
    assert cost.feasible(space, found, budget).all()
    last = torch.tensor([len(choice.candidates) - 1 for choice in space.choices])
    for column in range(4):
        larger = found.clone()
        larger[:, column] += 1
        possible = larger[:, column] <= last[column]
        assert not cost.feasible(space, larger[possible], budget).any()


def test_a_band_without_architectures_is_filled_from_below():
    space = SearchSpace((Choice("w", "width", (1, 10)),), (LayerCost("l", "macs", (Term(1, (power("w"),)),)),))
    found = sample_many(space, generator(), 5, Budget((("macs", 8.0),)))
    assert found.tolist() == [[0]] * 5


@pytest.mark.parametrize(("ratio", "batches"), [(0.5, 1), (0.97, 8)])
def test_a_table_whose_band_is_almost_empty_is_given_up_early(monkeypatch, ratio, batches):
    """Uniform rates reach 97 % of ResNet-50 once in more draws than are made, 50 % in one of thirty."""
    tested = []

    def counting(space, indices, budget):
        tested.append(len(indices))
        return in_band(space, indices, budget)

    monkeypatch.setattr(sampling, "in_band", counting)
    budget = cost.budget(RESNET50, slack=0.005, macs=ratio)
    found = sampling._rejected(RESNET50, rates(RESNET50), generator(), 5, budget)
    assert len(found) == (5 if batches == 1 else 0)
    assert tested == [8192] * batches
    whole = sample_many(RESNET50, generator(), 5, budget, aim="reject")
    assert (cost.count(RESNET50, whole) <= ratio * cost.macs(RESNET50, RESNET50.largest()) + 0.5).all()


@pytest.mark.parametrize("aim", ["tilt", "project", "reject"])
def test_an_infeasible_budget_raises_with_the_smallest_reachable_cost(aim):
    with pytest.raises(Infeasible, match=r"smallest reachable cost is \{'macs': 62\}"):
        sample_many(small(), generator(), 1, Budget((("macs", 50.0),)), aim=aim)


def test_the_same_seed_gives_the_same_draws():
    budget = cost.budget(RESNET50, macs=0.5)
    first, second = (sample_many(RESNET50, generator(4), 50, budget) for _ in range(2))
    assert torch.equal(first, second)
    assert sample(RESNET50, generator(4), budget) == sample(RESNET50, generator(4), budget)


def test_the_most_probable_are_those_of_enumeration():
    space = small()
    table = torch.rand(4, 4, generator=generator(3)).double()
    table[1:, 3] = 0
    everything = grid(space)
    probability = table[torch.arange(4), everything].prod(-1)
    expected = everything[probability.argsort(descending=True)]
    assert torch.equal(most_probable(table, 20), expected[:20])
    assert len(most_probable(table, 10_000)) == len(everything)


@pytest.mark.parametrize("limit", [70.0, 120.0, 250.0])
def test_the_most_probable_feasible_are_those_of_enumeration(limit):
    space, budget = small(), Budget((("macs", limit),))
    table = torch.rand(4, 4, generator=generator(3)).double()
    table[1:, 3] = 0
    everything = grid(space)
    fitting = everything[cost.feasible(space, everything, budget)]
    expected = fitting[table[torch.arange(4), fitting].prod(-1).argsort(descending=True)]
    found = most_probable_feasible(space, table, budget, 5)
    assert torch.equal(found, expected[: len(found)])
    assert len(found) == min(5, len(fitting))


def test_with_the_mode_far_above_the_budget_no_random_feasible_draw_is_more_probable_than_those_found():
    table = torch.zeros(37, 9).double() + 0.02
    table[:, 8] = 0.84
    budget = cost.budget(RESNET50, macs=0.5)
    found = most_probable_feasible(RESNET50, table, budget, 10)
    assert len(found) == 10
    assert cost.feasible(RESNET50, found, budget).all()
    chances = table.log()[torch.arange(37), found].sum(-1)
    random = sample_many(RESNET50, generator(), 5000, budget, table=table)
    assert chances[0] >= table.log()[torch.arange(37), random].sum(-1).max()


def test_candidates_spend_the_budget_by_the_learned_probabilities():
    space, table = small(), rates(small())
    budget = Budget((("macs", 150.0),))
    pool = grid(space)[cost.feasible(space, grid(space), budget)]
    found = spent(space, table, budget, pool, 8)
    assert found[0] == space.architecture(pool[0].tolist())  # the first one as it is
    assert len(set(found)) == len(found) == 8
    rows = torch.tensor([space.indices(one) for one in found[1:]])
    assert leaves_nothing(space, rows, budget)
    start, wanted = torch.zeros(len(space.choices), dtype=torch.long), len(space.choices) - 1
    liked = filled(space, budget, start, lambda choice, index: float(choice != wanted))
    step = torch.zeros_like(start).index_fill(0, torch.tensor([wanted]), 1)
    most = max(k for k in range(len(space.choices[-1].candidates)) if bool(cost.feasible(space, step * k, budget)))
    assert int(liked[wanted]) == most  # the wanted choice first, as far as it goes


def leaves_nothing(space: SearchSpace, rows: torch.Tensor, budget: Budget) -> bool:
    """Whether no choice of any row can be one candidate larger."""
    for row in rows:
        for column, choice in enumerate(space.choices):
            larger = row.clone()
            larger[column] += 1
            if larger[column] < len(choice.candidates) and bool(cost.feasible(space, larger, budget)):
                return False
    return bool(cost.feasible(space, rows, budget).all())


def test_a_hundred_thousand_draws_take_about_a_second():
    """Processor time on one thread, best of three; 2 s are allowed, since a busy neighbour on the same core slows that
    too (measured: 0.4 s alone)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    budget, table, seconds = cost.budget(RESNET50, macs=0.5), rates(RESNET50), []
    for seed in range(3):
        start = time.thread_time()
        in_band(RESNET50, draws(table, generator(seed), 100_000), budget)
        seconds.append(time.thread_time() - start)
    torch.set_num_threads(threads)
    assert min(seconds) < 2
