"""Where studies are kept: a journal file, SQLite, PostgreSQL, any URL that SQLAlchemy takes."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError

from tas.errors import BadRecipe

_PATIENCE = 10  # seconds that a database server may take to answer
_ATTEMPTS = 5  # to open a database in which others may just be making the tables

# What a database gives in the middle of a study, and what else comes when something is opened that is no storage.
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


@contextmanager
def kept(name: str | None) -> Iterator[BaseStorage | None]:
    """The storage of that name, see `optuna_study.Settings`, for this process; None is Optuna's memory.

    `BadRecipe` for whatever says that it cannot be used, also where it is lost on the way.
    """
    with _alone(name):
        with opening(name):
            found = _opened(name)
        try:
            yield found
        except BROKEN as problem:
            raise _unreachable(name, problem) from problem
        finally:
            if isinstance(found, RDBStorage):
                found.remove_session()
                found.engine.dispose()


def require_server(name: str | None) -> None:
    """`BadRecipe` where a storage on a server cannot be used: before hours of training, not after. (Files are made when
    they are needed.)"""
    if name and not name.startswith(("journal:", "sqlite")):
        with kept(name):
            pass


def _opened(name: str | None) -> BaseStorage | None:
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
    for _ in range(_ATTEMPTS):
        with suppress(IntegrityError, ProgrammingError):  # several processes that begin at once make the same tables
            return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=waiting)
        time.sleep(0.5)
    return RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=waiting)


@contextmanager
def opening(name: str | None) -> Iterator[None]:
    """`BadRecipe` for whatever a wrong file or URL gives."""
    try:
        yield
    except _UNUSABLE as problem:
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
def _alone(name: str | None) -> Iterator[None]:
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
