"""An import path names exactly one thing, or the error says which part of it is wrong."""

import math

import pytest

from tas.errors import BadData, BadRecipe
from tas.importing import imported


def test_a_path_names_an_attribute_or_one_inside_it() -> None:
    assert imported("math:pi", BadRecipe) == math.pi
    assert imported("pathlib:Path.cwd", BadRecipe)() is not None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("math", "reads package.module:attribute"),
        (":pi", "reads package.module:attribute"),
        ("math:", "reads package.module:attribute"),
        ("./mine.py:small", r"names no file, got './mine.py:small': mine:small, from its folder"),
        ("no_such_module:x", "cannot import 'no_such_module'"),
        ("math:pie", "'math' has no attribute 'pie'"),
    ],
)
def test_a_wrong_path_raises_the_error_asked_for(path: str, message: str) -> None:
    with pytest.raises(BadData, match=message):
        imported(path, BadData)
