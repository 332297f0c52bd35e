"""One engine thread: it loads, warms up, and does one picture after the other."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from fluxwatchd import work
from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.daemon.pulse import LOADING, Pulse
from fluxwatchd.daemon.taking import Prepared
from fluxwatchd.engine import Engine, devices, open_engine
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


Event = Made | Broken | Known | Warm | Tried | Lost


@dataclass(frozen=True, slots=True)
class _Trial:
    settings: EngineSettings
    profiles: tuple[Profile, ...]


class Worker(threading.Thread):
    """Owns one device's engine. ``tell`` is called from this thread with what came of each job.

    ``lane`` tells workers apart. ``device`` is None where no folder needs a model: it is found when
    the first picture does, so that no picture runs elsewhere than the settings say.
    ``same`` answers whether an earlier result of the job at hand, made by the given checkpoint,
    can be copied instead.
    """

    def __init__(
        self,
        lane: int,
        settings: EngineSettings,
        device: str | None,
        profiles: tuple[Profile, ...],
        *,
        state_dir: Path,
        pulse: Pulse,
        tell: Callable[[Event], None],
        same: Callable[[Prepared, Checkpoint], bool],
    ) -> None:
        super().__init__(name=f"engine-{lane}", daemon=True)
        self.lane, self.pulse, self._device = lane, pulse, device
        self._settings, self._profiles, self._state_dir = settings, profiles, state_dir
        self._tell, self._same = tell, same
        self._inbox: queue.SimpleQueue[Prepared | _Trial | None] = queue.SimpleQueue()
        self._engine: Engine | None = None
        self.resident: tuple[str, ...] = ()

    def give(self, prepared: Prepared) -> None:
        """The next picture to do."""
        self._inbox.put(prepared)

    @property
    def device(self) -> str:
        """The device it runs on; the CPU as long as no model was needed."""
        return self._device or "cpu"

    def try_out(self, settings: EngineSettings, profiles: tuple[Profile, ...]) -> None:
        """After the job at hand, use other settings if they work; a Tried says whether."""
        self._inbox.put(_Trial(settings, profiles))

    def end(self) -> None:
        """End after the job at hand."""
        self._inbox.put(None)

    def run(self) -> None:
        """Load, warm up, then work until told to end."""
        try:
            self._open()
            while (item := self._inbox.get()) is not None:
                if isinstance(item, _Trial):
                    self._tell(self._try(item))
                else:
                    self._tell(self._do(item))
        except Interrupted:
            return  # a stop while loading: cancel() never ends a load
        except FluxwatchdError as error:
            self._tell(Lost(error))
        except Exception as error:
            log.exception("the engine thread failed")
            self._tell(Lost(EngineLost(f"{type(error).__name__}: {error}")))
        finally:
            self.pulse.end()
            if self._engine is not None:
                self._engine.close()

    def _open(self) -> None:
        """Load and warm what the folders need, so that READY is true."""
        self.pulse.begin(LOADING)
        self._renew()
        checkpoints = self._warm_all(self._profiles)
        self.pulse.end()
        self._tell(Warm(self.lane, checkpoints))

    def _renew(self) -> Engine:
        """An engine by the settings of now, in place of the one there was."""
        if self._engine is not None:
            self._engine.close()
        self._engine = open_engine(self._settings, device=self.device, state_dir=self._state_dir)
        return self._engine

    def _warm_all(self, profiles: tuple[Profile, ...]) -> tuple[Checkpoint, ...]:
        checkpoints = tuple(self._ready(profile).warm(profile, self.pulse) for profile in profiles)
        self.resident = self._ready().resident()
        return checkpoints

    def _ready(self, profile: Profile | None = None) -> Engine:
        """The engine, on the device that the settings name once ``profile`` needs a model."""
        if profile is not None and profile.kind.has_model and self._device is None:
            self._device = devices(self._settings)[0]
            return self._renew()
        if self._engine is None:
            raise EngineLost("the engine was never opened")
        return self._engine

    def _try(self, trial: _Trial) -> Tried:
        """New settings: all of them work, or the old ones are as they were."""
        before = (self._settings, self._profiles)
        self.pulse.begin(LOADING)
        try:
            self._settings, self._profiles = trial.settings, trial.profiles
            if trial.settings != before[0]:
                self._renew()
            self._warm_all(trial.profiles)
        except (ConfigError, JobFailed, EngineLost) as error:
            self._settings, self._profiles = before
            if trial.settings != before[0]:
                self._renew()
                self._warm_all(before[1])
            return Tried(self.lane, error)
        finally:
            self.pulse.end()
        return Tried(self.lane, None)

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
        profile = prepared.job.profile
        (checkpoint,) = self._warm_all((profile,))
        if self._same(prepared, checkpoint):
            return checkpoint
        engine = self._ready(profile)
        job = prepared.job
        return engine.upscale(
            prepared.picture, profile, job.seed, self.pulse, ticket=work.ticket(job)
        )
