"""What delivery hands back: a picture staged or delivered, a source retired or set aside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fluxwatchd.job import Job


@dataclass(frozen=True, slots=True)
class Staged:
    """A whole, synced picture beside its final place, under a temporary name.

    ``directory`` is below the outbox. ``size`` in bytes; ``sha256`` of the file in hexadecimal.
    """

    job: Job
    directory: Path
    part: str
    suffix: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Delivered:
    """A picture and its sidecar in the outbox."""

    picture: Path
    sidecar: Path
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Retired:
    """What became of a source after success.

    ``replaced``: another file lies in its place by now, which was left alone. ``gone``: nothing
    lies there.
    """

    outcome: Literal["archived", "deleted", "kept", "replaced", "gone"]
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class SetAside:
    """What became of a source after failure; ``path`` and ``record`` lie below failed/."""

    outcome: Literal["failed", "replaced", "gone"]
    path: Path | None = None
    record: Path | None = None
