"""From a settled file to a Job with its pixels, or a reason why not yet, or why never."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from fluxwatchd import work
from fluxwatchd.config import Settings
from fluxwatchd.daemon.queue import Waiting
from fluxwatchd.delivery import Delivered, already_delivered
from fluxwatchd.errors import ConfigError, FluxwatchdError, InputRejected, JobFailed
from fluxwatchd.imageio import Picture
from fluxwatchd.imageio.writing import SUFFIXES
from fluxwatchd.intake.scan import Entry, open_source
from fluxwatchd.intake.settle import has_writer
from fluxwatchd.job import Job, Taken
from fluxwatchd.journal import FileState, Journal

GONE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
NOT_OURS = {errno.EACCES, errno.EPERM}


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job whose attempt is counted and whose picture is decoded."""

    waiting: Waiting
    job: Job
    picture: Picture


@dataclass(frozen=True, slots=True)
class NotYet:
    """The file is left where it is.

    ``gone``: it vanished or changed, the next scan knows more. ``later``: it has a writer or does
    not decode, so it is tried again after a pause.
    """

    waiting: Waiting
    why: Literal["gone", "later"]
    error: FluxwatchdError | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """The file failed.

    ``counted`` says that the journal has its attempt open already. ``attempts`` is what its record
    is to say instead of the journal's count: for a file that is not tried any more.
    """

    waiting: Waiting
    job: Job | Taken
    error: FluxwatchdError
    counted: bool
    attempts: int | None = None


@dataclass(frozen=True, slots=True)
class Earlier:
    """A source whose result lies in the outbox already; journal and inbox know it now."""

    waiting: Waiting


@dataclass(frozen=True, slots=True)
class Reading:
    """A job whose attempt is counted, and its file's bytes."""

    waiting: Waiting
    job: Job
    content: work.Content


Outcome = Prepared | NotYet | Refused | Earlier


class Taker:
    """Reads, hashes, counts and decodes files; runs in the reader threads."""

    def __init__(
        self,
        journal: Journal,
        settings: Callable[[], Settings],
        close_earlier: Callable[[Job, Delivered], None],
    ) -> None:
        self._journal, self._settings, self._close_earlier = journal, settings, close_earlier

    def take(self, waiting: Waiting, state: FileState | None, *, last_chance: bool) -> Outcome:
        """One file's intake, in steps.

        ``last_chance``: the file has not changed for settle_timeout, so what cannot be read now
        never will be.
        """
        # 1. Open it without following links; ask whether somebody writes to it.
        try:
            descriptor = open_source(waiting.folder, waiting.entry.relative)
        except OSError as error:
            return _unreadable(waiting, error, last_chance)
        # 2. Read it once: what is hashed is what is decoded.
        try:
            if has_writer(descriptor):
                return NotYet(waiting, "later")
            content = work.read_content(descriptor, waiting.path.name)
        except OSError as error:
            return _unreadable(waiting, error, last_chance)
        except InputRejected as error:  # too long to be read for nothing
            if error.transient and not last_chance:
                return NotYet(waiting, "later", error)
            return Refused(waiting, taken_of(waiting), error, counted=False)
        finally:
            os.close(descriptor)
        if not _unchanged(waiting, content):
            return NotYet(waiting, "gone")
        taken = Taken(
            work.new_id(),
            waiting.folder,
            waiting.entry.relative,
            content.size,
            content.mtime_ns,
            content.sha256,
            inode=content.inode,
        )
        # 3. Freeze its settings.
        try:
            profile = self._settings().profile_for(waiting.folder, waiting.entry.relative)
        except ConfigError as error:  # perhaps it is being written at this moment
            if not last_chance:
                return NotYet(waiting, "later", error)
            return Refused(waiting, taken, _settings_error(waiting, error), counted=False)
        job = work.make_job(taken, profile)
        # 4. A source kept in place, or one under way in a crash or at a stop, or before the journal
        #    was lost, may be done by its sidecar.
        if self._may_be_done(waiting, state) and (found := already_delivered(job)):
            self._close_earlier(job, found)
            return Earlier(waiting)
        # 5. Count the attempt before anything can crash over it.
        if state is not None and state.alone and state.attempts >= _patience(waiting):
            killer = _killer(state.attempts)
            return Refused(waiting, job, killer, counted=False, attempts=state.attempts)
        job = replace(job, attempt=self._journal.begin(job))
        # 6. Decode it whole.
        return self._decode(Reading(waiting, job, content), last_chance=last_chance)

    def _may_be_done(self, waiting: Waiting, state: FileState | None) -> bool:
        """Whether a result of this file may lie in its outbox, whatever the journal says by now.

        Where the journal knows of no attempt, only an outbox that has a picture of its name is
        looked into: the first start may find 100,000 files that predate its journal.
        """
        if waiting.folder.on_success == "keep" or (state is not None and state.attempts > 0):
            return True
        if state is None and waiting.entry.ctime_ns / 1e9 >= self._journal.since():
            return False
        name = waiting.folder.outbox / waiting.entry.relative
        return any(os.path.lexists(name.with_suffix(suffix)) for suffix in SUFFIXES.values())

    def _decode(self, reading: Reading, *, last_chance: bool) -> Outcome:
        waiting, job = reading.waiting, reading.job
        try:
            picture = work.decode(reading.content.data, job.profile, waiting.path.name)
        except InputRejected as error:
            if error.transient and not last_chance:
                self._journal.give_back(job.id)
                return NotYet(waiting, "later", error)
            return Refused(waiting, job, error, counted=True)
        except JobFailed as error:  # memory was short
            return Refused(waiting, job, error, counted=True)
        except MemoryError:
            return Refused(waiting, job, _no_memory(), counted=True)
        return Prepared(waiting, job, picture)


