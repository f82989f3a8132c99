"""What did pruning forget? The images and the classes that a population of pruned networks sees differently from a
population of originals (Hooker et al. 2019, "What Do Compressed Deep Neural Networks Forget?").

A population is int64 predictions [networks, images]: the label that each network gives each image. The networks of a
population should be independent: trained from different seeds, and every student from an original of its own. With one
original for all students, that one's own peculiarities would count as the effect of pruning.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tas.errors import BadData

ENOUGH = 5  # networks a population for exemplars; the paper has 30
_ROUNDING = 1e-9  # of percentages
_TINY = 1e-300  # keeps Lentz's ratios from dividing by 0
_SPLITS = 50  # random halves of the originals that say what chance gives


@dataclass(frozen=True)
class Exemplar:
    """An image (its place in the split) to which the two populations give different labels. `original` and `student`
    are their most frequent labels, given by `originals_agree` and `students_agree` networks."""

    image: int
    label: int
    original: int
    student: int
    originals_agree: int
    students_agree: int


@dataclass(frozen=True)
class Exemplars:
    """`found`: the firmest first. Then the accuracies in percent of both populations on these images and off them (None
    where there is no such image), and what chance gives: the mean number of exemplars between two random halves of
    the originals (`chance`), and between a half of the originals and as many students (`pruned`)."""

    found: tuple[Exemplar, ...]
    originals_on: float | None
    originals_off: float | None
    students_on: float | None
    students_off: float | None
    chance: float
    pruned: float


@dataclass(frozen=True)
class Shift:
    """How a class fared beside the whole: mean recalls in percent, and `shift` in points, (students' recall - their
    accuracy) - (originals' recall - their accuracy). t, df, p: Welch's test. p_holm: p adjusted for the number of
    classes tested (Holm 1979). None where there is nothing to test by: one network, or no spread in either
    population."""

    label: int
    images: int
    originals: float
    students: float
    shift: float
    t: float | None = None
    df: float | None = None
    p: float | None = None
    p_holm: float | None = None


def exemplars(originals: Tensor, students: Tensor, labels: Tensor) -> Exemplars:
    """Pruning-identified exemplars: images whose most frequent label differs between the populations.

    originals [K, N], students [L, N]: predictions; labels [N]: the truth. Where labels tie for the most frequent, an
    image counts only if no label is most frequent in both populations, so that none hangs on how ties are broken.
    `BadData` below `ENOUGH` networks a population: few votes disagree by chance alone.
    """
    classes = _classes(originals, students, labels)
    if min(len(originals), len(students)) < ENOUGH:
        raise BadData(
            f"exemplars need {ENOUGH} networks of each kind at least, got {len(originals)} originals and "
            f"{len(students)} students: add seeds"
        )
    votes = [_votes(each, classes) for each in (originals, students)]
    apart = _apart(*votes)
    (agree, modal), (students_agree, student_modal) = (each.max(1) for each in votes)
    columns = (labels, modal, student_modal, agree, students_agree)
    images = apart.nonzero().flatten().tolist()
    found = [Exemplar(image, *(int(column[image]) for column in columns)) for image in images]
    share = {each: each.originals_agree / len(originals) + each.students_agree / len(students) for each in found}
    found.sort(key=lambda each: (-share[each], each.image))
    on, off = ([_accuracy(each, labels, where) for each in (originals, students)] for where in (apart, ~apart))
    chance, pruned = _by_halves(originals, students, classes)
    return Exemplars(tuple(found), on[0], off[0], on[1], off[1], chance, pruned)


def recall_shifts(originals: Tensor, students: Tensor, labels: Tensor) -> tuple[Shift, ...]:
    """One `Shift` a class that has images, by label.

    originals [K, N], students [L, N]: predictions; labels [N]: the truth. As in the paper, every recall is compared
    less the mean accuracy of its population, so a class is impacted if it lost more, or less, than the whole. That
    accuracy counts as a constant in the test, which makes p a little too large where there are few classes (for two,
    t comes out at 0.7 of its value). Of many classes some have a small p by chance: `p_holm` is for that.
    """
    classes = _classes(originals, students, labels)
    populations = [originals.double(), students.double()]
    accuracies = [100 * (each == labels).double().mean() for each in populations]
    shifts = []
    for label in range(classes):
        mine = labels == label
        if not mine.any():
            continue
        recalls = [100 * (each[:, mine] == label).double().mean(1) for each in populations]
        before, after = (recall - accuracy for recall, accuracy in zip(recalls, accuracies, strict=True))
        means = [float(recall.mean()) for recall in recalls]
        shift = Shift(label, int(mine.sum()), means[0], means[1], float(after.mean() - before.mean()))
        test = welch(after, before)
        shifts.append(replace(shift, t=test.t, df=test.df, p=test.p) if test else shift)
    adjusted = holm([shift.p for shift in shifts])
    return tuple(replace(shift, p_holm=p) for shift, p in zip(shifts, adjusted, strict=True))


@dataclass(frozen=True)
class Welch:
    """t, degrees of freedom (None where no value differs from any other) and two-sided p."""

    t: float
    df: float | None
    p: float


def welch(one: Tensor, other: Tensor) -> Welch | None:
    """Welch's two-sample t-test of the means of two float columns, variances unequal.

    None below two values a column. Without any spread p is 1 for equal means; for others there is no test: None.
    """
    if min(len(one), len(other)) < 2:
        return None
    difference = float(one.mean() - other.mean())
    errors = [float(column.var()) / len(column) for column in (one, other)]
    if sum(errors) < _ROUNDING**2:
        return None if abs(difference) > _ROUNDING else Welch(0.0, None, 1.0)
    t = difference / math.sqrt(sum(errors))
    parts = [error**2 / (len(column) - 1) for error, column in zip(errors, (one, other), strict=True)]
    df = sum(errors) ** 2 / sum(parts)
    return Welch(t, df, two_sided(t, df))


def two_sided(t: float, df: float) -> float:
    """P(|T| >= |t|) of Student's t with df > 0 degrees of freedom: I_x(df/2, 1/2) at x = df / (df + t^2)."""
    return incomplete_beta(df / 2, 0.5, df / (df + t * t))


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), a, b > 0, x in [0, 1], to about 1e-12: the continued fraction
    DLMF 8.17.22, evaluated by the method of Lentz, on the side of the mean where it converges fast."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x) - math.log(a)
    )
    value, above, below = 1.0, 1.0, 0.0  # the fraction, and ratios of its last numerators and denominators
    for step in range(1, 1000):
        m = step // 2
        if step % 2:
            part = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            part = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        above, below = 1 + part / (above or _TINY), 1 / (1 + part * below or _TINY)
        value *= above * below
        if abs(above * below - 1) < 1e-15:
            break
    return front / value


