"""What SQLite and the system say of a journal that cannot be used, in words and by its kind."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path
from typing import Final

from fluxwatchd.errors import (
    ConfigError,
    FluxwatchdError,
    StateBlocked,
    StateDamaged,
    StateLost,
)

REBUILT: Final = "what is pending is found again by looking into the inboxes"

_DAMAGED: Final = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_LOCKED: Final = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_NOT_OURS: Final = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
_BROKEN: Final = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PROTOCOL}
_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def lost(error: sqlite3.Error, path: Path) -> StateLost | None:
    """``error`` as what is wrong with the journal at ``path``; None if it is a mistake of ours.

    Kinds are told by SQLite's result codes (sqlite.org/rescode.html), whose lowest byte is the
    kind and whose rest the detail.
    """
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return full(path, str(error))
    if code in _LOCKED:
        return StateBlocked(
            f"the journal {path} is locked: {error}",
            hint="End the program that holds it (a database browser?); a command of fluxwatchd "
            "never holds it for long.",
        )
    if code in _DAMAGED:
        return damaged(path, str(error))
    if code in _NOT_OURS or code in _BROKEN:
        return StateLost(
            f"the journal {path} cannot be used: {error}",
            hint="See that the state folder's disk is mounted for writing, has room and is sound "
            "(the system's log tells), and that the service's user may write there.",
        )
    return None


def not_opened(error: sqlite3.Error | OSError, path: Path) -> FluxwatchdError:
    """Why the journal at ``path`` cannot be opened.

    A ConfigError where only a person can mend it, so that no restart is tried in vain.
    """
    if isinstance(error, OSError):
        if is_full(error):
            return full(path, os.strerror(error.errno or 0))
    elif _code(error) not in _NOT_OURS and (known := lost(error, path)) is not None:
        return known
    return ConfigError(
        f"the journal {path} cannot be opened: {error}",
        hint="Check daemon.state_dir and who may write there.",
    )


def moved(path: Path) -> StateLost:
    """The file at ``path`` is no longer the one that was opened."""
    return StateLost(
        f"{path} was deleted or replaced while the daemon ran",
        hint=f"Start the daemon again; {REBUILT}. Stop it before you touch its state folder.",
    )


def damaged(path: Path, what: str) -> StateDamaged:
    """The journal at ``path`` is no longer whole."""
    return StateDamaged(
        f"the journal {path} is damaged: {what}",
        hint="Start the daemon again: it keeps the damaged file under another name and begins a "
        f"new journal; {REBUILT}.",
    )


def full(path: Path, what: str) -> StateBlocked:
    """There is no room for what has to be written to ``path``."""
    return StateBlocked(
        f"there is no room in the state folder {path.parent}: {what}",
        hint="Free some space there, or name another daemon.state_dir.",
    )


def is_full(error: OSError) -> bool:
    """Whether a system call failed for want of room, quota or the right to a larger file."""
    return error.errno in _FULL


def _code(error: sqlite3.Error) -> int:
    """The kind of SQLite's error; 0 for those that Python's module raises by itself."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
