import pytest
import torch
from torch import Tensor

from tas import importance
from tas.errors import BadRecipe
from tas.importance import Site, bn_scale, l1, l1_first, l2, order, random

RANGE = torch.arange(4)


def weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sites() -> list[Site]:
    """Two convolutions that produce a stream of 4 channels, a bias, a norm, and a layer that reads it."""
    return [
        Site(weight(4, 3, 3, 3), 0, RANGE, "out"),
        Site(weight(4, seed=1), 0, RANGE, "out"),
        Site(torch.tensor([0.5, -2.0, 1.0, 0.1]), 0, RANGE, "norm"),
        Site(weight(5, 4, 1, 1, seed=2), 1, RANGE, "in"),
        Site(weight(4, 7, seed=3), 0, RANGE, "out"),
    ]


def test_l1_sums_the_rows_of_every_producer_and_of_nothing_else():
    first, _, _, _, second = (site.parameter for site in sites())
    expected = [float(first[c].abs().sum() + second[c].abs().sum()) for c in range(4)]
    assert l1(sites()).tolist() == pytest.approx(expected)
    assert l1_first(sites()).tolist() == pytest.approx([float(first[c].abs().sum()) for c in range(4)])


def test_l2_is_the_norm_of_all_producing_weights():
    first, _, _, _, second = (site.parameter for site in sites())
    expected = [float(torch.cat([first[c].flatten(), second[c]]).norm()) for c in range(4)]
    assert l2(sites()).tolist() == pytest.approx(expected)


def test_bn_scale_is_the_absolute_gamma_and_l1_without_a_norm():
    assert bn_scale(sites()).tolist() == pytest.approx([0.5, 2.0, 1.0, 0.1])
    without = [site for site in sites() if site.role != "norm"]
    assert torch.equal(bn_scale(without), l1(without))


def test_a_unit_of_several_rows_sums_over_them():
    pairs = torch.tensor([[0, 2], [1, 3]])
    rows = weight(4, 6).abs().sum(1)
    found = l1([Site(weight(4, 6), 0, pairs, "out")])
    assert found.tolist() == pytest.approx([float(rows[0] + rows[2]), float(rows[1] + rows[3])])


def test_a_transposed_weight_is_read_along_its_own_dimension():
    assert torch.allclose(l1([Site(weight(6, 4), 1, RANGE, "out")]), weight(6, 4).abs().sum(0).double())


def test_order_keeps_the_highest_first_and_ties_in_place():
    tied = [Site(torch.tensor([[1.0], [3.0], [1.0], [3.0]]), 0, RANGE, "out")]
    assert order("l1", tied).tolist() == [1, 3, 0, 2]


def test_random_follows_its_generator():
    first, second = (random(sites(), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert sorted(order("random", sites(), torch.Generator()).tolist()) == [0, 1, 2, 3]


def test_an_unknown_criterion_is_refused():
    with pytest.raises(BadRecipe, match=r"l1_first.*got 'l3'"):
        importance.scores("l3", sites())
