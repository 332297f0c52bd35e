"""The state folder while the daemon has it: locked, its journal open, and room awaited in it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from fluxwatchd import systemd
from fluxwatchd.daemon.handover import Troubles
from fluxwatchd.errors import StateBlocked, StateLost
from fluxwatchd.journal import Journal, lock_state_dir

log = structlog.get_logger(__name__)

PAUSE = 1.0
"""Seconds between two tries to write into a state folder without room."""
NO_JOB = ""
"""Stands for a job's id where the trouble is no job's."""


@contextlib.contextmanager
def opened(state_dir: Path, stop: threading.Event, troubles: Troubles) -> Iterator[Journal]:
    """Lock a state folder and open its journal; both are given back at the end.

    Says in the log where a damaged journal is kept, and why the folder is lost if that ends the
    block. Raises ConfigError, StateLost.
    """
    with contextlib.ExitStack() as stack:
        lock = stack.enter_context(lock_state_dir(state_dir))
        journal = Journal.open_in(lock, patience=Room(state_dir, stop, troubles))
        stack.callback(_close, journal, journal.kept_aside)
        _tell_kept(journal.kept_aside)
        try:
            yield journal
        except StateBlocked:
            raise
        except StateLost as error:
            log.critical("the state folder is lost", why=str(error), remedy=error.hint)
            raise


@dataclass(frozen=True, slots=True)
class Room:
    """Waits for room in the state folder until ``stop``; see fluxwatchd.journal.Patience.

    Whatever thread wants to write waits, the main one too: work that cannot be written down must
    not be begun. systemd hears meanwhile that this is no hang.
    """

    state_dir: Path
    stop: threading.Event
    troubles: Troubles

    def __call__(self, why: StateBlocked | None) -> bool:
        """Wait a while; False if a stop was asked for."""
        known = str(self.state_dir) in self.troubles.told()
        if why is None:
            self.troubles.end(NO_JOB)
            log.info("the state folder can be written again", folder=str(self.state_dir))
            return True
        self.troubles.note(self.state_dir, NO_JOB, why)
        if not known:
            log.error("work waits for the state folder", why=str(why), remedy=why.hint)
        if threading.current_thread() is threading.main_thread():
            systemd.watchdog()
            systemd.status(f"waiting: {why}")
        return not self.stop.wait(PAUSE)


def _close(journal: Journal, known: Path | None) -> None:
    journal.close()
    if journal.kept_aside != known:
        _tell_kept(journal.kept_aside)


def _tell_kept(aside: Path | None) -> None:
    if aside is not None:
        log.error(
            "the journal was damaged: a new one begins, the old one is kept",
            kept=str(aside),
            remedy="Hold back again what was held. Look after the disk; delete the old journal "
            "once nobody wants to look into it.",
        )
