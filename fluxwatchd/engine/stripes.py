"""A grid with the period of the model's tokens: how strong it is in what a model drew. NumPy only.

FLUX packs its latent into tokens of 16 output px, and on some pictures the borders of the tokens
show as faint lines, upright and level. Such a grid keeps its phase over the whole picture, which
what is shown in a picture does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from fluxwatchd.job import StripeRecord

Floats = NDArray[np.float32]
Lines = NDArray[np.complex128]
"""(blocks, harmonics): amplitude and phase, levels."""

LUMA = np.array([0.299, 0.587, 0.114], np.float32) * 255
"""ITU-R BT.601, to levels of an 8-bit picture."""
PERIODS = 8
"""Periods a block is long: its spectrum then has seven bins between two harmonics."""
MOST_BLOCKS = 128
"""Blocks looked at, spread evenly: 2 megapixels at FLUX.1's period, whatever the picture's size."""
LEAST_BLOCKS = 4
"""Blocks over which a wave must keep its phase, before it can be called a grid."""
QUIET = 0.02
"""Levels: a block that is quieter than this between the harmonics gets no more weight for it."""

LIMIT = 0.4
"""Levels above which a grid is held to show (docs/pictures.md has the measurement)."""


def shows(found: StripeRecord) -> bool:
    """Whether the grid is strong enough to be seen."""
    return found.amplitude is not None and found.amplitude > LIMIT


def better(first: StripeRecord, again: float | None) -> StripeRecord:
    """The record of two runs of which the first showed a grid; ``again`` is the second's."""
    if again is None or first.amplitude is None or again >= first.amplitude:
        return replace(first, first=first.amplitude)
    return replace(first, amplitude=again, first=first.amplitude, shifted=True)


def measure(result: Floats, base: Floats, period: int) -> float | None:
    """The amplitude of a grid of ``period`` px in ``result``, levels of 255; None: too small.

    Pictures are (H, W, 3), float32, 0..1. The amplitude is that of one wave with the power of all
    harmonics longer than 2 px together; of upright and level lines, the stronger ones'. What
    ``base``, the source enlarged, has itself at these frequencies is taken off: a pattern of the
    picture is no fault.

    Blocks are weighed by the inverse of their power between the harmonics, so that the smooth parts
    of a picture, where a grid can be seen, decide.
    """
    side = PERIODS * period
    axes = [axis for axis in (0, 1) if result.shape[axis] >= side]
    planes = list(_blocks(result, base, side)) if axes else []
    if len(planes) < LEAST_BLOCKS:
        return None
    return max(_along(planes, period, axis) for axis in axes)


def _blocks(result: Floats, base: Floats, side: int) -> Iterator[tuple[Floats, Floats]]:
    """Luma of (result - base) and of base, levels, in blocks that begin at multiples of ``side``.

    Blocks are ``side`` px long and wide, or as long or wide as a picture that is not.
    """
    rows, columns = (range(0, max(1, length - side + 1), side) for length in result.shape[:2])
    step = math.ceil(len(rows) * len(columns) / MOST_BLOCKS)
    # a stride that has no divisor in common with the row's length comes to every column
    while math.gcd(step, len(columns)) > 1:
        step += 1
    for top, left in [(top, left) for top in rows for left in columns][::step]:
        own = base[top : top + side, left : left + side]
        change = result[top : top + side, left : left + side] - own
        yield _luma(change), _luma(own)


def _luma(pixels: Floats) -> Floats:
    """(H, W, 3) -> (H, W)."""
    return np.asarray(pixels @ LUMA, dtype=np.float32)


def _along(planes: list[tuple[Floats, Floats]], period: int, axis: int) -> float:
    """The amplitude of a grid whose lines cross ``axis``: the change's less the base's."""
    window = np.hanning(PERIODS * period + 1)[:-1]

    def spectra(which: int) -> Lines:
        profiles = np.stack([pair[which].mean(1 - axis) for pair in planes])
        # scaled so that a wave of amplitude a has the absolute value a
        return np.asarray(np.fft.rfft(profiles * window) * (2 / window.sum()))

    change, own = spectra(0), spectra(1)
    harmonics = np.arange(PERIODS, change.shape[1] - 1, PERIODS)
    # three bins off, as Hann's window leaks into two
    between = np.concatenate([harmonics - 3, harmonics + 3])
    weights = 1 / (np.mean(np.abs(change[:, between]) ** 2, axis=1) + QUIET**2)
    share = weights / weights.sum()
    return max(0.0, _coherent(change[:, harmonics], share) - _coherent(own[:, harmonics], share))


def _coherent(lines: Lines, share: NDArray[np.float64]) -> float:
    """The amplitude of the mean of ``lines`` by ``share``, without what chance would give it."""
    mean = share @ lines
    # the variance of a weighted mean, from the scatter of the blocks themselves
    chance = share**2 @ np.abs(lines - mean) ** 2 / (1 - np.sum(share**2))
    return math.sqrt(max(0.0, float(np.sum(np.abs(mean) ** 2 - chance))))
