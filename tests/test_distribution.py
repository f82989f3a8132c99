import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch

from tas.distribution import ArchitectureDistribution, Pick, one_hot, temperature
from tas.space import Choice, SearchSpace

SPACE = SearchSpace(
    (
        Choice("a", "width", (2, 4, 6, 8)),
        Choice("b", "width", (3, 5)),
        Choice("blocks", "depth", (0, 1, 2)),
        Choice("fixed", "width", (7,)),
    ),
    (),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distribution(spread: float = 1.0) -> ArchitectureDistribution:
    return ArchitectureDistribution(SPACE, generator(), std=spread)


def gumbel(shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The noise that the first draw with this seed sees."""
    return -np.log(torch.empty(shape).exponential_(generator=generator(seed)).numpy())


def test_logits_start_small_and_reproducible():
    large = SearchSpace(tuple(Choice(f"w{i}", "width", tuple(range(1, 9))) for i in range(200)), ())
    logits = ArchitectureDistribution(large, generator(3)).logits
    assert logits.std().item() == pytest.approx(0.01, rel=0.05)
    assert torch.equal(logits, ArchitectureDistribution(large, generator(3)).logits)


def test_probabilities_are_a_softmax_per_row_and_zero_in_padding():
    dist = distribution()
    table = dist.probabilities().detach().numpy()
    logits = dist.logits.detach().numpy()
    for row, choice in enumerate(SPACE.choices):
        n = len(choice.candidates)
        exponentials = np.exp(logits[row, :n])
        np.testing.assert_allclose(table[row, :n], exponentials / exponentials.sum(), rtol=1e-5)
        assert (table[row, n:] == 0).all()


def test_weights_come_from_the_noise_that_chose_them():
    dist = distribution()
    tau = 0.7
    noise = gumbel((4, 4), seed=5)
    log_p = dist.log_probabilities().detach().numpy()
    picks = dist.draw(generator(5), tau)
    for row, choice in enumerate(SPACE.choices[:3]):
        z = (log_p[row] + noise[row]) / tau
        pick = picks[choice.name]
        used = [choice.candidates.index(value) for value in pick.values]
        expected = np.exp(z[used]) / np.exp(z[used]).sum()
        assert pick.weights is not None
        np.testing.assert_allclose(pick.weights.detach().numpy(), expected, rtol=1e-4)
    assert picks["fixed"] == Pick((7,), None)


@pytest.mark.parametrize("selection", ["multinomial", "top2"])
def test_a_draw_has_two_ascending_widths_and_every_depth(selection):
    dist = distribution()
    for seed in range(50):
        picks = dist.draw(generator(seed), 0.1, selection)
        assert len(picks["a"].values) == 2
        assert picks["a"].values == tuple(sorted(picks["a"].values))
        assert picks["b"].values == (3, 5)
        assert picks["blocks"].values == (0, 1, 2)
        for pick in picks.values():
            assert pick.weights is None or pick.weights.sum().item() == pytest.approx(1, abs=1e-6)


def test_number_of_candidates_is_an_option():
    assert len(distribution().draw(generator(), 1.0, candidates=3)["a"].values) == 3
    single = distribution().draw(generator(), 1.0, candidates=1)["a"]
    assert (len(single.values), single.weights) == (1, None)
    assert distribution().draw(generator(), 1.0, candidates=9)["a"].values == (2, 4, 6, 8)


def test_top2_takes_the_two_largest_noisy_logits():
    dist = distribution()
    for seed in range(20):
        z = dist.log_probabilities().detach().numpy()[0] + gumbel((4, 4), seed)[0]
        expected = tuple(SPACE.choices[0].candidates[k] for k in sorted(np.argsort(z)[-2:]))
        assert dist.draw(generator(seed), 1.0, "top2")["a"].values == expected


def test_pairs_are_as_frequent_as_a_multinomial_without_replacement_says():
    """Given the noise, a pair has probability p_i p_j / (1 - p_i) + p_j p_i / (1 - p_j)."""
    runs, tau, logits = 5000, 0.8, np.array([1.0, -1.0, 0.5, 0.0])
    many = SearchSpace(tuple(Choice(str(run), "width", (2, 4, 6, 8)) for run in range(runs)), ())
    dist = ArchitectureDistribution(many)
    dist.logits.data[:] = torch.from_numpy(logits)
    drawn = Counter(pick.values for pick in dist.draw(generator(1), tau).values())

    noise = np.random.default_rng(2).gumbel(size=(200_000, 4))
    p = np.exp((logits + noise) / tau)
    p /= p.sum(1, keepdims=True)
    for i, j in itertools.combinations(range(4), 2):
        both = p[:, i] * p[:, j] / (1 - p[:, i]) + p[:, j] * p[:, i] / (1 - p[:, j])
        frequency = drawn[2 * (i + 1), 2 * (j + 1)] / runs
        assert abs(frequency - both.mean()) < 4 * math.sqrt(both.mean() / runs)


def test_gradients_agree_with_finite_differences():
    dist = distribution().double()

    def value() -> torch.Tensor:
        picks = dist.draw(generator(5), 0.8)
        return sum((pick.weights * torch.tensor(pick.values)).sum() for pick in picks.values() if len(pick.values) > 1)

    value().backward()
    gradient = dist.logits.grad.clone()
    step = 1e-6
    for row, column in np.ndindex(4, 4):
        with torch.no_grad():
            dist.logits[row, column] += step
            above = value().item()
            dist.logits[row, column] -= 2 * step
            below = value().item()
            dist.logits[row, column] += step
        assert gradient[row, column].item() == pytest.approx((above - below) / (2 * step), abs=1e-5)
    assert (gradient[2, :3] != 0).all()
    assert (gradient[dist.absent] == 0).all()


def test_a_loss_moves_the_logits_of_the_chosen_widths_alone():
    """log_softmax shifts all z of a row alike, and the softmax over the chosen ones cancels the shift."""
    dist = distribution().double()
    pick = dist.draw(generator(2), 1.0)["a"]
    assert pick.weights is not None
    pick.weights[0].backward()
    used = [SPACE.choices[0].candidates.index(value) for value in pick.values]
    moved = dist.logits.grad[0].abs() > 1e-12
    assert moved.nonzero().flatten().tolist() == used


def test_samples_are_as_frequent_as_the_probabilities():
    dist = distribution()
    indices = dist.sample(generator(1), 40_000)
    table = dist.probabilities().detach()
    for row in range(4):
        frequency = torch.bincount(indices[:, row], minlength=4) / len(indices)
        torch.testing.assert_close(frequency, table[row], atol=0.012, rtol=0)


def test_log_probability_adds_up_to_one_over_the_space():
    dist = distribution()
    grid = torch.cartesian_prod(torch.arange(4), torch.arange(2), torch.arange(3), torch.arange(1))
    assert dist.log_probability(grid).exp().sum().item() == pytest.approx(1, abs=1e-5)
    best = grid[dist.log_probability(grid).argmax()]
    assert dist.mode() == SPACE.architecture(best.tolist())


def test_one_hot_uses_one_value_a_choice():
    picks = one_hot(SPACE.smallest())
    assert picks == {"a": Pick((2,)), "b": Pick((3,)), "blocks": Pick((0,)), "fixed": Pick((7,))}


@pytest.mark.parametrize(
    ("schedule", "start", "halfway"), [("cosine", 5.0, 2.55), ("linear", 10.0, 5.05)], ids=["code", "paper"]
)
def test_temperature_falls_to_a_tenth(schedule, start, halfway):
    at = [temperature(fraction, start, schedule=schedule) for fraction in (0.0, 0.5, 1.0)]
    assert at == pytest.approx([start, halfway, 0.1])


def test_a_space_without_choices_draws_nothing():
    dist = ArchitectureDistribution(SearchSpace((), ()))
    assert dist.draw(generator(), 1.0) == {}
    assert dist.sample(generator(), 3).shape == (3, 0)


def test_an_unknown_selection_is_refused():
    with pytest.raises(ValueError, match="'multinomial' or 'top2'"):
        distribution().draw(generator(), 1.0, "best")
