"""Where tiles lie and how they are blended: pure geometry, NumPy only.

Lengths are counted in units: tokens for the denoiser, latent cells or pixels for the VAE. A grid
is the product of two axes, so every tile of a picture has the same shape and the blend weights are
the product of two ramps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float32]

STRETCH = 1.15
"""A tile may be this much longer than asked for, if that saves a tile."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a grid: tiles of ``size`` units at ``starts`` cover ``length`` units."""

    length: int
    size: int
    starts: tuple[int, ...]

    @property
    def overlap(self) -> int:
        """The least overlap of two neighbours, units; 0 where there is one tile."""
        ends = (start + self.size for start in self.starts[:-1])
        return min(
            (end - after for end, after in zip(ends, self.starts[1:], strict=True)), default=0
        )

    def weights(self, per: int = 1) -> Weights:
        """Blend weights (tiles, size * per) with ``per`` samples a unit.

        Each is above 0, and those that fall on one sample sum to 1. A tile's weight rises over its
        overlap with a neighbour and is flat elsewhere, the picture's border included.
        """
        place = np.arange(self.size * per, dtype=np.float64) + 0.5
        ramps = np.ones((len(self.starts), self.size * per))
        for i, (before, after) in enumerate(zip(self.starts, self.starts[1:], strict=False)):
            shared = (before + self.size - after) * per
            if shared > 0:
                rise = _rise(np.minimum(1.0, place / shared))
                ramps[i + 1] = np.minimum(ramps[i + 1], rise)
                ramps[i] = np.minimum(ramps[i], rise[::-1])
        total = np.zeros(self.length * per)
        for start, ramp in zip(self.starts, ramps, strict=True):
            total[start * per : (start + self.size) * per] += ramp
        sums = [total[start * per : (start + self.size) * per] for start in self.starts]
        return (ramps / np.stack(sums)).astype(np.float32)


def _rise(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 0 to 1 with slope and curvature 0 at both ends (Perlin 2002, Improving noise).

    A model is at its worst along the border of what it is given. A linear ramp lets enough of that
    through to show as a line in a smooth sky; this one does not (docs/pictures.md).
    """
    return place**3 * (place * (6 * place - 15) + 10)


@dataclass(frozen=True, slots=True)
class Tile:
    """A tile's place, units. ``row`` and ``column`` count tiles."""

    row: int
    column: int
    top: int
    left: int
    height: int
    width: int

    def cut(self, per: int = 1) -> tuple[slice, slice]:
        """Its rows and columns in an array with ``per`` samples a unit."""
        return (
            slice(self.top * per, (self.top + self.height) * per),
            slice(self.left * per, (self.left + self.width) * per),
        )


@dataclass(frozen=True, slots=True)
class Grid:
    """All tiles of a picture."""

    rows: Axis
    columns: Axis

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """Every tile once, row by row."""
        return tuple(
            Tile(row, column, top, left, self.rows.size, self.columns.size)
            for row, top in enumerate(self.rows.starts)
            for column, left in enumerate(self.columns.starts)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of every tile, units."""
        return self.rows.size, self.columns.size

    @property
    def overlap(self) -> int:
        """The least overlap of two neighbours, units; 0 where there is one tile."""
        axes = [axis.overlap for axis in (self.rows, self.columns) if len(axis.starts) > 1]
        return min(axes, default=0)

    def weights(self, per: int = 1) -> Iterator[Weights]:
        """Blend weights (height * per, width * per) of every tile, in the order of ``tiles``."""
        rows, columns = self.rows.weights(per), self.columns.weights(per)
        return (np.outer(rows[tile.row], columns[tile.column]) for tile in self.tiles)


def plan_axis(length: int, native: int, overlap: int) -> Axis:
    """The fewest even tiles that cover ``length`` units and overlap by at least ``overlap``.

    No tile is longer than ``native`` stretched by :data:`STRETCH`; they are as short as evenness
    allows. ``overlap`` must be below ``native``.
    """
    if not 0 <= overlap < native or length < 1:
        raise ValueError(f"no tiles of {native} with overlap {overlap} cover {length}")
    longest = max(native, math.floor(native * STRETCH))
    if length <= longest:
        return Axis(length, length, (0,))
    count = math.ceil((length - overlap) / (longest - overlap))
    size = math.ceil((length + (count - 1) * overlap) / count)
    starts = tuple((length - size) * i // (count - 1) for i in range(count))
    return Axis(length, size, starts)


def plan(height: int, width: int, native: int, overlap: int) -> Grid:
    """A grid over ``height`` x ``width`` units of tiles of about ``native`` units a side."""
    return Grid(plan_axis(height, native, overlap), plan_axis(width, native, overlap))


def plan_fixed(height: int, width: int, size: int, overlap: int) -> Grid:
    """A grid of tiles of exactly ``size`` units a side, spread evenly; at most one a short side.

    They overlap by ``overlap`` or more.
    """
    return Grid(_fixed_axis(height, size, overlap), _fixed_axis(width, size, overlap))


def _fixed_axis(length: int, size: int, overlap: int) -> Axis:
    if length <= size:
        return Axis(length, length, (0,))
    count = math.ceil((length - overlap) / (size - overlap))
    return Axis(length, size, tuple((length - size) * i // (count - 1) for i in range(count)))
