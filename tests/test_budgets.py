"""A learned distribution at several budgets, and the front of what was scored."""

import pytest
import torch
from test_methods import chain
from toys import data, network

import tas
from tas import cost
from tas.errors import Infeasible
from tas.methods.budgets import at_budgets
from tas.methods.learned import candidates_at, table_of
from tas.methods.standing import front
from tas.objectives import Objective, cross_entropy, top1
from tas.sampling import in_band
from tas.scoring import Score
from tas.space import Budget

DATA = data()


def peaked(space: tas.SearchSpace) -> dict[str, tuple[float, ...]]:
    """A distribution as a search leaves it: nearly sure of one architecture, whose widths grow along the chain."""
    found = {}
    for place, choice in enumerate(space.choices):
        steps = torch.arange(len(choice.candidates), dtype=torch.float64) - 2 - place
        found[choice.name] = tuple((-4 * steps.abs()).softmax(0).tolist())
    return found


@pytest.mark.parametrize("ratio", [0.05, 0.15, 0.3, 0.6, 0.95])
def test_candidates_lie_in_the_band_of_any_budget_below_and_above_the_learned_one(ratio: float) -> None:
    space = chain()
    budget = cost.budget(space, macs=ratio)
    found = candidates_at(space, table_of(space, peaked(space)), budget, 12, torch.Generator().manual_seed(0))
    rows = torch.tensor([space.indices(one) for one in found])
    assert len(set(found)) == len(found) == 12
    assert bool(cost.feasible(space, rows, budget).all())
    assert float(in_band(space, rows, budget).double().mean()) > 0.7


def test_what_the_distribution_learned_survives_the_tilt() -> None:
    space = chain()
    for ratio in (0.1, 0.3):
        budget = cost.budget(space, macs=ratio)
        found = candidates_at(space, table_of(space, peaked(space)), budget, 8, torch.Generator().manual_seed(0))
        widths = torch.tensor([[one[f"w{place}"] for place in range(4)] for one in found]).double().mean(0)
        assert widths[3] > widths[0]  # the learned order; its costs alone would favour neither end


def test_a_certain_distribution_still_reaches_every_budget() -> None:
    space = chain()
    certain = {c.name: tuple(float(k == 0) for k in range(len(c.candidates))) for c in space.choices}
    budget = cost.budget(space, macs=0.9)
    found = candidates_at(space, table_of(space, certain), budget, 3, torch.Generator().manual_seed(0))
    assert all(cost.macs(space, one) <= dict(budget.limits)["macs"] for one in found)
    assert max(cost.macs(space, one) for one in found) > 0.8 * cost.macs(space, space.largest())


def test_probabilities_of_another_space_are_refused() -> None:
    space = chain()
    with pytest.raises(ValueError, match="another space"):
        table_of(space, {**peaked(space), "w0": (0.5, 0.5)})
    with pytest.raises(ValueError, match="has no choice 'elsewhere'"):
        table_of(space, {**peaked(space), "elsewhere": (0.5, 0.5)})
    table = table_of(space, peaked(space))
    assert table.shape == (5, 10)
    torch.testing.assert_close(table.sum(-1), torch.ones(5, dtype=torch.float64))


def test_one_distribution_serves_several_budgets_and_a_larger_one_is_never_worse() -> None:
    source = tas.trace(network(), torch.zeros(2, 1, 8, 8))
    space = source.space
    budgets = [cost.budget(space, macs=ratio) for ratio in (0.3, 0.8, 0.5)]
    options = {"candidates": 4, "images": 64, "seed": 3}
    found = at_budgets(source, DATA, peaked(space), budgets, **options)
    assert found == at_budgets(source, DATA, peaked(space), budgets, **options)
    for one, budget in zip(found, budgets, strict=True):
        assert all(cost.macs(space, s.architecture) <= dict(budget.limits)["macs"] for s in one.candidates)
        assert one.architecture == one.candidates[0].architecture
    best = [one.candidates[0].recalibrated for one in found]
    assert best[0] <= best[2] <= best[1]
    known = Score(space.smallest(), 101.0, None, 0.0, 64)
    again = at_budgets(source, DATA, peaked(space), budgets, known=[known], **options)
    assert {one.architecture for one in again} == {space.smallest()}
    with pytest.raises(Infeasible):
        at_budgets(source, DATA, peaked(space), [Budget((("macs", 1.0),))])


def scored(space: tas.SearchSpace, width: int, metric: float, images: int = 10) -> Score:
    return Score(tas.Architecture.of({**space.smallest(), "w0": width}), metric, None, 1.0, images)


def test_the_front_holds_what_nothing_cheaper_reaches() -> None:
    space = chain()
    a, b, c, d = (scored(space, width, metric) for width, metric in ((4, 10.0), (8, 9.0), (12, 20.0), (16, 20.0)))
    early, lost = scored(space, 20, 99.0, images=5), scored(space, 24, float("nan"))
    assert front(space, [d, early, c, lost, b, a]) == [a, c]
    error = Objective(cross_entropy, top1, "error", higher_is_better=False)
    assert front(space, [d, c, b, a], objective=error) == [a, b]
    assert front(space, []) == []
