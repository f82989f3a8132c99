"""Tables on a narrow terminal: no number and no name is broken."""

import pytest
from rich.console import Console

from tas.printing import blocks, show

HEADER = ["network", "top1", "to original", "MACs", "MACs ratio", "compression", "ms, batch 1", "n", "remarks"]
REMARK = "within noise of the best and the original; uses 90% of the budget; starts from scratch"
ROWS = [
    ["adaptive_bn", "94.50 ± 1.01", "-2.30", "764.39 k", "11.15", "8.15", "1.05 (0.79–1.39)", "5", REMARK],
    ["scratch-E", "72.76 ± 6.27", "-24.04", "764.39 k", "11.15", "8.15", "10.24 (9.71–12.18)", "5", ""],
]


def test_a_table_that_fits_stays_one() -> None:
    assert blocks((HEADER, ROWS), 200) == [(HEADER, ROWS)]
    assert blocks((["a"], []), 10) == [(["a"], [])]


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_on_a_narrow_terminal_every_number_is_whole(
    width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    show(False, {}, (HEADER, ROWS))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= width
    for cell in [*HEADER, *(cell for row in ROWS for cell in row if cell != REMARK)]:
        assert cell in out, cell
    parts = blocks((HEADER, ROWS), Console().width)
    assert [name for header, _ in parts for name in header[1:]] == HEADER[1:]
    assert all([row[0] for row in rows] == ["adaptive_bn", "scratch-E"] for _, rows in parts)


def test_words_that_are_wider_than_the_terminal_have_a_block_of_their_own() -> None:
    header, rows = ["a", "b", "c"], [["x", "y" * 90, "z"]]
    assert [part for part, _ in blocks((header, rows), 80)] == [["a", "b"], ["a", "c"]]
