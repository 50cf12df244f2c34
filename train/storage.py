"""Where a study is kept: a journal file, or any database that Optuna can open by URL.

::

    runs/k49/tune/digits.journal        a file, one JSON object per line, which survives a kill and is shared through its lock file
    sqlite:///study.db                  or postgresql://..., mysql://...

Refused with one line: a file that is no journal, a database that cannot be opened. A last line that was cut short by a kill is cut off.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.study import Study
from sqlalchemy import make_url
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError

from .errors import TrainError
from .space import Choices, Space
from .workers import Worker

STARTS = 50  # a tenth of a second apart
# RuntimeError: tables of another version of Optuna. ImportError: the driver of the database is not installed.
_FAILURES = (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError, ImportError)


# What Optuna raises while it goes through a journal whose entries are not what it writes.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, AssertionError, ArithmeticError, optuna.exceptions.OptunaError)


class _Line(msgspec.Struct):
    """What every line of a journal says; 10 is Optuna's last code."""

    op_code: Annotated[int, msgspec.Meta(ge=0, le=10)]
    worker_id: str


class _Attributes(TypedDict, total=False):
    """What a trial says besides its values; see ``Attempt`` and ``_give_back`` in ``tune``."""

    worker: Worker
    beat: float
    reason: str
    queued: dict[str, Any]


@contextmanager
def opened(where: str) -> Iterator[BaseStorage]:
    """The storage in ``where``, a URL (with ``://``) or a path. A database that is lost meanwhile is a :class:`TrainError` too."""
    if "://" not in where:
        yield _journal(Path(where))
        return
    hidden = re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", where)  # the password does not belong on a screen
    try:
        # Workers wait for each other's transactions; SQLite's own patience is 5 s.
        arguments = {"connect_args": {"timeout": 60}} if where.startswith("sqlite") else {}
        if arguments and (file := make_url(where).database):
            _refuse_no_file(Path(file))
        storage = _database(where, arguments)
    except _FAILURES as error:
        raise TrainError(f"storage (={hidden}) cannot be opened: {_first_line(error)}; sqlite:///study.db is one in a file") from error
    try:
        yield storage
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise TrainError(f"storage (={hidden}) failed: {_first_line(error)}; what is finished is kept, the same command goes on") from error
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _database(where: str, arguments: dict[str, Any]) -> RDBStorage:
    """The database, whose tables are made where it is new; of workers that start together one makes each, and the others find it made."""
    for left in range(STARTS, 0, -1):
        try:
            return RDBStorage(where, engine_kwargs=arguments)
        except (OperationalError, ProgrammingError, IntegrityError) as error:
            if left == 1 or not re.search("already exists|unique", str(error), re.IGNORECASE):
                raise
            time.sleep(0.1)
    raise AssertionError("the last start returns or raises")


def check_study(study: Study, space: Space) -> None:
    """Raise TrainError where trials say something of another type than this package writes, or try what is not in ``space``."""
    try:
        for trial in study.get_trials(deepcopy=False):
            msgspec.convert(trial.user_attrs, _Attributes)
            for name, value in trial.params.items():
                told = space.get(name)
                if told is None or (value not in told.keys if isinstance(told, Choices) else not isinstance(value, int | float)):
                    raise ValueError(f"{name} is not of the space")
    except ValueError as error:
        raise TrainError(f"study (={study.study_name}) is damaged: {str(error)[:120]}; take another --study") from error


def _refuse_no_file(path: Path) -> None:
    if path.is_dir():
        raise TrainError(f"storage (={path}) is a folder; name a file, such as {path / 'study.journal'}")
    if path.exists() and not path.is_file():  # a pipe, say, which would be waited for
        raise TrainError(f"storage (={path}) is not a file; name one, or a name that is not taken yet")


def _journal(path: Path) -> JournalStorage:
    _refuse_no_file(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = JournalFileOpenLock(str(path), grace_period=10)  # a lock this old was left by a kill; it is held for milliseconds
    if path.exists():
        _check_journal(path)
        lock.acquire()
        try:
            _cut_torn_line(path)
        finally:
            lock.release()
    try:
        return JournalStorage(JournalFileBackend(str(path), lock))
    except _UNREADABLE as error:
        raise TrainError(
            f"storage (={path}) is damaged ({_first_line(error)}); name a new file, or a database as sqlite:///FILE"
        ) from error


def _check_journal(path: Path) -> None:
    *lines, _ = path.read_bytes().split(b"\n")  # what comes after the last line's end was cut short by a kill
    if not lines and path.stat().st_size:
        lines = [b""]
    for number, line in enumerate(lines, 1):
        try:
            msgspec.json.decode(line, type=_Line)
        except (ValueError, RecursionError) as error:
            told = f"storage (={path}) is no journal of Optuna (line {number})"
            raise TrainError(f"{told}; name a new file, or a database as sqlite:///FILE") from error


def _cut_torn_line(path: Path) -> None:
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:120]}"
