"""The signs of life of one engine thread: progress for people, a heartbeat for the watchdog."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from fluxwatchd.errors import Interrupted

HANG_AT: Final = "FLUXWATCHD_HANG_AT"
"""The environment variable by which a test makes an engine hang for ever, as a driver can.
It names the stage at whose first beat in a picture that happens. Loading never hangs."""

LOADING: Final = "load"
"""What an engine works on while it loads; a picture's name is an absolute path."""


class Listener(Protocol):
    """Somebody who watches the work, as a progress bar does; called from the engine threads."""

    def __call__(self, name: str, stage: str, done: int, total: int) -> None:
        """The file ``name`` has ``done`` of ``total`` units of ``stage`` behind it."""
        ...

    def end(self, name: str) -> None:
        """The engine is done with ``name``."""
        ...


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a job stands: ``done`` of ``total`` units of ``stage``; ``since`` is monotonic, s."""

    name: str
    stage: str
    done: int
    total: int
    since: float


@dataclass(slots=True)
class Pulse:
    """The Beat that an engine thread is given.

    Every call notes the time and the progress, and raises Interrupted once ``stop`` is set or the
    job at hand was cancelled. ``listener`` is told each beat (a progress bar); ``clock`` is
    monotonic seconds.
    """

    stop: threading.Event
    clock: Callable[[], float] = time.monotonic
    listener: Listener | None = None
    _name: str = ""
    _since: float = 0.0
    _last: float = 0.0
    _working: bool = False
    _told: bool = True
    _unwanted: str | None = None
    _progress: Progress | None = field(default=None)

    def __call__(self, stage: str, done: int, total: int) -> None:
        """One step of work is finished; see fluxwatchd.engine.Beat."""
        self._last = self.clock()
        self._progress = Progress(self._name, stage, done, total, self._since)
        if self.listener is not None and self._told:
            self.listener(self._name, stage, done, total)
        if self._name != LOADING and stage == os.environ.get(HANG_AT):
            threading.Event().wait()
        if self.stop.is_set():
            raise Interrupted("a stop was asked for")
        if self.cancelled:
            raise Interrupted("the job was cancelled")

    def begin(self, name: str, *, told: bool = True) -> None:
        """Work on ``name`` begins; the listener hears of it if it is ``told``."""
        self._told = told
        self._name, self._since, self._last = name, self.clock(), self.clock()
        self._progress = Progress(name, "start", 0, 1, self._since)
        self._working = True

    def end(self) -> None:
        """Work has ended; silence is no sign of trouble now."""
        if self._unwanted == self._name:  # the next file of that name is wanted
            self._unwanted = None
        self._working, self._progress = False, None
        if self.listener is not None and self._told:
            self.listener.end(self._name)

    def cancel(self, name: str) -> None:
        """End the job of ``name`` at its next beat, now or once it begins; never a load."""
        self._unwanted = name

    def alive(self, patience: float) -> bool:
        """Whether the engine is idle, or its last beat is at most ``patience`` s ago."""
        return not self._working or self.clock() - self._last <= patience

    @property
    def cancelled(self) -> bool:
        """Whether the job at hand was cancelled."""
        return self._working and self._unwanted == self._name

    @property
    def progress(self) -> Progress | None:
        """Where the job at hand stands; None when idle."""
        return self._progress
