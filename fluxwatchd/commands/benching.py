"""``fluxwatchd bench``: the measurements of fluxwatchd.bench, a module each."""

from __future__ import annotations

import click

from fluxwatchd.commands.lazy import Entry, LazyGroup

MEASUREMENTS = {
    "quality": Entry(
        "fluxwatchd.bench.quality:command",
        "How near upscaled pictures come to the truth, beside Lanczos and bicubic.",
    ),
    "speed": Entry(
        "fluxwatchd.bench.speed:command",
        "How long pictures take, stage by stage, beside other upscalers.",
    ),
    "dino": Entry(
        "fluxwatchd.bench.dino:command",
        "What DINO does: strengths side by side on the same pictures and seeds.",
    ),
    "seams": Entry("fluxwatchd.bench.seams:command", "How well the borders of tiles are hidden."),
    "colour": Entry(
        "fluxwatchd.bench.colour:command",
        "How far colours stray from the source's, with and without the colour lock.",
    ),
    "stripes": Entry(
        "fluxwatchd.bench.stripes:command",
        "Which grids the stripe detector sees, and whether it sees one where there is none.",
    ),
    "drift-map": Entry(
        "fluxwatchd.bench.driftmap:command",
        "Where a result strays from its source, without DINO and with it, as a picture.",
    ),
    "sheet": Entry(
        "fluxwatchd.bench.sheet:command",
        "Crops side by side: truth, bicubic, Real-ESRGAN, nano without and with DINO.",
    ),
}


@click.group(cls=LazyGroup, table=MEASUREMENTS)
def bench() -> None:
    """Measure quality, speed, DINO's effect and seams, beside what you would pick instead."""
