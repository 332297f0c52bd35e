"""What people ask for by a command: retry, hold, release, cancel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from fluxwatchd.config import Folder, answers
from fluxwatchd.daemon.inboxes import Inboxes
from fluxwatchd.daemon.queue import Waiting
from fluxwatchd.delivery import Delivery, Replaced
from fluxwatchd.errors import DeliveryFailed, JobFailed
from fluxwatchd.intake.scan import Entry
from fluxwatchd.journal import Forgiven, Held, Journal, Request

log = structlog.get_logger(__name__)

AT_ONCE = 0.5
"""Seconds that requests may take of the main thread at a time."""


@dataclass(frozen=True, slots=True)
class Clerk:
    """Carries requests out, in the main thread. ``cancel`` is Floor.cancel."""

    journal: Journal
    delivery: Delivery
    inboxes: Inboxes
    cancel: Callable[[Waiting], bool]

    def serve(self) -> int:
        """Carry out what waits; returns how many requests there were.

        One about a folder that does not answer waits until it does. What they come to is written
        at once for all of them: a crash before that has them carried out once more, which does no
        harm.
        """
        requests = self.journal.take_requests()
        end = time.monotonic() + AT_ONCE
        answered: list[int] = []
        silent: dict[Path, bool] = {}
        orders: list[Held | Forgiven] = []
        for request in requests:
            if time.monotonic() > end:
                break  # the rest at the next tick: pictures, signals and the watchdog come between
            if self._must_wait(request, silent):
                continue
            if order := self._serve_one(request):
                orders.append(order)
            answered.append(request.id)
        self.journal.answer(answered, orders)
        if answered:
            self.inboxes.refresh()
        return len(requests)

    def _must_wait(self, request: Request, silent: dict[Path, bool]) -> bool:
        """Whether the folder that a request is about does not answer; asked once a round."""
        folders = self.inboxes.folders()
        places = [(folder, place) for folder in folders for place in folder.places]
        if (found := _below(request.path, places)) is None:
            return False
        folder = found[0]
        if folder.inbox not in silent:
            silent[folder.inbox] = not answers.given(folder.places, answers.HASTE)
        return silent[folder.inbox]

    def _serve_one(self, request: Request) -> Held | Forgiven | None:
        """Carry one request out; whatever is wrong with it is told, and ends nothing.

        What there is to be written down for it is the answer.
        """
        about = {"kind": request.kind, "file": str(request.path)}
        try:
            done = self._carry_out(request)
        except (DeliveryFailed, Replaced, OSError, ValueError) as error:
            log.warning("request not possible", **about, why=str(error))
            return None
        level = log.info if done else log.warning
        level("request done" if done else "request for a file that is not there", **about)
        return done if isinstance(done, Held | Forgiven) else None

    def _carry_out(self, request: Request) -> Held | Forgiven | bool:
        """What is to be written down, else whether there was such a file.

        Raises ValueError for what is no request of ours.
        """
        if not request.path.is_absolute() or ".." in request.path.parts:
            raise ValueError("its path is not absolute, or leads back by `..`")
        match request.kind:
            case "retry":
                return self._retry(request.path)
            case "cancel":
                return self._cancel(request.path)
            case "hold" | "release":
                return self._hold(request.path, held=request.kind == "hold")
        raise ValueError("there is no such request")

    def _retry(self, path: Path) -> Forgiven | bool:
        folders = self.inboxes.folders()
        found = _below(path, ((folder, folder.failed_path) for folder in folders))
        if found is not None:
            folder, relative = found
            return Forgiven(folder, self.delivery.bring_back(folder, relative))
        found = _below(path, ((folder, folder.inbox) for folder in folders))
        if found is None:
            return False
        folder, relative = found
        if self.inboxes.entry(folder, relative) is None:
            if not (folder.failed_path / relative).is_file():
                return False
            relative = self.delivery.bring_back(folder, relative)
        return Forgiven(folder, relative)

    def _hold(self, path: Path, *, held: bool) -> Held | bool:
        found = self._entry(path)
        if found is None:
            return False
        folder, entry = found
        self.inboxes.hold(folder, entry.name, held=held)
        return Held(folder, entry.relative, entry.size, entry.mtime_ns, held)

    def _cancel(self, path: Path) -> bool:
        found = self._entry(path)
        if found is None:
            return False
        if not self.cancel(Waiting(*found)):
            raise ValueError("it is too late: it is being put away")
        return True

    def _entry(self, path: Path) -> tuple[Folder, Entry] | None:
        found = _below(path, ((folder, folder.inbox) for folder in self.inboxes.folders()))
        if found is None:
            return None
        entry = self.inboxes.entry(*found)
        return (found[0], entry) if entry is not None else None


def cancelled() -> JobFailed:
    """The reason in the record of a picture that somebody cancelled."""
    return JobFailed(
        "the picture was cancelled by `fluxwatchd cancel`",
        hint="`fluxwatchd retry` puts it back.",
    )


def _below(path: Path, places: Iterable[tuple[Folder, Path]]) -> tuple[Folder, Path] | None:
    """The folder whose place holds ``path``, and the path below it; the innermost where two do."""
    held = [(folder, place) for folder, place in places if path.is_relative_to(place)]
    if not held:
        return None
    folder, place = max(held, key=lambda found: len(found[1].parts))
    return folder, path.relative_to(place)
