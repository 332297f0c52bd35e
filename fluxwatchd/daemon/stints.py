"""How long the reader and writer threads have been at their tasks: one that hangs must be seen."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from fluxwatchd.config import Folder


@dataclass(frozen=True, slots=True)
class Stint:
    """A task under way: the folder, the file's name below its inbox, and when it began."""

    folder: Folder
    file: str
    began: float


class Stints:
    """The tasks under way, since when by ``clock``, monotonic s. Safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._known: dict[int, Stint] = {}

    @contextlib.contextmanager
    def one(self, folder: Folder, file: str) -> Iterator[None]:
        """A task of this thread, from its start to its end."""
        own = threading.get_ident()
        with self._lock:
            self._known[own] = Stint(folder, file, self._clock())
        try:
            yield
        finally:
            with self._lock:
                del self._known[own]

    def longest(self, but: Collection[Path] = ()) -> float:
        """Seconds that the oldest task has been under way, but for those of some inboxes."""
        with self._lock:
            began = [one.began for one in self._known.values() if one.folder.inbox not in but]
        return self._clock() - min(began) if began else 0.0

    def lasting(self, seconds: float) -> tuple[Stint, ...]:
        """The tasks that have been under way for so long."""
        now = self._clock()
        with self._lock:
            return tuple(one for one in self._known.values() if now - one.began >= seconds)
