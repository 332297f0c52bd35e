"""Whether tiles show: gradients across their edges, and the distance to an untiled run.

An edge that shows is a line along which neighbouring pixels differ more (or less) than elsewhere.
As what the picture shows there matters too, the same lines are measured in an untiled run of the
same picture. A decoder spreads a step between two latent cells over some px, so the lines beside an
edge count as well; and where two tiles are blended, a picture may be smoother than elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from fluxwatchd.bench.methods import Attempt, by_engine
from fluxwatchd.bench.metrics import Pixels, likeness, luma, psnr
from fluxwatchd.bench.options import NO_SETTINGS, carry_out, common, profile, run_as_script, told
from fluxwatchd.bench.pictures import Pair, border_for, find, pair
from fluxwatchd.bench.report import machine, table
from fluxwatchd.config import Profile
from fluxwatchd.engine import Engine, open_engine
from fluxwatchd.errors import ConfigError
from fluxwatchd.job import Window

Mask = NDArray[np.bool_]
Side = int | str
"""source px, or ``auto``."""

REACH = 4
"""px on either side of an edge that are looked at too: nano's latent cell."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """One way to cut pictures: profile keys ``tile_size``, ``overlap`` and ``fusion``."""

    tile_size: Side
    overlap: Side
    fusion: str

    def __str__(self) -> str:
        return f"{self.tile_size} / {self.overlap} / {self.fusion}"


@dataclass(frozen=True, slots=True)
class Score:
    """One picture under one tiling.

    ``seams`` and ``seams_untiled``: see seam(), of the tiled and the untiled result on the tiles'
    edges (the middle one) and on the lines up to REACH px before and behind them. ``blend`` and
    ``blend_untiled``: see blend(). ``apart`` is the PSNR-Y between the two, dB; ``psnr_y`` and
    ``psnr_y_untiled`` are against the truth. ``tiles`` counts them; ``seconds`` of wall time of the
    tiled run.
    """

    picture: str
    tiling: Tiling
    tiles: int
    seams: tuple[float, ...]
    seams_untiled: tuple[float, ...]
    blend: float
    blend_untiled: float
    apart: float
    psnr_y: float
    psnr_y_untiled: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Mean:
    """Means over the pictures that were cut at all.

    ``seam`` is on the edges themselves; ``seam_excess`` is the mean over the untiled one, less 1,
    and ``worst_excess`` that of the line within REACH px where it is the furthest from 0.
    ``blend_excess`` likewise of blend(); nan without overlap. ``psnr_y_gain`` in dB, tiled less
    untiled. ``seconds`` of wall time a picture.
    """

    tiles: float
    seam: float
    seam_untiled: float
    seam_excess: float
    worst_excess: float
    blend_excess: float
    apart: float
    psnr_y_gain: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """All figures by tiling, and what they depend on."""

    scale: float
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    means: Mapping[str, Mean]
    scores: tuple[Score, ...]

    def as_text(self) -> str:
        """A Markdown table, one row a tiling."""
        header = (
            "tile / overlap / fusion",
            "tiles",
            "seam",
            "untiled there",
            "excess",
            f"worst within {REACH} px",
            "where blended",
            "to untiled, dB",
            "PSNR-Y gained, dB",
            "s",
        )
        rows = (
            (
                name,
                f"{mean.tiles:.1f}",
                f"{mean.seam:.4f}",
                f"{mean.seam_untiled:.4f}",
                f"{mean.seam_excess:+.2%}",
                f"{mean.worst_excess:+.2%}",
                "" if math.isnan(mean.blend_excess) else f"{mean.blend_excess:+.2%}",
                f"{mean.apart:.2f}",
                f"{mean.psnr_y_gain:+.3f}",
                f"{mean.seconds:.1f}",
            )
            for name, mean in self.means.items()
        )
        count = len({score.picture for score in self.scores})
        return f"Scale {self.scale:g}, mean of {count} pictures.\n\n{table(header, rows)}"


