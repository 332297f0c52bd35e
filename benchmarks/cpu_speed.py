"""Seconds per output megapixel on the CPU: what ships, what each part of it costs, and a peer.

All of them take turns on the same pictures (see fluxwatchd.bench.speed).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fluxwatchd.bench import speed
from fluxwatchd.bench.options import finish, run_as_script, save_option
from fluxwatchd.bench.peers import REAL_ESRGAN

WAYS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "nano, as shipped": ("nano", {}),
    "nano, tokens 0.5": ("nano", {"dino_strength": 0.5}),
    "nano, one step": ("nano", {"steps": 1}),
    "nano-img2img, as shipped": ("nano-img2img", {}),
    "lanczos": ("lanczos", {}),
    "Real-ESRGAN x4plus (ncnn)": (REAL_ESRGAN, {}),
}
"""A method and profile keys by the name in the report."""


@click.command()
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Shrunk by 4 first.")
@click.option("--limit", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@save_option
def command(images: Path, limit: int, rounds: int, save: Path | None) -> None:
    """Time nano beside Real-ESRGAN x4plus on the CPU."""
    report = speed.race(images, WAYS, scale=4, limit=limit, rounds=rounds, device="cpu")
    click.echo(report.as_text())
    finish(report, save)


if __name__ == "__main__":
    run_as_script(command)
