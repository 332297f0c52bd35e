"""The inboxes as the daemon sees them: scanned, settled, and offered to the queue."""

from __future__ import annotations

import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from fluxwatchd import trees
from fluxwatchd.config import Folder, Settings, answers
from fluxwatchd.config.answers import PATIENCE
from fluxwatchd.daemon.looking import Looking
from fluxwatchd.daemon.queue import Key, TurnQueue, Waiting
from fluxwatchd.intake.events import Watcher
from fluxwatchd.intake.scan import Entry, Scan
from fluxwatchd.intake.settle import Settler
from fluxwatchd.journal import FileState, Journal
from fluxwatchd.printing import printable

log = structlog.get_logger(__name__)

LONGEST_WAIT = 900.0
"""Seconds; a try that is due later than any pause lasts was put off by a clock since set back."""
SCAN_SHARE = 0.1
"""The most of its time that the main loop spends scanning while work is waiting anyway."""
OFFER_EVERY = 1.0
"""Seconds between two times that files whose later try is due are offered, at least."""
_NEVER = float("inf")
_NOTHING: Mapping[Path, Sequence[str]] = {}
LET_READ = "Let the service's user read it: chmod g+rX, or chgrp to a group of that user."
"""The remedy for a file or folder that may not be read."""
MOST_TOLD = 100
"""Files that cannot be taken yet that ``status`` is told of by name."""


@dataclass(frozen=True, slots=True)
class Unready:
    """A file that cannot be taken yet, and why; it is tried again by itself."""

    entry: Entry
    why: str
    remedy: str


@dataclass(slots=True)
class View:
    """The last look at one folder.

    ``is_looked_at``: another look is under way; ``silent``: the place that did not answer it.
    ``settling`` counts files that are not quiet yet. ``settled`` are those that are; of these,
    ``held`` are held back, and ``later`` have a try that is not due. ``to_hold``: the names of
    files that somebody asked to be held.
    """

    folder: Folder
    scan: Scan | None = None
    is_looked_at: bool = False
    silent: Path | None = None
    states: Mapping[str, FileState] = field(default_factory=dict)
    settling: int = 0
    settled: tuple[Entry, ...] = ()
    hopeless: tuple[Entry, ...] = ()
    unready: dict[str, Unready] = field(default_factory=dict)
    to_hold: set[str] = field(default_factory=set)
    held: int = 0
    later: int = 0

    @property
    def is_waited_for(self) -> bool:
        """Whether the look under way may be over soon."""
        return self.is_looked_at and self.silent is None


