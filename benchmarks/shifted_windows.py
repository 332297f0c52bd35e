"""Windows that shift from step to step, against windows that stay.

At every second step the tiles lie halfway between those of the first, or their tokens begin half a
token earlier. DINO is off in every arm, so that nothing but the windows differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
from torch import Tensor

from fluxwatchd.bench.metrics import Paired, likeness, paired
from fluxwatchd.bench.options import (
    NO_SETTINGS,
    carry_out,
    common,
    profile,
    run_as_script,
    seed_for,
)
from fluxwatchd.bench.pictures import Pair, border_for, find, pair, to_picture, to_pixels
from fluxwatchd.bench.report import machine, table
from fluxwatchd.config import Profile
from fluxwatchd.engine import Beat, Engine, open_engine, pipeline
from fluxwatchd.engine.denoise import Predictor, denoise
from fluxwatchd.engine.tiles import Axis, Grid

STAY = "windows that stay"
MEASURES = {"psnr_y": True, "ssim": True, "gmsd": False, "stripes": False}
"""The measures, and whether more of one is better."""

Other = Callable[[Predictor], Predictor]
"""What predicts at every second step."""


def _half(predict: Predictor) -> Predictor:
    half = predict.model.packing // 2
    return replace(predict, phases=((half, half),))


def _between(predict: Predictor) -> Predictor:
    grid = predict.grid
    return replace(predict, grid=Grid(_shifted(grid.rows), _shifted(grid.columns)))


def _shifted(axis: Axis) -> Axis:
    """Tiles whose middles lie where those of ``axis`` meet; one more, to cover the ends."""
    if len(axis.starts) == 1:
        return axis
    middles = ((a + b) // 2 for a, b in pairwise(axis.starts))
    return Axis(axis.length, axis.size, (0, *middles, axis.length - axis.size))


ARMS: Mapping[str, Other] = {
    STAY: lambda predict: predict,
    "tiles between tiles": _between,
    "half a token": _half,
}


@dataclass(frozen=True, slots=True)
class Score:
    """One picture in one arm; ``stripes`` is the detector's amplitude, levels of 255."""

    picture: str
    arm: str
    psnr_y: float
    ssim: float
    gmsd: float
    stripes: float


@dataclass(frozen=True, slots=True)
class Report:
    """All figures; ``less_stay`` holds the paired difference to windows that stay."""

    variant: str
    scale: float
    less_stay: Mapping[str, Mapping[str, Paired]]
    machine: Mapping[str, Any]
    scores: tuple[Score, ...]

    def as_text(self) -> str:
        """A Markdown table, a row an arm."""
        rows = [
            (arm, *(self._cell(arm, key, 2 if key == "psnr_y" else 4) for key in MEASURES))
            for arm in ARMS
        ]
        count = len({score.picture for score in self.scores})
        what = f"{self.variant}, scale {self.scale:g}, {count} pictures, DINO off."
        head = ("every second step", "PSNR-Y dB", "SSIM", "GMSD", "stripes, levels")
        return f"{what}\n\n{table(head, rows)}"

    def _cell(self, arm: str, key: str, digits: int) -> str:
        mean = np.mean([getattr(score, key) for score in self.scores if score.arm == arm])
        less = self.less_stay.get(arm, {}).get(key)
        return f"{mean:.{digits}f}" + (f" ({less})" if less else "")


def measure(
    images: Path,
    *,
    scale: float = 4.0,
    limit: int | None = None,
    settings: Mapping[str, Any] = NO_SETTINGS,
    device: str | None = None,
) -> Report:
    """Upscale every picture in every arm."""
    chosen = profile({**settings, "dino_strength": 0.0}, scale=scale)
    scores = []
    with open_engine(device=device) as engine:
        for path in find(images, limit):
            shrunk = pair(path, scale)
            scores += [_score(engine, shrunk, chosen, arm) for arm in ARMS]
    return Report(chosen.variant, scale, _less(scores), machine(), tuple(scores))


def _score(engine: Engine, shrunk: Pair, chosen: Profile, arm: str) -> Score:
    pipeline.run = _stepwise(ARMS[arm])
    done = engine.upscale(to_picture(shrunk.small), chosen, seed_for(chosen, shrunk.small))
    found = likeness(to_pixels(done.picture), shrunk.truth, border_for(chosen.scale or 1))
    striped = done.stripes
    amplitude = (striped.amplitude or 0.0) if striped else 0.0
    return Score(shrunk.name, arm, **asdict(found), stripes=amplitude)


def _stepwise(other: Other) -> Callable[..., Tensor]:
    """The pipeline's run, one step at a time, every second one by ``other``."""

    def run(
        start: Tensor, predict: Predictor, plan: pipeline.Plan, beat: Beat, *_: object
    ) -> Tensor:
        for step, sigmas in enumerate(pairwise(plan.sigmas)):
            start = denoise(start, sigmas, other(predict) if step % 2 else predict, beat)
        return start

    return run


def _less(scores: Sequence[Score]) -> dict[str, dict[str, Paired]]:
    def figures(arm: str, key: str) -> list[float]:
        return [getattr(score, key) for score in scores if score.arm == arm]

    return {
        arm: {
            key: paired(figures(arm, key), figures(STAY, key), more_is_better=more)
            for key, more in MEASURES.items()
        }
        for arm in ARMS
        if arm != STAY
    }


@click.command()
@common
def command(**options: Any) -> None:
    """Measure windows that shift from step to step against windows that stay."""
    carry_out(measure, **options)


if __name__ == "__main__":
    run_as_script(command)
