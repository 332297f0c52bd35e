"""Wakes the main loop: from any thread, and from signals."""

from __future__ import annotations

import select
import signal
import socket
from types import TracebackType
from typing import Self


class Bell:
    """A socket pair that the main thread sleeps on.

    Unlike threading.Event it may be rung by a signal handler at any moment without a deadlock.
    """

    def __init__(self) -> None:
        self._hear, self._ring = socket.socketpair()
        self._hear.setblocking(False)
        self._ring.setblocking(False)

    def __enter__(self) -> Self:
        self._before = signal.set_wakeup_fd(self._ring.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.set_wakeup_fd(self._before)
        self._hear.close()
        self._ring.close()

    def ring(self) -> None:
        """End the wait at hand, or the next one."""
        try:
            self._ring.send(b"\0")
        except (BlockingIOError, OSError):
            return  # full: the main loop is about to wake anyway; closed: there is none any more

    def wait(self, seconds: float) -> None:
        """Sleep until somebody rings, ``seconds`` at most."""
        select.select([self._hear], [], [], max(0.0, seconds))
        try:
            while self._hear.recv(4096):
                pass
        except BlockingIOError:
            return
