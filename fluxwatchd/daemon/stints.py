"""How long the reader and writer threads have been at their tasks: one that hangs must be seen."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Stints:
    """The tasks under way, since when by ``clock``, monotonic s. Safe to use from any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._since: dict[int, float] = {}

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A task of this thread, from its start to its end."""
        own = threading.get_ident()
        with self._lock:
            self._since[own] = self._clock()
        try:
            yield
        finally:
            with self._lock:
                del self._since[own]

    def longest(self) -> float:
        """Seconds that the oldest task has been under way; 0 if there is none."""
        with self._lock:
            return self._clock() - min(self._since.values()) if self._since else 0.0
