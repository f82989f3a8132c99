"""Identities against slow definitions: which positions survive when any set of atoms is removed."""

import numpy as np

from tas.tracing.identity import Identities


def survivors(identities: Identities, rows: np.ndarray, removed: set[int]) -> list[bool]:
    """Which positions are kept when these root atoms are removed."""
    known = identities.canonical(rows)
    return [True] * len(rows) if known is None else [not removed & set(map(int, row)) for row in known]


def test_random_pairs_merge_as_in_a_slow_union_find() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        identities = Identities()
        atoms = identities.fresh(30)
        slow = list(range(30))
        for _ in range(4):
            left, right = generator.integers(30, size=(2, 8))
            identities.unify(atoms[left], atoms[right], "a test")
            for a, b in zip(left, right, strict=True):
                slow = [slow[b] if s == slow[a] else s for s in slow]
        found = identities.canonical(atoms)
        assert found is not None
        fast = found[:, 0]
        assert all((fast[i] == fast[j]) == (slow[i] == slow[j]) for i in range(30) for j in range(30))


def test_what_meets_a_frozen_atom_is_frozen_too() -> None:
    identities = Identities()
    a, b, c = (identities.fresh(4) for _ in range(3))
    identities.freeze(a[:2], "the first two stay")
    identities.unify(a, b, "they meet")
    identities.unify(b, c, "and meet again")
    known = identities.canonical(c)
    assert known is not None
    assert (known[:, 0] == 0).tolist() == [True, True, False, False]
    assert identities.reason(a) == "the first two stay"


def test_a_dimension_split_in_two_is_kept_where_both_factors_are() -> None:
    identities = Identities()
    whole = identities.fresh(6)
    outer, inner = identities.factor(whole, [3, 2], "a test", [True, True])
    assert outer is not None
    assert inner is not None
    gone = {int(outer[1, 0]), int(inner[0, 0])}
    assert survivors(identities, whole, gone) == [False, True, False, False, False, True]
    assert np.array_equal(identities.canonical(identities.outer([outer, inner], [3, 2])), identities.canonical(whole))


def test_the_same_dimension_split_twice_gives_the_same_factors() -> None:
    identities = Identities()
    whole = identities.fresh(12)
    first = identities.factor(whole, [3, 4], "a test", [True, True])
    second = identities.factor(whole, [3, 4], "a test", [True, True])
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(identities.canonical(one), identities.canonical(other))


def test_two_dimensions_split_apart_and_joined_have_common_factors() -> None:
    identities = Identities()
    left, right = identities.fresh(6), identities.fresh(6)
    a = identities.factor(left, [3, 2], "a test", [True, True])
    identities.unify(left, right, "they meet")
    b = identities.factor(right, [3, 2], "a test", [True, True])
    assert all(np.array_equal(identities.canonical(x), identities.canonical(y)) for x, y in zip(a, b, strict=True))


def test_factors_that_do_not_match_are_kept() -> None:
    identities = Identities()
    left, right = identities.fresh(12), identities.fresh(12)
    identities.factor(left, [3, 4], "a test", [True, True])
    identities.factor(right, [4, 3], "a test", [True, True])
    identities.unify(left, right, "they meet")
    generator = np.random.default_rng(0)
    for _ in range(50):  # whatever is removed, both lose the same positions
        found = [identities.canonical(rows) for rows in (left, right)]
        used = {int(a) for rows in found if rows is not None for a in np.unique(rows)} - {0}
        gone = {a for a in used if generator.random() < 0.3}
        assert survivors(identities, left, gone) == survivors(identities, right, gone)


def test_thousands_of_products_are_unified_at_once() -> None:
    identities = Identities()
    stream, heads, size = identities.fresh(4096), identities.fresh(64), identities.fresh(64)
    product = identities.outer([heads, size], [64, 64])
    identities.unify(stream, product, "a test")
    known = identities.canonical(stream)
    assert known is not None
    assert known.shape == (4096, 2)
    assert {int(a) for a in np.unique(known)} == {int(a) for a in (*heads[:, 0], *size[:, 0])}
