import pytest

from tas.space import Architecture, Budget, Choice, Factor, Kept, SearchSpace, Term

WIDTH, DEPTH = Choice("conv", "width", (2, 4, 8)), Choice("blocks.depth", "depth", (0, 1, 2, 3))
SPACE = SearchSpace((WIDTH, DEPTH), (), (Kept("stem", 3, "it is an input"),), ("a note",))


def test_size_of_a_choice_is_its_last_candidate() -> None:
    assert (WIDTH.size, DEPTH.size) == (8, 3)


@pytest.mark.parametrize("candidates", [(), (4, 2), (2, 2), (0, 4), (-1, 2)])
def test_widths_ascend_from_one(candidates: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must ascend from at least 1"):
        Choice("c", "width", candidates)


def test_depths_may_start_at_zero_but_not_below() -> None:
    assert Choice("d", "depth", (0, 1)).candidates == (0, 1)
    with pytest.raises(ValueError, match="at least 0"):
        Choice("d", "depth", (-1, 0))


def test_factors_are_functions_of_a_size() -> None:
    at = {kind: [Factor("c", kind, 2).at(v) for v in (1, 2, 3)] for kind in ("power", "above", "equal", "atmost")}
    assert at == {"power": [1, 4, 9], "above": [0, 0, 1], "equal": [0, 1, 0], "atmost": [1, 1, 0]}


def test_a_term_has_one_factor_a_choice() -> None:
    with pytest.raises(ValueError, match="one factor"):
        Term(1, (Factor("c", "power", 1), Factor("c", "above", 1)))


def test_choices_of_a_space_have_distinct_names() -> None:
    with pytest.raises(ValueError, match="distinct names"):
        SearchSpace((WIDTH, WIDTH), ())


def test_an_architecture_is_a_hashable_mapping_with_a_json_round_trip() -> None:
    a = Architecture.of({"conv": 4, "blocks.depth": 1})
    assert dict(a) == {"conv": 4, "blocks.depth": 1}
    assert a["conv"] == 4
    assert len(a) == 2
    assert Architecture.from_json(a.to_json()) == a
    assert {a: "found"}[Architecture.from_json(a.to_json())] == "found"
    assert a != Architecture.of({"conv": 8, "blocks.depth": 1})


def test_indices_and_architecture_are_inverse() -> None:
    for indices in [(0, 0), (2, 3), (1, 2)]:
        assert SPACE.indices(SPACE.architecture(indices)) == indices


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"conv": 4}, r"missing \['blocks.depth'\]"),
        ({"conv": 4, "blocks.depth": 1, "typo": 1}, r"unknown \['typo'\]"),
        ({"conv": 5, "blocks.depth": 1}, r"'conv' takes one of \(2, 4, 8\), got 5"),
    ],
)
def test_foreign_architectures_are_told_apart(values: dict[str, int], message: str) -> None:
    assert not SPACE.contains(values)
    with pytest.raises(ValueError, match=message):
        SPACE.indices(values)


def test_named_architectures() -> None:
    assert dict(SPACE.largest()) == {"conv": 8, "blocks.depth": 3}
    assert dict(SPACE.smallest()) == {"conv": 2, "blocks.depth": 0}
    assert SPACE.contains(SPACE.largest())
    assert SPACE.contains(SPACE.smallest())


@pytest.mark.parametrize(("ratio", "width"), [(1.0, 8), (0.5, 4), (0.4, 4), (0.374, 2), (0.375, 4), (0.0, 2), (2.0, 8)])
def test_uniform_takes_the_nearest_width_the_larger_of_two_and_every_block(ratio: float, width: int) -> None:
    assert dict(SPACE.uniform(ratio)) == {"conv": width, "blocks.depth": 3}


def test_an_empty_space_has_one_architecture() -> None:
    empty = SearchSpace((), ())
    assert empty.largest() == empty.smallest() == Architecture(())
    assert empty.indices({}) == ()


def test_plain_data_tells_choices_kept_sizes_and_notes() -> None:
    data = SPACE.to_dict()
    assert data["choices"][0] == {"name": "conv", "kind": "width", "candidates": [2, 4, 8]}
    assert data["kept"] == [{"name": "stem", "size": 3, "reason": "it is an input"}]
    assert data["notes"] == ["a note"]


def test_spaces_and_budgets_are_values() -> None:
    assert hash(SPACE) == hash(SearchSpace((WIDTH, DEPTH), ()))
    assert SearchSpace((WIDTH, DEPTH), (), SPACE.kept) == SPACE  # notes say nothing about equality
    assert Budget((("macs", 5.0),)) == Budget((("macs", 5.0),), 0.05)
