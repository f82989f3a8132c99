"""Files that are there whole or not at all, and values as JSON knows them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from tas.errors import BadRecipe


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to. What was written there takes the place of `path` at once when the block ends,
    so that a reader, or a crash, finds the old file or the new one; where the block raises, it is gone. `BadRecipe`
    where nothing can be written there."""
    beside = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.touch()
        beside.unlink()
    except OSError as problem:
        raise BadRecipe(f"{path} cannot be written: {problem.strerror}; choose another place") from problem
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    with whole(path) as beside:
        beside.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """One JSON value, indented; numbers as in `json_text`."""
    write_text(path, json_text(value, indent=2) + "\n")


def write_lines(path: Path, values: Iterable[Any]) -> None:
    """One JSON value a line."""
    write_text(path, "".join(json_text(value) + "\n" for value in values))


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether a value, read from a file or not written yet, is a number."""
    return value is not None and math.isfinite(value)


def read_json(path: Path) -> Any:
    """The value in a JSON file, None where there is no such file; `BadRecipe` where it is no JSON."""
    return _parsed(path, path.read_text()) if path.is_file() else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The values of a file with one JSON value a line, none where there is no such file; `BadRecipe` as above."""
    return [_parsed(path, line) for line in path.read_text().splitlines()] if path.is_file() else []


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as problem:
        raise BadRecipe(f"{path} must be JSON, as runs write it: {problem}; restore it, or run again") from problem


def json_text(value: Any, indent: int | None = None) -> str:
    """As JSON that every reader takes: what is not a number (NaN, infinity), for which JSON has no word, is null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def rounded(value: float) -> float:
    """To six significant figures, whatever the size: 91.7312 percent, and an error of 0.0000123457."""
    return float(f"{value:.6g}")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list | tuple) else value
