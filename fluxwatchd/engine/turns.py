"""Whose turn it is on a device: one picture is computed while another is resized or finished."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from fluxwatchd.engine import Beat

IN_FLIGHT = 2
"""Pictures under way on a GPU: one is computed while the other is resized or finished."""
LOOK = 0.5
"""Seconds between two beats of somebody who waits."""

Turn = Callable[[], AbstractContextManager[None]]
"""Entered for work that needs the device; before, between and after, another picture may have it.

It is left once the work is queued on the device: what the next one queues comes behind it.
"""


def at_once() -> AbstractContextManager[None]:
    """A Turn for those who have the device to themselves."""
    return nullcontext()


class Turns:
    """A device that one thread has at a time; a beat of those who wait shows that they live."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    @contextmanager
    def mine(self, beat: Beat) -> Iterator[None]:
        """Have the device; whoever has it already goes on having it.

        Raises what ``beat`` raises while it waits.
        """
        if self._holder == threading.get_ident():
            yield
            return
        self._take(beat)
        try:
            yield
        finally:
            self._give()

    def _take(self, beat: Beat) -> None:
        while not self._lock.acquire(timeout=LOOK):
            beat("wait", 0, 1)
        self._holder = threading.get_ident()

    def _give(self) -> None:
        """Let go, unless it was never had: a beat may have ended the wait for it."""
        if self._holder == threading.get_ident():
            self._holder = None
            self._lock.release()