class Inboxes:
    """Scan is the truth; events, timers and finished jobs only say when to look again."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        queue: TurnQueue,
        ring: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._journal, self._queue, self._ring, self._clock = journal, queue, ring, clock
        self._dirty = True
        self._due = 0.0
        self._offer_due = float("inf")
        self._taken: set[Key] = set()
        self._cost = 0.0
        self._looked = 0.0
        self._settings = settings
        self._views = {folder.inbox: View(folder) for folder in settings.folders}
        self.settler = _settler(settings)
        self.closed: dict[Path, str] = {}
        self._looking = Looking(self.touch)
        self._watcher = Watcher(settings.folders, self.touch)

    def start(self) -> None:
        """Begin to listen for events."""
        self._watcher.start()

    def stop(self) -> None:
        """Listen no more."""
        self._watcher.stop()

    def touch(self) -> None:
        """Something may have changed; from any thread."""
        self._dirty = True
        self._ring()

    def replace(self, settings: Settings) -> None:
        """Other folders and times from now on; what is under way goes on."""
        if settings.daemon != self._settings.daemon:
            self.settler = _settler(settings)
        self._settings = settings
        old = self._views
        self._views = {f.inbox: _renewed(f, old.get(f.inbox)) for f in settings.folders}
        for inbox in old.keys() - self._views.keys():
            self.settler.forget(str(inbox))
        self._queue.forget(self._views)
        self._watcher.replace(settings.folders)
        self.touch()

    def refresh(self) -> None:
        """Requests were carried out: what the journal knows of the files has changed."""
        self._offer()
        self.touch()

    def look(self) -> bool:
        """Scan every folder if it is time; True if that was done."""
        now = self._clock()
        if now < self._next_look():
            if now >= self._offer_due:
                self._offer()
            return False
        self._dirty = False
        self._taken &= self._queue.busy()
        found = self._looking.through((v.folder, v.scan) for v in self._views.values())
        views = self._views.values()
        due = min([self._take_note(v, found.get(v.folder.inbox)) for v in views], default=_NEVER)
        self._offer()
        self._looked = self._clock()
        self._cost = max(self._looked - now, self._looking.cost)
        # from its end on: a scan that takes longer than that must not begin at once again
        self._due = min(due, self._looked + self._settings.daemon.rescan_seconds)
        return True

    def wait(self) -> float:
        """Seconds until the next look or offer is due."""
        return max(0.0, min(self._next_look(), self._offer_due) - self._clock())

    def take(self, *, only_alone: bool, idle: bool) -> Waiting | None:
        """The next file that may be worked on now; see TurnQueue.take.

        ``idle``: nothing else is under way, so that a file that must run alone may; else, once it
        is its turn, no other is taken, so that there is such a moment however many wait. With
        ``only_alone`` no file is taken: one that runs alone is under way.
        """
        if only_alone:
            return None
        wall = time.time()

        def may(waiting: Waiting) -> bool:
            return self._may(waiting, wall)

        if not idle and (waiting := self._queue.first(may)) and self._is_alone(waiting):
            return None
        taken = self._queue.take(may)
        if taken is not None:
            self._taken.add(taken.key)
        return taken

    def not_ready(self, waiting: Waiting, why: str, remedy: str) -> None:
        """A file could not be taken, and is tried again; for ``status`` and ``explain``."""
        if view := self._views.get(waiting.folder.inbox):
            view.unready[waiting.entry.name] = Unready(waiting.entry, why, remedy)
            if waiting.entry in view.hopeless:  # it is not, until the next look
                view.hopeless = tuple(e for e in view.hopeless if e != waiting.entry)
                view.settling += 1

    def is_ready(self, waiting: Waiting) -> None:
        """A file could be taken, whatever was wrong with it before."""
        if view := self._views.get(waiting.folder.inbox):
            view.unready.pop(waiting.entry.name, None)

    def hold(self, folder: Folder, name: str, *, held: bool) -> None:
        """Hold a file however it changes until it is released or gone, or do so no more.

        What the journal knows holds for a file as it was then; it may be growing still.
        """
        if view := self._views.get(folder.inbox):
            (view.to_hold.add if held else view.to_hold.discard)(name)

    def state_of(self, waiting: Waiting) -> FileState | None:
        """What the journal knew about a file at the last look."""
        view = self._views.get(waiting.folder.inbox)
        return _current(view.states, waiting.entry) if view else None

    def hopeless(self) -> tuple[Waiting, ...]:
        """Files that have been empty for too long and are not under way."""
        busy, wall = self._queue.busy(), time.time()
        found = (Waiting(v.folder, e) for v in self._views.values() for e in v.hopeless)
        may = (waiting for waiting in found if self._may(waiting, wall))
        return tuple(waiting for waiting in may if waiting.key not in busy)

    def reopened(self) -> tuple[Folder, ...]:
        """Folders that are closed, see ``closed`` for the reason, and whose inbox can be read."""
        views = (self._views[inbox] for inbox in self.closed.keys() & self._views.keys())
        return tuple(v.folder for v in views if v.scan and v.scan.state == "ok" and not v.silent)

    def pending(self) -> bool:
        """Whether anything waits, settles, or is under way. Held files do not count."""
        if self._dirty or not self._queue.empty_but(lambda _: False, self.silent()):
            return True
        views = self._views.values()
        return any(view.settling or view.later or view.is_waited_for for view in views)

    def put_off(self) -> bool:
        """Whether all that is pending waits for a later try."""
        views = self._views.values()
        if self._dirty or any(view.settling or view.is_waited_for for view in views):
            return False
        wall = time.time()
        return self._queue.empty_but(lambda waiting: not self._may(waiting, wall), self.silent())

    def unseen(self) -> dict[str, str]:
        """Places in which pictures may lie that nobody could look into, and why."""
        found = {}
        for view in self._views.values():
            inbox, scan = view.folder.inbox, view.scan
            if inbox in self.closed or view.silent or scan is None or scan.state != "ok":
                problems = "; ".join(scan.problems) if scan and not view.silent else ""
                found[str(inbox)] = problems or self._state(view)
            else:
                found.update((place.path, place.why) for place in scan.unreadable)
        return found

    def entry(self, folder: Folder, relative: Path) -> Entry | None:
        """The regular file that lies at that place now, as a scan would show it.

        No link below the inbox is followed.
        """
        try:
            with trees.folder(folder.inbox, relative.parent) as place:
                found = os.stat(relative.name, dir_fd=place, follow_symlinks=False)
        except (OSError, ValueError):  # ValueError: the path leads out of the inbox
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        return Entry(
            os.fspath(relative),
            found.st_size,
            found.st_mtime_ns,
            found.st_ctime_ns,
            found.st_ino,
            found.st_dev,
        )

    def silent(self) -> frozenset[Path]:
        """The inboxes of folders of which a place does not answer, as far as is known."""
        return frozenset(i for i, view in self._views.items() if self._silent(view.folder))

    def _silent(self, folder: Folder) -> Path | None:
        """The place of a folder that does not answer, if there is one."""
        return self._looking.silent(folder.inbox) or answers.silent(folder.places)

    def folders(self) -> tuple[Folder, ...]:
        """The folders watched now."""
        return tuple(view.folder for view in self._views.values())

    def describe(self, held_up: Mapping[Path, Sequence[str]] = _NOTHING) -> list[dict[str, Any]]:
        """Every folder for ``status``: JSON values.

        ``held_up``: by inbox, the files that threads have been at for long.
        """
        views = self._views.values()
        return [self._describe(view, held_up.get(view.folder.inbox, ())) for view in views]

    def _take_note(self, view: View, found: Scan | None) -> float:
        """Of a folder's scan, None if it is not over; when something is due, by the clock.

        While a scan takes long, what the one before found still counts. A folder that does not
        answer is paused: who reads of it would hang.
        """
        before, was = view.scan, view.silent
        view.is_looked_at = found is None
        view.silent = self._silent(view.folder) if found is None else None
        if (view.silent is None) != (was is None) and view.folder.inbox not in self.closed:
            _tell_silence(view)
        if found is None and not view.silent:
            return self._clock() + PATIENCE
        view.scan = found or before
        if found is not None:
            _tell_change(view.folder, before, found)
        if found is None or found.state != "ok":
            view.settling, view.settled, view.hopeless, view.unready = 0, (), (), {}
            return _NEVER
        view.states = self._journal.file_states(view.folder)
        fresh = [entry for entry in found.entries if not self._finished(view, entry)]
        now = self._clock()
        settled = self.settler.observe(str(view.folder.inbox), fresh, now)
        view.settled, view.hopeless = settled.ready, settled.hopeless
        view.settling = len(fresh) - len(settled.ready) - len(settled.hopeless)
        if view.to_hold:
            view.to_hold &= {entry.name for entry in fresh}
        if view.unready:
            here = {entry.name: entry for entry in fresh if entry.name in view.unready}
            view.unready = {n: one for n, one in view.unready.items() if one.entry == here.get(n)}
        return now + settled.due if settled.due is not None else _NEVER

    def _offer(self) -> None:
        """Give the queue the settled files whose turn may come now, by what the journal knows."""
        pauses = [self._offer_view(view) for view in self._views.values()]
        self._offer_due = self._clock() + max(OFFER_EVERY, min(pauses, default=float("inf")))

    def _offer_view(self, view: View) -> float:
        """Sort a folder's settled files; seconds until the first of those put off is due."""
        view.states = self._journal.file_states(view.folder)
        taken = {name for inbox, name in self._taken if inbox == view.folder.inbox}
        wall, first = time.time(), float("inf")
        view.held = view.later = 0
        ready = []
        for entry in view.settled:
            state = _current(view.states, entry)
            if entry.name in taken or (state and state.done):
                continue  # since the last look
            if entry.name in view.to_hold and (state is None or not state.held):
                self._hold_again(view, entry)
                view.held += 1
            elif state is None:
                ready.append(entry)
            elif state.held:
                view.held += 1
            elif pause := _pause(state, wall):
                view.later += 1
                first = min(first, pause)
            else:
                ready.append(entry)
        self._queue.offer(view.folder, ready)
        return first

    def _hold_again(self, view: View, entry: Entry) -> None:
        """Have the journal know a held file as it is now."""
        self._journal.hold(
            view.folder, entry.relative, size=entry.size, mtime_ns=entry.mtime_ns, held=True
        )

    def _state(self, view: View) -> str:
        if view.folder.inbox in self.closed:
            return f"paused: {self.closed[view.folder.inbox]}"
        if place := self._silent(view.folder):
            return f"paused: {place} does not answer"
        return view.scan.state if view.scan else "not looked at yet"

    def _next_look(self) -> float:
        if not self._dirty:
            return self._due
        known = all(view.scan or view.is_looked_at for view in self._views.values())
        if known and self._has_work():
            return min(self._due, self._looked + self._cost * (1 / SCAN_SHARE - 1))
        return 0.0

    def _has_work(self) -> bool:
        return any(self._queue.waiting(inbox) for inbox in self._views)

    def _finished(self, view: View, entry: Entry) -> bool:
        state = _current(view.states, entry)
        return state is not None and state.done

    def _is_alone(self, waiting: Waiting) -> bool:
        state = self.state_of(waiting)
        return state is not None and state.alone

    def _may(self, waiting: Waiting, wall: float) -> bool:
        if waiting.folder.inbox in self.closed:
            return False
        state = self.state_of(waiting)
        if state is None:
            return True
        return not (state.held or _pause(state, wall))

    def _describe(self, view: View, held_up: Sequence[str]) -> dict[str, Any]:
        inbox, health = view.folder.inbox, self._watcher.health(view.folder)
        state = self._state(view)
        if held_up and self._silent(view.folder):
            state += f"; in the middle of {printable(', '.join(held_up))}"
        return {
            "inbox": str(inbox),
            "outbox": str(view.folder.outbox),
            "state": state,
            "mode": health.mode,
            "reason": health.reason,
            "pending": self._queue.waiting(inbox) + view.later,
            "settling": view.settling,
            "held": view.held,
            "ignored": dict(view.scan.ignored) if view.scan else {},
            "problems": list(view.scan.problems[:MOST_TOLD]) if view.scan else [],
            "unready": [
                {"file": place, "why": why, "remedy": remedy}
                for place, why, remedy in itertools.islice(_not_taken(view), MOST_TOLD)
            ],
            "unready_count": len(view.unready) + (len(view.scan.unreadable) if view.scan else 0),
        }


