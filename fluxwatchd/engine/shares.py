"""Tiles of one picture that several devices work off: who has which, and what is done of them.

Imports no torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from fluxwatchd.engine.apart import Order

LEAST_RUNS: Final = 4
"""Batches of tiles below which a picture stays on one device: others would hardly have begun."""
OVERDUE: Final = 2.0
"""A helper's batch that takes so many times as long as the owner's slowest is done by the owner."""


class Over(Exception):
    """The tiles at hand are done, or the whole picture is."""


@dataclass(frozen=True, slots=True)
class Run:
    """A batch of tiles: places ``start`` up to ``stop`` in the order of the work."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(slots=True)
class _Out:
    """A run that somebody has; ``since`` is monotonic, s."""

    since: float
    helper: bool


class Helper(Protocol):
    """An engine that helped."""

    @property
    def device(self) -> str:
        """torch's name of its device."""
        ...


class Share:
    """``count`` tiles, ``done`` of which are finished; runs are taken in order, by any thread.

    ``order`` says what is to be done with a tile, None where nobody else is to do it. Its owner
    alone calls ``collect``; the first who finishes a run counts. ``declined`` is for whoever sends
    helpers: those that cannot help. ``clock`` is monotonic seconds.
    """

    def __init__(
        self,
        count: int,
        order: Order | None = None,
        *,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.order, self.count = order, count
        self.declined: set[object] = set()
        self._clock = clock
        self._changed = threading.Condition()
        self._next = self._prefix = self._finished = done
        self._size = 1
        self._back: list[Run] = []
        self._out: dict[Run, _Out] = {}
        self._ends: dict[int, Run] = {}
        self._brought: list[tuple[Run, Any, Helper]] = []
        self._slowest = 0.0
        self._closed = False

    # the owner

    def take_own(self, size: int, *, now: int | None = None) -> Run | None:
        """The owner's next run, of ``size`` tiles from now on; None while others have the last.

        ``now``: this one's own size. A helper's that is overdue is done again.
        """
        with self._changed:
            self._size = now or size
            run = self._take(helper=False) or self._overdue()
            self._size = size
            return run

    def finish_own(self, run: Run) -> bool:
        """The owner has done a run; False if a helper was sooner."""
        with self._changed:
            out = self._out.pop(run, None)
            if out is None:
                return False
            self._slowest = max(self._slowest, self._clock() - out.since)
            self._count(run)
            return True

    def collect(self) -> list[tuple[Run, Any, Helper]]:
        """What helpers finished since the last call, and who did each."""
        with self._changed:
            brought, self._brought = self._brought, []
            for run, _, _ in brought:
                self._count(run)
            return brought

    def wait(self, seconds: float) -> None:
        """Wait until a helper brings something, at most so long."""
        with self._changed:
            if not self._brought and not self._back:
                self._changed.wait(seconds)

    def dismiss(self) -> None:
        """Helpers take no more: what is left is the owner's."""
        with self._changed:
            self._closed = True

    def close(self) -> None:
        """Nothing is wanted any more, nor what helpers have at hand."""
        with self._changed:
            self._closed = True
            self._out.clear()
            self._brought.clear()
            self.order = None  # it has the owner's model

    @property
    def finished(self) -> int:
        """Tiles that are done, and collected."""
        return self._finished

    @property
    def prefix(self) -> int:
        """So many tiles from the first on are done without a gap."""
        return self._prefix

    # helpers

    def take(self) -> Run | None:
        """A helper's next run; None if nothing is left, or nothing wanted."""
        with self._changed:
            return None if self._closed else self._take(helper=True)

    def finish(self, run: Run, result: Any, who: Helper) -> None:
        """A helper has done a run; of no use if the owner did it meanwhile."""
        with self._changed:
            if self._out.pop(run, None) is not None:
                self._brought.append((run, result, who))
                self._changed.notify_all()

    def give_back(self, run: Run) -> None:
        """A helper could not do a run: somebody else is to."""
        with self._changed:
            out = self._out.get(run)
            if out is not None and out.helper:
                del self._out[run]
                self._back.append(run)
                self._changed.notify_all()

    # anybody

    def wanted(self, run: Run) -> bool:
        """Whether a run that was taken is still to be done."""
        with self._changed:
            return run in self._out

    @property
    def has_work(self) -> bool:
        """Whether a helper would find something to do."""
        with self._changed:
            return not self._closed and (bool(self._back) or self._next < self.count)

    def _take(self, *, helper: bool) -> Run | None:
        if self._back:
            run = min(self._back, key=lambda one: one.start)
            self._back.remove(run)
        elif self._next < self.count:
            run = Run(self._next, min(self._next + self._size, self.count))
            self._next = run.stop
        else:
            return None
        self._out[run] = _Out(self._clock(), helper)
        return run

    def _overdue(self) -> Run | None:
        limit = self._clock() - OVERDUE * self._slowest
        late = [run for run, out in self._out.items() if out.helper and out.since <= limit]
        found = min(late, key=lambda run: run.start, default=None)
        if found is not None:
            self._out[found] = _Out(self._clock(), helper=False)
        return found

    def _count(self, run: Run) -> None:
        self._finished += len(run)
        self._ends[run.start] = run
        while self._prefix in self._ends:
            self._prefix = self._ends.pop(self._prefix).stop


Offer = Callable[[Share], AbstractContextManager[None]]
"""Entered while others may help with a picture's tiles."""


class Board:
    """The pictures that help is wanted with, the first first. ``ring`` is called for each."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._lock = threading.Lock()
        self._open: list[tuple[str, Share]] = []

    @contextmanager
    def offer(self, name: str, share: Share) -> Iterator[None]:
        """Have ``share``, of the picture ``name``, on the board. When it goes, helpers leave."""
        with self._lock:
            self._open.append((name, share))
        self._ring()
        try:
            yield
        finally:
            share.close()
            with self._lock:
                self._open.remove((name, share))

    def open(self) -> list[tuple[str, Share]]:
        """What there is something to do of, with the picture's name."""
        with self._lock:
            return [(name, share) for name, share in self._open if share.has_work]
