"""From a Result to the outbox, or from an error to failed/; what cannot be now is tried again."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from fluxwatchd import sidecar, work
from fluxwatchd.config import answers
from fluxwatchd.daemon.hooks import Hooks
from fluxwatchd.daemon.taking import Prepared, next_try
from fluxwatchd.daemon.worker import Known, Made
from fluxwatchd.delivery import Delivered, Delivery, Staged, Unsettled, copy_of
from fluxwatchd.errors import DeliveryFailed, FluxwatchdError, JobFailed
from fluxwatchd.job import Checkpoint, Job, Result, Taken
from fluxwatchd.journal import Journal, Row

log = structlog.get_logger(__name__)


class Linger(Exception):
    """A job cannot be ended now; ``again`` goes on from where it stands.

    ``job`` is over, but its source cannot leave the inbox; see Waits for the other case.
    """

    def __init__(self, job: Job | Taken, why: DeliveryFailed, again: Callable[[], object]) -> None:
        super().__init__(str(why))
        self.job, self.why, self.again = job, why, again


class Waits(Linger):
    """A result is made, but its outbox cannot take it now.

    It is kept in memory by ``again``; ``drop`` removes what lies in the outbox, if anything does,
    for giving it up, and raises DeliveryFailed where that cannot be now.
    """

    def __init__(
        self,
        job: Job,
        why: DeliveryFailed,
        again: Callable[[], object],
        drop: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(job, why, again)
        self.drop = drop


class NoCopy(Exception):
    """An earlier result cannot be copied after all: ``prepared`` must be made."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__(str(prepared.job.source))
        self.prepared = prepared