def seam(pixels: Pixels, windows: Sequence[Window], offset: int = 0) -> float:
    """Mean luma step across the windows' inner edges, over what the same count has elsewhere.

    ``pixels`` (H, W, 3) uint8; ``windows`` are the tiles in its px and may reach beyond it;
    ``offset`` px right of and below an edge. 1 means that edges look like any other line; nan where
    there is no inner edge.
    """

    def edges(shape: tuple[int, ...], windows: Sequence[Window]) -> Mask:
        return _edges(shape, windows, (offset,))

    return _over_elsewhere(pixels, windows, edges)


def blend(pixels: Pixels, windows: Sequence[Window]) -> float:
    """As seam(), of all steps between pixels that two or more windows share."""
    return _over_elsewhere(pixels, windows, _shared)


def _over_elsewhere(
    pixels: Pixels,
    windows: Sequence[Window],
    where: Callable[[tuple[int, ...], Sequence[Window]], Mask],
) -> float:
    """The mean step ``where`` over that far from edges and overlaps, apart by direction.

    Apart, as pictures differ more one way than the other.
    """
    plane = luma(pixels)
    observed = expected = 0.0
    for one, tiles in ((plane, windows), (plane.T, _transposed(windows))):
        steps, marked = np.abs(np.diff(one, axis=1)), where(one.shape, tiles)
        near = _edges(one.shape, tiles, range(-REACH, REACH + 1)) | _shared(one.shape, tiles)
        if marked.any() and not near.all():
            observed += float(steps[marked].sum())
            expected += float(steps[~near].mean()) * int(marked.sum())
    return observed / expected if expected else math.nan


def _edges(shape: tuple[int, ...], windows: Sequence[Window], offsets: Iterable[int]) -> Mask:
    """(H, W - 1): whether a window's left or right edge lies there, moved by one of ``offsets``."""
    height, width = shape
    mask = np.zeros((height, width - 1), bool)
    for window, offset in itertools.product(windows, tuple(offsets)):
        rows = slice(window.top, window.top + window.height)
        for place in (window.left, window.left + window.width):
            if 0 < place < width and 0 < place + offset < width:
                mask[rows, place + offset - 1] = True
    return mask


def _shared(shape: tuple[int, ...], windows: Sequence[Window]) -> Mask:
    """(H, W - 1): whether both of two neighbours lie in two or more windows."""
    count = np.zeros(shape, int)
    for window in windows:
        rows = slice(window.top, window.top + window.height)
        count[rows, window.left : window.left + window.width] += 1
    return np.minimum(count[:, :-1], count[:, 1:]) > 1


def _transposed(windows: Sequence[Window]) -> list[Window]:
    return [Window(w.left, w.top, w.width, w.height) for w in windows]


def measure(
    images: Path,
    *,
    scale: float = 4.0,
    limit: int | None = None,
    settings: Mapping[str, Any] = NO_SETTINGS,
    tile_sizes: Sequence[Side] = ("auto",),
    overlaps: Sequence[Side] = ("auto", 0),
    fusions: Sequence[str] = ("step", "final"),
    device: str | None = None,
) -> Report:
    """Measure every combination of tile size, overlap and fusion,.

    Pictures are shrunk by ``scale`` with Pillow's bicubic and upscaled again, tiled and as one
    tile. Raises ConfigError (also where no picture is larger than a tile), and what the engine
    raises.
    """
    tilings = tuple(Tiling(*one) for one in itertools.product(tile_sizes, overlaps, fusions))
    chosen = {tiling: _tiled(settings, scale, tiling) for tiling in tilings}
    scores: list[Score] = []
    with open_engine(device=device) as engine:
        for path in find(images, limit):
            scores += _picture(engine, pair(path, scale), chosen)
    if not scores:
        raise ConfigError(
            "every picture fits into one tile", hint="Use larger pictures or a smaller tile_size."
        )
    return Report(
        scale=scale,
        settings=told(settings),
        machine=machine(),
        means={str(tiling): mean for tiling in tilings if (mean := _mean(scores, tiling))},
        scores=tuple(scores),
    )


