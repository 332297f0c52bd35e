"""How far colours stray from the source's, without the colour lock and with each kind of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from fluxwatchd.bench.methods import by_engine
from fluxwatchd.bench.metrics import likeness
from fluxwatchd.bench.options import NO_SETTINGS, carry_out, common, profile, run_as_script, told
from fluxwatchd.bench.pictures import Pair, border_for, find, pair
from fluxwatchd.bench.report import machine, table
from fluxwatchd.config import Profile
from fluxwatchd.engine import Engine, open_engine
from fluxwatchd.errors import ConfigError

LOCKS = ("off", "wavelet", "lab")
"""The values of ``color_fix``."""


@dataclass(frozen=True, slots=True)
class Score:
    """One picture under one lock.

    ``shift`` is the record's ``color_shift``: the mean distance to the source's colours, CIE 1976
    L*a*b* units, of all that is coarser than 16 px. ``psnr_y`` in dB against the truth.
    """

    picture: str
    lock: str
    shift: float
    psnr_y: float


@dataclass(frozen=True, slots=True)
class Mean:
    """Of all pictures: the mean and the largest ``shift``, and the mean ``psnr_y``."""

    shift: float
    worst: float
    psnr_y: float


@dataclass(frozen=True, slots=True)
class Report:
    """All figures by lock, and what they depend on."""

    variant: str
    scale: float
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    means: Mapping[str, Mean]
    scores: tuple[Score, ...]

    def as_text(self) -> str:
        """A Markdown table, one row a lock."""
        header = ("color_fix", "shift, LAB", "worst picture", "PSNR-Y, dB")
        rows = (
            (lock, f"{mean.shift:.3f}", f"{mean.worst:.3f}", f"{mean.psnr_y:.2f}")
            for lock, mean in self.means.items()
        )
        count = len({score.picture for score in self.scores})
        what = f"{self.variant}, scale {self.scale:g}, mean of {count} pictures."
        return f"{what}\n\n{table(header, rows)}"


def measure(
    images: Path,
    *,
    scale: float = 4.0,
    limit: int | None = None,
    settings: Mapping[str, Any] = NO_SETTINGS,
    locks: Sequence[str] = LOCKS,
    device: str | None = None,
) -> Report:
    """Measure every lock of ``locks`` on the pictures in ``images``.

    Pictures are shrunk by ``scale`` with Pillow's bicubic and upscaled again from the same seed.
    Raises ConfigError (also where no model would run), and what the engine raises.
    """
    chosen = {lock: profile(settings, scale=scale, color_fix=lock) for lock in locks}
    scores: list[Score] = []
    with open_engine(device=device) as engine:
        for path in find(images, limit):
            shrunk = pair(path, scale)
            scores += [_score(engine, shrunk, lock, one) for lock, one in chosen.items()]
    return Report(
        variant=chosen[locks[0]].variant,
        scale=scale,
        settings=told(settings),
        machine=machine(),
        means={lock: _mean([one for one in scores if one.lock == lock]) for lock in chosen},
        scores=tuple(scores),
    )


def _score(engine: Engine, shrunk: Pair, lock: str, chosen: Profile) -> Score:
    done = by_engine(engine, chosen)(shrunk)
    shift = done.upscaled.color_shift if done.upscaled else None
    if shift is None:
        raise ConfigError(
            "no model ran: there is no colour to lock",
            hint="Choose a variant with a model, and a strength above 0.",
        )
    border = border_for(shrunk.truth.shape[0] / shrunk.small.shape[0])
    return Score(shrunk.name, lock, shift, likeness(done.pixels, shrunk.truth, border).psnr_y)


def _mean(scores: list[Score]) -> Mean:
    shifts = [score.shift for score in scores]
    return Mean(
        shift=float(np.mean(shifts)),
        worst=max(shifts),
        psnr_y=float(np.mean([score.psnr_y for score in scores])),
    )


@click.command()
@common
@click.option("--lock", "locks", multiple=True, type=click.Choice(LOCKS), default=LOCKS)
def command(**options: Any) -> None:
    """Measure how far colours stray, without the colour lock and with each kind of it."""
    carry_out(measure, **options)


if __name__ == "__main__":
    run_as_script(command)
