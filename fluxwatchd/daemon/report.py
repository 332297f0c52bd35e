"""What ``status`` and systemd are told of the daemon."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from fluxwatchd import __version__, systemd
from fluxwatchd.daemon.floor import Floor
from fluxwatchd.daemon.handover import Troubles
from fluxwatchd.daemon.inboxes import Inboxes
from fluxwatchd.daemon.worker import Worker
from fluxwatchd.errors import StateBlocked, StateLost
from fluxwatchd.journal import Journal

log = structlog.get_logger(__name__)

TELL_EVERY = 0.5
"""Seconds between two changes of what ``status`` shows, at least."""
PING_EVERY = 10.0
"""Seconds between two words to systemd at most, so that its STATUS is fresh and a long load never
outlives the time it asked for, however patient the watchdog is."""


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
        if not all(worker.pulse.alive(interval or 60.0) for worker in self.floor.workers):
            return
        self._pinged = now
        systemd.watchdog()
        if not self.floor.ready():
            systemd.extend_timeout(90)
        systemd.status(self.line())

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
            "folders": self.inboxes.describe(),
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