def _tiled(settings: Mapping[str, Any], scale: float, tiling: Tiling) -> Profile:
    return profile(
        settings,
        scale=scale,
        tile_size=tiling.tile_size,
        overlap=tiling.overlap,
        fusion=tiling.fusion,
    )


def _picture(engine: Engine, shrunk: Pair, chosen: Mapping[Tiling, Profile]) -> list[Score]:
    """The scores of one picture under every tiling that cuts it."""
    longest = max(8, *shrunk.small.shape[:2])
    whole = next(iter(chosen.values())).model_copy(
        update={"tile_size": longest, "overlap": 0, "fusion": "step"}
    )
    untiled = by_engine(engine, whole)(shrunk)
    attempts = {tiling: by_engine(engine, cut)(shrunk) for tiling, cut in chosen.items()}
    return [
        _score(shrunk, tiling, attempt, untiled)
        for tiling, attempt in attempts.items()
        if len(_windows(attempt)) > 1
    ]


def _windows(attempt: Attempt) -> tuple[Window, ...]:
    """The tiles of a run by our engine; none where no model ran."""
    tiles = attempt.upscaled.tiles if attempt.upscaled else None
    return tiles.windows if tiles else ()


def _score(shrunk: Pair, tiling: Tiling, tiled: Attempt, untiled: Attempt) -> Score:
    windows = _windows(tiled)
    border = border_for(shrunk.truth.shape[0] / shrunk.small.shape[0])
    return Score(
        picture=shrunk.name,
        tiling=tiling,
        tiles=len(windows),
        seams=_lines(tiled.pixels, windows),
        seams_untiled=_lines(untiled.pixels, windows),
        blend=blend(tiled.pixels, windows),
        blend_untiled=blend(untiled.pixels, windows),
        apart=psnr(luma(tiled.pixels), luma(untiled.pixels)),
        psnr_y=likeness(tiled.pixels, shrunk.truth, border).psnr_y,
        psnr_y_untiled=likeness(untiled.pixels, shrunk.truth, border).psnr_y,
        seconds=tiled.seconds,
    )


def _lines(pixels: Pixels, windows: Sequence[Window]) -> tuple[float, ...]:
    """seam() on the lines from REACH px before the edges to as many behind them."""
    return tuple(seam(pixels, windows, offset) for offset in range(-REACH, REACH + 1))


def _mean(scores: Sequence[Score], tiling: Tiling) -> Mean | None:
    """Over the pictures that ``tiling`` cut; None where it cut none."""
    mine = [score for score in scores if score.tiling == tiling]
    if not mine:
        return None

    def mean(key: str) -> float:
        return float(np.mean([getattr(score, key) for score in mine]))

    tiled, untiled = (
        np.mean([getattr(score, key) for score in mine], axis=0)
        for key in ("seams", "seams_untiled")
    )
    excess = tiled / untiled - 1
    return Mean(
        tiles=mean("tiles"),
        seam=float(tiled[REACH]),
        seam_untiled=float(untiled[REACH]),
        seam_excess=float(excess[REACH]),
        worst_excess=float(excess[np.argmax(np.abs(excess))]),
        blend_excess=mean("blend") / mean("blend_untiled") - 1,
        apart=mean("apart"),
        psnr_y_gain=mean("psnr_y") - mean("psnr_y_untiled"),
        seconds=mean("seconds"),
    )


def side(value: str) -> Side:
    """``auto`` or source px; for the command line."""
    if value == "auto":
        return "auto"
    try:
        return int(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither auto nor a whole number") from error


@click.command()
@common
@click.option("--tile-size", "tile_sizes", multiple=True, type=side, default=("auto",))
@click.option("--overlap", "overlaps", multiple=True, type=side, default=("auto", "0"))
@click.option(
    "--fusion",
    "fusions",
    multiple=True,
    type=click.Choice(("step", "final")),
    default=("step", "final"),
)
def command(**options: Any) -> None:
    """Measure whether tiles show, by tile size, overlap and fusion."""
    carry_out(measure, **options)


if __name__ == "__main__":
    run_as_script(command)
