"""How near upscaled pictures come to the truth, beside what a user would pick instead.

Every picture is shrunk, upscaled again by each method and compared with what it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from fluxwatchd.bench.methods import BICUBIC, NAMES, Attempt, method
from fluxwatchd.bench.metrics import Paired, likeness, paired
from fluxwatchd.bench.options import NO_SETTINGS, carry_out, common, run_as_script, told
from fluxwatchd.bench.pictures import Pair, border_for, find, pair
from fluxwatchd.bench.report import machine, ran_line, table
from fluxwatchd.engine import open_engine

METHODS = ("nano", "lanczos", BICUBIC)
MEASURES = {"psnr_y": True, "ssim": True, "gmsd": False}
"""The measures, and whether more of one is better."""


@dataclass(frozen=True, slots=True)
class Score:
    """One picture by one method. ``psnr_y`` in dB, ``seconds`` of wall time, ``seed`` of ours."""

    picture: str
    method: str
    psnr_y: float
    ssim: float
    gmsd: float
    seconds: float
    megapixels: float
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Mean:
    """A method's means over all pictures; ``seconds_per_megapixel`` of output."""

    psnr_y: float
    ssim: float
    gmsd: float
    seconds_per_megapixel: float


@dataclass(frozen=True, slots=True)
class Report:
    """All figures and what they depend on. ``border`` px a side are left out of the measures.

    ``against_bicubic`` holds the paired difference to bicubic by method and measure, where bicubic
    ran. ``ran`` names the weights of each of our own methods and what DINO did.
    """

    scale: float
    degrade: str
    border: int
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    ran: Mapping[str, str]
    means: Mapping[str, Mean]
    against_bicubic: Mapping[str, Mapping[str, Paired]]
    scores: tuple[Score, ...] = field(repr=False)

    def as_text(self) -> str:
        """Three Markdown tables: means, differences to bicubic, each picture."""
        what = f"Scale {self.scale:g}, {self.degrade}, {self.border} px of border left out."
        what += "".join(f"\n- {name}: {ran}." for name, ran in self.ran.items())
        parts = [what, _means_table(self.means)]
        if self.against_bicubic:
            parts.append(_difference_table(self.against_bicubic))
        parts.append(_picture_table(self.scores, tuple(self.means)))
        return "\n\n".join(parts)


def measure(
    images: Path,
    *,
    scale: float = 4.0,
    limit: int | None = None,
    settings: Mapping[str, Any] = NO_SETTINGS,
    degrade: str = "bicubic",
    methods: Sequence[str] = METHODS,
    device: str | None = None,
) -> Report:
    """Measure ``methods`` on the pictures in ``images``.

    ``limit``: only the first pictures by name. ``settings``: profile keys for our variants.
    ``degrade``: bicubic, or jpeg and a quality as in jpeg75 (see pictures.shrink). Raises
    ConfigError, InputRejected and what the engine raises.
    """
    paths = find(images, limit)
    scores: list[Score] = []
    ran: dict[str, str] = {}
    with open_engine(device=device) as engine:
        ways = {name: method(name, engine, scale, settings) for name in methods}
        for path in paths:
            shrunk = pair(path, scale, degrade)
            for name, way in ways.items():
                attempt = way(shrunk)
                scores.append(_score(shrunk, name, attempt, border_for(scale)))
                if attempt.upscaled is not None:
                    ran[name] = ran_line(attempt.upscaled)
    return Report(
        scale=scale,
        degrade=degrade,
        border=border_for(scale),
        settings=told(settings),
        machine=machine(),
        ran=ran,
        means={name: _mean(scores, name) for name in methods},
        against_bicubic=_against_bicubic(scores, methods),
        scores=tuple(scores),
    )


def _score(shrunk: Pair, name: str, attempt: Attempt, border: int) -> Score:
    height, width = shrunk.truth.shape[:2]
    return Score(
        picture=shrunk.name,
        method=name,
        **asdict(likeness(attempt.pixels, shrunk.truth, border)),
        seconds=attempt.seconds,
        megapixels=height * width / 1e6,
        seed=attempt.seed,
    )


def _mean(scores: Sequence[Score], name: str) -> Mean:
    mine = [score for score in scores if score.method == name]
    figures = {key: float(np.mean([getattr(s, key) for s in mine])) for key in MEASURES}
    seconds = sum(score.seconds for score in mine) / sum(score.megapixels for score in mine)
    return Mean(**figures, seconds_per_megapixel=seconds)


def _against_bicubic(
    scores: Sequence[Score], methods: Sequence[str]
) -> dict[str, dict[str, Paired]]:
    """Of every method but bicubic itself; empty where bicubic did not run."""
    if BICUBIC not in methods:
        return {}

    def figures(name: str, key: str) -> list[float]:
        return [getattr(score, key) for score in scores if score.method == name]

    return {
        name: {
            key: paired(figures(name, key), figures(BICUBIC, key), more_is_better=more)
            for key, more in MEASURES.items()
        }
        for name in methods
        if name != BICUBIC
    }


def _means_table(means: Mapping[str, Mean]) -> str:
    return table(
        ("mean", "PSNR-Y dB", "SSIM", "GMSD", "s per Mpx"),
        (
            (
                name,
                f"{mean.psnr_y:.2f}",
                f"{mean.ssim:.4f}",
                f"{mean.gmsd:.4f}",
                f"{mean.seconds_per_megapixel:.2f}",
            )
            for name, mean in means.items()
        ),
    )


def _difference_table(differences: Mapping[str, Mapping[str, Paired]]) -> str:
    return table(
        ("less bicubic, [95 %]", "PSNR-Y dB", "SSIM", "GMSD"),
        ((name, *(str(found[key]) for key in MEASURES)) for name, found in differences.items()),
    )


def _picture_table(scores: Sequence[Score], methods: Sequence[str]) -> str:
    cells: dict[str, dict[str, str]] = {}
    for score in scores:
        text = f"{score.psnr_y:.2f} {score.ssim:.4f} {score.gmsd:.4f}"
        cells.setdefault(score.picture, {})[score.method] = text
    return table(
        ("PSNR-Y SSIM GMSD", *methods),
        ((picture, *(found[name] for name in methods)) for picture, found in cells.items()),
    )


@click.command()
@common
@click.option("--degrade", default="bicubic", show_default=True, help="bicubic, or as in jpeg75.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(NAMES),
    default=METHODS,
    show_default=True,
)
def command(**options: Any) -> None:
    """Measure how near upscaled pictures come to the truth."""
    carry_out(measure, **options)


if __name__ == "__main__":
    run_as_script(command)
