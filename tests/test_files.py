"""Files are whole or not there, and JSON that every reader takes."""

import json
import math
from pathlib import Path

import pytest

from tas.errors import BadRecipe
from tas.files import json_text, rounded, whole, write_json, write_lines


def test_a_file_that_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with whole(path) as beside:
        beside.write_text("first")
        assert not path.exists()

    def interrupted() -> None:
        with whole(path) as beside:
            beside.write_text("half of the sec")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    def refuse(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    value = {"a": math.nan, "b": [1.5, math.inf, {"c": (-math.inf, 2)}], "d": "NaN"}
    plain = {"a": None, "b": [1.5, None, {"c": [None, 2]}], "d": "NaN"}
    assert json.loads(json_text(value), parse_constant=refuse) == plain
    write_json(tmp_path / "one.json", value)
    write_lines(tmp_path / "many.jsonl", [value, 3])
    assert json.loads((tmp_path / "one.json").read_text(), parse_constant=refuse) == plain
    lines = (tmp_path / "many.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [plain, 3]


def test_a_value_that_json_cannot_hold_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "x.json", {"b": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a" / "x.json", {"b": object()})
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == {"b": 1}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("value", "kept"), [(91.73123456, 91.7312), (0.0000123456789, 0.0000123457), (0.0, 0.0), (100.0, 100.0)]
)
def test_numbers_of_files_have_six_figures_whatever_their_size(value: float, kept: float) -> None:
    assert rounded(value) == kept
    assert math.isnan(rounded(math.nan))


def test_a_place_that_takes_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "a.json", tmp_path / "file" / "deep" / "a.json"):
        with pytest.raises(BadRecipe, match=r"a\.json cannot be written: .*; choose another place"):
            write_json(place, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