def holm(values: list[float | None]) -> list[float | None]:
    """p adjusted for the number of tests, step down (Holm 1979): where those below 0.05 are called, one table in twenty
    at most holds a false alarm. None was not tested and does not count."""
    tested = sorted((p, place) for place, p in enumerate(values) if p is not None)
    adjusted, largest = list(values), 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[place] = largest
    return adjusted


def _by_halves(originals: Tensor, students: Tensor, classes: int) -> tuple[float, float]:
    """(chance, pruned) of `Exemplars`."""
    size, generator = min(len(originals) // 2, len(students)), torch.Generator().manual_seed(0)
    counts = [0, 0]
    for _ in range(_SPLITS):
        order = torch.randperm(len(originals), generator=generator)
        drawn = torch.randperm(len(students), generator=generator)[:size]
        half = _votes(originals[order[:size]], classes)
        for place, others in enumerate((originals[order[size : 2 * size]], students[drawn])):
            counts[place] += int(_apart(half, _votes(others, classes)).sum())
    return counts[0] / _SPLITS, counts[1] / _SPLITS


def _votes(predictions: Tensor, classes: int) -> Tensor:
    """How many networks [K, N] give each label: int16 [N, classes]."""
    votes = torch.zeros(predictions.shape[1], classes, dtype=torch.int16)
    return votes.scatter_add_(1, predictions.T.long(), torch.ones(predictions.T.shape, dtype=torch.int16))


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """bool [N]: no label has the most votes [N, classes] in both."""
    most = (one == one.amax(1, keepdim=True)) & (other == other.amax(1, keepdim=True))
    return ~most.any(1)


def _accuracy(predictions: Tensor, labels: Tensor, where: Tensor) -> float | None:
    if not where.any():
        return None
    return 100 * float((predictions == labels)[:, where].double().mean())


def _classes(originals: Tensor, students: Tensor, labels: Tensor) -> int:
    """One more than the largest label; `BadData` unless predictions [K, N], [L, N] and labels [N] fit together."""
    shapes = [list(each.shape) for each in (originals, students, labels)]
    fitting, sizes = [len(shape) for shape in shapes] == [2, 2, 1], {shape[-1] for shape in shapes}
    if not fitting or len(sizes) > 1 or any(0 in shape for shape in shapes):
        raise BadData(f"predictions are [networks, images] of the images that labels [images] name, got {shapes}")
    if min(int(each.min()) for each in (originals, students, labels)) < 0:
        raise BadData("labels and predictions are whole numbers from 0")
    return 1 + max(int(each.max()) for each in (originals, students, labels))
