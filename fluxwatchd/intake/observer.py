"""One folder's watchdog observer, with what we need to know of its life."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from watchdog.events import (
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyEmitter
from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
)
from watchdog.observers.inotify_move_event_grouper import InotifyMoveEventGrouper

from fluxwatchd.config import Folder

InotifyMoveEventGrouper.delay = 0.02
"""watchdog holds every event behind a file that is moved away for half a second, to pair it with
its arrival; and we move every source away. The two come in one read, so this is enough."""


def _is_news(record: logging.LogRecord) -> bool:
    """watchdog tells of an emitter that is read once more while it is being ended, as an error."""
    return "when the thread is inactive" not in record.getMessage()


logging.getLogger(InotifyEmitter.__module__).addFilter(_is_news)

INTERESTING: Final[list[type[FileSystemEvent]]] = [
    DirCreatedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileModifiedEvent,
    FileMovedEvent,
]
"""Not deletions, opening or reading: nothing is pending then, and we do these ourselves."""


class Observer(FileSystemEventHandler):
    """Calls ``wake`` at every change below a folder's inbox, from watchdog's threads.

    A full queue of the kernel's (events were lost) is a change too. What happens under names in the
    inbox that start with ``own`` is the watcher's doing and no change. Raises OSError if the inbox
    cannot be watched.
    """

    def __init__(self, folder: Folder, wake: Callable[[], None], own: str) -> None:
        self._wake = wake
        self._expected: tuple[str, threading.Event] | None = None
        self._own = os.fspath(folder.inbox / own)
        self._inotify = InotifyFD()
        self._inotify.start()
        self._observer = BaseObserver(InotifyEmitter, inotify_fd=self._inotify)
        try:
            self._observer.schedule(
                self, folder.inbox, recursive=folder.recursive, event_filter=INTERESTING
            )
            self._observer.start()
            self._inotify.add_callback(
                os.fsencode(folder.inbox),
                Mask(InotifyConstants.IN_MASK_ADD | InotifyConstants.IN_DELETE_SELF),
                _Overflow(wake),
                CallbackId(id(self)),
            )
        except BaseException:
            self.close()
            raise

    def is_alive(self) -> bool:
        """Whether every thread that an event goes through is running."""
        emitters = self._observer.emitters
        threads = (self._inotify, self._observer, *emitters)
        return bool(emitters) and all(thread.is_alive() for thread in threads)

    def expect(self, path: Path) -> threading.Event:
        """What is set when an event of this path comes."""
        event = threading.Event()
        self._expected = (os.fspath(path), event)
        return event

    def close(self) -> None:
        """End the threads; no wake comes afterwards."""
        self._wake = _nothing
        if self._observer.is_alive():
            self._observer.stop()
            self._observer.join()
        else:
            self._observer.unschedule_all()
        self._inotify.stop()
        with contextlib.suppress(RuntimeError):  # it never ran
            self._inotify.join()

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Wake the scan, but not for our own canary."""
        path = os.fsdecode(event.src_path)
        if self._expected is not None and path == self._expected[0]:
            self._expected[1].set()
        if not path.startswith(self._own):
            self._wake()


class _Overflow:
    """watchdog's WatchCallback for what its observers say nothing of."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def on_event(self, event: InotifyEvent) -> None:
        """The observer has it too."""

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """The inbox is gone, or its filesystem."""
        self._wake()

    def on_queue_overflow(self) -> None:
        """Events were lost: only a scan can say which files came."""
        self._wake()


def _nothing() -> None:
    pass
