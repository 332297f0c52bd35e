"""What is known of the files in the inboxes, read once and then only where it changed.

Most files are not in the table; but thousands may be held back, put off, or done and kept, and the
daemon asks at every look. Only its own connection writes the table, so triggers of that connection
note what changed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from fluxwatchd.journal.rows import FILE_COLUMNS, FileState, file_state_of
from fluxwatchd.journal.store import Store

_NOTE: Final = """
    CREATE TEMP TABLE IF NOT EXISTS touched (inbox BLOB NOT NULL, relative BLOB NOT NULL);
    CREATE TEMP TRIGGER IF NOT EXISTS file_made AFTER INSERT ON main.files
        BEGIN INSERT INTO touched VALUES (new.inbox, new.relative); END;
    CREATE TEMP TRIGGER IF NOT EXISTS file_changed AFTER UPDATE ON main.files
        BEGIN INSERT INTO touched VALUES (new.inbox, new.relative); END;
    CREATE TEMP TRIGGER IF NOT EXISTS file_forgotten AFTER DELETE ON main.files
        BEGIN INSERT INTO touched VALUES (old.inbox, old.relative); END;
"""
_TOUCHED: Final = f"""
    SELECT inbox, relative, files.relative IS NOT NULL, {FILE_COLUMNS}
    FROM (SELECT DISTINCT inbox, relative FROM touched)
    LEFT JOIN files USING (inbox, relative)
"""  # noqa: S608 - constants


class FileStates:
    """The table of files, in memory, by inbox and by Entry.name."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known: dict[bytes, dict[str, FileState]] = {}

    def of(self, inbox: bytes) -> Mapping[str, FileState]:
        """What is known about the files of one inbox now. Raises StateLost."""
        with self._store.lock:
            if not self._known:
                self._store.note(_NOTE)
            self._catch_up()
            if inbox not in self._known:
                rows = self._store.all(
                    f"SELECT {FILE_COLUMNS} FROM files WHERE inbox = ?",  # noqa: S608 - constants
                    (inbox,),
                )
                self._known[inbox] = {os.fsdecode(row[0]): file_state_of(row) for row in rows}
            return MappingProxyType(self._known[inbox])

    def _catch_up(self) -> None:
        """Read again what has changed since the last time."""
        rows = self._store.all(_TOUCHED)
        for inbox, relative, is_known, *columns in rows:
            files = self._known.get(inbox)
            if files is None:
                continue
            if is_known:
                files[os.fsdecode(relative)] = file_state_of(columns)
            else:
                files.pop(os.fsdecode(relative), None)
        if rows:
            self._store.note("DELETE FROM touched")
