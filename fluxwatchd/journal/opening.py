"""The journal's file: opened, watched for being replaced, and kept aside once it is damaged."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fluxwatchd.errors import ConfigError, StateLost
from fluxwatchd.journal import schema, trouble
from fluxwatchd.trees import folder, make_root, sync_folder

FILE_NAME: Final = "journal.sqlite"

_SIDES: Final = ("", "-wal", "-shm")
"""What SQLite keeps beside a database in WAL mode: without one of them the others are no use."""
_MAY_READ_AS_IT_STANDS: Final = {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Raise what goes wrong in opening the journal at ``path`` as ConfigError or StateLost."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise trouble.not_opened(error, path) from error


def to_read(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing, even where the folder may not be written.

    SQLite wants to make its shared memory file beside a WAL database; where it may not and no
    daemon has made it, nobody is writing and the file can be read as it stands. Raises ConfigError,
    sqlite3.Error.
    """
    if not path.exists():
        raise schema.no_journal(path)
    address = path.absolute().as_uri()
    connection = _reader(f"{address}?mode=ro")
    try:
        connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF not in _MAY_READ_AS_IT_STANDS:
            raise
        connection = _reader(f"{address}?mode=ro&immutable=1")
    try:
        schema.refuse_other(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def to_write(path: Path, *, busy: float = 30.0) -> tuple[sqlite3.Connection, sqlite3.Connection]:
    """Two connections to the journal, made and migrated where need be.

    The first is for what must be on the disk, the second for what may be lost. ``busy``: s that a
    change waits for others to end theirs. Raises ConfigError, OSError, sqlite3.Error.
    """
    with contextlib.ExitStack() as undo:
        make_root(path.parent)
        path.touch()  # by the umask: SQLite alone would never let a group write
        main = _writer(path, busy)
        undo.callback(main.close)
        schema.migrate(main, path)
        # no sync a change, but one a checkpoint: it writes what others were promised
        live = _writer(path, busy, synchronous="NORMAL")
        undo.pop_all()
    return main, live


def refuse_damage(connection: sqlite3.Connection, path: Path) -> None:
    """Look through the whole database. Raises StateDamaged, sqlite3.Error."""
    (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise trouble.damaged(path, " ".join(str(found).split()))


def keep_aside(path: Path) -> Path:
    """Give a damaged journal, which nobody has open, a name of its own; returns it.

    Raises OSError.
    """
    stamp = time.strftime("%Y%m%d-%H%M%S")
    numbers = iter(range(1, 1000))
    aside = path.with_name(f"{path.stem}.damaged-{stamp}{path.suffix}")
    while os.path.lexists(aside):
        aside = path.with_name(f"{path.stem}.damaged-{stamp}.{next(numbers)}{path.suffix}")
    for side in reversed(_SIDES):  # the database last: while it is there, this is done again
        with contextlib.suppress(FileNotFoundError):
            path.with_name(path.name + side).rename(aside.with_name(aside.name + side))
    with folder(path.parent) as place:
        sync_folder(place)
    return aside


class Standing:
    """Which files were opened, so that it is noticed when others take their names."""

    def __init__(self, path: Path) -> None:
        sides = (path.with_name(path.name + side) for side in _SIDES)
        self._files = {side: found for side in sides if (found := _identity(side)) is not None}

    def check(self) -> None:
        """Raise StateLost if one of them was deleted or replaced."""
        for path, identity in self._files.items():
            if _identity(path) != identity:
                raise trouble.moved(path)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from every other; None if there is none. Raises StateLost."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StateLost(
            f"{path} cannot be looked at any more: {error.strerror}",
            hint="See that the state folder's disk is there, and start the daemon again.",
        ) from error
    return found.st_dev, found.st_ino


def _reader(address: str) -> sqlite3.Connection:
    return sqlite3.connect(address, uri=True, check_same_thread=False)


def _writer(path: Path, busy: float, *, synchronous: str = "FULL") -> sqlite3.Connection:
    connection = sqlite3.connect(
        path, timeout=busy, isolation_level=None, check_same_thread=False, cached_statements=64
    )
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA temp_store = MEMORY")  # what it notes must not need a disk
    except sqlite3.Error:
        connection.close()
        raise
    if mode != "wal":
        connection.close()
        raise ConfigError(
            f"the filesystem of {path} cannot hold the journal: it shares no memory",
            hint="Set daemon.state_dir to a folder on a disk of this machine.",
        )
    return connection
