"""After a crash: every job that is not over is brought to one of its two ends, one by one.

============================================  ===================================================
what the journal says, and what is found      what becomes of it
============================================  ===================================================
under way, no result                          its attempt counts; the picture is made again alone
under way, picture and sidecar in the outbox  the journal is told, and the source retires
under way, a sidecar without its picture      removed
delivered, the source still in the inbox      the source retires
failed for good, the source still there       it is set aside
============================================  ===================================================

leftovers.py sees to the temporary files of each job, and of those that are over or unknown. A job
that cannot be brought to its end now is handed back as Unsettled: the others are not held up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fluxwatchd import sidecar, trees
from fluxwatchd.config import Folder
from fluxwatchd.crashpoints import crashpoint
from fluxwatchd.delivery import aside, files, leftovers, names, records
from fluxwatchd.delivery.deliver import Delivery
from fluxwatchd.delivery.ledger import Ledger, Run, taken_of
from fluxwatchd.delivery.leftovers import LONE, Action, Claim, Leftover
from fluxwatchd.delivery.trouble import explained, failed
from fluxwatchd.errors import DeliveryFailed, JobFailed
from fluxwatchd.job import Taken


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A job that cannot be brought to its end now: a folder may not be written, a disk is full.

    ``again`` tries once more; it returns what was done, or raises DeliveryFailed.
    """

    job: Taken
    why: DeliveryFailed
    again: Callable[[], tuple[Action, ...]]


@dataclass(frozen=True, slots=True)
class Recovered:
    """What recovery did in a folder.

    ``left`` are temporary files of jobs that are over which could not be removed, each with the
    reason: the next start tries again.
    """

    actions: tuple[Action, ...] = ()
    unsettled: tuple[Unsettled, ...] = ()
    left: tuple[tuple[Path, str], ...] = ()


def recover(
    delivery: Delivery,
    folder: Folder,
    ledger: Ledger,
    clock: Callable[[], float] = time.time,
    *,
    busy: frozenset[str] = frozenset(),
    beat: Callable[[], None] = lambda: None,
) -> Recovered:
    """Bring every half-made delivery of a folder to its end; say what was done.

    Raises DeliveryFailed if the folder cannot be looked into now: recover again when it can.
    Running it twice does no more than once. ``clock`` gives s since the epoch. ``busy`` are the ids
    of jobs under way in this process: nothing of theirs is touched. ``beat`` is called at every
    step, folder or job: many of them take a while.
    """
    crashpoint("recover.before")
    claim = Claim(folder, ledger, busy, clock())
    with explained("look for half-made deliveries of", folder.inbox):
        folder.inbox.stat()  # where that is not there, no source can be said to be gone
        found = tuple(leftovers.leftovers(folder, beat))
    open_runs = {
        run.id: run
        for runs in (ledger.interrupted_runs(), ledger.unretired(), ledger.not_set_aside())
        for run in runs
        if run.inbox == folder.inbox and run.id not in busy
    }
    actions, left = _clear_strays(claim, (one for one in found if one.job_id not in open_runs))
    crashpoint("recover.swept")
    unsettled = []
    for run in open_runs.values():
        beat()
        work = _Work(delivery, claim, run, tuple(one for one in found if one.job_id == run.id))
        try:
            actions.extend(work.again())
        except DeliveryFailed as why:
            unsettled.append(Unsettled(work.job, why, work.again))
    crashpoint("recover.done")
    return Recovered(tuple(actions), tuple(unsettled), tuple(left))


def _clear_strays(
    claim: Claim, found: Iterable[Leftover]
) -> tuple[list[Action], list[tuple[Path, str]]]:
    """Settle and sweep what jobs left that are over or unknown; one that cannot be, stays."""
    actions: list[Action] = []
    left = []
    for one in found:
        try:
            actions.extend(leftovers.settle(one, claim))
            actions.extend(leftovers.sweep(one, claim))
        except OSError as error:
            left.append((one.path, error.strerror or str(error)))
    return actions, left


