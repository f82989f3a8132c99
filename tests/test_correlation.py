"""Coefficients against their definitions and a second implementation; intervals against what is known of them."""

import itertools
import math

import pytest
import torch

from tas.correlation import by_group, correlations, kendall, pearson, ranks, spearman
from tas.errors import BadData


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tied(count: int = 30) -> tuple[list[float], list[float], list[int]]:
    x = torch.randint(0, 8, (count,), generator=seeded(1)).double()
    y = (x + 3 * torch.randn(count, generator=seeded(2))).round()
    return x.tolist(), y.tolist(), (x > 3).long().tolist()


def tau(pairs: list[tuple[float, float, float, float]]) -> float:
    """Tau-b by counting pairs (x1, y1, x2, y2)."""
    signs = [(math.copysign(a != c, a - c), math.copysign(b != d, b - d)) for a, b, c, d in pairs]
    total = sum(s * t for s, t in signs)
    return total / math.sqrt(sum(abs(s) for s, _ in signs) * sum(abs(t) for _, t in signs))


def test_coefficients_agree_with_a_second_implementation() -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y, _ = tied()
    a, b = torch.tensor(x).double(), torch.tensor(y).double()
    assert float(pearson(a, b)) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert float(spearman(a, b)) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert float(kendall(a, b)) == pytest.approx(stats.kendalltau(x, y).statistic)
    assert ranks(a).tolist() == stats.rankdata(x).tolist()


def test_kendall_counts_pairs_and_groups_share_them_out() -> None:
    x, y, group = tied()
    rows = list(zip(x, y, group, strict=True))
    pairs = list(itertools.combinations(rows, 2))
    found = by_group(x, y, group, seeded(), resamples=50)
    for name, alike in (("within", True), ("across", False)):
        mine, kendalls = [(a[0], a[1], b[0], b[1]) for a, b in pairs if (a[2] == b[2]) == alike], found[name]["kendall"]
        assert kendalls.value == pytest.approx(tau(mine))
        assert kendalls.count == len(mine)
        assert kendalls.low <= kendalls.value <= kendalls.high
    whole = [(a[0], a[1], b[0], b[1]) for a, b in pairs]
    assert correlations(x, y, seeded(), resamples=1)["kendall"].value == pytest.approx(tau(whole))


def test_pearson_and_spearman_tell_groups_that_agree_from_depths_that_are_misjudged() -> None:
    """Three groups: inside each the score orders as what is reached, but the groups themselves stand in reverse."""
    group = [depth for depth in range(3) for _ in range(6)]
    x = [10 * depth + float(step) for depth in range(3) for step in range(6)]
    y = [-10 * depth + float(step) for depth in range(3) for step in range(6)]
    found = by_group(x, y, group, seeded(), resamples=40)
    for name in ("pearson", "kendall"):
        assert found["within"][name].value == pytest.approx(1)
    for name in ("pearson", "spearman", "kendall"):
        assert found["across"][name].value == pytest.approx(-1)
    assert found["within"]["spearman"].value == pytest.approx(1)
    assert [found["within"][name].count for name in ("pearson", "kendall")] == [18, 45]
    assert [found["across"][name].count for name in ("pearson", "kendall")] == [3, 108]
    assert correlations(x, y, seeded(), resamples=1)["pearson"].value < 0


def test_within_groups_is_the_correlation_of_what_the_group_means_leave() -> None:
    x, y, group = tied()
    rows = [torch.tensor(values).double() for values in (x, y)]
    left = []
    for row in rows:
        means = [row[torch.tensor(group) == each].mean() for each in group]
        left.append(row - torch.stack(means))
    assert by_group(x, y, group, seeded(), resamples=1)["within"]["pearson"].value == pytest.approx(
        float(torch.corrcoef(torch.stack(left))[0, 1])
    )


def test_means_of_two_groups_and_groups_of_one_say_nothing() -> None:
    x, y, group = tied()
    assert math.isnan(by_group(x, y, group, seeded(), resamples=20)["across"]["pearson"].value)
    alone = by_group(x, y, list(range(len(x))), seeded(), resamples=20)["within"]
    assert all(math.isnan(found.value) for found in alone.values())
    assert [found.count for found in alone.values()] == [0, 0, 0]


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(40):
        x = torch.randn(40, generator=seeded(seed)).double()
        y = 0.6 * x + 0.8 * torch.randn(40, generator=seeded(seed + 1000)).double()
        found = correlations(x.tolist(), y.tolist(), seeded(seed), resamples=200, level=0.9)["pearson"]
        covered += found.low <= 0.6 <= found.high
    assert 29 <= covered <= 40  # 36 expected


def test_intervals_follow_their_seed_and_shrink_with_more_networks() -> None:
    def width(count: int) -> float:
        x, y, _ = tied(count)
        found = correlations(x, y, seeded(), resamples=200)["spearman"]
        assert found == correlations(x, y, seeded(), resamples=200)["spearman"]
        assert found.low < found.value < found.high
        return found.high - found.low

    assert width(200) < width(20) / 2


def test_perfect_agreement_and_none_at_all() -> None:
    up = [float(value) for value in range(10)]
    for name, found in correlations(up, [value**3 for value in up], seeded(), resamples=20).items():
        assert found.value > (0.9 if name == "pearson" else 0.999999)
    assert correlations(up, up[::-1], seeded(), resamples=20)["kendall"].value == pytest.approx(-1)
    assert math.isnan(correlations(up, [1.0] * 10, seeded(), resamples=20)["kendall"].value)


def test_columns_that_cannot_be_correlated_are_refused() -> None:
    for x, y, message in (
        ([1.0, 2.0], [1.0, 2.0], "3 or more"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "one length"),
        ([1.0, 2.0, math.nan], [1.0, 2.0, 3.0], "numbers only"),
    ):
        with pytest.raises(BadData, match=message):
            correlations(x, y, seeded())
    with pytest.raises(BadData, match="every network needs a group"):
        by_group([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0, 1], seeded())
