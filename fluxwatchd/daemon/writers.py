"""The writer threads: each task ends in one letter, whatever happens in it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import structlog

from fluxwatchd.daemon.handover import Handover, Linger, NoCopy
from fluxwatchd.daemon.letters import Again, Closed, End, Letter, Stuck
from fluxwatchd.daemon.queue import Waiting
from fluxwatchd.daemon.stints import Stints
from fluxwatchd.daemon.worker import Lost
from fluxwatchd.errors import EngineLost, FluxwatchdError, JobFailed, StateLost
from fluxwatchd.job import Job, Taken

log = structlog.get_logger(__name__)

Task = Callable[[], object]


class Writers:
    """Does tasks of Handover, ``count`` at a time, and ``tell``s what came of each.

    ``busy`` tasks are under way or wait for a thread; the main thread counts them.
    """

    def __init__(
        self,
        handover: Handover,
        tell: Callable[[Letter], None],
        count: int,
        stints: Stints | None = None,
    ) -> None:
        self._handover, self._tell, self._stints = handover, tell, stints or Stints()
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="writer")
        self.busy = 0

    def hand(self, waiting: Waiting, job: Job | Taken, task: Task, end: End) -> None:
        """Have a thread do ``task``; ``end`` is what the job comes to if that goes well."""
        self.busy += 1
        self._pool.submit(lambda: self._tell(self._do(waiting, job, task, end)))

    def shutdown(self) -> None:
        """Do what was handed over, then end."""
        self._pool.shutdown(wait=True)

    def _do(self, waiting: Waiting, job: Job | Taken, task: Task, end: End) -> Letter:
        closed = Closed(waiting, job.id, end)
        try:
            try:
                with self._stints.one():
                    task()
            except JobFailed as error:  # a result that no outbox will ever take
                closed = replace(closed, end="failed")
                self._handover.set_aside(job, error, job.attempt)
        except Linger as linger:
            return Stuck(waiting, linger.job, linger, closed.end)
        except NoCopy as error:
            return Again(error.prepared)
        except StateLost as error:
            return Lost(error)
        except Exception as error:
            log.exception("delivery failed", file=str(job.source))
            return Lost(unforeseen(error))
        return closed


def unforeseen(error: Exception) -> FluxwatchdError:
    """An error outside the engine that nobody foresaw: end, rather than drain an inbox."""
    return EngineLost(
        f"{type(error).__name__}: {error}",
        hint="This is a mistake in the program; please report it with the log.",
    )
