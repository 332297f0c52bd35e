"""Pictures to measure on: truths from a folder, shrunk as a user's pictures might have been."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from fluxwatchd.bench.metrics import MIN_SIDE, Pixels
from fluxwatchd.errors import ConfigError, InputRejected
from fluxwatchd.imageio import READABLE_SUFFIXES, Picture
from fluxwatchd.imageio import read as read_picture


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A picture and its small version, both (H, W, 3) uint8 sRGB.

    ``truth`` has the size that ``small`` comes to at the scale it was made for.
    """

    name: str
    truth: Pixels
    small: Pixels


def find(folder: Path, limit: int | None = None) -> tuple[Path, ...]:
    """The pictures directly in ``folder`` by name, at most ``limit``.

    Raises ConfigError if there is none.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder", hint="Name a folder of pictures as --images.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in READABLE_SUFFIXES)
    if not found:
        raise ConfigError(
            f"{folder} holds no picture",
            hint=f"Put pictures there: {', '.join(sorted(READABLE_SUFFIXES))}.",
        )
    return tuple(found[:limit])


def pairs(
    folder: Path, scale: float, *, limit: int | None = None, degrade: str = "bicubic"
) -> Iterator[Pair]:
    """Every picture of ``folder`` with its small version (see shrink)."""
    for path in find(folder, limit):
        yield pair(path, scale, degrade)


def pair(path: Path, scale: float, degrade: str = "bicubic") -> Pair:
    """Read ``path``, cut it at right and bottom to what ``scale`` can reach, and shrink it.

    Raises InputRejected if it cannot be read or is too small to be measured.
    """
    truth = read(path)
    height, width = truth.shape[:2]
    size = (int(width / scale), int(height / scale))
    border = border_for(scale)
    # the longest sides that the rounded small sides come back to
    reached = (round(size[0] * scale), round(size[1] * scale))
    if min(reached) - 2 * border < MIN_SIDE:
        raise InputRejected(f"{path} is too small to be measured at scale {scale:g}")
    truth = truth[: reached[1], : reached[0]]
    return Pair(name=path.name, truth=truth, small=shrink(truth, size, degrade))


def border_for(scale: float) -> int:
    """px that the measures leave out on every side of a result: the scale, as in the literature."""
    return int(np.ceil(scale))


def read(path: Path) -> Pixels:
    """``path`` as upright 8-bit sRGB without its alpha; raises InputRejected."""
    return to_pixels(read_picture(path))


def shrink(truth: Pixels, size: tuple[int, int], degrade: str = "bicubic") -> Pixels:
    """``truth`` at ``size`` (width, height) px by Pillow's bicubic, rounded to 8 bits.

    ``degrade`` is ``bicubic`` (nothing else is done) or ``jpeg`` and a quality from 1 to 95, as in
    ``jpeg75``: the small picture then goes through a JPEG with Pillow's other defaults (4:2:0).
    Raises ConfigError for any other word.
    """
    small = Image.fromarray(truth).resize(size, Image.Resampling.BICUBIC)
    if degrade == "bicubic":
        return np.asarray(small)
    match = re.fullmatch(r"jpeg([1-9][0-9]?)", degrade)
    if match is None or int(match[1]) > 95:
        raise ConfigError(
            f"degrade {degrade!r} is unknown", hint="Use bicubic, or jpeg1 to jpeg95 as in jpeg75."
        )
    file = io.BytesIO()
    small.save(file, "JPEG", quality=int(match[1]))
    return np.asarray(Image.open(file).convert("RGB"))


def enlarge(small: Pixels, size: tuple[int, int], filter: Image.Resampling) -> Pixels:
    """``small`` at ``size`` (width, height) px by one of Pillow's filters."""
    return np.asarray(Image.fromarray(small).resize(size, filter))


def to_picture(pixels: Pixels) -> Picture:
    """8-bit RGB as the engine takes it."""
    return Picture(pixels=pixels.astype(np.float32) / np.float32(255))


def to_pixels(picture: Picture) -> Pixels:
    """What the engine made, as an 8-bit file would hold it; grey becomes RGB."""
    rounded = np.rint(np.clip(picture.pixels, 0, 1) * 255).astype(np.uint8)
    return np.repeat(rounded, 3, axis=2) if rounded.shape[2] == 1 else rounded
