"""Scales above 4: one pass of nano against two, near the truth.

nano was trained on scales 1.5 to 4. Every picture is shrunk by the scale, upscaled again in each
way and compared with what it was. Between two passes the picture stays in floats.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import click
import numpy as np

from fluxwatchd.bench.metrics import Paired, likeness, paired
from fluxwatchd.bench.options import command_line, profile, run_as_script, save_option, seed_for
from fluxwatchd.bench.pictures import Pair, border_for, find, read, shrink, to_picture, to_pixels
from fluxwatchd.bench.report import machine, table
from fluxwatchd.bench.report import save as keep
from fluxwatchd.engine import Engine, open_engine, passes
from fluxwatchd.imageio import Picture

MEASURES = {"psnr_y": True, "ssim": True, "gmsd": False}
"""The measures, and whether more of one is better."""
ONE = "one pass"
WAYS: Mapping[int, Mapping[str, tuple[Fraction, ...]]] = {
    5: {
        ONE: (Fraction(5),),
        "x4, then x1.25": (Fraction(4), Fraction(5, 4)),
        "x2.5, then x2": (Fraction(5, 2), Fraction(2)),
    },
    6: {
        ONE: (Fraction(6),),
        "x4, then x1.5": (Fraction(4), Fraction(3, 2)),
        "x3, then x2": (Fraction(3), Fraction(2)),
        "x2, then x3": (Fraction(2), Fraction(3)),
    },
    8: {
        ONE: (Fraction(8),),
        "x4, then x2": (Fraction(4), Fraction(2)),
        "x2.81, then x2.84": (Fraction(45, 16), Fraction(128, 45)),
        "x2, then x4": (Fraction(2), Fraction(4)),
    },
}
"""The passes of every way, by scale; all of them give whole sizes on 768 x 512 px."""


@dataclass(frozen=True, slots=True)
class Score:
    """One picture in one way; ``seconds`` of wall time for all passes."""

    picture: str
    scale: int
    way: str
    psnr_y: float
    ssim: float
    gmsd: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """All figures; ``against_one`` holds the paired difference to one pass by scale and way."""

    pictures: int
    against_one: Mapping[str, Mapping[str, Mapping[str, Paired]]]
    machine: Mapping[str, Any]
    scores: tuple[Score, ...]

    def as_text(self) -> str:
        """A Markdown table a scale."""
        parts = [f"{self.pictures} pictures, nano at its defaults."]
        for scale, ways in self.against_one.items():
            rows = [_row(self.scores, scale, ONE, None)]
            rows += [_row(self.scores, scale, way, found) for way, found in ways.items()]
            head = (f"x{scale}", "PSNR-Y dB", "SSIM", "GMSD", "s per picture")
            parts.append(table(head, rows))
        return "\n\n".join(parts)


def _row(
    scores: Sequence[Score], scale: str, way: str, less: Mapping[str, Paired] | None
) -> tuple[str, ...]:
    """Means, each with its difference to one pass."""
    mine = [score for score in scores if f"{score.scale:g}" == scale and score.way == way]
    cells = []
    for key, digits in (("psnr_y", 2), ("ssim", 4), ("gmsd", 4)):
        mean = np.mean([getattr(score, key) for score in mine])
        cells.append(f"{mean:.{digits}f}" + (f" ({less[key]})" if less else ""))
    return way, *cells, f"{np.mean([score.seconds for score in mine]):.1f}"


def shrink_exactly(path: Path, scale: int) -> Pair:
    """A picture cut so that every way's sizes are whole: the small one has sides of 4 n px."""
    truth = read(path)
    height, width = (side - side % (4 * scale) for side in truth.shape[:2])
    truth = truth[:height, :width]
    return Pair(path.name, truth, shrink(truth, (width // scale, height // scale)))


def run(engine: Engine, shrunk: Pair, scales: Sequence[Fraction]) -> Picture:
    """``shrunk`` upscaled by every pass in turn."""
    picture, long_side = to_picture(shrunk.small), Fraction(max(shrunk.small.shape))
    for scale in scales:
        long_side *= scale
        chosen = profile({}, variant="nano", target_long_side=int(long_side))
        picture = engine.upscale(picture, chosen, seed_for(chosen, shrunk.small)).picture
    return picture


def measure(images: Path, limit: int) -> Report:
    """Every way on every picture."""
    scores = []
    passes.LARGEST_PASS = math.inf  # one call is one pass here
    with open_engine() as engine:
        engine.warm(profile({}, variant="nano"))
        for path in find(images, limit):
            for scale in WAYS:
                shrunk = shrink_exactly(path, scale)
                for way, scales in WAYS[scale].items():
                    start = time.perf_counter()
                    made = to_pixels(run(engine, shrunk, scales))
                    seconds = time.perf_counter() - start
                    found = asdict(likeness(made, shrunk.truth, border_for(scale)))
                    scores.append(Score(shrunk.name, scale, way, **found, seconds=seconds))
    return Report(
        pictures=len({score.picture for score in scores}),
        against_one={f"{scale:g}": _against(scores, scale) for scale in WAYS},
        machine=machine(),
        scores=tuple(scores),
    )


def _against(scores: Sequence[Score], scale: int) -> dict[str, dict[str, Paired]]:
    def figures(way: str, key: str) -> list[float]:
        return [getattr(s, key) for s in scores if s.scale == scale and s.way == way]

    return {
        way: {
            key: paired(figures(way, key), figures(ONE, key), more_is_better=more)
            for key, more in MEASURES.items()
        }
        for way in WAYS[scale]
        if way != ONE
    }


@click.command()
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Their folder.")
@click.option("--limit", type=click.IntRange(min=2), default=8, show_default=True)
@save_option
def command(images: Path, limit: int, save: Path | None) -> None:
    """Measure whether scales above 4 come nearer to the truth in one pass or in two."""
    report = measure(images, limit)
    click.echo(report.as_text())
    if save:
        keep(report, save, command_line(click.get_current_context()))


if __name__ == "__main__":
    run_as_script(command)
