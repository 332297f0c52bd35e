"""What cannot be ended now: sources that cannot leave, results that no outbox takes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from fluxwatchd.daemon.handover import Waits
from fluxwatchd.daemon.letters import Stuck
from fluxwatchd.daemon.queue import Key

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 60.0
"""Seconds between two tries of a delivery, at first and at most; of a source's leaving, too, but
for its longest pause."""
LONGEST_LINGER = 300.0
"""Seconds between two tries to take a source out of its inbox, at most."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of so many s, over at ``due``, monotonic s."""

    length: float
    due: float


@dataclass(frozen=True, slots=True)
class Lingering:
    """Something stuck, and when it is tried again."""

    stuck: Stuck
    pause: Pause

    @property
    def holds_result(self) -> bool:
        """Whether a result is kept in memory for it."""
        return isinstance(self.stuck.linger, Waits)

    @property
    def is_tried(self) -> bool:
        """Whether a try of it is under way."""
        return self.pause.due == float("inf")

    @property
    def inbox(self) -> Path:
        """Its folder's inbox."""
        return self.stuck.waiting.folder.inbox

    @property
    def root(self) -> Path:
        """The folder whose disk or share decides: the outbox, or where sources leave."""
        folder = self.stuck.waiting.folder
        return folder.outbox if self.holds_result else folder.inbox


class Patience:
    """Tries again what is stuck, with pauses that grow.

    Results that wait are kept in memory, ``most`` at a time, so that however many outboxes are full
    the others get theirs; of a folder with one that waits no picture is taken. One too many is
    given back, to be made again after a pause. No more than ``tries`` are under way at once, and
    one for each place: a share that fails slowly leaves a thread for everything else.
    """

    def __init__(self, most: int = 1, tries: int = 1) -> None:
        self.most, self.tries = most, tries
        self._lingering: dict[str, Lingering] = {}
        self._put_off: dict[Path, Pause] = {}

    def add(self, stuck: Stuck, now: float) -> bool:
        """Have it tried again; False for a result too many, whose folder is put off."""
        before = self._lingering.get(stuck.job.id)
        result = isinstance(stuck.linger, Waits)
        if before is None and result and len(self.results()) >= self.most:
            inbox = stuck.waiting.folder.inbox
            self._put_off[inbox] = _next(self._put_off.get(inbox), LONGEST_LINGER, now)
            return False
        longest = LONGEST_PAUSE if result else LONGEST_LINGER
        pause = _next(before.pause if before else None, longest, now)
        self._lingering[stuck.job.id] = Lingering(stuck, pause)
        return True

    def due(self, now: float, silent: Collection[Path] = ()) -> tuple[Stuck, ...]:
        """What is to be tried now, longest due first; not due again before add() or end().

        Nothing of the inboxes whose folders are ``silent``: they do not answer.
        """
        busy = {one.root for one in self._lingering.values() if one.is_tried}
        free, chosen = self.tries - self.tried(silent), []
        for one in sorted(self._lingering.values(), key=lambda one: one.pause.due):
            if free <= 0 or one.pause.due > now:
                break
            if one.root in busy or one.inbox in silent:
                continue
            busy.add(one.root)
            free -= 1
            under_way = replace(one.pause, due=float("inf"))
            self._lingering[one.stuck.job.id] = replace(one, pause=under_way)
            chosen.append(one.stuck)
        return tuple(chosen)

    def tried(self, silent: Collection[Path] = ()) -> int:
        """How many tries are under way, but for those that hang."""
        return sum(one.is_tried and one.inbox not in silent for one in self._lingering.values())

    def end(self, job_id: str) -> None:
        """A job is over."""
        self._lingering.pop(job_id, None)

    def delivered(self, inbox: Path, now: float) -> None:
        """An outbox took a result: others of the folder that wait are tried now."""
        self._put_off.pop(inbox, None)
        for key, one in self._lingering.items():
            if one.holds_result and one.stuck.waiting.folder.inbox == inbox:
                due = one.pause.due if one.is_tried else min(one.pause.due, now)
                self._lingering[key] = replace(one, pause=replace(one.pause, due=due))

    def held(self, now: float) -> frozenset[Path]:
        """The inboxes of which nothing is taken: a result of theirs waits."""
        waiting = {
            one.stuck.waiting.folder.inbox for one in self._lingering.values() if one.holds_result
        }
        return frozenset(waiting | {i for i, pause in self._put_off.items() if pause.due > now})

    def has(self, key: Key) -> bool:
        """Whether something of this file is stuck."""
        return any(one.stuck.waiting.key == key for one in self._lingering.values())

    def results(self) -> tuple[Waits, ...]:
        """The results that are kept."""
        lingers = (one.stuck.linger for one in self._lingering.values())
        return tuple(linger for linger in lingers if isinstance(linger, Waits))

    def sources(self) -> int:
        """How many sources cannot leave."""
        return sum(not one.holds_result for one in self._lingering.values())


def _next(before: Pause | None, longest: float, now: float) -> Pause:
    length = min(longest, before.length * 2) if before else FIRST_PAUSE
    return Pause(length, now + length)
