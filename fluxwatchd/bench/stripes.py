"""Whether the stripe detector sees a grid that is there, and only that.

Pictures are upscaled, grids of known strength are laid over the results, and the detector is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from fluxwatchd.bench.methods import by_engine
from fluxwatchd.bench.options import NO_SETTINGS, carry_out, common, profile, run_as_script, told
from fluxwatchd.bench.pictures import Pair, find, pair, to_picture
from fluxwatchd.bench.report import machine, table
from fluxwatchd.config import Profile
from fluxwatchd.engine import Engine, open_engine, resize, stripes
from fluxwatchd.errors import ConfigError

Floats = NDArray[np.float32]
KINDS = ("wave", "lines")
LEVELS = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True, slots=True)
class Score:
    """One picture, with a grid of ``level`` levels of 255 laid over it; 0 is none.

    ``kind`` is ``wave`` (upright, level * cos) or ``lines`` (upright and level, 1 px wide, level
    brighter). ``found`` is the detector's amplitude, levels. ``first`` is what the engine found in
    a run that it made again; None if it did not.
    """

    picture: str
    kind: str
    level: float
    found: float
    first: float | None


@dataclass(frozen=True, slots=True)
class Curve:
    """What was found under one kind and level: least, mean, most; ``caught`` above the limit."""

    least: float
    mean: float
    most: float
    caught: int


@dataclass(frozen=True, slots=True)
class Report:
    """All figures by kind and level. ``period`` px and ``limit`` levels are the detector's."""

    variant: str
    scale: float
    period: int
    limit: float
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    curves: Mapping[str, Curve]
    scores: tuple[Score, ...]

    def as_text(self) -> str:
        """A Markdown table, one row a kind and level."""
        count = len({score.picture for score in self.scores})
        header = ("added", "found: least", "mean", "most", f"above {self.limit:g}")
        rows = (
            (name, f"{c.least:.3f}", f"{c.mean:.3f}", f"{c.most:.3f}", f"{c.caught} of {count}")
            for name, c in self.curves.items()
        )
        what = f"{self.variant}, scale {self.scale:g}, {count} pictures, period {self.period} px."
        return f"{what}\n\n{table(header, rows)}"


def grid(shape: tuple[int, ...], period: int, kind: str, level: float) -> Floats:
    """(H, W, 1) levels to add: see Score. It begins in the midst of a period."""
    down, across = ((np.arange(side) - period // 3) % period for side in shape[:2])
    if kind == "wave":
        plane = np.tile(level * np.cos(2 * np.pi * across / period), (shape[0], 1))
    else:
        plane = level * ((down == 0)[:, None] | (across == 0)[None, :])
    return np.asarray(plane[..., None], dtype=np.float32)


def measure(
    images: Path,
    *,
    scale: float = 4.0,
    limit: int | None = None,
    settings: Mapping[str, Any] = NO_SETTINGS,
    period: int | None = None,
    device: str | None = None,
) -> Report:
    """Lay grids over results and ask the detector.

    Pictures are shrunk by ``scale`` with Pillow's bicubic and upscaled again. ``period``, px, is
    that of the grids laid and looked for; None takes the model's tokens'. Raises ConfigError
    (also where no model runs or pictures are too small), and what the engine raises.
    """
    chosen = profile(settings, scale=scale)
    scores: list[Score] = []
    with open_engine(device=device) as engine:
        for path in find(images, limit):
            period, found = _picture(engine, pair(path, scale), chosen, period)
            scores += found
    names = {(one.kind, one.level): None for one in scores}
    return Report(
        variant=chosen.variant,
        scale=scale,
        period=period or 0,
        limit=stripes.LIMIT,
        settings=told(settings),
        machine=machine(),
        curves={
            f"{kind} {level:g}" if level else kind: _curve(
                [one for one in scores if (one.kind, one.level) == (kind, level)]
            )
            for kind, level in names
        },
        scores=tuple(scores),
    )


def _picture(
    engine: Engine, shrunk: Pair, chosen: Profile, asked: int | None
) -> tuple[int, list[Score]]:
    """The period, and what is found in one result under every grid."""
    done = by_engine(engine, chosen)(shrunk).upscaled
    striped = done.stripes if done else None
    if done is None or striped is None or striped.amplitude is None:
        raise ConfigError(
            f"{shrunk.name}: no model ran, or its result is too small for a grid to be told",
            hint="Choose a variant with a model, a strength above 0 and larger pictures.",
        )
    result, period = done.picture.pixels * 255, asked or striped.period
    size = (done.picture.width, done.picture.height)
    base = np.clip(resize.lanczos(to_picture(shrunk.small).pixels, size), 0, 1)
    bare = stripes.measure(done.picture.pixels, base, period) if asked else striped.amplitude
    scores = [Score(shrunk.name, "nothing", 0.0, bare or 0.0, striped.first)]
    for kind in KINDS:
        for level in LEVELS:
            added = result + grid(result.shape, period, kind, level)
            # as an 8-bit file would hold it
            pixels = np.rint(np.clip(added, 0, 255)).astype(np.float32) / 255
            found = stripes.measure(pixels, base, period)
            scores.append(Score(shrunk.name, kind, level, found or 0.0, None))
    return period, scores


def _curve(scores: Sequence[Score]) -> Curve:
    found = [score.found for score in scores]
    return Curve(
        least=min(found),
        mean=float(np.mean(found)),
        most=max(found),
        caught=sum(one > stripes.LIMIT for one in found),
    )


@click.command()
@common
@click.option("--period", type=click.IntRange(min=2), help="Of the grids, px; else the tokens'.")
def command(**options: Any) -> None:
    """Measure which grids the stripe detector sees, and that it sees none where there is none."""
    carry_out(measure, **options)


if __name__ == "__main__":
    run_as_script(command)
