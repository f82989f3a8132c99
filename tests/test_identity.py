"""The algebra of identities against brute force: which positions survive, for every set of kept atoms."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tas.tracing.identity import Identities, Rows

quick = settings(max_examples=60, deadline=None)


def survives(identities: Identities, rows: Rows, n: int, kept: set[int]) -> list[bool]:
    """By definition: a position stays when every one of its atoms does; atom 0 always does."""
    known = identities.canonical(rows)
    return [True] * n if known is None else [all(a == 0 or int(a) in kept for a in row) for row in known]


def some(atoms: Sequence[int], generator: np.random.Generator) -> set[int]:
    return {int(a) for a in atoms if generator.random() < 0.6}


def roots(identities: Identities, *rows: Rows) -> list[int]:
    known = [identities.canonical(r) for r in rows]
    return sorted({int(a) for k in known if k is not None for a in k.ravel() if a})


def test_fresh_atoms_are_distinct_and_never_the_frozen_one() -> None:
    identities = Identities()
    first, second = identities.fresh(5), identities.fresh(7000)
    assert len(np.unique(np.concatenate([first, second]))) == 7005
    assert first.min() > 0
    assert identities.capacity == 7006


@quick
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=20), st.lists(st.integers(1, 12), max_size=3)
)
def test_unify_is_the_finest_equivalence_that_contains_the_pairs(
    pairs: list[tuple[int, int]], frozen: list[int]
) -> None:
    identities = Identities()
    identities.fresh(12)
    for a, b in pairs:
        identities.unify(np.array([[a]]), np.array([[b]]), "test")
    for a in frozen:
        identities.freeze(np.array([[a]]), "frozen")
    label = list(range(13))
    for _ in range(13):
        for a, b in pairs:
            label[a] = label[b] = min(label[a], label[b])
    dead = {label[a] for a in frozen}
    for a, b in product(range(1, 13), repeat=2):
        one, other = (identities.canonical(np.array([[x]])) for x in (a, b))
        if label[a] in dead:
            assert one is None
        elif label[b] not in dead:
            assert (int(one[0, 0]) == int(other[0, 0])) == (label[a] == label[b])  # type: ignore[index]


def test_unify_with_none_freezes_and_tells_why() -> None:
    identities = Identities()
    rows = identities.fresh(3)
    identities.unify(rows, None, "add in block (net.py:7)")
    assert identities.canonical(rows) is None
    assert identities.reason(rows) == "it meets a size that cannot change: add in block (net.py:7)"


def test_the_first_reason_stays_when_classes_are_merged() -> None:
    identities = Identities()
    a, b = identities.fresh(2), identities.fresh(2)
    identities.freeze(a, "an input")
    identities.unify(a, b, "later")
    assert identities.canonical(b) is None


@quick
@given(st.lists(st.integers(2, 4), min_size=1, max_size=3), st.integers(0, 10**6))
def test_outer_keeps_what_all_its_parts_keep(sizes: list[int], seed: int) -> None:
    identities, generator = Identities(), np.random.default_rng(seed)
    parts = [identities.fresh(n) if generator.random() < 0.8 else None for n in sizes]
    merged = identities.outer(parts, sizes)
    kept = some(range(1, identities.capacity), generator)
    alive = [survives(identities, p, n, kept) for p, n in zip(parts, sizes, strict=True)]
    wanted = [all(flags) for flags in product(*alive)]
    assert survives(identities, merged, int(np.prod(sizes)), kept) == wanted


@quick
@given(st.lists(st.integers(2, 4), min_size=2, max_size=3), st.integers(0, 10**6))
def test_factor_undoes_outer(sizes: list[int], seed: int) -> None:
    identities, generator = Identities(), np.random.default_rng(seed)
    parts: list[Rows] = [identities.fresh(n) for n in sizes]
    back = identities.factor(identities.outer(parts, sizes), sizes, "test")
    kept = some(range(1, identities.capacity), generator)
    for part, again, n in zip(parts, back, sizes, strict=True):
        assert survives(identities, part, n, kept) == survives(identities, again, n, kept)


@quick
@given(st.integers(3, 5), st.integers(2, 5), st.integers(0, 10**6))
def test_factor_of_a_whole_dimension_refines_it_into_a_product(outer: int, inner: int, seed: int) -> None:
    """Channels that turn out to be heads x size: a channel lives when its head and its place do."""
    identities, generator = Identities(), np.random.default_rng(seed)
    rows = identities.fresh(outer * inner)
    heads, places = identities.factor(rows, [outer, inner], "test")
    kept = some(roots(identities, rows, heads, places), generator)
    wanted = [
        a and b for a, b in product(survives(identities, heads, outer, kept), survives(identities, places, inner, kept))
    ]
    assert survives(identities, rows, outer * inner, kept) == wanted
    assert heads is not None
    assert places is not None


def test_an_outer_axis_of_two_is_a_gate_and_stays() -> None:
    identities = Identities()
    rows = identities.fresh(8)
    outer, inner = identities.factor(rows, [2, 4], "chunk")
    assert outer is None
    known = identities.canonical(rows)
    assert known is not None
    assert (known[:4] == known[4:]).all()
    assert inner is not None


shapes = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4)


@quick
@given(shapes, st.integers(0, 10**6))
def test_view_keeps_elements_where_they_are(before: list[int], seed: int) -> None:
    """An element of the tensor survives the same way in both shapes, for any regrouping of the dimensions."""
    identities, generator = Identities(), np.random.default_rng(seed)
    total = int(np.prod(before))
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    first = int(generator.choice(divisors))
    after = [first, total // first] if generator.random() < 0.7 else [total]
    rows: list[Rows] = [identities.fresh(n) if n > 1 and generator.random() < 0.8 else None for n in before]
    again = identities.view(before, rows, after, "test")
    kept = some(roots(identities, *rows, *again), generator)

    def elements(shape: Sequence[int], parts: Sequence[Rows]) -> list[bool]:
        alive = [survives(identities, p, n, kept) for p, n in zip(parts, shape, strict=True)]
        return [all(flags) for flags in product(*alive)]

    assert elements(before, rows) == elements(after, again)


@quick
@given(st.integers(2, 4), st.integers(2, 4), st.integers(0, 10**6))
def test_unified_dimensions_survive_alike(groups: int, size: int, seed: int) -> None:
    """A plain dimension against a product, in either order."""
    identities, generator = Identities(), np.random.default_rng(seed)
    plain = identities.fresh(groups * size)
    whole = identities.outer([identities.fresh(groups), identities.fresh(size)], [groups, size])
    pair = [plain, whole] if generator.random() < 0.5 else [whole, plain]
    identities.unify(pair[0], pair[1], "test")
    kept = some(roots(identities, plain, whole), generator)
    n = groups * size
    assert survives(identities, plain, n, kept) == survives(identities, whole, n, kept)


@quick
@given(st.integers(2, 4), st.integers(2, 4))
def test_products_of_the_same_pattern_are_matched_column_by_column(groups: int, size: int) -> None:
    identities = Identities()
    parts = [(identities.fresh(groups), identities.fresh(size)) for _ in range(2)]
    left, right = (identities.outer(p, [groups, size]) for p in parts)
    identities.unify(left, right, "test")
    for mine, others in zip(*parts, strict=True):
        a, b = identities.canonical(mine), identities.canonical(others)
        if groups != size or a is None or b is None:
            assert a is not None
            assert b is not None
            assert (a == b).all()


def test_canonical_rows_have_no_repeats_and_no_empty_columns() -> None:
    identities = Identities()
    a, b = identities.fresh(3), identities.fresh(3)
    doubled = np.concatenate([a, a, np.zeros((3, 1), int), b], 1)
    identities.freeze(b, "kept")
    known = identities.canonical(doubled)
    assert known is not None
    assert known.tolist() == a.tolist()
