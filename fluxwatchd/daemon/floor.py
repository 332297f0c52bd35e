"""Who has which picture: letters of readers, engines and writers, and what follows from each."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import structlog

from fluxwatchd.config import EngineSettings, Profile, answers
from fluxwatchd.daemon.crew import Crew
from fluxwatchd.daemon.handover import Handover, Linger, Waits
from fluxwatchd.daemon.inboxes import Inboxes
from fluxwatchd.daemon.letters import Again, Closed, End, Letter, Stuck
from fluxwatchd.daemon.patience import Patience
from fluxwatchd.daemon.queue import Key, TurnQueue, Waiting
from fluxwatchd.daemon.requests import cancelled
from fluxwatchd.daemon.station import Station, Trial
from fluxwatchd.daemon.stints import Stints
from fluxwatchd.daemon.taking import (
    Earlier,
    NotYet,
    Prepared,
    Refused,
    Taker,
    empty,
    entry_of,
    is_written,
    taken_of,
)
from fluxwatchd.daemon.twins import Twins
from fluxwatchd.daemon.worker import Broken, Home, Known, Lost, Made, Tried, Warm, Worker
from fluxwatchd.daemon.writers import Writers, unforeseen
from fluxwatchd.delivery import Unsettled
from fluxwatchd.engine.shares import Board
from fluxwatchd.errors import (
    EngineLost,
    FluxwatchdError,
    InputRejected,
    Interrupted,
    JobFailed,
    OutOfMemory,
    StateBlocked,
    StateLost,
)
from fluxwatchd.job import Checkpoint, Job, Taken
from fluxwatchd.journal import Journal

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Tally:
    """What is under way, by stage, and how it went so far.

    ``lent``: lanes whose device helps with the picture of another.
    """

    reading: set[Key] = field(default_factory=set)
    ready: deque[Prepared] = field(default_factory=deque)
    busy: dict[int, Prepared] = field(default_factory=dict)
    lent: set[int] = field(default_factory=set)
    done: int = 0
    failed: int = 0
    alone: bool = False


class Floor:
    """The shop floor. Only the main thread changes its fields; others send letters.

    A file's way: the queue -> a reader thread (Prepared) -> an engine thread (Made) -> a writer
    thread (Closed). Each engine has at most one picture waiting before it.
    """

    def __init__(
        self,
        journal: Journal,
        taker: Taker,
        handover: Handover,
        queued: TurnQueue,
        *,
        ring: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._journal, self._taker, self._handover = journal, taker, handover
        self._queue, self._ring, self._clock = queued, ring, clock
        self._letters: queue.SimpleQueue[Letter] = queue.SimpleQueue()
        self._no_copy: set[str] = set()
        self._cancelled: set[Key] = set()
        self._twins = Twins()
        self._writing: dict[str, Key] = {}
        self._draining = False
        self._silent: frozenset[Path] = frozenset()
        self.tried: dict[int, FluxwatchdError | None] = {}
        self.tally = Tally()
        self.board = Board(ring)
        self.patience = Patience()
        self.stints = Stints(clock)
        self.workers: tuple[Worker, ...] = ()
        self.warm: dict[int, tuple[Checkpoint, ...]] = {}
        self.fatal: FluxwatchdError | None = None

    def open(self, workers: Sequence[Worker], inboxes: Inboxes) -> None:
        """Start the threads; pictures come from ``inboxes``."""
        self.workers, self._inboxes = tuple(workers), inboxes
        self.patience.most, self.patience.tries = len(workers) + 1, len(workers)
        self._readers = Crew(len(workers), "reader", self.stints)
        self._writers = Writers(self._handover, self.send, len(workers) + 1, self.stints)
        for worker in workers:
            worker.start()

    @property
    def stations(self) -> list[Station]:
        """Every device at work, once."""
        return list(dict.fromkeys(worker.station for worker in self.workers))

    def send(self, letter: Letter) -> None:
        """Tell the floor something; from any thread."""
        self._letters.put(letter)
        self._ring()

    def outstanding(self) -> int:
        """Files at work: taken, and neither closed nor waiting for a place to be well again.

        What a share that does not answer holds up does not count.
        """
        tally, writing = self.tally, self._writers.busy(self._silent) if self.workers else 0
        return self._reading() + writing + len(tally.ready) + len(tally.busy)

    def _reading(self) -> int:
        return sum(inbox not in self._silent for inbox, _ in self.tally.reading)

    def quiet(self) -> bool:
        """Whether no letter waits."""
        return self._letters.empty()

    def ready(self) -> bool:
        """Whether every engine is loaded and warm."""
        return bool(self.workers) and len(self.warm) == len(self.workers)

    def close(self) -> None:
        """Drain: engines end after the batch at hand, writers finish, what is left goes back."""
        if not self.workers:
            return
        for worker in self.workers:
            worker.end()
        self._readers.close(self.silent, drop=True)
        for worker in self.workers:
            if worker.is_alive():
                worker.join()
        self.read_letters()
        self._draining = True
        self._writers.shutdown(self.silent)
        self.read_letters()
        for stint in self.stints.lasting(0):
            inbox = str(stint.folder.inbox)
            log.warning("left behind: its share does not answer", inbox=inbox, file=stint.file)
        for waits in self.patience.results():
            self._abandon(waits)
        for prepared in (*self.tally.ready, *self.tally.busy.values()):
            self._journal.give_back(prepared.job.id)

    def read_letters(self) -> None:
        """Act on every letter that has come."""
        while True:
            try:
                letter = self._letters.get_nowait()
            except queue.Empty:
                return
            self._handle(letter)

    def _handle(self, letter: Letter) -> None:  # noqa: PLR0912 - one branch a kind of letter
        """What happens next to a file, by what came of it."""
        if isinstance(letter, Prepared | NotYet | Earlier | Refused):
            self.tally.reading.discard(letter.waiting.key)
        letter = self._if_cancelled(letter)
        match letter:
            case Prepared():
                self._prepared(letter)
            case NotYet():
                self._not_yet(letter)
            case Earlier():
                self._close(letter.waiting)
            case Refused():
                self._refuse(letter)
            case Made():
                self._free(letter.prepared)
                self._write(letter.prepared, lambda: self._handover.deliver(letter))
            case Known():
                self._free(letter.prepared)
                self._write(letter.prepared, lambda: self._handover.deliver_copy(letter))
            case Again():
                self._writers.ended(letter.prepared.waiting)
                self._again(letter.prepared)
            case Broken():
                self._free(letter.prepared)
                self._broken(letter)
            case Closed():
                self._writers.ended(letter.waiting)
                self._close(letter.waiting, letter.job_id, letter.end)
            case Stuck():
                self._stuck(letter)
            case Home():
                self._home(letter)
            case Tried():
                self.tried[letter.lane] = letter.error
            case Warm():
                self._warmed(letter)
            case Lost():
                self._lost(letter)

    def _free_worker(self) -> Worker | None:
        """One of the device that has the fewest pictures; rather one that does not help."""
        tally = self.tally

        def held(worker: Worker) -> tuple[int, int]:
            own = (lane for lane in tally.busy if self.workers[lane].station is worker.station)
            return sum(1 for _ in own), worker.lane in tally.lent

        free = [worker for worker in self.workers if worker.lane not in tally.busy]
        return min(free, key=held, default=None)

    def _lend(self) -> None:
        """Devices without a picture help with another's; they leave as soon as they have one."""
        for station in self.stations if (wanted := self.board.open()) else ():
            own = [worker for worker in self.workers if worker.station is station]
            if any(worker.lane in {*self.tally.busy, *self.tally.lent} for worker in own):
                continue
            for name, share in wanted:
                if station not in share.declined:
                    self.tally.lent.add(own[0].lane)
                    own[0].help(name, share)
                    break

    def _home(self, letter: Home) -> None:
        """A device that helped is back."""
        self.tally.lent.discard(letter.lane)
        if not letter.useful:
            letter.share.declined.add(self.workers[letter.lane].station)

    def _if_cancelled(self, letter: Letter) -> Letter:
        """What a reader says of a file that somebody cancelled meanwhile: it is set aside."""
        if not isinstance(letter, NotYet | Refused) or letter.waiting.key not in self._cancelled:
            return letter
        if isinstance(letter, Refused):
            return replace(letter, error=cancelled())
        if letter.why == "gone":  # it vanished, or it is another picture by now
            return letter
        return Refused(letter.waiting, taken_of(letter.waiting), cancelled(), counted=False)

    def feed(self) -> None:
        """Give idle engines the pictures that are ready, and read ahead one for each."""
        now, silent = self._clock(), self._see_to_silence()
        for stuck in self.patience.due(now, silent):
            self._hand(stuck.waiting, stuck.job, stuck.linger.again, stuck.end, stuck.linger)
        self._queue.hold(self._held())
        if not self.ready():
            return
        tally, lanes = self.tally, len(self.workers)
        while (worker := self._free_worker()) and (prepared := self._next_ready()):
            tally.busy[worker.lane] = prepared
            worker.give(prepared)
        self._lend()
        ahead = lanes + lanes - len(tally.busy) + min(lanes, self._twins.waiting(tally.ready))
        tried = self.patience.tried(silent)
        writing = self._writers.busy(silent) - tried
        while self._reading() + len(tally.ready) < ahead and writing < 2 * lanes:
            idle = self.outstanding() <= tried
            waiting = self._inboxes.take(only_alone=tally.alone, idle=idle)
            if waiting is None:
                return
            self._read(waiting)

    def silent(self) -> frozenset[Path]:
        """The inboxes of folders that do not answer."""
        return self._inboxes.silent() | self.held_up().keys()

    def _held(self) -> frozenset[Path]:
        """The inboxes of which nothing is taken now: a place of the folder takes or says nothing.

        By where the folder is now: after a reload it may be well while a thread waits for the old.
        """
        return self.patience.held(self._clock()) | self._inboxes.silent()

    def held_up(self) -> dict[Path, list[str]]:
        """The files that readers and writers are in the middle of and whose folders do not answer.

        By inbox, also of a folder that is watched no more. Those whose task takes long are asked.
        """
        found: dict[Path, list[str]] = {}
        for stint in self.stints.lasting(answers.PATIENCE):
            answers.begin(stint.folder.places)
            if answers.silent(stint.folder.places):
                found.setdefault(stint.folder.inbox, []).append(stint.file)
        return found

    def _see_to_silence(self) -> frozenset[Path]:
        """Let no folder that does not answer hold up others: not by its threads, nor its twins."""
        before, self._silent = self._silent, self.silent()
        if self.workers and (self._silent or before):
            self._readers.relieve(self._silent)
            self._writers.relieve(self._silent)
        for inbox in self._silent - before:
            self._hold_back(inbox)
            for key in [key for key in self._queue.busy() if key[0] == inbox]:
                self._twins.end(key)
        if not self.outstanding():
            self.tally.alone = False
        return self._silent

    def _next_ready(self) -> Prepared | None:
        """The first picture that an engine may begin: the same work is not done twice at once."""
        for prepared in self.tally.ready:
            if not self._twins.waits(prepared):
                self.tally.ready.remove(prepared)
                self._twins.begin(prepared)
                return prepared
        return None

    def _read(self, waiting: Waiting) -> None:
        state = self._inboxes.state_of(waiting)
        self.tally.alone = bool(state and state.alone)
        settler, inbox = self._inboxes.settler, str(waiting.folder.inbox)
        last_chance = settler.gave_up(inbox, waiting.entry, self._clock())
        self.tally.reading.add(waiting.key)

        def read() -> None:
            if answers.silent(waiting.folder.places):  # one thread that hangs is enough
                self.send(NotYet(waiting, "gone"))
                return
            try:
                self.send(self._taker.take(waiting, state, last_chance=last_chance))
            except Linger as linger:
                self.send(Stuck(waiting, linger.job, linger, reading=True))
            except StateLost as error:
                self.send(Lost(error))
            except Exception as error:
                log.exception("reading failed", file=str(waiting.path))
                self.send(Lost(unforeseen(error)))

        self._readers.submit(waiting.folder, waiting.entry.name, read)

    def _write(self, prepared: Prepared, task: Callable[[], object], end: End = "done") -> None:
        """Have a writer thread do ``task`` for a job, then close it."""
        self._hand(prepared.waiting, prepared.job, task, end)

    # what became of a file

    def _not_yet(self, letter: NotYet) -> None:
        waiting = letter.waiting
        if letter.why == "later":
            inbox, now = str(waiting.folder.inbox), self._clock()
            pause = self._inboxes.settler.retry_later(inbox, waiting.entry, now)
            why = str(letter.error) if letter.error else "somebody is writing to it"
            hint = letter.error.hint if letter.error else "It is taken once its writer closes it."
            self._inboxes.not_ready(waiting, why, hint)
            log.debug(
                "not whole yet",
                file=str(waiting.path),
                why=why,
                pause=round(pause, 1),
            )
        self._close(waiting, end="neither")

    def _hand(
        self,
        waiting: Waiting,
        job: Job | Taken,
        task: Callable[[], object],
        end: End,
        linger: Linger | None = None,
    ) -> None:
        self._writing[job.id] = waiting.key
        self._writers.hand(waiting, job, task, end, linger)

    def _stuck(self, letter: Stuck) -> None:
        """Free the thread; what is stuck is tried again with growing pauses, and not taken anew."""
        if letter.reading:
            self.tally.reading.discard(letter.waiting.key)
        else:
            self._writers.ended(letter.waiting)
        self._writing[letter.job.id] = letter.waiting.key
        self._twins.end(letter.waiting.key)
        kept = self.patience.add(letter, self._clock())
        if not isinstance(letter.linger, Waits):
            self._queue.park(letter.waiting.key)
        elif kept:
            self._hold_back(letter.waiting.folder.inbox)
        else:
            self._give_back(letter, letter.linger)
        if not self.outstanding():
            self.tally.alone = False

    def _give_back(self, stuck: Stuck, waits: Waits) -> None:
        """One result too many waits: it goes, and its file is taken again later."""
        if self._draining:
            self._abandon(waits)
        elif waits.drop is None:
            self._journal.give_back(waits.job.id)
            self._close(stuck.waiting, waits.job.id, "neither")
        else:
            give_back = partial(self._handover.give_back, waits)
            self._hand(stuck.waiting, stuck.job, give_back, "neither")

    def _abandon(self, waits: Waits) -> None:
        """At a stop: what lies on a share that does not answer is the next start's to remove."""
        if answers.given(waits.job.folder.places, answers.HASTE):
            self._handover.abandon(waits)
        else:
            self._journal.give_back(waits.job.id)

    def _hold_back(self, inbox: Path) -> None:
        """Pictures that were read for an outbox that takes nothing now go back undone."""
        held = [one for one in self.tally.ready if one.waiting.folder.inbox == inbox]
        for prepared in held:
            self.tally.ready.remove(prepared)
            self._put_back(prepared)

    def _put_back(self, prepared: Prepared) -> None:
        self._journal.give_back(prepared.job.id)
        self._close(prepared.waiting, prepared.job.id, "neither")

    def _again(self, prepared: Prepared) -> None:
        self._no_copy.add(prepared.job.id)
        self._forget(prepared.job.id)
        self.tally.ready.appendleft(prepared)

    def adopt(self, unsettled: Iterable[Unsettled]) -> None:
        """What recovery could not bring to its end is tried again, and not taken anew before."""
        for left in unsettled:
            job = left.job
            waiting = Waiting(job.folder, entry_of(job))
            stuck = Stuck(waiting, job, self._handover.lingers(left), "neither")
            self._writing[job.id] = waiting.key
            self.patience.add(stuck, self._clock())
            self._queue.park(waiting.key)

    def _refuse(self, letter: Refused) -> None:
        job, error = letter.job, letter.error
        attempt = job.attempt if letter.counted else self._journal.begin(job)
        attempt = letter.attempts or attempt
        job = replace(job, attempt=attempt)
        hopeless = isinstance(error, InputRejected)  # it had settle_timeout to become whole
        if isinstance(error, JobFailed) and error.transient and not hopeless:
            self._hand(
                letter.waiting,
                job,
                lambda: self._handover.try_later(job, error, attempt),
                "neither",
            )
        else:
            self._hand(
                letter.waiting,
                job,
                lambda: self._handover.set_aside(job, error, attempt),
                "failed",
            )

    def refuse_hopeless(self) -> None:
        """Files that have been empty for settle_timeout, and that nobody is writing to."""
        for waiting in self._inboxes.hopeless():
            if waiting.folder.inbox in self._inboxes.silent():
                continue
            if is_written(waiting):
                self._not_yet(NotYet(waiting, "later"))
                continue
            self._queue.claim(waiting)
            path = waiting.path
            self._refuse(Refused(waiting, taken_of(waiting), empty(path), counted=False))

    def _broken(self, letter: Broken) -> None:
        prepared, error = letter.prepared, letter.error
        job = prepared.job
        if letter.cancelled:
            self._set_aside_cancelled(prepared)
        elif isinstance(error, Interrupted):
            self._put_back(prepared)
        elif isinstance(error, JobFailed) and self._may_pass(job, error):
            self._write(
                prepared,
                lambda: self._handover.try_later(job, error, job.attempt),
                "neither",
            )
        else:
            self._write(
                prepared,
                lambda: self._handover.set_aside(job, error, job.attempt),
                "failed",
            )

    def _may_pass(self, job: Job, error: JobFailed) -> bool:
        """Memory may be free later, but not for ever: attempts are counted."""
        if isinstance(error, OutOfMemory):
            return error.transient and job.attempt < job.folder.max_attempts
        return error.transient

    def _lost(self, letter: Lost) -> None:
        self.fatal = letter.error
        if letter.prepared is not None:
            self._free(letter.prepared)
            if isinstance(letter.error, EngineLost) and letter.error.device_gone:
                self._journal.give_back(letter.prepared.job.id)
            else:  # what it fails on again and again is set aside, as after a crash
                self._journal.crashed(letter.prepared.job.id)
        if isinstance(letter.error, StateBlocked):
            return  # it has been told since it began
        what = "the state folder" if isinstance(letter.error, StateLost) else "the engine"
        log.critical(f"{what} is lost", why=str(letter.error), remedy=letter.error.hint)

    def _close(self, waiting: Waiting, job_id: str = "", end: End = "done") -> None:
        """A file is no longer under way; ``job_id`` is empty where it never became a job."""
        self._forget(job_id)
        self._cancelled.discard(waiting.key)
        self._twins.end(waiting.key)
        if not self.patience.has(waiting.key):
            self._queue.done(waiting.key)
        if end == "done":
            self.patience.delivered(waiting.folder.inbox, self._clock())
        self.tally.done += end == "done"
        self.tally.failed += end == "failed"
        if not self.outstanding():
            self.tally.alone = False
        self._inboxes.touch()

    def _forget(self, job_id: str) -> None:
        """No writer has this job any more."""
        self.patience.end(job_id)
        self._handover.troubles.end(job_id)
        self._writing.pop(job_id, None)

    def _free(self, prepared: Prepared) -> None:
        """The engine that had this job is free."""
        for lane, held in list(self.tally.busy.items()):
            if held is prepared:
                del self.tally.busy[lane]

    def _warmed(self, letter: Warm) -> None:
        self.warm[letter.lane] = letter.checkpoints
        if self.ready():
            log.info("ready", devices=[station.device for station in self.stations])

    def has_same(self, prepared: Prepared, checkpoint: Checkpoint) -> bool:
        """Whether an earlier result can be copied instead; from the engine threads."""
        if prepared.job.id in self._no_copy:
            return False
        return self._handover.find_same(prepared.job, checkpoint) is not None

    def cancel(self, waiting: Waiting) -> bool:
        """Set a file aside undone, wherever it is on its way; False if it is too late for that."""
        key, tally = waiting.key, self.tally
        if key not in self._queue.busy():
            self._queue.claim(waiting)
            self._refuse(Refused(waiting, taken_of(waiting), cancelled(), counted=False))
            return True
        for worker in self.workers:
            held = tally.busy.get(worker.lane)
            if held is not None and held.waiting.key == key:
                worker.pulse.cancel(str(held.job.source))
                return True
        for prepared in tally.ready:
            if prepared.waiting.key == key:
                tally.ready.remove(prepared)
                self._set_aside_cancelled(prepared)
                return True
        if key in tally.reading:
            self._cancelled.add(key)  # a writer's file is past that
            return True
        return False

    def _prepared(self, prepared: Prepared) -> None:
        self._inboxes.is_ready(prepared.waiting)
        if prepared.waiting.key in self._cancelled:
            self._set_aside_cancelled(prepared)
        elif prepared.waiting.folder.inbox in self._held():
            self._put_back(prepared)
        else:
            self.tally.ready.append(prepared)

    def _set_aside_cancelled(self, prepared: Prepared) -> None:
        job = prepared.job
        self._write(
            prepared,
            lambda: self._handover.set_aside(job, cancelled(), job.attempt),
            "failed",
        )

    def under_way(self) -> frozenset[str]:
        """The ids of the jobs whose pictures are decoded, and that are not closed."""
        held = (*self.tally.ready, *self.tally.busy.values())
        return frozenset((*(prepared.job.id for prepared in held), *self._writing))

    def is_reading(self, inbox: Path) -> bool:
        """Whether a reader has a file of this folder: its job may have begun unseen."""
        return any(key[0] == inbox for key in self.tally.reading)

    def try_out(self, settings: EngineSettings, profiles: tuple[Profile, ...]) -> None:
        """Have every engine try other settings after its job; ``tried`` fills with the answers."""
        self.tried = {}
        trial = Trial(settings, profiles)
        for worker in self.workers:
            worker.try_out(trial)
