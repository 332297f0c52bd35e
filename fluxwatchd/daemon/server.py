"""recover -> load and warm -> READY -> serve -> drain; owns threads and signals."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import structlog

from fluxwatchd import signals, systemd, work
from fluxwatchd.config import Folder, Profile, Settings, answers, load
from fluxwatchd.daemon.bell import Bell
from fluxwatchd.daemon.floor import Floor
from fluxwatchd.daemon.handover import Handover, Troubles
from fluxwatchd.daemon.hooks import Hooks
from fluxwatchd.daemon.inboxes import Inboxes
from fluxwatchd.daemon.opening import Opening
from fluxwatchd.daemon.pulse import Listener, Pulse
from fluxwatchd.daemon.queue import TurnQueue
from fluxwatchd.daemon.report import Reporter
from fluxwatchd.daemon.requests import Clerk
from fluxwatchd.daemon.state import NO_JOB, opened
from fluxwatchd.daemon.station import Station
from fluxwatchd.daemon.taking import Taker
from fluxwatchd.daemon.worker import Worker
from fluxwatchd.delivery import Delivery, Homes, Recovered, recover
from fluxwatchd.engine import devices
from fluxwatchd.engine.shares import Board
from fluxwatchd.errors import ConfigError, DeliveryFailed, FluxwatchdError, StateBlocked
from fluxwatchd.journal import Journal

log = structlog.get_logger(__name__)

MOUNTS = "mounts.json"
"""The file in the state folder that says on which mount each folder lies."""
TICK = 1.0
"""Seconds between two looks at requests and at the configuration's file."""
PRUNE_EVERY = 86400.0
REOPEN_EVERY = 5.0
"""Seconds between two tries to open a folder that is paused."""


