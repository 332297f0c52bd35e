"""What is waiting and whose turn it is: folders take turns, the higher priority first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fluxwatchd.config import Folder
from fluxwatchd.intake.scan import Entry

Key = tuple[Path, str]
"""An inbox and the name of a file below it."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A settled file and the folder it lies in."""

    folder: Folder
    entry: Entry

    @property
    def key(self) -> Key:
        """What tells it from every other file."""
        return (self.folder.inbox, self.entry.name)

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.folder.inbox / self.entry.relative


@dataclass(slots=True)
class Lane:
    """One folder's waiting files, by name, in the order of the scan."""

    folder: Folder
    files: dict[str, Entry]


@dataclass(slots=True)
class TurnQueue:
    """Settled files by folder.

    ``offer`` replaces what is known of a folder by its newest scan; ``take`` gives the next file
    that may run: of the folders with the highest priority, the one served longest ago; within a
    folder, the order of the scan.
    """

    _lanes: OrderedDict[Path, Lane] = field(default_factory=OrderedDict)
    _busy: set[Key] = field(default_factory=set)
    _parked: set[Key] = field(default_factory=set)
    _held: frozenset[Path] = frozenset()

    def offer(self, folder: Folder, entries: Iterable[Entry]) -> None:
        """What is settled in ``folder`` now; files under way are left out."""
        inbox, busy = folder.inbox, self._busy | self._parked
        files = {entry.name: entry for entry in entries if (inbox, entry.name) not in busy}
        if inbox in self._lanes:
            self._lanes[inbox] = Lane(folder, files)  # keeps its place among the turns
        elif files:
            self._lanes[inbox] = Lane(folder, files)

    def first(self, allowed: Callable[[Waiting], bool]) -> Waiting | None:
        """The next file that is ``allowed``."""
        for lane in self._turns():
            for entry in lane.files.values():
                waiting = Waiting(lane.folder, entry)
                if allowed(waiting):
                    return waiting
        return None

    def take(self, allowed: Callable[[Waiting], bool]) -> Waiting | None:
        """The same, taken: it counts as under way until ``done``."""
        waiting = self.first(allowed)
        if waiting is not None:
            self.claim(waiting)
            self._lanes.move_to_end(waiting.folder.inbox)
        return waiting

    def hold(self, inboxes: frozenset[Path]) -> None:
        """Give nothing of these folders until told otherwise: their outboxes take nothing now."""
        self._held = inboxes

    def claim(self, waiting: Waiting) -> None:
        """Count a file as under way, in its turn or without."""
        inbox = waiting.folder.inbox
        if inbox in self._lanes:
            self._lanes[inbox].files.pop(waiting.entry.name, None)
        self._busy.add(waiting.key)

    def park(self, key: Key) -> None:
        """The file's job is over, but it still lies there: neither under way nor to be taken."""
        self._busy.discard(key)
        self._parked.add(key)

    def done(self, key: Key) -> None:
        """The file is no longer under way; the next scan may offer it again."""
        self._busy.discard(key)
        self._parked.discard(key)

    def forget(self, keep: Iterable[Path]) -> None:
        """Drop every folder but those whose inbox is in ``keep``."""
        for inbox in self._lanes.keys() - set(keep):
            del self._lanes[inbox]

    def busy(self) -> frozenset[Key]:
        """The files under way, and those that only have to leave."""
        return frozenset(self._busy | self._parked)

    def waiting(self, inbox: Path) -> int:
        """How many files wait in one folder."""
        return len(self._lanes[inbox].files) if inbox in self._lanes else 0

    def empty_but(
        self, parked: Callable[[Waiting], bool], silent: frozenset[Path] = frozenset()
    ) -> bool:
        """Whether nothing is under way, but in ``silent`` inboxes, and what waits is ``parked``."""
        if any(inbox not in silent for inbox, _ in self._busy):
            return False
        lanes = self._lanes.values()
        return all(
            parked(Waiting(lane.folder, entry)) for lane in lanes for entry in lane.files.values()
        )

    def _turns(self) -> list[Lane]:
        """Folders with something waiting: by priority, then by how long ago they had their turn."""
        lanes = self._lanes.items()
        filled = [lane for inbox, lane in lanes if lane.files and inbox not in self._held]
        return sorted(filled, key=lambda lane: -lane.folder.priority)