class Troubles:
    """Which places cannot take results, or give up sources, and why; from any thread.

    A trouble is one job's with one place, and ends with that job: another's success says nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], str] = {}

    def note(self, place: Path, job_id: str, why: FluxwatchdError) -> None:
        """A job has trouble with a place."""
        with self._lock:
            self._known.pop((job_id, str(place)), None)  # the newest words come last
            self._known[job_id, str(place)] = why.told

    def end(self, job_id: str) -> None:
        """A job is over, or has got past its trouble."""
        with self._lock:
            for key in [key for key in self._known if key[0] == job_id]:
                del self._known[key]

    def has(self, job_id: str) -> bool:
        """Whether a job has any."""
        with self._lock:
            return any(key[0] == job_id for key in self._known)

    def told(self) -> dict[str, str]:
        """Every trouble that lasts, by its place; of several with one place the newest."""
        with self._lock:
            return {place: why for (_, place), why in self._known.items()}


@dataclass(frozen=True, slots=True)
class Handover:
    """Runs in the writer threads, and never waits in one: what cannot be done now is raised.

    ``forget`` removes what the engine kept of a job that is over.
    """

    journal: Journal
    delivery: Delivery
    hooks: Hooks
    troubles: Troubles
    forget: Callable[[Job], None]

    def deliver(self, made: Made) -> None:
        """Put a result into the outbox, then retire its source.

        Raises Waits while the outbox cannot take it; Linger if the result is committed and the
        source cannot leave; DeliveryFailed for a result that no outbox will ever take.
        """
        self.journal.delivering(made.result.job)
        self._stage(made)

    def _stage(self, made: Made) -> None:
        job = made.result.job
        try:
            staged, told = work.stage(self.delivery, made.result)
        except DeliveryFailed as why:
            raise self._waits(job, why, lambda: self._stage(made)) from why
        self._commit(made, staged, told)

    def _commit(self, made: Made, staged: Staged, told: Result) -> None:
        job = made.result.job

        def again() -> None:
            if self._holds(job, staged, again):
                self._commit(made, staged, told)
            else:
                self._stage(made)

        try:
            done = work.commit(self.delivery, staged, told)
        except DeliveryFailed as why:
            raise self._waits(job, why, again, staged) from why
        self._close(job, done, made.result.upscaled.checkpoint)
        seconds = round(made.result.finished - made.result.started, 2)
        log.info("done", file=str(job.source), result=str(done.picture), seconds=seconds)

    def deliver_copy(self, known: Known) -> None:
        """Deliver an earlier result again. Raises NoCopy if it is not whole; also as deliver()."""
        job = known.prepared.job
        row = self.find_same(job, known.checkpoint)
        if row is None or row.output is None:
            raise NoCopy(known.prepared)
        try:
            earlier = sidecar.read(row.output.with_name(row.output.name + ".json"))
        except (OSError, ValueError) as error:
            log.warning("an earlier result has no record", file=str(row.output), why=str(error))
            raise NoCopy(known.prepared) from error
        self.journal.delivering(job)
        try:
            staged = self.delivery.stage(job, row.output.suffix, copy_of(row.output))
        except DeliveryFailed as why:
            log.warning("an earlier result could not be copied", file=str(row.output), why=str(why))
            raise NoCopy(known.prepared) from why
        if staged.sha256 != row.output_sha256 or staged.sha256 != earlier["output"]["sha256"]:
            with suppress(DeliveryFailed):  # recovery sweeps it
                self.delivery.discard(staged)
            raise NoCopy(known.prepared)
        self._commit_copy(known, staged, earlier, row.output)

    def _commit_copy(
        self, known: Known, staged: Staged, earlier: Mapping[str, Any], origin: Path
    ) -> None:
        job, started = known.prepared.job, time.time()

        def again() -> None:
            if self._holds(job, staged, again):
                self._commit_copy(known, staged, earlier, origin)
            else:
                self.deliver_copy(known)

        def record(name: str) -> Mapping[str, Any]:
            return sidecar.copied(
                job, earlier, origin, name=name, started=started, finished=time.time()
            )

        try:
            done = self.delivery.commit(staged, record)
        except DeliveryFailed as why:
            raise self._waits(job, why, again, staged) from why
        self._close(job, done, known.checkpoint)
        log.info("done: copied", file=str(job.source), result=str(done.picture), of=str(origin))

    def give_back(self, waits: Waits) -> None:
        """Give up a result that waits: its picture is made again once there is room.

        Raises Linger while what lies in the outbox cannot be removed: it may be whole by then, and
        the picture must not be made beside it.
        """
        try:
            if waits.drop is not None:
                waits.drop()
        except DeliveryFailed as why:
            raise Linger(waits.job, why, lambda: self.give_back(waits)) from why
        self.journal.give_back(waits.job.id)

    def abandon(self, waits: Waits) -> None:
        """The same at a stop; what cannot be removed now is by the next start."""
        self.journal.give_back(waits.job.id)
        with suppress(DeliveryFailed):
            if waits.drop is not None:
                waits.drop()

    def settle(self, left: Unsettled) -> None:
        """Bring to its end what an earlier process left. Raises Linger."""
        try:
            actions = left.again()
        except DeliveryFailed as why:
            raise self._lingers(left.job, why, lambda: self.settle(left)) from why
        for action in actions:
            log.info("recovered", kind=action.kind, file=str(action.path), what=action.text)

    def lingers(self, left: Unsettled) -> Linger:
        """What recovery could not end, as one of the sources that cannot leave."""
        return self._lingers(left.job, left.why, lambda: self.settle(left))

    def put_off(
        self, job: Job | Taken, place: Path, again: Callable[[], object], *, holds_result: bool
    ) -> Linger:
        """What is not begun while a place does not answer; nothing lies in the outbox yet."""
        why = DeliveryFailed(f"{place} does not answer", hint=answers.BRING_BACK)
        if holds_result and isinstance(job, Job):
            return self._waits(job, why, again)
        return self._lingers(job, why, again)

    def close_earlier(self, job: Job, found: Delivered) -> None:
        """A result that was delivered before the journal could say so: journal it, retire."""
        self.journal.begin(job)
        self._close(job, found, None)

    def find_same(self, job: Job, checkpoint: Checkpoint) -> Row | None:
        """An earlier job of the same content, settings, seed and model whose files are there."""
        rows = self.journal.find_same(
            job.sha256,
            sidecar.fingerprint(job.profile),
            job.seed,
            sidecar.checkpoint_id(checkpoint),
        )
        for row in rows:
            if row.output and _is_whole(row.output):
                return row
        return None

    def set_aside(self, job: Job | Taken, error: FluxwatchdError, attempts: int) -> None:
        """A failure for good: the source goes to failed/ with the reason beside it.

        Raises Linger while it cannot be moved.
        """
        self.journal.fail(job.id, error)
        if isinstance(job, Job):
            self.forget(job)
        self._set_aside(job, error, attempts)

    def _set_aside(self, job: Job | Taken, error: FluxwatchdError, attempts: int) -> None:
        """The move to failed/. Raises Linger."""
        try:
            aside = self.delivery.fail(
                job,
                lambda name: sidecar.failure(
                    job, error, name=name, finished=time.time(), attempts=attempts
                ),
            )
        except DeliveryFailed as why:
            raise self._lingers(job, why, lambda: self._set_aside(job, error, attempts)) from why
        self.journal.retired(job.id, aside.outcome, aside.path)
        log.error("failed", file=str(job.source), reason=str(error), remedy=error.hint)
        if aside.record is not None:
            self.hooks.run(
                job.folder.on_failed,
                "failed",
                inbox=job.folder.inbox,
                source=aside.path or job.source,
                result=None,
                record=aside.record,
            )

    def try_later(self, job: Job | Taken, error: JobFailed, attempts: int) -> None:
        """A failure that may pass: the source stays, and is tried again after a pause."""
        when = next_try(attempts, random.random())  # noqa: S311 - jitter, no secret
        self.journal.fail(job.id, error, next_try=when)
        log.warning(
            "tried again later",
            file=str(job.source),
            reason=str(error),
            in_seconds=round(when - time.time(), 1),
        )

    def _close(self, job: Job, done: Delivered, checkpoint: Checkpoint | None) -> None:
        """After the commit: journal, retire the source, journal. Raises Linger."""
        self.journal.finish(job.id, done.picture, done.sha256, checkpoint)
        self.forget(job)
        self._retire(job, done)

    def _retire(self, job: Job, done: Delivered, *, again: bool = False) -> None:
        try:
            retired = self.delivery.retire(job, again=again)
        except DeliveryFailed as why:
            raise self._lingers(job, why, lambda: self._retire(job, done, again=True)) from why
        self.journal.retired(job.id, retired.outcome, retired.path)
        self.hooks.run(
            job.folder.on_done,
            "done",
            inbox=job.folder.inbox,
            source=retired.path or job.source,
            result=done.picture,
            record=done.sidecar,
        )

    def _lingers(
        self, job: Job | Taken, why: DeliveryFailed, again: Callable[[], object]
    ) -> Linger:
        self.troubles.end(job.id)  # the outbox took it, if that had been full
        self.troubles.note(job.source, job.id, why)
        log.warning("the source cannot leave the inbox yet", file=str(job.source), why=str(why))
        return Linger(job, why, again)

    def _waits(
        self,
        job: Job,
        why: DeliveryFailed,
        again: Callable[[], object],
        staged: Staged | None = None,
    ) -> Waits:
        """The result as one that waits. Raises ``why`` where waiting is no use; nothing is left."""
        drop = partial(self.delivery.discard, staged) if staged is not None else None
        if not why.transient:
            with suppress(DeliveryFailed):  # recovery sweeps it
                if drop is not None:
                    drop()
            raise why
        self.troubles.note(job.folder.outbox, job.id, why)
        log.warning("delivery waits", file=str(job.source), why=str(why))
        return Waits(job, why, again, drop)

    def _holds(self, job: Job, staged: Staged, again: Callable[[], object]) -> bool:
        """Whether a staged picture is still there. Raises Waits while nobody can tell."""
        try:
            return self.delivery.holds(staged)
        except DeliveryFailed as why:
            raise self._waits(job, why, again, staged) from why


def _is_whole(output: Path) -> bool:
    """Whether a result is there, and its sidecar is and is whole; not on a share that hangs."""
    try:
        answers.expect([output])
        if not output.is_file():
            return False
        sidecar.read(output.with_name(output.name + ".json"))
    except (OSError, ValueError):
        return False
    return True
