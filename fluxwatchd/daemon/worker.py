"""One engine thread: it does one picture after the other on its station's device."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from fluxwatchd import work
from fluxwatchd.daemon.pulse import Pulse
from fluxwatchd.daemon.station import Station, Trial
from fluxwatchd.daemon.taking import Prepared
from fluxwatchd.engine.shares import Board, Share
from fluxwatchd.errors import (
    ConfigError,
    EngineLost,
    FluxwatchdError,
    Interrupted,
    JobFailed,
    StateLost,
)
from fluxwatchd.job import Checkpoint, Result, Upscaled

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Made:
    """A picture is upscaled and waits for its delivery."""

    prepared: Prepared
    result: Result


@dataclass(frozen=True, slots=True)
class Broken:
    """A picture failed, or was interrupted (``error`` is Interrupted), cancelled or not."""

    prepared: Prepared
    error: FluxwatchdError
    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Known:
    """An earlier result of the same content, settings and model exists."""

    prepared: Prepared
    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class Warm:
    """The engine of ``lane`` is loaded and has run once."""

    lane: int
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """The engine is unusable: the process must end.

    ``prepared`` is the picture it was at, which counts as its doing unless the device is gone.
    """

    error: FluxwatchdError
    prepared: Prepared | None = None


@dataclass(frozen=True, slots=True)
class Tried:
    """New settings were tried: they are in use, or ``error`` says why the old ones stay."""

    lane: int
    error: FluxwatchdError | None


@dataclass(frozen=True, slots=True)
class Home:
    """A device that helped with another one's picture is back; ``useful`` if it can help again."""

    lane: int
    share: Share
    useful: bool


@dataclass(frozen=True, slots=True)
class Help:
    """Other devices may help with this share of the picture ``name``."""

    name: str
    share: Share


Event = Made | Broken | Known | Warm | Tried | Lost | Home


class Worker(threading.Thread):
    """Does pictures on a device that it may share; ``tell`` is told what came of each job.

    ``lane`` tells workers apart. ``same`` answers whether an earlier result of the job at hand,
    made by the given checkpoint, can be copied instead. ``board`` is where other devices find the
    tiles of a large picture, None where there is no other.
    """

    def __init__(
        self,
        lane: int,
        station: Station,
        *,
        pulse: Pulse,
        tell: Callable[[Event], None],
        same: Callable[[Prepared, Checkpoint], bool],
        board: Board | None = None,
    ) -> None:
        super().__init__(name=f"engine-{lane}", daemon=True)
        self.lane, self.station, self.pulse = lane, station, pulse
        self._tell, self._same, self._board = tell, same, board
        self._inbox: queue.SimpleQueue[Prepared | Trial | Help | None] = queue.SimpleQueue()

    def give(self, prepared: Prepared) -> None:
        """The next picture to do."""
        self._inbox.put(prepared)

    def help(self, name: str, share: Share) -> None:
        """Help with a picture of another device until there is something else; a Home says so."""
        self._inbox.put(Help(name, share))

    def try_out(self, trial: Trial) -> None:
        """After the job at hand, use other settings if they work; a Tried says whether."""
        self._inbox.put(trial)

    def end(self) -> None:
        """End after the job at hand."""
        self._inbox.put(None)

    def run(self) -> None:
        """Load, warm up, then work until told to end."""
        try:
            self._tell(Warm(self.lane, self.station.open(self.pulse)))
            while (item := self._inbox.get()) is not None:
                self._tell(self._come_of(item))
                del item  # it has a picture or a model, which are not to be kept until the next
        except Interrupted:
            return  # a stop while loading: cancel() never ends a load
        except FluxwatchdError as error:
            self._tell(Lost(error))
        except Exception as error:
            log.exception("the engine thread failed")
            self._tell(Lost(EngineLost(f"{type(error).__name__}: {error}")))
        finally:
            self.pulse.end()
            self.station.leave()

    def _come_of(self, item: Prepared | Trial | Help) -> Event:
        """Do it."""
        if isinstance(item, Trial):
            return Tried(self.lane, self.station.try_out(item, self.pulse))
        if isinstance(item, Help):
            return self._help(item)
        with self.station.working():
            return self._do(item)

    def _help(self, item: Help) -> Home:
        """Tiles of another device's picture. Raises EngineLost if this device broke."""
        useful = True
        with self.station.lending() as engine:
            self.pulse.begin(item.name, told=False)
            try:
                if engine is not None:
                    useful = engine.help(item.share, self.pulse, leave=self._is_wanted)
            except Interrupted:  # a stop; the tiles went back
                pass
            finally:
                self.pulse.end()
        return Home(self.lane, item.share, useful)

    def _is_wanted(self) -> bool:
        """Whether there is something to do here."""
        return self.station.is_wanted or not self._inbox.empty()

    def _do(self, prepared: Prepared) -> Event:
        """One picture; every way it can end is an Event."""
        job, started = prepared.job, time.time()
        self.pulse.begin(str(job.source))
        try:
            upscaled = self._upscale(prepared)
        except Interrupted as error:
            return Broken(prepared, error, cancelled=self.pulse.cancelled)
        except ConfigError as error:  # this picture's own settings name a model that is not there
            return Broken(prepared, JobFailed(str(error), hint=error.hint))
        except JobFailed as error:
            return Broken(prepared, error)
        except EngineLost as error:
            return Lost(error, prepared)
        except StateLost as error:  # no earlier result can be looked up; not the picture's doing
            return Lost(error)
        except Exception as error:
            log.exception("the engine failed", file=str(job.source))
            return Lost(EngineLost(f"{type(error).__name__}: {error}"), prepared)
        finally:
            self.pulse.end()
        if isinstance(upscaled, Checkpoint):
            return Known(prepared, upscaled)
        size = (prepared.picture.width, prepared.picture.height)
        return Made(prepared, Result(job, upscaled, started, time.time(), size))

    def _upscale(self, prepared: Prepared) -> Upscaled | Checkpoint:
        job = prepared.job
        engine, checkpoint = self.station.warm(job.profile, self.pulse)
        if self._same(prepared, checkpoint):
            return checkpoint
        return engine.upscale(
            prepared.picture,
            job.profile,
            job.seed,
            self.pulse,
            ticket=work.ticket(job),
            offer=partial(self._board.offer, str(job.source)) if self._board else None,
        )
