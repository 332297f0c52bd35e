"""The same work dropped twice at once: begun once, while the second waits to copy the result."""

from __future__ import annotations

from collections.abc import Iterable

from fluxwatchd import sidecar
from fluxwatchd.daemon.queue import Key
from fluxwatchd.daemon.taking import Prepared

Work = tuple[str, str, int]
"""What makes two results equal, the model aside: content, settings, seed."""


class Twins:
    """Which work is under way, from an engine's start on it until its file has left the house."""

    def __init__(self) -> None:
        self._doing: dict[Work, Key] = {}

    def begin(self, prepared: Prepared) -> None:
        """An engine begins on a picture."""
        self._doing[_work(prepared)] = prepared.waiting.key

    def end(self, key: Key) -> None:
        """A file is delivered, or is no longer worked on: what waits for it may be copied or made.

        A file with a result that cannot be delivered for now is worked on no longer, either.
        """
        self._doing = {work: doing for work, doing in self._doing.items() if doing != key}

    def waits(self, prepared: Prepared) -> bool:
        """Whether another file has the same work under way."""
        doing = self._doing.get(_work(prepared))
        return doing is not None and doing != prepared.waiting.key

    def waiting(self, ready: Iterable[Prepared]) -> int:
        """How many of these wait."""
        return sum(map(self.waits, ready))


def _work(prepared: Prepared) -> Work:
    job = prepared.job
    return job.sha256, sidecar.fingerprint(job.profile), job.seed
