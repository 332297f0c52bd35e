"""Whether file systems answer: threads ask, for a call on a share that hangs may last for ever.

An answer, be it an error, may be had again a moment later without waiting: so whoever cannot afford
to wait asks first and calls then. Each question walks down to its place and so knows which folder
is the first that does not answer, a mount point as a rule; what lies there is not asked about again
while that question is open.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

PATIENCE: Final = 5.0
"""Seconds without an answer after which a file system counts as one that does not answer."""
HASTE: Final = 1.0
"""The same where a person waits, or all folders do, and there is a way without the answer."""
BRING_BACK: Final = "Bring its server back, or unmount it (umount -f -l); this goes on by itself."
"""The remedy."""


class Silent(OSError):
    """A file system does not answer; ``place`` is the uppermost folder of it that was asked."""

    def __init__(self, place: Path) -> None:
        super().__init__(errno.ETIMEDOUT, "does not answer", os.fspath(place))
        self.place = place


class _Question:
    """One that is open: ``at`` is the folder that is asked, since ``moved``, monotonic s."""

    def __init__(self, place: Path) -> None:
        self.place, self.at, self.moved = place, Path("/"), time.monotonic()
        self.over = threading.Event()

    def answer(self) -> None:
        """Ask; for a thread of its own."""
        visit(self.place, self._move)
        with _lock:
            _open.remove(self)
        self.over.set()

    def concerns(self, place: Path) -> bool:
        """Whether it asks for ``place``, or waits for an answer of a folder on the way there."""
        is_late = time.monotonic() - self.moved >= _LATE
        return place == self.place or (is_late and place.is_relative_to(self.at))

    def wait(self, patience: float) -> None:
        """Until it is answered. Raises Silent once a folder has not answered for so many s."""
        while not self.over.wait(max(0.0, self.moved + patience - time.monotonic())):
            if time.monotonic() - self.moved >= patience:
                raise Silent(self.at)

    def _move(self, at: Path) -> None:
        self.at, self.moved = at, time.monotonic()


_LATE: Final = 0.1
"""Seconds after which no other question follows one to the folder that it waits for."""
_lock = threading.Lock()
_open: list[_Question] = []


def visit(place: Path, tell: Callable[[Path], None]) -> None:
    """Ask every folder on the way to ``place`` for its file system; ``tell`` of each first.

    By statfs(2), which network file systems answer from no memory of theirs. An error ends it.
    """
    for at in (*reversed(place.parents), place):
        tell(at)
        try:
            os.statvfs(at)
        except OSError:
            return


def begin(places: Iterable[Path]) -> None:
    """Ask without waiting."""
    for place in places:
        _ask(place)


def silent(places: Iterable[Path], patience: float = PATIENCE) -> Path | None:
    """Where one of these has been asked in vain for so many s; None where none has."""
    with _lock:
        late = [one.at for one in _open if time.monotonic() - one.moved >= patience]
    return next((at for place in places for at in late if place.is_relative_to(at)), None)


def expect(places: Iterable[Path], patience: float = PATIENCE) -> None:
    """Wait until all of these answer. Raises Silent where one does not for so many s."""
    left = list(places)
    while left:
        asked = [(place, _ask(place)) for place in left]
        for _, question in asked:
            question.wait(patience)
        left = [place for place, question in asked if question.place != place]


def given(places: Iterable[Path], patience: float = PATIENCE) -> bool:
    """Whether all of these answer; else see expect()."""
    try:
        expect(places, patience)
    except Silent:
        return False
    return True


def _ask(place: Path) -> _Question:
    """The question of a place: an open one that concerns it, or a new one."""
    with _lock:
        for known in _open:
            if known.concerns(place):
                return known
        question = _Question(place)
        _open.append(question)
    threading.Thread(target=question.answer, name="question", daemon=True).start()
    return question
