"""What ``status`` and systemd are told of the daemon."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from fluxwatchd import __version__, systemd
from fluxwatchd.daemon.floor import Floor
from fluxwatchd.daemon.handover import Troubles
from fluxwatchd.daemon.inboxes import Inboxes
from fluxwatchd.daemon.state import NO_JOB
from fluxwatchd.daemon.worker import Worker
from fluxwatchd.errors import StateBlocked, StateLost
from fluxwatchd.journal import Journal

log = structlog.get_logger(__name__)

TELL_EVERY = 0.5
"""Seconds between two changes of what ``status`` shows, at least."""
PING_EVERY = 10.0
"""Seconds between two words to systemd at most, so that its STATUS is fresh and a long load never
outlives the time it asked for, however patient the watchdog is."""
START_EXTENSION = 90.0
"""Seconds that a start asks for at a time, while it recovers or loads."""
STOP_EXTENSION = 60.0
"""Seconds that a stop asks for at a time, while it drains."""
EXTEND_EVERY = 5.0
"""Seconds between two times that a stop asks."""
THREAD_PATIENCE = 1800.0
"""Seconds that a reader or writer thread may be at one file before it counts as hung: to decode,
encode or copy the largest on a slow disk takes minutes."""
STOP_PATIENCE = 600.0
"""The same while it drains: a stop that somebody waits for is worth less patience."""


@dataclass(slots=True)
class Reporter:
    """Tells, when it is time, how things stand."""

    journal: Journal
    floor: Floor
    inboxes: Inboxes
    troubles: Troubles
    clock: Callable[[], float]
    config_problem: str | None = None
    _started: float = field(default_factory=time.time)
    _pinged: float = -float("inf")
    _told: dict[str, Any] = field(default_factory=dict)
    _told_at: float = -float("inf")
    _was_ready: bool = False
    _is_silent: bool = False

    def tell(self) -> None:
        """One round: systemd's watchdog and status, and the journal's live row."""
        if self.floor.ready() and not self._was_ready:
            self._was_ready = True
            systemd.ready(self.line())
        self._ping()
        self._tell_live()

    def line(self) -> str:
        """One line for systemctl status."""
        if not self.floor.ready():
            return "loading"
        at_work = ", ".join(
            f"{Path(p.name).name}: {p.stage} {p.done}/{p.total}"
            for p in (worker.pulse.progress for worker in self.floor.workers)
            if p is not None
        )
        return at_work or "idle"

    def stopped(self) -> None:
        """The last word of a daemon that ends; it may be ending because nothing can be written."""
        try:
            self.journal.set_live({"state": "stopped", "pid": 0, "updated": time.time()})
        except StateLost as error:
            log.warning("`status` cannot be told of the end", why=str(error))

    def _ping(self) -> None:
        """Feed systemd's watchdog while every engine is idle or moves on."""
        interval = systemd.watchdog_interval()
        now = self.clock()
        if now - self._pinged < min(interval or PING_EVERY, PING_EVERY) / 2:
            return
        if self.alive():
            self._say_alive(now, self.line())

    def _say_alive(self, now: float, line: str) -> None:
        self._pinged = now
        systemd.watchdog()
        if not self.floor.ready():
            systemd.extend_timeout(START_EXTENSION)
        systemd.status(line)

    def alive(self, thread_patience: float = THREAD_PATIENCE) -> bool:
        """Whether every engine is idle or moves on, and no reader or writer hangs.

        What waits for room in the state folder does not hang, nor what waits for a folder that
        answers nobody else either: a new process would wait for it just so.
        """
        patience = systemd.watchdog_interval() or 60.0
        if not all(worker.pulse.alive(patience) for worker in self.floor.workers):
            return False
        longest = self.floor.stints.longest(but=self.floor.held_up())
        return longest <= thread_patience or self.troubles.has(NO_JOB)

    def beat(self) -> None:
        """Recovery moves on: it runs in the main thread, and may have much to look through."""
        now = self.clock()
        if now - self._pinged >= PING_EVERY / 2 and self.alive():
            self._say_alive(now, "looking for what an earlier process left")

    @contextlib.contextmanager
    def draining(self) -> Iterator[None]:
        """Ask systemd for more time during the block, in which the main thread waits for others.

        Not where an engine, reader or writer hangs: then the unit's time for a stop runs out.
        """
        over = threading.Event()

        def ask() -> None:
            while not over.is_set():
                if self.alive(STOP_PATIENCE):
                    systemd.extend_timeout(STOP_EXTENSION)
                over.wait(EXTEND_EVERY)

        asking = threading.Thread(target=ask, name="stop", daemon=True)
        asking.start()
        try:
            yield
        finally:
            over.set()
            asking.join()

    def _tell_live(self) -> None:
        """Keep what ``status`` shows fresh: when it changes, at most twice a second."""
        now = self.clock()
        if now - self._told_at < TELL_EVERY:
            return
        live = self._live()
        if live == self._told:
            return
        self._told_at = now
        try:
            self.journal.set_live({**live, "updated": time.time()})
        except StateBlocked as error:  # what must be written waits by itself, this need not
            if not self._is_silent:
                log.warning("`status` cannot be told", why=str(error), remedy=error.hint)
            self._is_silent = True
        else:
            self._told, self._is_silent = live, False

    def _live(self) -> dict[str, Any]:
        workers = self.floor.workers
        stations = self.floor.stations
        return {
            "pid": os.getpid(),
            "version": __version__,
            "state": "ready" if self.floor.ready() else "loading",
            "since": self._started,
            "devices": [station.device for station in stations],
            "resident": [list(station.resident) for station in stations],
            "running": [_progress(worker) for worker in workers if worker.pulse.progress],
            "folders": self.inboxes.describe(self.floor.held_up()),
            "config_problem": self.config_problem,
            "trouble": self.troubles.told(),
        }


def _progress(worker: Worker) -> dict[str, Any]:
    progress = worker.pulse.progress
    if progress is None:
        return {"device": worker.station.device}
    return {
        "device": worker.station.device,
        "file": progress.name,
        "stage": progress.stage,
        "done": progress.done,
        "total": progress.total,
    }
