"""What pruning forgot: planted effects are found and nothing else is, null populations give uniform p-values, and what
cannot be tested is not given a number."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tas.errors import BadData
from tas.forgetting import Exemplar, exemplars, holm, incomplete_beta, recall_shifts, two_sided, welch


def population(networks: int, labels: Tensor, right: Tensor, generator: torch.Generator) -> Tensor:
    """Predictions [networks, N]: image i is right with probability right[i], else another class at random."""
    classes, shape = int(labels.max()) + 1, (networks, len(labels))
    wrong = (labels + torch.randint(1, classes, shape, generator=generator)) % classes
    return torch.where(torch.rand(shape, generator=generator) < right, labels, wrong)


LABELS = torch.arange(2000) % 20


def test_the_forgotten_class_is_found_and_no_other() -> None:
    generator = torch.Generator().manual_seed(0)
    right = torch.full((2000,), 0.95)
    originals = population(8, LABELS, right, generator)
    students = population(8, LABELS, right - 0.15 * (LABELS == 7), generator)
    shifts = recall_shifts(originals, students, LABELS)
    assert [shift.label for shift in shifts] == list(range(20))
    impacted = [shift for shift in shifts if shift.p_holm < 0.05]
    assert [shift.label for shift in impacted] == [7]
    assert impacted[0].images == 100
    assert impacted[0].p < 1e-5
    assert impacted[0].shift == pytest.approx(-15 * 0.95, abs=3)  # the whole lost 15 / 20 of a point itself


def test_a_loss_that_all_classes_share_is_no_shift() -> None:
    generator = torch.Generator().manual_seed(1)
    originals = population(8, LABELS, torch.full((2000,), 0.95), generator)
    students = population(8, LABELS, torch.full((2000,), 0.75), generator)
    shifts = recall_shifts(originals, students, LABELS)
    assert all(shift.p_holm > 0.05 for shift in shifts)
    assert all(shift.students < shift.originals - 10 for shift in shifts)
    assert sum(shift.shift for shift in shifts) == pytest.approx(0, abs=1e-9)  # classes of one size


def test_null_populations_give_uniform_p_values() -> None:
    """5 against 5 networks, 20 classes, 150 times; the mean accuracy, as a constant, costs 1 / 20 of the variance."""
    generator, values = torch.Generator().manual_seed(2), []
    for _ in range(150):
        one, other = (population(5, LABELS, torch.full((2000,), 0.8), generator) for _ in range(2))
        values += [shift.p for shift in recall_shifts(one, other, LABELS)]
    ordered = torch.tensor(values).sort().values
    expected = torch.arange(1, len(values) + 1) / len(values)
    assert float((ordered - expected).abs().max()) < 0.05
    for level in (0.05, 0.2, 0.5):
        assert 0.7 * level < float((ordered < level).double().mean()) < 1.15 * level


def test_welch_agrees_with_draws_of_its_own_distribution() -> None:
    """Two columns of unequal variances and sizes: the share of larger |t| among null draws is p."""
    generator = torch.Generator().manual_seed(3)
    one, other = torch.tensor([3.0, 9.0, 5.5, 7.0]).double(), torch.tensor([2.0, 2.5, 3.0, 2.2, 2.9, 3.4]).double()
    found = welch(one, other)
    count = 200_000
    t = torch.distributions.StudentT(torch.tensor(found.df))
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(1000, (), generator=generator)))
        share = float((t.sample((count,)).abs() >= abs(found.t)).double().mean())
    assert found.p == pytest.approx(share, abs=4 * math.sqrt(share / count))
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.ttest_ind(one.numpy(), other.numpy(), equal_var=False)
    assert (found.t, found.p, found.df) == pytest.approx((theirs.statistic, theirs.pvalue, theirs.df))


@pytest.mark.parametrize(
    ("t", "df", "p"),
    [(12.706, 1, 0.05), (4.303, 2, 0.05), (2.571, 5, 0.05), (3.169, 10, 0.01), (2.042, 30, 0.05), (1.960, 1e7, 0.05)],
)
def test_p_is_that_of_the_printed_tables(t: float, df: float, p: float) -> None:
    assert two_sided(t, df) == pytest.approx(p, rel=1e-3)
    assert two_sided(-t, df) == two_sided(t, df)


@given(st.floats(-50, 50))
def test_p_is_that_of_the_closed_forms(t: float) -> None:
    assert two_sided(t, 1) == pytest.approx(
        1 - 2 / math.pi * math.atan(abs(t)), abs=1e-7
    )  # t^2 beside df loses half of the digits
    assert two_sided(t, 2) == pytest.approx(
        1 - abs(t) / math.sqrt(2 + t * t), abs=1e-7
    )  # t^2 beside df loses half of the digits


def test_the_incomplete_beta_function_agrees_with_another_ones() -> None:
    special, draw = pytest.importorskip("scipy.special"), random.Random(0)
    for _ in range(2000):
        a, b, x = 10 ** draw.uniform(-1, 3), 10 ** draw.uniform(-1, 2), draw.random()
        assert incomplete_beta(a, b, x) == pytest.approx(special.betainc(a, b, x), abs=1e-11)
    assert (incomplete_beta(2, 3, 0), incomplete_beta(2, 3, 1)) == (0, 1)


def test_what_cannot_be_tested_has_no_p() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    right, half = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 0]])
    for one, other in ((right, half), (right.expand(5, -1), half), (right, half.expand(5, -1))):
        shifts = recall_shifts(one, other, labels)
        assert [shift.p for shift in shifts] == [shift.p_holm for shift in shifts] == [None, None]
    shifts = recall_shifts(right.expand(5, -1), half.expand(5, -1), labels)  # differences, and no spread to go by
    assert [(shift.shift, shift.p) for shift in shifts] == [(25, None), (-25, None)]
    same = recall_shifts(right.expand(5, -1), right.expand(3, -1), labels)
    assert [(shift.shift, shift.p, shift.p_holm) for shift in same] == [(0, 1, 1), (0, 1, 1)]
    mixed = torch.cat([right, half, half])  # spread in one of the two is enough; class 0 has none in either
    first, second = recall_shifts(right.expand(4, -1), mixed, labels)
    assert (first.p, second.df) == (None, 2)
    assert (
        second.p == second.p_holm == pytest.approx(two_sided(second.shift / (100 / math.sqrt(3) / 2 / math.sqrt(3)), 2))
    )


def test_a_class_without_images_has_no_row() -> None:
    labels = torch.tensor([0, 2, 2])
    shifts = recall_shifts(torch.tensor([[0, 2, 4], [1, 2, 2]]), torch.tensor([[0, 2, 2], [0, 1, 2]]), labels)
    assert [(shift.label, shift.images) for shift in shifts] == [(0, 1), (2, 2)]


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_gives_false_alarms_in_one_of_twenty_tables() -> None:
    generator = torch.Generator().manual_seed(4)
    tables = torch.rand(4000, 10, generator=generator).tolist()
    alarms = sum(min(holm(table)) < 0.05 for table in tables) / 4000
    assert alarms == pytest.approx(0.05, abs=0.012)


# Exemplars.

ORIGINALS = torch.tensor(  # one row a network, one column an image
    [[0, 1, 0, 0, 2], [0, 1, 0, 0, 2], [0, 1, 0, 1, 2], [0, 1, 1, 1, 2], [0, 2, 1, 2, 2]]
)
STUDENTS = torch.tensor([[0, 1, 1, 2, 1], [0, 1, 1, 2, 1], [1, 1, 1, 2, 1], [2, 2, 0, 0, 1], [1, 2, 0, 1, 1]])
TRUTH = torch.tensor([0, 1, 0, 0, 1])


def test_exemplars_by_hand() -> None:
    """Image 0: the students tie between 0 and 1, and 0 is what the originals say: it is none. Image 3: the originals
    tie between 0 and 1, and the students say neither."""
    found = exemplars(ORIGINALS, STUDENTS, TRUTH)
    assert found.found == (
        Exemplar(image=4, label=1, original=2, student=1, originals_agree=5, students_agree=5),
        Exemplar(image=2, label=0, original=0, student=1, originals_agree=3, students_agree=3),
        Exemplar(image=3, label=0, original=0, student=2, originals_agree=2, students_agree=3),
    )
    assert found.originals_on == pytest.approx(100 * 5 / 15)  # 3 + 2 + 0 right
    assert found.originals_off == pytest.approx(100 * 9 / 10)  # 5 + 4
    assert found.students_on == pytest.approx(100 * 8 / 15)  # 2 + 1 + 5
    assert found.students_off == pytest.approx(100 * 5 / 10)  # 2 + 3


def test_exemplars_do_not_hang_on_the_order_of_networks_or_the_names_of_classes() -> None:
    generator = torch.Generator().manual_seed(5)
    one, other = (population(6, LABELS, torch.full((2000,), 0.45), generator) for _ in range(2))
    found = {each.image for each in exemplars(one, other, LABELS).found}
    assert found
    assert found == {each.image for each in exemplars(other.flip(0), one.flip(0), LABELS).found}
    assert found == {each.image for each in exemplars(19 - one, 19 - other, 19 - LABELS).found}


def test_planted_images_are_exemplars_beyond_what_chance_gives() -> None:
    generator = torch.Generator().manual_seed(6)
    right = torch.full((2000,), 0.9)
    originals = population(8, LABELS, right, generator)
    students = population(8, LABELS, right, generator)
    planted = torch.arange(0, 2000, 50)
    students[:, planted] = (LABELS[planted] + 1) % 20
    found = exemplars(originals, students, LABELS)
    assert {each.image for each in found.found} == set(planted.tolist())
    assert found.pruned >= 0.95 * len(planted)
    assert 0 < found.chance < 0.1 * found.pruned
    assert found.students_on == 0
    assert found.originals_off == pytest.approx(90, abs=1)


def test_the_halves_of_a_null_population_differ_as_much_as_the_students_do() -> None:
    generator = torch.Generator().manual_seed(7)
    one, other = (population(8, LABELS, torch.full((2000,), 0.45), generator) for _ in range(2))
    found = exemplars(one, other, LABELS)
    assert found.chance > 20
    assert found.pruned == pytest.approx(found.chance, rel=0.15)


def test_where_nothing_differs_there_is_nothing_on_the_exemplars() -> None:
    found = exemplars(ORIGINALS, ORIGINALS, TRUTH)
    assert (found.found, found.originals_on, found.students_on) == ((), None, None)
    assert found.originals_off == found.students_off == pytest.approx(100 * 14 / 25)


def test_small_populations_are_refused() -> None:
    for one, other in ((ORIGINALS[:4], STUDENTS), (ORIGINALS, STUDENTS[:4])):
        with pytest.raises(BadData, match=f"got {len(one)} originals and {len(other)} students: add seeds"):
            exemplars(one, other, TRUTH)


@pytest.mark.parametrize(
    ("originals", "students", "labels"),
    [
        (ORIGINALS[:, :4], STUDENTS, TRUTH),
        (ORIGINALS, STUDENTS, TRUTH[:4]),
        (ORIGINALS[0], STUDENTS, TRUTH),
        (ORIGINALS[:0], STUDENTS, TRUTH),
        (ORIGINALS[:, :0], STUDENTS[:, :0], TRUTH[:0]),
        (ORIGINALS - 1, STUDENTS, TRUTH),
    ],
)
def test_what_does_not_fit_together_is_refused(originals: Tensor, students: Tensor, labels: Tensor) -> None:
    for measure in (exemplars, recall_shifts):
        with pytest.raises(BadData, match=r"labels|predictions"):
            measure(originals, students, labels)
