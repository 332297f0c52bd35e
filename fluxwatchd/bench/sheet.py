"""A sheet of crops to look at: truth, bicubic, a peer, nano without DINO and with all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fluxwatchd.bench import peers
from fluxwatchd.bench.methods import BICUBIC, Attempt, Method, method
from fluxwatchd.bench.metrics import Pixels, luma
from fluxwatchd.bench.options import run_as_script
from fluxwatchd.bench.pictures import find, pair
from fluxwatchd.config import parse_assignments
from fluxwatchd.engine import Engine, open_engine
from fluxwatchd.errors import ConfigError

GAP = 6
"""px between crops, and around the sheet."""
LABEL = 22
"""px of height of the line of names."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a crop's top left corner lies in the picture called ``picture``, px."""

    picture: str
    left: int
    top: int


def main(
    images: Path,
    output: Path,
    *,
    scale: float = 4.0,
    limit: int | None = None,
    settings: Mapping[str, Any] | None = None,
    places: Sequence[Place] = (),
    size: int = 160,
    device: str | None = None,
) -> Path:
    """Write the sheet as a PNG to ``output``; a row a crop of ``size`` px, a column a method.

    Without ``places`` each picture shows the crop on which bicubic is furthest from the truth, so
    that no method of ours chooses. Real-ESRGAN has a column where it is installed and ``scale`` is
    its own. Raises ConfigError, and what the engine raises.
    """
    paths = find(images, limit)
    chosen = {one.picture: one for one in places}
    unknown = set(chosen) - {path.name for path in paths}
    if unknown:
        raise ConfigError(f"no picture is called {', '.join(sorted(unknown))} in {images}")
    rows: list[list[Pixels]] = []
    names: tuple[str, ...] = ()
    with open_engine(device=device) as engine:
        columns = _columns(engine, scale, settings or {})
        for path in paths:
            if chosen and path.name not in chosen:
                continue
            shrunk = pair(path, scale)
            attempts = [(name, way(shrunk)) for name, way in columns]
            made = [shrunk.truth, *(attempt.pixels for _, attempt in attempts)]
            here = chosen.get(path.name) or worst(path.name, shrunk.truth, made[1], size)
            rows.append([_crop(pixels, here, size) for pixels in made])
            names = ("truth", *(_label(name, attempt) for name, attempt in attempts))
    sheet = compose(rows, names)
    sheet.save(output, optimize=True)
    click.echo(f"{output}: {sheet.width}x{sheet.height} px, {output.stat().st_size / 1e3:.0f} kB")
    return output


def _columns(engine: Engine, scale: float, settings: Mapping[str, Any]) -> list[tuple[str, Method]]:
    """Every method and its name; bicubic first."""
    names = [BICUBIC]
    if scale == peers.REAL_ESRGAN_SCALE and peers.has_real_esrgan():
        names.append(peers.REAL_ESRGAN)
    columns = [(name, method(name, engine, scale, settings)) for name in names]
    variant = str(settings.get("variant", "nano"))
    for strength in (0.0, 1.0):
        given = {**settings, "dino_strength": strength}
        columns.append((variant, method(variant, engine, scale, given)))
    return columns


def _label(name: str, attempt: Attempt) -> str:
    """The name of a column; what DINO did is taken from the record, not from the wish."""
    if attempt.upscaled is None:
        return name
    did = attempt.upscaled.dino
    return f"{name}, no DINO" if did.mode == "off" else f"{name}, {did.mode} {did.strength:g}"


def worst(picture: str, truth: Pixels, result: Pixels, size: int) -> Place:
    """The crop, on a raster of half its size, on which ``result`` errs most in luma."""
    error = (luma(truth) - luma(result)) ** 2
    height, width = error.shape
    step = max(1, size // 2)
    return max(
        (
            Place(picture, left, top)
            for top in range(0, max(1, height - size + 1), step)
            for left in range(0, max(1, width - size + 1), step)
        ),
        key=lambda one: float(error[one.top :, one.left :][:size, :size].sum()),
    )


def _crop(pixels: Pixels, here: Place, size: int) -> Pixels:
    """A ``size`` x ``size`` cut; raises ConfigError if it reaches over the picture's edge."""
    cut = pixels[here.top : here.top + size, here.left : here.left + size]
    if cut.shape[:2] != (size, size) or min(here.top, here.left) < 0:
        raise ConfigError(
            f"a crop of {size} px at {here.left},{here.top} reaches over the edge of "
            f"{here.picture}",
            hint="Move it, or use a smaller --size.",
        )
    return cut


def compose(rows: Sequence[Sequence[Pixels]], names: Sequence[str]) -> Image.Image:
    """All crops (of one size) on white, a line of names above them."""
    size = rows[0][0].shape[0]
    step = size + GAP
    sheet = Image.new("RGB", (GAP + step * len(names), GAP + LABEL + step * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=14)
    for column, name in enumerate(names):
        draw.text((GAP + step * column, GAP), name, fill="black", font=font)
        for row, crops in enumerate(rows):
            corner = (GAP + step * column, GAP + LABEL + step * row)
            sheet.paste(Image.fromarray(np.ascontiguousarray(crops[column])), corner)
    return sheet


def place(value: str) -> Place:
    """``NAME:LEFT,TOP``; for the command line."""
    picture, _, corner = value.rpartition(":")
    try:
        left, top = map(int, corner.split(","))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not of the form NAME:LEFT,TOP") from error
    return Place(picture, left, top)


@click.command()
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Their folder.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), required=True)
@click.option("--scale", type=float, default=4.0, show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first pictures by name.")
@click.option("--set", "pairs", multiple=True, metavar="KEY=VALUE", help="A profile key for ours.")
@click.option(
    "--crop",
    "places",
    multiple=True,
    type=place,
    metavar="NAME:LEFT,TOP",
    help="Instead of bicubic's worst.",
)
@click.option("--size", type=click.IntRange(min=16), default=160, show_default=True)
@click.option("--device", help="As in cpu or cuda:0; the first there is when left out.")
def command(images: Path, output: Path, pairs: tuple[str, ...], **options: Any) -> None:
    """Write a sheet of crops: truth, bicubic, Real-ESRGAN if installed, nano at DINO 0 and 1."""
    main(images, output, settings=parse_assignments(pairs), **options)


if __name__ == "__main__":
    run_as_script(command)
