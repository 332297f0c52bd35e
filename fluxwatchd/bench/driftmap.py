"""Drift over a picture: where a result strays from its source, without DINO and with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fluxwatchd.bench.options import run_as_script
from fluxwatchd.bench.pictures import pair
from fluxwatchd.config import Profile, parse_assignments
from fluxwatchd.engine import Engine, open_engine
from fluxwatchd.errors import ConfigError
from fluxwatchd.imageio import Picture
from fluxwatchd.job import Upscaled

Floats = NDArray[np.float32]
LABEL = 22
"""px of height of the line below a panel."""
COLD = np.array([0.1, 0.2, 0.6], np.float32)
HOT = np.array([1.0, 0.25, 0.0], np.float32)


def main(
    image: Path,
    output: Path,
    *,
    scale: float = 4.0,
    settings: Mapping[str, Any] | None = None,
    strengths: tuple[float, ...] = (0.0, 1.0),
    device: str | None = None,
) -> Path:
    """Write a PNG with a panel a strength: the result in grey, each tile tinted by its drift.

    ``image`` is the truth, which is shrunk by ``scale`` first. All panels share one colour scale.
    Raises ConfigError (no encoder to measure with), and what the engine raises.
    """
    source = Picture(pair(image, scale).small.astype(np.float32) / np.float32(255))
    with open_engine(device=device) as engine:
        made = [_make(engine, source, scale, strength, settings or {}) for strength in strengths]
    maps = [drift_map(one) for one in made]
    most = max(float(found.max()) for found in maps)
    panels = [
        _panel(one.picture.pixels, found / most, f"DINO {strength:g}: drift {one.dino.drift:.3f}")
        for strength, one, found in zip(strengths, made, maps, strict=True)
    ]
    sheet = Image.fromarray(np.concatenate(panels, 1))
    sheet.save(output, optimize=True)
    click.echo(f"{output}: red is {most:.3f}, blue 0")
    return output


def drift_map(upscaled: Upscaled) -> Floats:
    """(H, W): at every px the mean drift of the tiles that cover it. Raises ConfigError."""
    if upscaled.tiles is None or upscaled.dino.drift is None:
        raise ConfigError(
            f"no drift was measured: {upscaled.dino.reason}",
            hint="Take a variant with a model and a DINO encoder.",
        )
    height, width = upscaled.picture.height, upscaled.picture.width
    total = np.zeros((height, width), np.float32)
    count = np.zeros_like(total)
    for window in upscaled.tiles.windows:
        place = np.s_[
            window.top : window.top + window.height, window.left : window.left + window.width
        ]
        total[place] += window.drift or 0.0
        count[place] += 1
    np.divide(total, count, out=total, where=count > 0)
    return total


def _make(
    engine: Engine, source: Picture, scale: float, strength: float, settings: Mapping[str, Any]
) -> Upscaled:
    given = {"scale": scale, **settings, "dino_strength": strength}
    return engine.upscale(source, Profile.model_validate(given).resolved(), seed=1)


def _panel(pixels: Floats, share: Floats, words: str) -> NDArray[np.uint8]:
    """A grey picture tinted from cold to hot by ``share`` in 0..1, and a line of text below."""
    grey = pixels.mean(-1, keepdims=True)
    tint = COLD + (HOT - COLD) * share[..., None]
    shown = np.clip(0.55 * grey + 0.45 * tint, 0, 1)
    strip = Image.new("RGB", (pixels.shape[1], LABEL), "white")
    font = ImageFont.load_default(15)
    ImageDraw.Draw(strip).text((6, 1), words, fill="black", font=font)
    return np.concatenate([(shown * 255).round().astype(np.uint8), np.asarray(strip)])


@click.command()
@click.option("--image", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--output", required=True, type=click.Path(path_type=Path))
@click.option("--scale", default=4.0, show_default=True)
@click.option("--set", "assignments", metavar="KEY=VALUE", multiple=True, help="A profile key.")
@click.option("--device", help="As in cpu or cuda:0; the first there is when left out.")
def command(
    image: Path, output: Path, scale: float, assignments: tuple[str, ...], device: str | None
) -> None:
    """Draw where a result strays from its source, without DINO and with all of it."""
    main(image, output, scale=scale, settings=parse_assignments(assignments), device=device)


if __name__ == "__main__":
    run_as_script(command)
