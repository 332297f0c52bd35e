"""The upscaling engine, usable as a library. Importing it imports no torch.

>>> from fluxwatchd import imageio
>>> from fluxwatchd.config import Profile
>>> from fluxwatchd.engine import open_engine
>>> with open_engine() as engine:  # doctest: +SKIP
...     done = engine.upscale(imageio.read("photo.jpg"), Profile(variant="nano"), seed=1)
...     imageio.write(done.picture, "photo.png")
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from fluxwatchd.config import EngineSettings, Profile
    from fluxwatchd.engine.shares import Offer, Share
    from fluxwatchd.imageio import Picture
    from fluxwatchd.job import Checkpoint, Upscaled

# OpenMP's threads spin while they wait: on a CPU that has other work too, nano then takes six to
# twenty times as long (measured). libgomp reads this once, when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class Beat(Protocol):
    """Called by the engine between tile batches, VAE windows and loaded parts.

    It says that work goes on (the watchdog is fed from it) and may raise Interrupted to end the
    job there; nothing of the job remains then. ``stage`` is one of load, compile, base, encode,
    dino, denoise, guide, decode, color, drift, finish; ``done`` of ``total`` units of it are
    finished.
    """

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Report, and perhaps raise Interrupted."""
        ...


def silent(stage: str, done: int, total: int) -> None:
    """A Beat that does nothing."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a piece of work is called, so that it can be gone on with after a restart.

    ``content`` is the sha256 of the picture's file, ``fingerprint`` that of the profile (see
    sidecar.fingerprint), ``seed`` the number that is used.
    """

    content: str
    fingerprint: str
    seed: int


def never() -> bool:
    """No."""
    return False


class Engine(Protocol):
    """One device and the models resident on it; belongs to the thread that first uses it."""

    @property
    def device(self) -> str:
        """torch's name of the device, as in ``cpu`` or ``cuda:0``."""
        ...

    def warm(self, profile: Profile, beat: Beat = silent) -> Checkpoint:
        """Load what ``profile`` needs and run it once, so that the next picture starts at once.

        Raises ConfigError (a model that is missing or of the wrong kind), EngineLost.
        """
        ...

    def upscale(
        self,
        picture: Picture,
        profile: Profile,
        seed: int,
        beat: Beat = silent,
        *,
        ticket: Ticket | None = None,
        offer: Offer | None = None,
    ) -> Upscaled:
        """Upscale one picture.

        With a ``ticket`` and a state folder a long job writes its state there, and goes on from
        what an earlier try of the same ticket left (see resume.py). Whoever gave the ticket
        removes the state once the job is over. ``offer`` is entered while other engines may help
        with the tiles of a large picture (``fusion = "final"``).

        Raises JobFailed (this picture), EngineLost (the device), Interrupted (from ``beat``).
        """
        ...

    def help(self, share: Share, beat: Beat = silent, *, leave: Callable[[], bool] = never) -> bool:
        """Do tiles of another engine's picture until there are none, or ``leave`` says so.

        Only with a model that is resident, and the same as the other's to the bit. False if it is
        of no use for these tiles: another model, too little memory, an error of its own.

        Raises EngineLost (the device broke), and Interrupted (from ``beat``).
        """
        ...

    def resident(self) -> tuple[str, ...]:
        """The variants and models held in memory, the last used first."""
        ...

    def close(self) -> None:
        """Drop every model."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def open_engine(
    settings: EngineSettings | None = None,
    *,
    device: str | None = None,
    state_dir: Path | None = None,
) -> Engine:
    """An engine on ``device`` (default: the first that ``settings`` names). Loads no model yet.

    ``state_dir`` is where caches (DINO features, compiled kernels, text states) are kept; None
    keeps them in memory only. A lanczos picture never makes it import torch.
    """
    from fluxwatchd.engine.resident import ResidentEngine

    return ResidentEngine(settings, device=device, state_dir=state_dir)


def devices(settings: EngineSettings) -> tuple[str, ...]:
    """The devices to run on, one engine each: every GPU, else the CPU; or the one that is set.

    Raises ConfigError if the set device is not there. Imports torch.
    """
    from fluxwatchd.engine.memory import find_devices

    return find_devices(settings)