def taken_of(waiting: Waiting) -> Taken:
    """A file whose content was never read."""
    entry = waiting.entry
    return Taken(
        work.new_id(),
        waiting.folder,
        entry.relative,
        entry.size,
        entry.mtime_ns,
        inode=entry.inode,
    )


def is_written(waiting: Waiting) -> bool:
    """Whether somebody has the file open for writing; False where that cannot be told."""
    try:
        descriptor = open_source(waiting.folder, waiting.entry.relative)
    except OSError:
        return False
    try:
        return bool(has_writer(descriptor))
    finally:
        os.close(descriptor)


def entry_of(job: Taken) -> Entry:
    """A file that an earlier process took, as a scan showed it then."""
    return Entry(os.fspath(job.relative), job.size, job.mtime_ns, 0, job.inode, 0)


def pause_after(attempt: int, *, jitter: float) -> float:
    """Seconds until the try after the ``attempt``-th: 5, 10, 20... up to 600; ``jitter`` in 0..1.

    The pause is drawn from .75 to 1.25 of that, so that many files do not come back at once.
    """
    return min(600.0, 5.0 * 2.0 ** (max(1, min(attempt, 20)) - 1)) * (0.75 + jitter / 2)


def next_try(attempt: int, jitter: float, now: Callable[[], float] = time.time) -> float:
    """When the next try is due, s since the epoch."""
    return now() + pause_after(attempt, jitter=jitter)


def empty(path: Path) -> InputRejected:
    """The reason for a file that never got any content."""
    return InputRejected(
        f"{path.name} is empty",
        hint="Copy it again: the transfer that made it did not finish.",
    )


def _unreadable(waiting: Waiting, error: OSError, last_chance: bool) -> Outcome:
    """A file that cannot be opened or read: gone, not ours, or on a share in trouble."""
    if error.errno in GONE:
        return NotYet(waiting, "gone")
    if error.errno in NOT_OURS:
        why = InputRejected(
            f"the file may not be read: {error.strerror}",
            hint="Give the service's user the right to read it, then `fluxwatchd retry` it.",
        )
        if not last_chance:
            return NotYet(waiting, "later", why)
        return Refused(waiting, taken_of(waiting), why, counted=False)
    failed = JobFailed(
        f"the file could not be read: {error.strerror or error}",
        hint="It is tried again; look after the disk or the share.",
        transient=True,
    )
    return Refused(waiting, taken_of(waiting), failed, counted=False)


def _unchanged(waiting: Waiting, content: work.Content) -> bool:
    entry = waiting.entry
    was = (entry.size, entry.mtime_ns, entry.inode)
    return was == (content.size, content.mtime_ns, content.inode)


def _patience(waiting: Waiting) -> int:
    """Crashes after which a file is set aside: it must have had one while it ran alone."""
    return max(2, waiting.folder.max_attempts)


def _settings_error(waiting: Waiting, error: ConfigError) -> FluxwatchdError:
    """A bad file beside one picture is that picture's; one for a whole folder waits to be mended.

    Otherwise a slip in one settings file would drain an inbox.
    """
    own = waiting.path.name + ".toml"
    if all(problem.file is not None and problem.file.name == own for problem in error.problems):
        return error
    return JobFailed(str(error), hint=error.hint or "Mend the settings file.", transient=True)


def _killer(attempts: int) -> JobFailed:
    return JobFailed(
        f"the process ended {attempts} times while it worked on this picture",
        hint="Look into the log for the reason (memory, driver); then `fluxwatchd retry` it.",
    )


def _no_memory() -> JobFailed:
    return JobFailed(
        "there was not enough memory to decode the picture",
        hint="Free memory, or lower `max_pixels` in the profile so that it is refused early.",
        transient=True,
    )
