"""The database behind the journal: transactions and questions, from any thread."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

from fluxwatchd.errors import StateBlocked, StateDamaged, StateLost
from fluxwatchd.journal import opening, trouble
from fluxwatchd.journal.lock import StateLock

Step = tuple[str, Sequence[object]]
"""SQL and its values."""
BUSY = 10.0
"""Seconds that the daemon's changes wait for another program's; then patience is asked, so that a
stop is heard."""
Patience = Callable[[StateBlocked | None], bool]
"""Told why a change cannot be written now, it waits a while and says whether to try again; told
None once it was written after all."""


def none_at_all(why: StateBlocked | None) -> bool:
    """The Patience of commands: whoever waits for them can do so himself."""
    return False


class Store:
    """Two connections to one database: what must be on the disk, and what may be lost.

    With a ``lock`` it is the daemon's: then a damaged database is kept aside when it is closed, and
    ``check`` tells whether the files still have their names.
    """

    def __init__(
        self,
        path: Path,
        main: sqlite3.Connection,
        live: sqlite3.Connection,
        *,
        lock: StateLock | None = None,
        patience: Patience = none_at_all,
    ) -> None:
        self.path, self._main, self._live = path, main, live
        self._state_lock, self._patience = lock, patience
        self._standing = opening.Standing(path) if lock else None
        self._is_damaged = False
        self.kept_aside: Path | None = None
        self.lock = threading.RLock()

    @classmethod
    def of_daemon(cls, lock: StateLock, patience: Patience) -> Self:
        """The store in a locked state folder; a damaged one is kept aside and begun anew.

        Raises ConfigError, StateLost.
        """
        path = lock.folder / opening.FILE_NAME
        try:
            return cls._whole(path, lock, patience)
        except StateDamaged:
            with opening.told(path):
                aside = opening.keep_aside(path)
        store = cls._whole(path, lock, patience)
        store.kept_aside = aside
        return store

    @classmethod
    def _whole(cls, path: Path, lock: StateLock, patience: Patience) -> Self:
        with opening.told(path):
            main, live = opening.to_write(path, busy=BUSY)
            try:
                opening.refuse_damage(main, path)
            except BaseException:
                live.close()
                main.close()
                raise
        return cls(path, main, live, lock=lock, patience=patience)

    def write(self, *steps: Step) -> sqlite3.Cursor:
        """Carry out ``steps`` as one change, on the disk on return; the cursor of the first.

        While there is no room for it, or somebody holds the database, patience decides. Raises
        StateLost.
        """
        waited = False
        while True:
            try:
                cursor = self._transact(self._main, steps)
            except StateBlocked as why:
                if not self._patience(why):
                    raise
                waited = True
            else:
                if waited:
                    self._patience(None)
                return cursor

    def write_live(self, *steps: Step, many: tuple[str, Sequence[Sequence[object]]]) -> None:
        """Carry out ``steps`` and then ``many`` as one change that may be lost, without patience.

        Raises StateLost.
        """
        self._transact(self._live, steps, many)

    def all(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Every row of an answer. Raises StateLost."""
        with self.lock:
            try:
                return self._main.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise self._known(error) from error

    def one(self, sql: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
        """The first row of an answer, None if there is none. Raises StateLost."""
        rows = self.all(sql, values)
        return rows[0] if rows else None

    def note(self, script: str) -> None:
        """Run a script over temporary tables, which live in memory. Raises StateLost."""
        with self.lock:
            try:
                self._main.executescript(script)
            except sqlite3.Error as error:
                raise self._known(error) from error

    def check(self) -> None:
        """Raise StateLost if the lock or the database was deleted or replaced."""
        if self._state_lock is not None:
            self._state_lock.check()
        if self._standing is not None:
            self._standing.check()

    def close(self) -> None:
        """End; a damaged database of the daemon's gets another name. Raises OSError."""
        with self.lock:
            self._live.close()
            self._main.close()
            if self._is_damaged and self._state_lock is not None and self.path.exists():
                self.kept_aside = opening.keep_aside(self.path)

    def _transact(
        self,
        connection: sqlite3.Connection,
        steps: Sequence[Step],
        many: tuple[str, Sequence[Sequence[object]]] | None = None,
    ) -> sqlite3.Cursor:
        with self.lock:
            try:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    cursors = [connection.execute(*step) for step in steps]
                    if many is not None:
                        connection.executemany(*many)
            except sqlite3.Error as error:
                raise self._known(error) from error
        return cursors[0]

    def _known(self, error: sqlite3.Error) -> Exception:
        """``error`` as a StateLost; as it is where it is a mistake of ours."""
        found: StateLost | None = trouble.lost(error, self.path)
        self._is_damaged = self._is_damaged or isinstance(found, StateDamaged)
        return found or error
