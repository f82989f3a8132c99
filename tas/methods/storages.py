"""Where studies are kept: a journal file, SQLite, PostgreSQL, any URL that SQLAlchemy takes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from tas.errors import BadRecipe

_PATIENCE = 10  # seconds that a database server may take to answer

# What a database gives in the middle of a study, and what else a wrong file or URL gives when it is opened.
BROKEN = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
_UNUSABLE = (
    *BROKEN,
    sqlite3.Error,
    OSError,
    ImportError,
    ValueError,
    KeyError,
    RuntimeError,
    AttributeError,
    TypeError,
)


def storage(name: str | None) -> BaseStorage | None:
    """The storage of that name, see `optuna_study.Settings`; None is Optuna's memory. Call within `opening`."""
    if name is None:
        return None
    if name.startswith("journal:"):
        path = Path(name.removeprefix("journal:"))
        path.parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(path)))
    url = make_url(name)
    if url.get_backend_name() != "postgresql":
        return RDBStorage(name)
    if url.drivername == "postgresql":  # psycopg is what the extra installs
        url = url.set(drivername="postgresql+psycopg")
    waiting = {"pool_pre_ping": True, "connect_args": {"connect_timeout": _PATIENCE}}
    return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=waiting)


@contextmanager
def opening(name: str | None) -> Iterator[None]:
    """`BadRecipe` for whatever says that a storage cannot be used."""
    try:
        yield
    except _UNUSABLE as problem:
        raise _unreachable(name, problem) from problem


@contextmanager
def working(name: str | None) -> Iterator[None]:
    """`BadRecipe` where the storage is lost while a study runs."""
    try:
        yield
    except BROKEN as problem:
        raise _unreachable(name, problem) from problem


def _unreachable(name: str | None, problem: BaseException) -> BadRecipe:
    told: BaseException = problem
    while told.__cause__ is not None:  # the driver's own words
        told = told.__cause__
    if isinstance(told, ModuleNotFoundError):
        extra = ": pip install 'tas[postgres]'" if told.name == "psycopg" else ""
        return BadRecipe(
            f"the storage {shown(name)} needs the Python module {told.name}, which is not installed{extra}"
        )
    reason = (str(told).strip().splitlines() or [type(told).__name__])[0]
    return BadRecipe(f"the storage of a study must be reachable, {shown(name)} is not: {reason}")


def shown(name: str | None) -> str:
    """A storage's name without its password."""
    try:
        return make_url(name or "").render_as_string(hide_password=True)
    except ArgumentError:  # journal:PATH
        return str(name)


@contextmanager
def alone(name: str | None) -> Iterator[None]:
    """Hold a SQLite study for this process, until it ends in whatever way; nothing for other storages.

    SQLite locks whole files for every write, and worse on network drives, so that processes would wait for each other
    and give up. The lock lies in a second file, where it does not hinder those who only read, such as a dashboard.
    """
    path = make_url(name).database if name and name.startswith("sqlite") else None
    if path is None or path in ("", ":memory:"):
        yield
        return
    with opening(name):
        held = sqlite3.connect(f"{path}.lock", timeout=0, isolation_level=None)
    with closing(held):
        try:
            held.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as problem:
            raise BadRecipe(
                f"a study in SQLite is for one process, another one is at {shown(name)}: wait for it, or share "
                "journal:PATH (on one machine) or postgresql://... (on several)"
            ) from problem
        yield
