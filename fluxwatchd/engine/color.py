"""Colour lock: the low-frequency band of the result is the base's.

Pictures are (H, W, 3), float32, 0..1. Done in strips, so that a large picture needs little memory
beside itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

BLOCK = 8
"""Pixels a side that are averaged: the band below 1/16 cycle a px, smoothed, is locked."""
STRIP = 32 * BLOCK
"""Rows worked on at once."""
ENOUGH = 4_000_000
"""Pixels from which a mean colour is known well enough."""

Space = Callable[[Floats], Floats]


def lock(result: Floats, base: Floats, how: str) -> Floats:
    """``result`` with the low band of ``base``.

    ``wavelet`` adds what differs in sRGB, ``lab`` in L*a*b*, where an equal step looks equal in
    shadow and light. ``off`` gives ``result`` itself; else it is changed in place and returned.
    """
    if how == "off":
        return result
    if how == "lab":
        return _lock(result, base, to_lab, from_lab)
    return _lock(result, base, _same, _same)


def _lock(result: Floats, base: Floats, there: Space, back: Space) -> Floats:
    """Add the low band of (base - result), in the space that ``there`` leads to."""
    small = _small_difference(result, base, there)
    for rows in _strips(result.shape[0]):
        part = there(result[rows])
        for channel, plane in enumerate(small):
            part[..., channel] += _enlarged(plane, rows, result.shape)
        result[rows] = back(part)
    return result


def _small_difference(result: Floats, base: Floats, there: Space) -> list[Floats]:
    """(base - result) averaged over blocks and smoothed, one plane a channel."""
    parts = [
        block_means(there(base[rows]) - there(result[rows])) for rows in _strips(result.shape[0])
    ]
    means = np.concatenate(parts)
    return [smooth(means[..., channel]) for channel in range(means.shape[2])]


def shift(result: Floats, base: Floats) -> float:
    """The mean distance of the low bands of two pictures, CIE 1976 L*a*b* units.

    The band is the one that lock() works on; the distance is the colour difference of ISO/CIE
    11664-4. Of a large picture only some strips are looked at, evenly spread.
    """
    strips = list(_strips(result.shape[0]))
    step = math.ceil(result.shape[0] * result.shape[1] / ENOUGH)
    return float(np.mean(np.concatenate([_apart(result[r], base[r]) for r in strips[::step]])))


def _apart(one: Floats, other: Floats) -> Floats:
    """Of each block of two strips, how far the colours are from each other; a flat array."""
    lows = []
    for pixels in (one, other):
        means = block_means(pixels)
        lows.append(to_lab(np.stack([smooth(means[..., c]) for c in range(3)], -1)))
    return np.asarray(np.linalg.norm(lows[0] - lows[1], axis=-1).ravel(), dtype=np.float32)


def _strips(height: int) -> Iterator[slice]:
    return (slice(top, min(top + STRIP, height)) for top in range(0, height, STRIP))


def block_means(pixels: Floats) -> Floats:
    """Means over blocks of BLOCK x BLOCK px; the last row and column of blocks may be smaller."""
    rows = np.arange(0, pixels.shape[0], BLOCK)
    columns = np.arange(0, pixels.shape[1], BLOCK)
    sums = np.add.reduceat(np.add.reduceat(pixels, rows, axis=0), columns, axis=1)
    heights = np.diff(np.append(rows, pixels.shape[0]))
    widths = np.diff(np.append(columns, pixels.shape[1]))
    return np.asarray(sums / np.outer(heights, widths)[..., None], dtype=np.float32)


def smooth(plane: Floats) -> Floats:
    """Binomial (1, 2, 1)/4 down and across, the border repeated."""
    padded = np.pad(plane, 1, mode="edge")
    down = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return np.asarray((down[:, :-2] + 2 * down[:, 1:-1] + down[:, 2:]) / 4, dtype=np.float32)


def _enlarged(plane: Floats, rows: slice, shape: tuple[int, ...]) -> Floats:
    """The rows ``rows`` of ``plane`` enlarged by BLOCK to the picture's shape."""
    height, width = rows.stop - rows.start, shape[1]
    box = (0.0, rows.start / BLOCK, width / BLOCK, rows.stop / BLOCK)
    image = Image.fromarray(plane)
    enlarged = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
    return np.asarray(enlarged, dtype=np.float32)


def _same(pixels: Floats) -> Floats:
    return pixels


# CIE 1976 L*a*b* under D65 (ISO/CIE 11664-4) from sRGB (IEC 61966-2-1)
RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750],
     [0.0193339, 0.1191920, 0.9503041]], np.float32,
)  # fmt: skip
XYZ_TO_RGB = np.linalg.inv(RGB_TO_XYZ.astype(np.float64)).astype(np.float32)
WHITE = RGB_TO_XYZ.sum(1)
KNEE = 6 / 29


def to_lab(pixels: Floats) -> Floats:
    """SRGB -> L* (0..100), a*, b*."""
    ratio = _linear(pixels) @ RGB_TO_XYZ.T / WHITE
    bent = np.where(ratio > KNEE**3, np.cbrt(ratio), ratio / (3 * KNEE**2) + 4 / 29)
    x, y, z = bent[..., 0], bent[..., 1], bent[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1).astype(np.float32)


def from_lab(lab: Floats) -> Floats:
    """The inverse of :func:`to_lab`, not clipped."""
    y = (lab[..., 0] + 16) / 116
    bent = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], -1)
    ratio = np.where(bent > KNEE, bent**3, 3 * KNEE**2 * (bent - 4 / 29))
    return _encoded(ratio * WHITE @ XYZ_TO_RGB.T)


def _linear(srgb: Floats) -> Floats:
    """sRGB's transfer curve undone; odd-symmetric, so that values below 0 survive."""
    size = np.abs(srgb)
    curve = np.where(size <= 0.04045, size / 12.92, ((size + 0.055) / 1.055) ** 2.4)
    return np.asarray(np.copysign(curve, srgb), dtype=np.float32)


def _encoded(linear: Floats) -> Floats:
    """sRGB's transfer curve; the inverse of :func:`_linear`."""
    size = np.abs(linear)
    curve = np.where(size <= 0.0031308, size * 12.92, 1.055 * size ** (1 / 2.4) - 0.055)
    return np.asarray(np.copysign(curve, linear), dtype=np.float32)
