"""The scripts of scripts/benchmarks import what there is: nobody runs them for months."""

import runpy
from pathlib import Path

import pytest

SCRIPTS = sorted((Path(__file__).parents[1] / "scripts" / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_benchmarks_can_be_imported(script, monkeypatch):
    monkeypatch.syspath_prepend(str(script.parent))  # some are made of two files
    assert runpy.run_path(str(script), run_name="imported")["__doc__"]