def _settler(settings: Settings) -> Settler:
    return Settler(settings.daemon.settle_seconds, settings.daemon.settle_timeout)


def _renewed(folder: Folder, view: View | None) -> View:
    """The view of a folder whose settings changed: what was found and asked for there still is."""
    return View(folder, view.scan, to_hold=view.to_hold) if view else View(folder)


def _not_taken(view: View) -> Iterator[tuple[str, str, str]]:
    """What of a folder cannot be taken yet: the place, why, and what to do about it."""
    for place in view.scan.unreadable if view.scan else ():
        yield place.path, place.why, LET_READ
    for name, one in view.unready.items():
        yield f"{view.folder.inbox}/{name}", one.why, one.remedy


def _pause(state: FileState, wall: float) -> float:
    """Seconds until a file may be tried again, 0 if that is now."""
    if state.next_try is None or not wall < state.next_try < wall + LONGEST_WAIT:
        return 0.0
    return state.next_try - wall


def _current(states: Mapping[str, FileState], entry: Entry) -> FileState | None:
    """The journal's state of this very file; one that was replaced starts with nothing."""
    state = states.get(entry.name)
    if state is None or (state.size, state.mtime_ns) != (entry.size, entry.mtime_ns):
        return None
    return state


def _tell_silence(view: View) -> None:
    if view.silent:
        why, remedy = f"{view.silent} does not answer", answers.BRING_BACK
        log.warning("folder is paused", inbox=str(view.folder.inbox), why=why, remedy=remedy)
    else:
        log.info("folder answers again", inbox=str(view.folder.inbox))


def _tell_change(folder: Folder, before: Scan | None, now: Scan) -> None:
    if before is not None and before.state == now.state:
        return
    if now.state == "ok":
        if before is not None:
            log.info("folder is back", inbox=str(folder.inbox))
    else:
        log.warning("folder is paused", inbox=str(folder.inbox), state=now.state)
