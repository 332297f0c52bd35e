"""What readers, engines and writers tell the floor of a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fluxwatchd.daemon.handover import Linger
from fluxwatchd.daemon.queue import Waiting
from fluxwatchd.daemon.taking import Outcome, Prepared
from fluxwatchd.daemon.worker import Event
from fluxwatchd.job import Job, Taken

End = Literal["done", "failed", "neither"]
"""How a file left the house: delivered; set aside; or put off, given back, over before it came."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A job has left the house."""

    waiting: Waiting
    job_id: str
    end: End = "done"


@dataclass(frozen=True, slots=True)
class Stuck:
    """A job that cannot be ended now; ``linger`` knows why and how to go on.

    ``end`` is what it will be then. ``reading``: a reader says so.
    """

    waiting: Waiting
    job: Job | Taken
    linger: Linger
    end: End = "done"
    reading: bool = False


@dataclass(frozen=True, slots=True)
class Again:
    """A job that was to be copied must be made after all."""

    prepared: Prepared


Letter = Outcome | Event | Closed | Stuck | Again
