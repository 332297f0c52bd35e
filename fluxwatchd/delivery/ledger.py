"""The journal, as recovery needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from fluxwatchd.config import Folder
from fluxwatchd.job import Taken


class Run(Protocol):
    """A row of the journal."""

    @property
    def id(self) -> str:
        """The job's id."""
        ...

    @property
    def inbox(self) -> Path:
        """The inbox that the source lay in."""
        ...

    @property
    def relative(self) -> Path:
        """The source's path below it."""
        ...

    @property
    def size(self) -> int:
        """The source's size, bytes."""
        ...

    @property
    def mtime_ns(self) -> int:
        """The source's modification time, ns since the epoch."""
        ...

    @property
    def inode(self) -> int:
        """The source's inode, 0 if unknown."""
        ...

    @property
    def sha256(self) -> str:
        """The source's hash."""
        ...

    @property
    def attempt(self) -> int:
        """The attempt's number."""
        ...

    @property
    def state(self) -> str:
        """As far as the journal knows: running, delivering, done, failed or interrupted."""
        ...

    @property
    def outcome(self) -> str | None:
        """What became of the source; None until it is out of the way."""
        ...

    @property
    def next_try(self) -> float | None:
        """When a failed job's file is tried again; None where it failed for good."""
        ...

    @property
    def moved_to(self) -> Path | None:
        """Where the source is now, if the journal was told."""
        ...

    @property
    def error_class(self) -> str | None:
        """The class of the error that ended the job."""
        ...

    @property
    def message(self) -> str | None:
        """Its words."""
        ...

    @property
    def hint(self) -> str | None:
        """Its remedy."""
        ...


class Ledger(Protocol):
    """The journal itself."""

    def interrupted_runs(self) -> tuple[Run, ...]:
        """Jobs that were under way."""
        ...

    def unretired(self) -> tuple[Run, ...]:
        """Jobs delivered whose source has yet to retire."""
        ...

    def not_set_aside(self) -> tuple[Run, ...]:
        """Jobs that failed for good whose source has yet to be set aside."""
        ...

    def run(self, job_id: str) -> Run | None:
        """A job by its id, if it is this journal's."""
        ...

    def finish(self, job_id: str, output: Path, output_sha256: str, checkpoint: str | None) -> None:
        """The result is committed; ``checkpoint`` is the id of what made it."""
        ...

    def fail(self, job_id: str, error: BaseException) -> None:
        """The job failed for good."""
        ...

    def retired(self, job_id: str, outcome: str, path: Path | None) -> None:
        """The source is out of the way."""
        ...

    def crashed(self, job_id: str) -> None:
        """The job has no result: its attempt counts, and its file runs alone next time."""
        ...


def taken_of(run: Run, folder: Folder) -> Taken:
    """The file that a run read."""
    return Taken(
        id=run.id,
        folder=folder,
        relative=run.relative,
        size=run.size,
        mtime_ns=run.mtime_ns,
        sha256=run.sha256,
        attempt=run.attempt,
        inode=run.inode,
    )