class Server:
    """The daemon: ``run`` starts it, serves and drains."""

    def __init__(
        self,
        settings: Settings,
        *,
        until_idle: bool = False,
        listener: Listener | None = None,
        on_reload: Callable[[Settings], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._until_idle, self._listener = settings, until_idle, listener
        self._on_reload, self._clock = on_reload, clock
        self._bell, self._stop, self._troubles = Bell(), signals.Stop(), Troubles()
        self._signals, self._reload_wanted = 0, False
        self._config_stamp = _stamp(settings.file)
        self._ticked = self._pruned = self._reopen_due = -float("inf")
        self._is_put_off = False
        self._trial: Settings | None = None

    def run(self) -> int:
        """Serve until stopped; 0, or 1 if until_idle and something was left undone.

        Raises ConfigError (another daemon has the state folder, a folder or model is unusable),
        EngineLost, StateLost.
        """
        try:
            return self._serve()
        except StateBlocked:
            if not self._signals:
                raise
            log.warning("stopped without room in the state folder; the next start recovers")
            return 0

    def _serve(self) -> int:
        """Start, serve and drain. Raises as run(), and StateBlocked at a stop without room."""
        state_dir = self._settings.daemon.state_dir
        with (
            self._bell,
            signals.caught(self._handlers()),
            opened(state_dir, self._stop, self._troubles) as journal,
        ):
            self._build(journal)
            try:
                if not self._stop.is_set():
                    self._startup()
                    self._main_loop()
            finally:
                self._shutdown()
        if self._floor.fatal is not None:
            raise self._floor.fatal
        return 1 if self._until_idle and self._is_unfinished() else 0

    def _is_unfinished(self) -> bool:
        """Whether a picture failed, has to wait, or may lie where nobody could look."""
        floor = self._floor
        unseen = {} if self._signals else self._inboxes.unseen()  # told to stop, it need not look
        for place, why in unseen.items():
            log.error("could not be looked into", place=place, why=why)
        silent = () if self._signals else self._inboxes.silent()
        left = floor.patience.sources() or self._is_put_off or self._inboxes.closed
        return bool(floor.tally.failed or left or unseen or silent)

    # start

    def _build(self, journal: Journal) -> None:
        """Make the parts and tell each of those it works with; nothing runs yet."""
        settings, ring, clock = self._settings, self._bell.ring, self._clock
        homes = Homes(settings.daemon.state_dir / MOUNTS)
        self._journal, self._delivery, self._hooks = journal, Delivery(homes), Hooks()
        queued = TurnQueue()
        self._opening = Opening(self._wait_for_recovery)
        self._inboxes = Inboxes(settings, journal, queued, ring, clock)
        forget = partial(work.forget_state, settings.daemon.state_dir)
        handover = Handover(journal, self._delivery, self._hooks, self._troubles, forget)
        taker = Taker(journal, lambda: self._settings, handover.close_earlier)
        self._floor = Floor(journal, taker, handover, queued, ring=ring, clock=clock)
        self._reporter = Reporter(journal, self._floor, self._inboxes, self._troubles, clock)
        self._clerk = Clerk(journal, self._delivery, self._inboxes, self._floor.cancel)

    def _startup(self) -> None:
        """Recover, then start every thread; the engines load while the main loop runs."""
        answers.begin(place for folder in self._settings.folders for place in folder.places)
        for folder in self._settings.folders:
            self._open_first(folder)
        known = {folder.inbox for folder in self._settings.folders}
        for row in self._journal.interrupted_runs():
            if row.inbox not in known:  # a folder that is watched no more
                self._journal.crashed(row.id)
        stations = [self._station(device) for device in self._devices(self._settings)]
        seats = [station for station in stations for _ in range(station.workers)]
        board = self._floor.board if len(stations) > 1 else None
        self._floor.open([self._worker(*seat, board) for seat in enumerate(seats)], self._inboxes)
        self._inboxes.start()

    def _open(self, folder: Folder) -> None:
        """Prepare a folder and end what a crash left there; while that cannot be, it is paused.

        Raises ConfigError for what does not pass by itself.
        """
        try:
            self._prepare(folder)
            self._recover(folder)
        except DeliveryFailed as error:
            self._pause(folder, error)
        else:
            self._inboxes.closed.pop(folder.inbox, None)

    def _open_first(self, folder: Folder) -> None:
        """The same at the start: what was usable once is expected to be so again.

        Raises ConfigError for a folder that never had a job: that is likely a slip.
        """
        try:
            self._open(folder)
        except ConfigError as error:
            if not self._journal.has_jobs(folder):
                raise
            self._pause(folder, error)

    def _reopen(self, folder: Folder) -> None:
        """Try again to open a folder that is paused, once no reader has a file of it."""
        if self._floor.is_reading(folder.inbox) or self._opening.is_under_way(folder.inbox):
            return
        try:
            self._open(folder)
        except ConfigError as error:
            self._pause(folder, error)

    def _pause(self, folder: Folder, why: FluxwatchdError) -> None:
        """Take nothing of a folder for now, and say why; once."""
        reason = why.told
        if self._inboxes.closed.get(folder.inbox) != reason:
            log.warning("folder is paused", inbox=str(folder.inbox), why=str(why), remedy=why.hint)
        self._inboxes.closed[folder.inbox] = reason

    def _prepare(self, folder: Folder) -> None:
        """Make what is missing; but an inbox that had jobs before is a share that is away.

        Raises DeliveryFailed, also for a share that does not answer; ConfigError.
        """
        with _answering():
            answers.expect(folder.places)
        self._delivery.prepare(folder, inbox=not self._journal.has_jobs(folder))

    def _recover(self, folder: Folder) -> None:
        """Bring a folder's half-made deliveries to an end. Raises DeliveryFailed."""
        busy = self._floor.under_way()

        def task(step: Callable[[], None]) -> Recovered:
            def beat() -> None:
                step()
                self._reporter.beat()

            return recover(self._delivery, folder, self._journal, busy=busy, beat=beat)

        with _answering():
            found = self._opening.recover(folder, task)
        for action in found.actions:
            log.info("recovered", kind=action.kind, file=str(action.path), what=action.text)
        for path, why in found.left:
            log.warning("a temporary file that a crash left stays", file=str(path), why=why)
        self._floor.adopt(found.unsettled)

    def _wait_for_recovery(self) -> None:
        """systemd hears of its steps, and meanwhile if it waits for room in the state folder."""
        if self._troubles.has(NO_JOB):
            self._reporter.beat()

    def _devices(self, settings: Settings) -> tuple[str | None, ...]:
        """One engine a device; a configuration without a model needs no device yet, nor torch."""
        if any(profile.kind.has_model for profile in _profiles(settings)):
            return devices(settings.engine)
        return (None,)

    def _station(self, device: str | None) -> Station:
        return Station(
            self._settings.engine,
            device,
            _profiles(self._settings),
            state_dir=self._settings.daemon.state_dir,
        )

    def _worker(self, lane: int, station: Station, board: Board | None) -> Worker:
        return Worker(
            lane,
            station,
            pulse=Pulse(self._stop, self._clock, self._listener),
            tell=self._floor.send,
            same=self._floor.has_same,
            board=board,
        )

    def _handlers(self) -> dict[signal.Signals, signals.Handler]:
        return {
            signal.SIGTERM: self._on_stop,
            signal.SIGINT: self._on_stop,
            signal.SIGHUP: self._on_hangup,
        }

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        """The first signal ends after the tile batch at hand, a second one at once."""
        self._signals += 1
        self._stop.set()
        if self._signals > 1:
            os._exit(128 + number)

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        self._reload_wanted = True

    # serve

    def _main_loop(self) -> None:
        """One round: letters, requests, reload, a look at the inboxes, work for idle hands."""
        while not self._stop.is_set() and self._floor.fatal is None:
            self._floor.read_letters()
            self._inboxes.look()  # before requests, which are about files that were seen
            self._tick()
            self._floor.refuse_hopeless()
            self._floor.feed()
            self._reporter.tell()
            if self._until_idle and self._idle():
                return
            if self._floor.quiet():
                self._bell.wait(min(TICK, self._inboxes.wait()))

    def _tick(self) -> None:
        """What is looked at once a second: requests, the configuration, shares, old history."""
        now = self._clock()
        if now - self._ticked < TICK:
            return
        self._ticked = now
        self._journal.check()
        self._clerk.serve()
        if now >= self._reopen_due:
            self._reopen_due = now + REOPEN_EVERY
            for folder in self._inboxes.reopened():
                self._reopen(folder)
        if self._floor.ready():
            self._see_to_reload()
        if now - self._pruned > PRUNE_EVERY:
            self._pruned = now
            self._journal.prune(self._settings.daemon.history_days)

    def _idle(self) -> bool:
        """Nothing is left that can be done now."""
        if not self._floor.ready() or self._floor.outstanding() or self._trial is not None:
            return False
        if not self._inboxes.pending():
            return True
        self._is_put_off = self._inboxes.put_off()
        return self._is_put_off

    # reload

    def _see_to_reload(self) -> None:
        """Begin a reload that is asked for, or end the one whose trial is over."""
        if self._trial is not None:
            self._end_trial(self._trial)
            return
        stamp = _stamp(self._settings.file)
        if self._reload_wanted or stamp != self._config_stamp:
            self._reload_wanted, self._config_stamp = False, stamp
            self._reload()

    def _reload(self) -> None:
        """Read the configuration anew; the engines try what is new to them before it is taken."""
        systemd.reloading()
        try:
            new = load(self._settings.file, places=False)
            self._judge(new)
        except (ConfigError, OSError) as error:
            self._refuse_reload(error)
            return
        old = self._settings
        if new.engine == old.engine and set(_profiles(new)) <= set(_profiles(old)):
            self._accept(new)
        else:
            self._trial = new
            self._floor.try_out(new.engine, _profiles(new))

    def _end_trial(self, new: Settings) -> None:
        """Once every engine has answered: take the configuration whole, or not at all."""
        tried = self._floor.tried
        if len(tried) < len(self._floor.workers):
            return
        self._trial = None
        errors = [error for error in tried.values() if error is not None]
        if errors:
            if len(errors) < len(tried):  # some engines took it
                self._floor.try_out(self._settings.engine, _profiles(self._settings))
            self._refuse_reload(errors[0])
        else:
            self._accept(new)

    def _judge(self, new: Settings) -> None:
        """Raise ConfigError for what cannot change while the daemon runs, or cannot be used."""
        if new.daemon.state_dir != self._settings.daemon.state_dir:
            raise ConfigError(
                "daemon.state_dir cannot change while the daemon runs",
                hint="Restart the daemon to use another state folder.",
            )
        wanted, held = self._devices(new), tuple(s.device for s in self._floor.stations)
        if wanted != (None,) and new.engine.device != self._settings.engine.device:
            raise ConfigError(
                f"engine.device cannot change while the daemon runs on {', '.join(held)}",
                hint="Restart the daemon to use another device.",
            )
        for folder in new.folders:
            try:
                self._prepare(folder)
            except DeliveryFailed:  # it is paused when it is opened
                continue
            except ConfigError:
                if not self._journal.has_jobs(folder):
                    raise

    def _accept(self, new: Settings) -> None:
        known = {_places(folder) for folder in self._settings.folders}
        self._settings = new
        self._inboxes.replace(new)
        for inbox in self._inboxes.closed.keys() - {folder.inbox for folder in new.folders}:
            del self._inboxes.closed[inbox]
        for folder in new.folders:
            if _places(folder) not in known:  # it may have been watched before
                self._inboxes.closed[folder.inbox] = "it is being opened"
                self._reopen(folder)
        self._reporter.config_problem = None
        if self._on_reload is not None:
            self._on_reload(new)
        log.info("configuration read again", file=str(new.file))
        systemd.ready(self._reporter.line())

    def _refuse_reload(self, error: Exception) -> None:
        self._reporter.config_problem = str(error)
        log.error("the configuration is not used, the old one stays", why=str(error))
        systemd.ready(self._reporter.line())

    # stop

    def _shutdown(self) -> None:
        """Drain: engines end after the batch at hand, writers finish, what is left goes back."""
        self._stop.set()
        systemd.stopping("stopping after the tile batch at hand")
        log.info("stopping", under_way=self._floor.outstanding())
        with self._reporter.draining():
            self._inboxes.stop()
            try:
                self._floor.close()
            finally:
                self._hooks.close(drain=not self._signals and self._floor.fatal is None)
                self._reporter.stopped()
        tally = self._floor.tally
        log.info("stopped", done=tally.done, failed=tally.failed)


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Turn Silent into DeliveryFailed."""
    try:
        yield
    except answers.Silent as silence:
        said = f"{silence.place} does not answer"
        raise DeliveryFailed(said, hint=answers.BRING_BACK) from silence


def _places(folder: Folder) -> tuple[object, ...]:
    """Where a folder's files go; what changes here is tried anew."""
    return (folder.inbox, folder.outbox, folder.failed_path, folder.archive_path, folder.on_success)


def _profiles(settings: Settings) -> tuple[Profile, ...]:
    """The folders' profiles, one of each."""
    return tuple(dict.fromkeys(settings.folder_profile(folder) for folder in settings.folders))


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """What changes when a file does."""
    try:
        known = path.stat() if path is not None else None
    except OSError:
        return None
    return (known.st_mtime_ns, known.st_ino) if known else None
