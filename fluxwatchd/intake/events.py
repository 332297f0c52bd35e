"""watchdog, as what it is good for: waking the scan.

A folder's watch goes through these states, on a thread of its own: its filesystem is looked at; a
watchdog observer of its own is started; a canary (a hidden folder with a file in it, removed at
once) must raise its event; then the observer's threads and the inbox's identity are looked at every
second, and the canary is sent again now and then. Whatever fails makes the folder a polled one,
with the reason, and is tried again with pauses that grow. A share that does not answer holds up no
watch but its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from fluxwatchd.config import Folder
from fluxwatchd.mounts import mount_of

if TYPE_CHECKING:
    from fluxwatchd.intake.observer import Observer

SILENT_KINDS: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "9p", "ceph", "lustre", "beegfs"}
    | {"gfs2", "ocfs2", "virtiofs", "vboxsf", "prl_fs"}
)
"""Filesystems that other machines write to, of which this one's kernel hears nothing."""

CANARY: Final = ".fluxwatchd-canary-"
CANARY_WAIT: Final = 5.0
CANARY_EVERY: Final = 900.0
TICK: Final = 1.0
STOP_PATIENCE: Final = 5.0
"""Seconds that a stop waits for the watches to end; one whose share does not answer never does."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 300.0


@dataclass(frozen=True, slots=True)
class Health:
    """How changes in a folder are noticed, and why if not by events."""

    mode: Literal["events", "polling"]
    reason: str = ""


class Watcher:
    """Calls ``wake`` (from its own threads, so keep it short) whenever an inbox may have changed.

    Folders whose filesystem sends no events, or that raise none for a canary file, are polled:
    ``wake`` is called every ``poll_seconds``. Observers that die are started again, with pauses
    that grow; an inbox that is removed and made again is watched again.
    """

    def __init__(
        self, folders: Iterable[Folder], wake: Callable[[], None], *, poll_seconds: float = 10.0
    ) -> None:
        self._wake = wake
        self._poll_seconds = poll_seconds
        self._lock = threading.Lock()
        self._watches = {folder.inbox: _Watch(folder, wake) for folder in folders}
        self._ended: list[_Watch] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="fluxwatchd-poll", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        with self._lock:
            for watch in self._watches.values():
                watch.start()
        self._thread.start()

    def stop(self) -> None:
        """End all threads; no wake comes after it returns, unless a share does not answer."""
        self._stop.set()
        with self._lock:
            everything = (*self._watches.values(), *self._ended)
        for watch in everything:
            watch.end()
        end = time.monotonic() + STOP_PATIENCE
        for thread in (self._thread, *(watch.thread for watch in everything)):
            if thread.is_alive():
                thread.join(max(0.0, end - time.monotonic()))

    def replace(self, folders: Iterable[Folder]) -> None:
        """Watch these folders from now on (after a reload)."""
        with self._lock:
            before = self._watches
            self._watches = {}
            for folder in folders:
                watch = before.get(folder.inbox)
                same = watch is not None and watch.folder.recursive == folder.recursive
                self._watches[folder.inbox] = (
                    before.pop(folder.inbox) if same else _Watch(folder, self._wake)
                )
                if not same and self._thread.is_alive():
                    self._watches[folder.inbox].start()
            for watch in before.values():
                watch.end()
            ended = (*self._ended, *before.values())
            self._ended = [watch for watch in ended if watch.thread.is_alive()]
        self._wake()

    def health(self, folder: Folder) -> Health:
        """How the folder is watched at present."""
        with self._lock:
            watch = self._watches.get(folder.inbox)
        return watch.health if watch else Health("polling", "it is not watched")

    def _poll(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            with self._lock:
                is_polling = any(one.health.mode == "polling" for one in self._watches.values())
            if is_polling:
                self._wake()


class _Watch:
    """One folder's observer. Used by its thread alone, but for ``health``, start() and end()."""

    def __init__(self, folder: Folder, wake: Callable[[], None]) -> None:
        self.folder = folder
        self.health = Health("polling", "the watch is starting")
        self._wake = wake
        self._observer: Observer | None = None
        self._identity: tuple[int, int] | None = None
        self._next = 0.0
        self._pause = FIRST_PAUSE
        self._canary_due = 0.0
        self._over = threading.Event()
        self.thread = threading.Thread(target=self._run, name="fluxwatchd-events", daemon=True)

    def start(self) -> None:
        """Begin; returns at once."""
        self.thread.start()

    def end(self) -> None:
        """Have the threads end; returns at once."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.is_set():
            self._tick(time.monotonic(), self._over)
            self._over.wait(TICK)
        self._close()

    def _tick(self, now: float, stop: threading.Event) -> None:
        """See to this folder's watch: start it, or see whether it lives."""
        if self._observer is None:
            if now >= self._next:
                self._start(now, stop)
        elif reason := self._trouble(self._observer):
            self._fall_back(reason, now)
        elif now >= self._canary_due:
            self._send_canary(self._observer, now, stop)

    def _close(self) -> None:
        """End the observer's threads."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.close()

    def _start(self, now: float, stop: threading.Event) -> None:
        if reason := silence(mount_of(self.folder.inbox).kind):
            self.health = Health("polling", reason)
            self._next = now + LONGEST_PAUSE
            return
        from fluxwatchd.intake.observer import Observer  # watchdog: not for a folder that is polled

        try:
            self._identity = _identity(self.folder.inbox)
            self._observer = Observer(self.folder, self._wake, CANARY)
        except (OSError, RuntimeError, RecursionError) as error:
            self._fall_back(_reason(error), now)
            return
        self._wake()  # for what came before the watch stood
        self._send_canary(self._observer, now, stop)

    def _send_canary(self, observer: Observer, now: float, stop: threading.Event) -> None:
        self._canary_due = now + CANARY_EVERY
        try:
            heard = _canary(self.folder, observer, stop)
        except OSError as error:
            self.health = Health("polling", f"events cannot be tried: {error.strerror}")
            return
        if heard:
            self.health = Health("events")
            self._pause = FIRST_PAUSE
        elif not stop.is_set():
            self._fall_back("a file made as a test raised no event", now)

    def _trouble(self, observer: Observer) -> str:
        """Why the observer is no longer of use; empty if it is."""
        if not observer.is_alive():
            return "the watch died"
        try:
            identity = _identity(self.folder.inbox)
        except OSError as error:
            return _reason(error)
        return "" if identity == self._identity else "the inbox was made again"

    def _fall_back(self, reason: str, now: float) -> None:
        """Poll, scan now, and try the watch again after a pause."""
        self._close()
        self.health = Health("polling", reason)
        self._next = now + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        self._wake()


def silence(kind: str) -> str:
    """Why a filesystem of this kind sends no events that can be relied on; empty if it does."""
    if kind in SILENT_KINDS:
        return f"{kind} tells nothing of what other machines write"
    if kind == "fuse" or kind.startswith("fuse."):  # fuseblk is a local disk
        return f"{kind} tells nothing of what happens behind it"
    return ""


def _canary(folder: Folder, observer: Observer, stop: threading.Event) -> bool:
    """Whether making a file in a new folder of the inbox raises an event. Raises OSError.

    In a new folder, since that takes a watch of its own, which the kernel may refuse.
    """
    for stale in folder.inbox.glob(CANARY + "*"):
        shutil.rmtree(stale, ignore_errors=True)  # a crash left it
    place = folder.inbox / (CANARY + os.urandom(6).hex())
    wanted = place / "file" if folder.recursive else place
    heard = observer.expect(wanted)
    place.mkdir()
    try:
        (place / "file").touch()
        end = time.monotonic() + CANARY_WAIT
        while not heard.is_set() and time.monotonic() < end and not stop.is_set():
            heard.wait(0.05)
    finally:
        with contextlib.suppress(FileNotFoundError):
            (place / "file").unlink()
        with contextlib.suppress(FileNotFoundError):
            place.rmdir()
    return heard.is_set()


def _identity(inbox: Path) -> tuple[int, int]:
    found = inbox.stat()
    return found.st_dev, found.st_ino


def _reason(error: BaseException) -> str:
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return "the inbox is not there"
    if number == errno.ENOSPC:
        return "the limit of watches is reached (sysctl fs.inotify.max_user_watches)"
    if number == errno.EMFILE:
        return "the limit of watchers is reached (sysctl fs.inotify.max_user_instances)"
    return str(error)
