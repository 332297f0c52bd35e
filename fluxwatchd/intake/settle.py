"""When a file is quiet and whole.

A file is settled when it is a non-empty regular file whose size, modification time and inode have
not changed for ``settle_seconds`` and that nobody has open for writing. This survives a copy in
chunks with pauses shorter than that, a copy that sets the full size first (the writer is seen), a
file that is replaced, deleted, or made again while it is watched (it starts anew), and a wall clock
that is set back (only the monotonic clock counts). A file that is empty or does not decode is tried
again with growing pauses until it has not changed for ``settle_timeout``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fluxwatchd.intake.scan import Entry

LONGEST_PAUSE: Final = 30.0
"""Seconds between two tries of a file that does not decode."""

TOGETHER: Final = 0.05
"""Seconds: files due within this time of each other are looked at once."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What can be worked on now, and when to look again.

    ``ready`` keeps the scan's order. ``hopeless`` have been empty for all of settle_timeout, and
    are not put off.
    ``due`` is in seconds from the look at hand; None if nothing is waiting to settle.
    """

    ready: tuple[Entry, ...]
    hopeless: tuple[Entry, ...]
    due: float | None


@dataclass(slots=True)
class _Quiet:
    """How a file is, since when, and until when it is put off; s on the monotonic clock."""

    entry: Entry
    since: float
    not_before: float = 0.0
    pause: float = 0.0

    def is_still(self, entry: Entry) -> bool:
        known = self.entry
        return (
            known.size == entry.size
            and known.mtime_ns == entry.mtime_ns
            and known.inode == entry.inode
            and known.device == entry.device
        )


class Settler:
    """Remembers since when each file of each folder has been as it is. For one thread."""

    def __init__(self, settle_seconds: float, settle_timeout: float) -> None:
        self._seconds = settle_seconds
        self._timeout = settle_timeout
        self._folders: dict[str, dict[str, _Quiet]] = {}

    def observe(self, folder: str, entries: Iterable[Entry], now: float) -> Settled:
        """Take note of a folder's files at ``now``, s on a monotonic clock.

        Files that are no longer among ``entries`` are forgotten. A ready file is in every answer
        until it changes or goes. Do not call it for a folder that is paused.
        """
        before = self._folders.get(folder, {})
        known: dict[str, _Quiet] = {}
        ready: list[Entry] = []
        hopeless: list[Entry] = []
        dues: list[float] = []
        for entry in entries:
            quiet = before.get(entry.name)
            if quiet is None or not quiet.is_still(entry):
                quiet = _Quiet(entry, since=now)
            known[entry.name] = quiet
            due = self._due(quiet)
            if due > now:
                dues.append(due)
            elif entry.size:
                ready.append(entry)
            else:
                hopeless.append(entry)
        self._folders[folder] = known
        return Settled(tuple(ready), tuple(hopeless), _together(dues, now))

    def retry_later(self, folder: str, entry: Entry, now: float) -> float:
        """Put off a file that does not decode or has a writer; returns the pause, s.

        Pauses grow from settle_seconds (at least 0.1 s) by a factor of 2 up to 30 s, and end no
        later than settle_timeout after the file's last change. A file that changed meanwhile, or
        is not known, is not put off: the pause is 0.
        """
        quiet = self._folders.get(folder, {}).get(entry.name)
        if quiet is None or not quiet.is_still(entry):
            return 0.0
        longest = max(LONGEST_PAUSE, self._seconds)
        quiet.pause = min(max(2 * quiet.pause, self._seconds, 0.1), longest)
        end = quiet.since + self._timeout
        quiet.not_before = min(now + quiet.pause, end) if now < end else now + quiet.pause
        return quiet.not_before - now

    def gave_up(self, folder: str, entry: Entry, now: float) -> bool:
        """Whether the file has not changed for settle_timeout: what it is now, it stays."""
        quiet = self._folders.get(folder, {}).get(entry.name)
        return quiet is not None and quiet.is_still(entry) and now - quiet.since >= self._timeout

    def forget(self, folder: str) -> None:
        """Drop what is known about a folder that is no longer watched."""
        self._folders.pop(folder, None)

    def _due(self, quiet: _Quiet) -> float:
        """When a file can be worked on, or given up, if it does not change."""
        if not quiet.entry.size:
            return max(quiet.since + max(self._timeout, self._seconds), quiet.not_before)
        return max(quiet.since + self._seconds, quiet.not_before)


def _together(dues: list[float], now: float) -> float | None:
    """Seconds until the next look: the first due time, and those that come right behind it."""
    if not dues:
        return None
    first = min(dues)
    return max(due for due in dues if due <= first + TOGETHER) - now


def has_writer(path: Path | int) -> bool | None:
    """Whether somebody has the file open for writing; None if that cannot be told.

    ``path`` may be a descriptor open for reading only. Asks for a read lease (fcntl(2),
    F_SETLEASE), which the kernel refuses while there is a writer, and gives it back at once. Only
    the file's owner may ask, and only on filesystems of this machine.
    """
    if isinstance(path, int):
        return _asks_lease(path)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path, flags)
    except OSError:
        return None
    try:
        return _asks_lease(descriptor)
    finally:
        os.close(descriptor)


def _asks_lease(descriptor: int) -> bool | None:
    try:
        # Somebody who opens the file in the moment that we hold the lease has us sent a signal,
        # and the usual one, SIGIO, would end the process. SIGURG is ignored by default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
