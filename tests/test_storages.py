"""A storage that cannot be used is told of in one line, without its password; SQLite is for one process."""

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
import torch
from toys import data, network

import tas
from tas.errors import BadRecipe
from tas.methods.storages import kept, shown

SMALL: dict[str, Any] = {"candidates": 4, "startup": 2, "images": 48, "calibration_images": 48}


@pytest.fixture(scope="module")
def source() -> tas.Traced:
    return tas.trace(network(), torch.zeros(2, 1, 8, 8))


def searched(source: tas.Traced, where: str, **options: Any) -> tas.SearchResult:
    budget = tas.budget(source.space, macs=0.6)
    return tas.search(source, data(), budget, "optuna", storage=where, **{**SMALL, **options})


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("postgresql://user:secret@127.0.0.1:1/none", "refused"),
        ("mysql://user:secret@127.0.0.1/none", "needs the Python module MySQLdb"),
        ("nonsense://user:secret@host/x", "nonsense"),
        ("sqlite:///{folder}/none/s.db", "unable to open"),
        ("journal:{folder}/file/j", "exists"),
        ("journal:{folder}", "directory"),
        ("journal:{folder}/file", "Expecting value"),
        ("journal:{folder}/other.jsonl", "op_code"),
        ("journal:/proc/tas.journal", "No such file"),  # not even root can write there
        ("sqlite:///{folder}/file", "not a database"),
    ],
)
def test_a_storage_that_cannot_be_used_is_told_of(source: tas.Traced, tmp_path: Path, where: str, reason: str) -> None:
    (tmp_path / "file").write_text("no journal, and no database either\n")
    (tmp_path / "other.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(BadRecipe) as caught:
        searched(source, where.format(folder=tmp_path))
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_driver_that_is_missing_is_named_with_its_extra(source: tas.Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(BadRecipe, match=r"needs the Python module psycopg, .*: pip install 'tas\[postgres\]'"):
        searched(source, "postgresql://127.0.0.1:1/none")


def test_a_storage_that_is_lost_on_the_way_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    where = "sqlite:///s.db"
    problem = optuna.exceptions.StorageInternalError("gone")
    problem.__cause__ = sqlite3.OperationalError("disk I/O error\nmore")
    with pytest.raises(BadRecipe, match=r"sqlite:///s\.db is not: disk I/O error$"), kept(where):
        raise problem
    with pytest.raises(ZeroDivisionError), kept(where):  # a bug stays a bug
        raise ZeroDivisionError


def test_passwords_are_not_shown_and_paths_are() -> None:
    assert shown("postgresql://user:secret@host/db") == "postgresql://user:***@host/db"
    assert shown("journal:/a/b") == "journal:/a/b"


def test_a_study_in_sqlite_is_for_one_process(source: tas.Traced, tmp_path: Path) -> None:
    where = f"sqlite:///{tmp_path / 's.db'}"
    held = sqlite3.connect(tmp_path / "s.db.lock", isolation_level=None)  # as another process does
    held.execute("BEGIN EXCLUSIVE")
    with pytest.raises(BadRecipe, match=r"for one process, another one is at sqlite:.*journal:PATH.*postgresql"):
        searched(source, where)
    assert not (tmp_path / "s.db").exists()
    held.close()
    first = searched(source, where)
    assert len(searched(source, where, candidates=5).candidates) == len(first.candidates) + 1
    with kept(where) as storage:
        assert len(optuna.load_study(study_name="tas", storage=storage).trials) >= 5
        with sqlite3.connect(tmp_path / "s.db") as reader:  # who only reads is not hindered
            assert reader.execute("select count(*) from trials").fetchone()[0] >= 5
        reader.close()


@pytest.mark.parametrize("kind", ["journal:", "sqlite:///"])
def test_a_study_opens_in_optuna_dashboard(source: tas.Traced, tmp_path: Path, kind: str) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    where = f"{kind}{tmp_path / 's'}"
    searched(source, where, measures=("macs",), sampler="nsga2")
    with kept(where) as storage:
        app = dashboard.wsgi(storage)
        (summary,) = answer(app, "/api/studies")["study_summaries"]
        detail = answer(app, f"/api/studies/{summary['study_id']}")
    assert summary["study_name"] == "tas"
    assert summary["directions"] == ["maximize", "minimize"]
    assert detail["objective_names"] == ["top1", "macs"]
    scored = [trial for trial in detail["trials"] if trial["state"] == "Complete"]
    assert len(scored) == 4
    assert all(len(trial["values"]) == 2 for trial in scored)


def answer(app: Any, path: str) -> Any:
    """What a page of the dashboard is made of."""
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    status: list[str] = []
    body = b"".join(app({**environ, "PATH_INFO": path}, lambda code, headers, info=None: status.append(code)))
    assert status == ["200 OK"]
    return json.loads(body)
