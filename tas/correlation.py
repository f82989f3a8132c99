"""How far one ranking of networks agrees with another: Pearson, Spearman and Kendall, with bootstrap intervals.

Meant for scores against what the same networks reach after training. EagleEye's own figures (Li et al. 2020, fig. 4, 21
to 24 networks each) are a Kendall of 0.46 to 0.64 for recalibrated scores and about 0 for raw ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tas.errors import BadData

_NUMBERS_AT_ONCE = 1 << 22  # pairs x resamples held at once: 32 MB


@dataclass(frozen=True)
class Correlation:
    """A coefficient in [-1, 1] with its bootstrap interval, of `count` networks (see `by_group` for its counts).
    NaN where it is not defined: all values equal, or no such pair."""

    value: float
    low: float
    high: float
    count: int


def correlations(
    scores: Sequence[float],
    reached: Sequence[float],
    generator: torch.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, Correlation]:
    """{"pearson": ..., "spearman": ..., "kendall": ...} of two columns of numbers, one row a network.

    Intervals are percentiles of the coefficient over networks drawn with replacement. With 24 networks a Spearman of
    0.7 has an interval of about 0.35 to 0.87: say so beside every claim. BadData for columns of other than equal
    lengths, of fewer than 3 networks, or with values that are no numbers.
    """
    x, y = _columns(scores, reached)
    drawn = _drawn(len(x), resamples, generator)
    measures = {"pearson": pearson, "spearman": spearman, "kendall": kendall}
    return {name: _interval(partial(_of_rows, of, x, y), drawn, level, len(x)) for name, of in measures.items()}


def by_group(
    scores: Sequence[float],
    reached: Sequence[float],
    groups: Sequence[int],
    generator: torch.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> dict[str, dict[str, Correlation]]:
    """The three coefficients "within" groups and "across" them, such as depths: a score may rank networks of one depth
    well and still misjudge depths.

    Kendall counts the pairs of one group, or of two. Pearson correlates the deviations from the means of the groups, or
    these means, each as often as its group has networks; Spearman does so with the ranks among all. Means of fewer than
    3 groups are NaN: two points always lie on a line. `count` is of pairs, of networks not alone in their group, and of
    groups.
    """
    x, y = _columns(scores, reached)
    if len(groups) != len(x):
        raise BadData(f"every network needs a group, got {len(groups)} groups of {len(x)} networks")
    group = torch.tensor(groups).unique(return_inverse=True)[1]
    member = torch.nn.functional.one_hot(group).double()
    drawn = _drawn(len(x), resamples, generator)
    same = _pairs(group[None], torch.eq)
    sizes = member.sum(0)
    found = {}
    for name, alike in (("within", True), ("across", False)):
        networks = int(sizes[sizes > 1].sum()) if alike else len(sizes)
        measures = {
            "pearson": (partial(_parted, x, y, member, alike, False), networks),
            "spearman": (partial(_parted, x, y, member, alike, True), networks),
            "kendall": (partial(_grouped, x, y, group, alike), int((same == alike).sum())),
        }
        found[name] = {key: _interval(of, drawn, level, count) for key, (of, count) in measures.items()}
    return found


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Of the rows of two tensors [..., n] -> [...]."""
    x, y = (v - v.mean(-1, keepdim=True) for v in (x, y))
    return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()


def spearman(x: Tensor, y: Tensor) -> Tensor:
    """Pearson of the ranks, equal values sharing the mean of theirs: [..., n] -> [...]."""
    return pearson(ranks(x), ranks(y))


def kendall(x: Tensor, y: Tensor) -> Tensor:
    """Kendall's tau-b, which makes up for ties: [..., n] -> [...]."""
    return _tau(_signs(x), _signs(y))


def ranks(x: Tensor) -> Tensor:
    """Ranks from 1 along the last dimension, equal values sharing the mean of theirs."""
    below = (x[..., None, :] < x[..., :, None]).double().sum(-1)
    equal = (x[..., None, :] == x[..., :, None]).double().sum(-1)
    return below + (equal + 1) / 2


def _of_rows(measure: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    return measure(x[rows], y[rows])


def _grouped(x: Tensor, y: Tensor, group: Tensor, alike: bool, rows: Tensor) -> Tensor:
    counted = (_pairs(group[rows], torch.eq) == alike).double()
    return _tau(_signs(x[rows]) * counted, _signs(y[rows]) * counted)


def _parted(x: Tensor, y: Tensor, member: Tensor, within: bool, ranked: bool, rows: Tensor) -> Tensor:
    """Pearson of the deviations from the means of the groups, or of these means; `member` [n, groups] is one-hot."""
    member = member[rows]
    sizes = member.sum(-2, keepdim=True)
    parts = []
    for column in (x[rows], y[rows]):
        column = ranks(column) if ranked else column
        means = ((column[..., None] * member).sum(-2, keepdim=True) / sizes.clamp(min=1) * member).sum(-1)
        parts.append(column - means if within else means)
    found = _rounded_pearson(*parts)
    return found if within else found.masked_fill((sizes > 0).sum(-1)[..., 0] < 3, float("nan"))


def _rounded_pearson(x: Tensor, y: Tensor) -> Tensor:
    """NaN also where a column is constant but for rounding, as the deviations of groups of one are."""
    found = pearson(x, y)
    spreads = torch.stack([v.std(-1) / v.abs().amax(-1).clamp(min=1) for v in (x, y)]).amin(0)
    return found.masked_fill(spreads < 1e-12, float("nan"))


def _tau(x: Tensor, y: Tensor) -> Tensor:
    """From the signs of the differences of all pairs [..., pairs]."""
    return (x * y).sum(-1) / (x.abs().sum(-1) * y.abs().sum(-1)).sqrt()


def _signs(x: Tensor) -> Tensor:
    return _pairs(x, lambda a, b: (a - b).sign())


def _pairs(x: Tensor, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """A function of the two members of every pair: [..., n] -> [..., n (n - 1) / 2]."""
    first, second = torch.triu_indices(x.shape[-1], x.shape[-1], 1)
    return function(x[..., first], x[..., second])


def _columns(scores: Sequence[float], reached: Sequence[float]) -> tuple[Tensor, Tensor]:
    x, y = (torch.tensor(values, dtype=torch.float64) for values in (scores, reached))
    if len(x) != len(y) or len(x) < 3:
        raise BadData(f"a correlation needs two columns of one length, 3 or more, got {len(x)} and {len(y)}")
    if not (x.isfinite().all() and y.isfinite().all()):
        raise BadData("a correlation needs numbers only: leave out networks whose score is not a number")
    return x, y


def _drawn(count: int, resamples: int, generator: torch.Generator) -> Tensor:
    """The sample itself, then samples with replacement: indices [1 + resamples, count]."""
    return torch.cat([torch.arange(count)[None], torch.randint(count, (resamples, count), generator=generator)])


def _interval(measure: Callable[[Tensor], Tensor], drawn: Tensor, level: float, count: int) -> Correlation:
    """Of a measure of the networks at indices [..., n]; the first row of `drawn` is the sample itself."""
    step = max(1, _NUMBERS_AT_ONCE // drawn.shape[1] ** 2)
    values = torch.cat([measure(rows) for rows in drawn.split(step)])
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = values[1:].nanquantile(ends).tolist()
    return Correlation(float(values[0]), low, high, count)
