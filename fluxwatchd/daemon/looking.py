"""Scans in threads of their own: a share that does not answer holds up nothing but its folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fluxwatchd.config import Folder, answers
from fluxwatchd.config.answers import PATIENCE
from fluxwatchd.intake.scan import Scan, scan

SLOW: Final = 0.1
"""Seconds that the main loop waits for the scan of a folder whose last one took longer than
PATIENCE: it counts once it is over."""


@dataclass(slots=True)
class _Look:
    """One scan under way, of which ``at`` is looked into; times in monotonic s."""

    folder: Folder
    at: Path = Path("/")
    began: float = field(default_factory=time.monotonic)
    moved: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    over: threading.Event = field(default_factory=threading.Event)
    found: Scan | None = None
    error: Exception | None = None

    def beat(self, at: Path | None = None) -> None:
        """It gets further."""
        self.at, self.moved = at or self.at, time.monotonic()

    def through(self, last: Scan | None) -> Scan:
        """Scan the inbox once all places of the folder answer."""
        for place in reversed(self.folder.places):  # the inbox last, which is then scanned
            answers.visit(place, self.beat)
        return scan(self.folder, last, self.beat)


class Looking:
    """Looks through folders, for one thread; ``ring`` is called when a late scan is over.

    ``cost`` is how long the longest of the last round took, s.
    """

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._looks: dict[Path, _Look] = {}
        self._slow: set[Path] = set()
        self.cost = 0.0

    def through(self, folders: Iterable[tuple[Folder, Scan | None]]) -> dict[Path, Scan]:
        """Scan folders, each with the last scan of it; those that take longer are left out.

        A scan that was left out before and is over by now is the answer.
        """
        looks = {folder.inbox: self._begin(folder, last) for folder, last in folders}
        self._looks = looks
        start = time.monotonic()
        for inbox, look in looks.items():
            if not look.over.wait(self._patience(inbox, look, start)):
                self._slow.add(inbox)
            elif look.ended - look.began <= SLOW:
                self._slow.discard(inbox)
        over = {inbox: look for inbox, look in looks.items() if look.over.is_set()}
        self._looks = {inbox: look for inbox, look in looks.items() if inbox not in over}
        self.cost = max((look.ended - look.began for look in over.values()), default=0.0)
        return {inbox: _found(look) for inbox, look in over.items()}

    def silent(self, inbox: Path) -> Path | None:
        """The place that does not answer, where a folder's scan gets no further; else None."""
        look = self._looks.get(inbox)
        return look.at if look and time.monotonic() - look.moved >= PATIENCE else None

    def _patience(self, inbox: Path, look: _Look, start: float) -> float:
        """Seconds to wait for a scan: for all of a round together no longer than for one."""
        is_slow = inbox in self._slow or answers.silent(look.folder.places)
        longest = SLOW if is_slow else PATIENCE
        return max(0.0, longest - (time.monotonic() - max(start, look.began)))

    def _begin(self, folder: Folder, last: Scan | None) -> _Look:
        known = self._looks.get(folder.inbox)
        if known is not None and known.folder == folder:
            return known
        look = _Look(folder)

        def run() -> None:
            try:
                look.found = look.through(last)
            except Exception as error:  # noqa: BLE001 - raised in the main thread
                look.error = error
            look.ended = time.monotonic()
            look.over.set()
            if folder.inbox in self._slow:
                self._ring()

        threading.Thread(target=run, name="scan", daemon=True).start()
        return look


def _found(look: _Look) -> Scan:
    if look.found is None:
        raise look.error or RuntimeError("a scan ended without a result")
    return look.found
