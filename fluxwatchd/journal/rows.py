"""What stands in the journal: jobs, files and requests, and how SQLite keeps their values."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from fluxwatchd.config import Folder

State = Literal["running", "delivering", "done", "failed", "interrupted"]
RequestKind = Literal["retry", "hold", "release", "cancel"]


@dataclass(frozen=True, slots=True)
class Row:
    """A job in the journal. Times in s since the epoch.

    ``seed`` and ``fingerprint`` are None for a file refused before it had settings. ``transient``
    and ``next_try`` say whether and when a failed job will be tried again. ``outcome`` is what
    became of the source (archived, deleted, kept, replaced, gone, failed), None until it retired.
    """

    id: str
    inbox: Path
    relative: Path
    size: int
    mtime_ns: int
    inode: int
    sha256: str
    state: State
    attempt: int
    started: float
    finished: float | None
    profile: Mapping[str, Any] | None
    fingerprint: str | None
    seed: int | None
    checkpoint: str | None
    output: Path | None
    output_sha256: str | None
    outcome: str | None
    moved_to: Path | None
    error_class: str | None
    message: str | None
    hint: str | None
    transient: bool
    next_try: float | None

    @property
    def source(self) -> Path:
        """Where the picture lay."""
        return self.inbox / self.relative


@dataclass(frozen=True, slots=True)
class FileState:
    """What the journal knows about a file that lies in an inbox.

    It holds for the file of that ``size`` and ``mtime_ns`` only: another file under the same name
    starts with nothing. ``attempts`` are those counted so far; ``next_try`` in s since the epoch;
    ``done`` for a source kept in place whose result is delivered.
    """

    relative: Path
    size: int
    mtime_ns: int
    attempts: int
    next_try: float | None
    held: bool
    done: bool
    alone: bool


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asked for by a command; ``path`` is absolute, ``at`` s since the epoch.

    Anybody who may use the commands may write a row by hand, too: then ``kind`` may be any word.
    """

    id: int
    kind: str
    path: Path
    at: float


@dataclass(frozen=True, slots=True)
class Held:
    """A file of that ``size`` and ``mtime_ns`` is to be held back, or let go on."""

    folder: Folder
    relative: Path
    size: int
    mtime_ns: int
    held: bool


@dataclass(frozen=True, slots=True)
class Forgiven:
    """A file's attempts and pauses are to be forgotten."""

    folder: Folder
    relative: Path


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What ``status`` shows. ``live`` is what the daemon last said of itself (set_live)."""

    counts: Mapping[str, int]
    live: Mapping[str, Any]
    running: tuple[Row, ...]
    failed: tuple[Row, ...]
    recent: tuple[Row, ...]
    waiting: tuple[tuple[Path, FileState], ...]
    requests: tuple[Request, ...]


@dataclass(frozen=True, slots=True)
class Explained:
    """All that is known about one path. ``rows`` are its jobs, the last one first."""

    path: Path
    rows: tuple[Row, ...]
    file: FileState | None
    requests: tuple[Request, ...]


JOB_COLUMNS: Final = (
    "id, inbox, relative, size, mtime_ns, inode, sha256, state, attempt, started, finished, "
    "profile, fingerprint, seed, checkpoint, output, output_sha256, outcome, moved_to, "
    "error_class, message, hint, transient, next_try"
)
FILE_COLUMNS: Final = "relative, size, mtime_ns, attempts, next_try, held, done, alone"


def blob(path: Path) -> bytes:
    """A path byte for byte, whatever its encoding."""
    return os.fsencode(path)


def path_of(kept: bytes) -> Path:
    """The path that blob() kept."""
    return Path(os.fsdecode(kept))


def wrap(number: int) -> int:
    """A number as SQLite keeps it: 64 bits with a sign (an inode has none)."""
    number &= 2**64 - 1
    return number - 2**64 if number >= 2**63 else number


def row_of(columns: Sequence[Any]) -> Row:
    """A Row from the values of JOB_COLUMNS."""
    values = list(columns)
    values[1], values[2] = path_of(values[1]), path_of(values[2])
    values[5] &= 2**64 - 1
    values[11] = json.loads(values[11]) if values[11] else None
    values[15] = path_of(values[15]) if values[15] else None
    values[18] = path_of(values[18]) if values[18] else None
    values[22] = bool(values[22])
    return Row(*values)


def file_state_of(columns: Sequence[Any]) -> FileState:
    """A FileState from the values of FILE_COLUMNS."""
    relative, size, mtime_ns, attempts, next_try, held, done, alone = columns
    return FileState(
        path_of(relative), size, mtime_ns, attempts, next_try, bool(held), bool(done), bool(alone)
    )


def request_of(columns: Sequence[Any]) -> Request:
    """A Request from id, kind, path and at, whatever was written there."""
    number, kind, path, at = columns
    kept = path if isinstance(path, bytes) else str(path).encode("utf-8", "surrogateescape")
    return Request(number, str(kind), path_of(kept), at if isinstance(at, float | int) else 0.0)
