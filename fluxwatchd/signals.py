"""SIGTERM, SIGINT and SIGHUP: from the first moment of the process to its last they ask, no more.

By default each of them ends a process. So they are held back by the kernel until somebody handles
them, and again once nobody does any more.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Final

ASKED: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
Handler = Callable[[int, FrameType | None], None]


def hold_back() -> None:
    """Have the kernel keep these signals until caught() takes them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ASKED)


@contextlib.contextmanager
def caught(handlers: Mapping[signal.Signals, Handler]) -> Iterator[None]:
    """Handle signals, those that were held back first; afterwards all is as it was before."""
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)


class Stop(threading.Event):
    """An event that a signal handler may set at any moment.

    threading's own takes a lock to be set; a handler that runs while the main thread holds that
    lock would wait for ever. It cannot be cleared.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_set = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._bell)

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self._is_set

    def set(self) -> None:
        """Ask for it, and wake all who wait."""
        if not self._is_set:
            self._is_set = True
            os.eventfd_write(self._bell, 1)  # nobody reads it: who waits, now or later, sees it

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until a stop is asked for, ``timeout`` s at most; whether it was."""
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        return self._is_set

    def clear(self) -> None:
        """Refused."""
        raise NotImplementedError("a stop cannot be taken back")
