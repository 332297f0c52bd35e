"""The writer threads: each task ends in one letter, whatever happens in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import structlog

from fluxwatchd.config import answers
from fluxwatchd.daemon.crew import Crew
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

    The main thread counts the tasks that are under way or wait for a thread.
    """

    def __init__(
        self,
        handover: Handover,
        tell: Callable[[Letter], None],
        count: int,
        stints: Stints | None = None,
    ) -> None:
        self._handover, self._tell = handover, tell
        self._crew = Crew(count, "writer", stints or Stints())
        self._busy: Counter[Path] = Counter()

    def hand(
        self,
        waiting: Waiting,
        job: Job | Taken,
        task: Task,
        end: End,
        linger: Linger | None = None,
    ) -> None:
        """Have a thread do ``task``; ``end`` is what the job comes to if that goes well.

        ``linger``: why it was put off before, if it was.
        """
        self._busy[waiting.folder.inbox] += 1

        def do() -> None:
            self._tell(self._do(waiting, job, task, end, linger))

        self._crew.submit(waiting.folder, waiting.entry.name, do)

    def ended(self, waiting: Waiting) -> None:
        """A task has told what came of it."""
        self._busy[waiting.folder.inbox] -= 1

    def busy(self, but: Collection[Path] = ()) -> int:
        """How many tasks have not, those of some inboxes left out."""
        return sum(count for inbox, count in self._busy.items() if inbox not in but)

    def relieve(self, silent: Collection[Path]) -> None:
        """See Crew.relieve()."""
        self._crew.relieve(silent)

    def shutdown(self, silent: Callable[[], Collection[Path]] = tuple) -> None:
        """Do what was handed over, then end; what a share holds up is left."""
        self._crew.close(silent)

    def _do(
        self, waiting: Waiting, job: Job | Taken, task: Task, end: End, linger: Linger | None
    ) -> Letter:
        closed = Closed(waiting, job.id, end)
        if place := answers.silent(waiting.folder.places):  # one thread that hangs is enough
            again = linger or self._handover.put_off(job, place, task, holds_result=end == "done")
            return Stuck(waiting, job, again, end)
        try:
            try:
                task()
            except JobFailed as error:  # a result that no outbox will ever take
                closed = replace(closed, end="failed")
                self._handover.set_aside(job, error, job.attempt)
        except Linger as why:
            return Stuck(waiting, why.job, why, closed.end)
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
