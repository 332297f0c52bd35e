"""Ways to upscale that a benchmark can compare: our variants, Pillow's filters and peers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from fluxwatchd.bench import peers
from fluxwatchd.bench.metrics import Pixels
from fluxwatchd.bench.options import profile, seed_for
from fluxwatchd.bench.pictures import Pair, enlarge, to_picture, to_pixels
from fluxwatchd.config import Profile
from fluxwatchd.engine import Engine
from fluxwatchd.errors import ConfigError
from fluxwatchd.job import Upscaled
from fluxwatchd.variants import VARIANTS

BICUBIC = "bicubic"
NAMES = (*VARIANTS, BICUBIC, peers.REAL_ESRGAN)


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """A picture upscaled.

    ``pixels`` have the truth's size; ``seconds`` of wall time. ``upscaled`` is what the engine says
    of it and ``seed`` what it started from; None where another program made it.
    """

    pixels: Pixels
    seconds: float
    upscaled: Upscaled | None = None
    seed: int | None = None


Method = Callable[[Pair], Attempt]


def method(name: str, engine: Engine, scale: float, settings: Mapping[str, Any]) -> Method:
    """The way to upscale that ``name`` (one of NAMES) stands for, loaded and warm.

    ``settings`` are profile keys, for our variants only; ``lanczos`` takes none of them, so that
    it stays what it is beside any setting of the others. Raises ConfigError.
    """
    if name == BICUBIC:
        return _bicubic
    if name == peers.REAL_ESRGAN:
        if scale != peers.REAL_ESRGAN_SCALE:
            raise ConfigError(f"{name} upscales by {peers.REAL_ESRGAN_SCALE}, not by {scale:g}")
        upscale = peers.RealEsrgan()
        return lambda pair: Attempt(*upscale(pair.small))
    if name not in VARIANTS:
        raise ConfigError(f"method {name!r} is unknown", hint=f"Use one of {', '.join(NAMES)}.")
    chosen = profile(settings if VARIANTS[name].has_model else {}, variant=name, scale=scale)
    engine.warm(chosen)
    return by_engine(engine, chosen)


def by_engine(engine: Engine, chosen: Profile) -> Method:
    """Our own engine with the profile ``chosen``; loading, if it comes to that, is not timed."""

    def run(pair: Pair) -> Attempt:
        seed = seed_for(chosen, pair.small)
        start = time.perf_counter()
        done = engine.upscale(to_picture(pair.small), chosen, seed)
        seconds = time.perf_counter() - start - done.seconds.get("load", 0.0)
        return Attempt(to_pixels(done.picture), seconds, upscaled=done, seed=seed)

    return run


def _bicubic(pair: Pair) -> Attempt:
    height, width = pair.truth.shape[:2]
    start = time.perf_counter()
    pixels = enlarge(pair.small, (width, height), Image.Resampling.BICUBIC)
    return Attempt(pixels, time.perf_counter() - start)