@dataclass(frozen=True, slots=True)
class _Work:
    """One job that is not over, and the temporary files it left."""

    delivery: Delivery
    claim: Claim
    run: Run
    found: tuple[Leftover, ...]

    @property
    def job(self) -> Taken:
        """The file it is about."""
        return taken_of(self.run, self.claim.folder)

    def again(self) -> tuple[Action, ...]:
        """Bring it to its end, from wherever it stands. Raises DeliveryFailed."""
        try:
            return tuple(self._settle())
        except OSError as error:
            raise failed("end what a crash left of", self.job.source, error) from error

    def _settle(self) -> Iterator[Action]:
        ledger, run_id = self.claim.ledger, self.run.id
        for one in self.found:
            if not one.hidden:  # retire() and fail() know whose it is, whatever took its name
                yield from leftovers.settle(one, self.claim)
        if self._state() in ("running", "delivering"):
            yield from self._tell_delivered()
        crashpoint("recover.delivered")
        if self._state() in ("running", "delivering"):
            yield from self._tell_failed()
        match self._state():
            case "running" | "delivering":
                ledger.crashed(run_id)
            case "done":
                yield self._retire()
            case "failed":
                yield from self._set_aside()
        for one in self.found:  # looked at once more: a source may have been replaced meanwhile
            yield from leftovers.settle(one, self.claim)
            yield from leftovers.sweep(one, self.claim)

    def _state(self) -> str:
        """What the journal says by now; empty once the source is out of the way."""
        run = self.claim.ledger.run(self.run.id)
        return run.state if run is not None and run.outcome is None else ""

    def _tell_delivered(self) -> Iterator[Action]:
        """Finish in the journal what was committed; undo what was half committed."""
        run, outbox = self.run, self.claim.folder.outbox
        directory = outbox / run.relative.parent
        try:
            with trees.folder(outbox, run.relative.parent) as place:
                linked = records.result_of(run.id, names.split(run.relative.name)[0], place)
                if linked is None:
                    return
                picture, record = linked
                if not records.holds(picture, record, place):
                    files.remove(picture + names.RECORD, place)
                    yield Action("removed", directory / (picture + names.RECORD), LONE)
                    return
                trees.sync_folder(place)  # the kill may have come before that
        except FileNotFoundError:
            return
        model = sidecar.checkpoint_of(record)
        self.claim.ledger.finish(run.id, directory / picture, record["output"]["sha256"], model)
        yield Action("finished", directory / picture, "it was delivered before the crash")

    def _tell_failed(self) -> Iterator[Action]:
        """A source that was set aside before the journal could say so; a lone record goes."""
        run, root = self.run, self.claim.folder.failed_path
        try:
            with trees.folder(root, run.relative.parent) as place:
                told = records.error_of(run.id, names.split(run.relative.name)[0], place)
                if told is None or aside.moved_before(self.job, place) is None:
                    return
        except FileNotFoundError:
            return
        why = JobFailed(told[1]["why"], hint=told[1]["remedy"])
        self.claim.ledger.fail(run.id, why)
        yield Action("set aside", root / run.relative.parent / told[0], "it failed before")

    def _retire(self) -> Action:
        """Take the source of a delivered job out of the inbox, or find where it went before."""
        done = self.delivery.retire(self.job, again=True)
        self.claim.ledger.retired(self.run.id, done.outcome, done.path)
        return Action("retired", done.path or self.job.source, done.outcome)

    def _set_aside(self) -> Iterator[Action]:
        """Set aside the source of a job that failed for good."""
        run = self.claim.ledger.run(self.run.id)
        if run is None or run.next_try is not None:
            return
        done = self.delivery.fail(self.job, lambda name: _words(run, self.job, name))
        self.claim.ledger.retired(run.id, done.outcome, done.path)
        yield Action("set aside", done.path or self.job.source, done.outcome)


def _words(run: Run, job: Taken, name: str) -> records.Record:
    """The error record of a job, from what the journal kept of it."""
    return sidecar.failure_again(
        job,
        name=name,
        kind=run.error_class or "JobFailed",
        message=run.message or "the job failed",
        hint=run.hint or "",
    )
