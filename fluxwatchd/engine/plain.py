"""What needs no model: the plain resize as a whole job, and every job's last step; no torch."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fluxwatchd.config import Profile
from fluxwatchd.engine import Beat, memory, resize
from fluxwatchd.errors import JobFailed
from fluxwatchd.imageio import Picture
from fluxwatchd.job import Checkpoint, DinoRecord, Upscaled

Floats = NDArray[np.float32]

LARGEST_SCALE = 8.0
"""What `scale` goes up to; a target size may ask for more."""


class Clock:
    """Wall time by stage, s, in the order in which stages were first entered."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def finish(picture: Picture, pixels: Floats, alpha: Floats | None) -> Picture:
    """``pixels`` (H, W, 1 or 3) and alpha as a picture like the source: its depth and metadata.

    ``pixels`` are clipped in place: no copy of the output is made. Raises JobFailed if the model
    gave numbers that are no colours.
    """
    if not _all_finite(pixels):
        raise JobFailed(
            "the model's result has values that are not finite",
            hint="The weights or the dtype are unfit; try another model or device.",
        )
    if picture.pixels.shape[2] == 1:
        pixels = pixels if pixels.shape[2] == 1 else resize.as_grey(pixels)
    return replace(picture, pixels=resize.clip(pixels, *picture.bounds), alpha=alpha)


def _all_finite(pixels: Floats) -> bool:
    """Whether no value is infinite or no number at all, looked at by rows."""
    step = max(1, resize.STRIP_VALUES // max(1, pixels[0].size))
    return all(
        bool(np.isfinite(pixels[top : top + step]).all()) for top in range(0, len(pixels), step)
    )


def reason(profile: Profile, size: tuple[int, int]) -> str | None:
    """Why no model runs for a source of ``size`` (width, height) px; None if one does.

    A smaller picture needs none, and nano learnt to enlarge: at scale 1 it would only smooth.
    """
    kind = profile.kind
    if not kind.has_model:
        return kind.name
    if profile.strength == 0:
        return "strength is 0"
    longer = max(profile.output_size(*size)) - max(size)
    if longer < 0:
        return "the result is smaller than the source"
    if longer == 0 and kind.uses_sources:
        return "the result is as large as the source"
    return None


def upscale(picture: Picture, profile: Profile, beat: Beat) -> Upscaled:
    """Lanczos, for the variant of that name and wherever no model runs: the same bytes."""
    clock = Clock()
    memory.reset_peak("cpu")
    beat("base", 0, 1)
    with clock("base"):
        size = profile.output_size(picture.width, picture.height)
        if size == (picture.width, picture.height):  # nothing mixes: hidden colours stay as well
            colours, alpha = picture.pixels, picture.alpha
        else:
            colours, alpha = resize.base(picture, size)
    beat("finish", 0, 1)
    with clock("finish"):
        done = finish(picture, colours, alpha)
    beat("finish", 1, 1)
    why = reason(profile, (picture.width, picture.height))
    return Upscaled(
        picture=done,
        sigmas=(),
        tiles=None,
        dino=DinoRecord(reason=f"no model ran: {why}"),
        seconds=clock.seconds,
        peak_bytes=memory.peak_bytes("cpu"),
        checkpoint=Checkpoint(variant=profile.variant, model="", plan="none"),
        notes=_notes(profile, why),
    )


def size_notes(profile: Profile, picture: Picture) -> tuple[str, ...]:
    """What is to be said of a target size that asks for less than the source, or for too much."""
    key = profile.size_key
    if key == "scale":
        return ()
    width, height = profile.output_size(picture.width, picture.height)
    factor = max(width, height) / max(picture.width, picture.height)
    sizes = f"{picture.width} x {picture.height} px became {width} x {height}"
    if factor < 1:
        return (f"{key} is below the source's size: {sizes}, the picture was shrunk",)
    if factor > LARGEST_SCALE:
        return (f"{key} asks for {factor:.1f} times the source's sides ({sizes}); scale goes to 8",)
    return ()


def _notes(profile: Profile, why: str | None) -> tuple[str, ...]:
    """That no model ran although the variant has one, and which settings had no effect."""
    if not profile.kind.has_model:
        return profile.without_effect()
    return (f"plain resize, {profile.variant} did not run: {why}", *profile.without_effect())
