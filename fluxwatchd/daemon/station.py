"""One device's engine and the workers that take turns on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.daemon.pulse import LOADING, Pulse
from fluxwatchd.engine import Engine, devices, open_engine
from fluxwatchd.engine.turns import IN_FLIGHT
from fluxwatchd.errors import ConfigError, EngineLost, FluxwatchdError, JobFailed
from fluxwatchd.job import Checkpoint


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """New settings, which every station tries before they are used."""

    settings: EngineSettings
    profiles: tuple[Profile, ...]


class Station:
    """Owns the engine of one device; any of its workers may call it.

    ``device`` is None where no folder needs a model: it is found when the first picture does, so
    that no picture runs elsewhere than the settings say.
    """

    def __init__(
        self,
        settings: EngineSettings,
        device: str | None,
        profiles: tuple[Profile, ...],
        *,
        state_dir: Path,
    ) -> None:
        self._settings, self._profiles, self._state_dir = settings, profiles, state_dir
        self._device = device
        self._engine: Engine | None = None
        self._state = threading.Condition(threading.RLock())
        self._at_work = self._lent = 0
        self._workers = self.workers
        self._opened: tuple[Checkpoint, ...] | None = None
        self._tried: tuple[Trial, FluxwatchdError | None] | None = None
        self.resident: tuple[str, ...] = ()

    @property
    def workers(self) -> int:
        """How many pictures are to be under way on this device; a CPU has one at a time."""
        return IN_FLIGHT if (self._device or "cpu") != "cpu" else 1

    @property
    def device(self) -> str:
        """The device it runs on; the CPU as long as no model was needed."""
        return self._device or "cpu"

    def open(self, pulse: Pulse) -> tuple[Checkpoint, ...]:
        """Load and warm what the folders need; the second to come finds it done."""
        with self._state:
            if self._opened is None:
                with _loading(pulse):
                    self._renew()
                    self._opened = self._warm_all(self._profiles, pulse)
            return self._opened

    @property
    def is_wanted(self) -> bool:
        """Whether a picture of its own is worked on."""
        return self._at_work > 0

    @contextmanager
    def lending(self) -> Iterator[Engine | None]:
        """The engine for another station's picture, None if it is wanted here.

        Meanwhile no other settings are tried.
        """
        with self._state:
            engine = None if self._at_work else self._engine
            self._lent += 1
        try:
            yield engine
        finally:
            with self._state:
                self._lent -= 1
                self._state.notify_all()

    @contextmanager
    def working(self) -> Iterator[None]:
        """While a picture is worked on, no other settings are tried."""
        with self._state:
            self._at_work += 1
        try:
            yield
        finally:
            with self._state:
                self._at_work -= 1
                self._state.notify_all()

    def warm(self, profile: Profile, pulse: Pulse) -> tuple[Engine, Checkpoint]:
        """The engine, ready for ``profile``."""
        engine = self._ready(profile)
        checkpoint = engine.warm(profile, pulse)
        self.resident = engine.resident()
        return engine, checkpoint

    def try_out(self, trial: Trial, pulse: Pulse) -> FluxwatchdError | None:
        """Once no picture is worked on: all of it works, or what was there is as it was."""
        with self._state:
            self._state.wait_for(lambda: self._at_work == self._lent == 0)
            if self._tried is None or self._tried[0] is not trial:
                with _loading(pulse):
                    self._tried = (trial, self._try(trial, pulse))
            return self._tried[1]

    def leave(self) -> None:
        """A worker ends; the last one closes the engine."""
        with self._state:
            self._workers -= 1
            if self._workers <= 0 and self._engine is not None:
                self._engine.close()

    def _try(self, trial: Trial, pulse: Pulse) -> FluxwatchdError | None:
        before = (self._settings, self._profiles)
        try:
            self._settings, self._profiles = trial.settings, trial.profiles
            if trial.settings != before[0]:
                self._renew()
            self._warm_all(trial.profiles, pulse)
        except (ConfigError, JobFailed, EngineLost) as error:
            self._settings, self._profiles = before
            if trial.settings != before[0]:
                self._renew()
                self._warm_all(before[1], pulse)
            return error
        return None

    def _renew(self) -> Engine:
        """An engine by the settings of now, in place of the one there was."""
        if self._engine is not None:
            self._engine.close()
        self._engine = open_engine(self._settings, device=self.device, state_dir=self._state_dir)
        return self._engine

    def _warm_all(self, profiles: tuple[Profile, ...], pulse: Pulse) -> tuple[Checkpoint, ...]:
        checkpoints = tuple(self._ready(profile).warm(profile, pulse) for profile in profiles)
        self.resident = self._ready().resident()
        return checkpoints

    def _ready(self, profile: Profile | None = None) -> Engine:
        """The engine, on the device that the settings name once ``profile`` needs a model."""
        with self._state:
            if profile is not None and profile.kind.has_model and self._device is None:
                self._device = devices(self._settings)[0]
                return self._renew()
            if self._engine is None:
                raise EngineLost("the engine was never opened")
            return self._engine


@contextmanager
def _loading(pulse: Pulse) -> Iterator[None]:
    pulse.begin(LOADING)
    try:
        yield
    finally:
        pulse.end()
