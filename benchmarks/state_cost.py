"""What it costs to keep an unfinished picture's state: seconds a write, share of the work's time.

The state of nano at its largest, latent and velocity, is written to a folder's disk, each time
synced, and read back once with its check.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from fluxwatchd.bench.options import command_line, run_as_script, save_option
from fluxwatchd.bench.report import machine, table
from fluxwatchd.bench.report import save as keep
from fluxwatchd.engine import Ticket
from fluxwatchd.engine.resume import EVERY, SHARE, Place, Store

LATENT_VALUES = 1
"""Values of nano's latent an output px: 16 channels, each cell 4 x 4 px."""


@dataclass(frozen=True, slots=True)
class Report:
    """``written`` and ``read``: seconds, by output megapixels; ``bytes`` of the state's file."""

    machine: Mapping[str, Any]
    written: Mapping[str, tuple[float, ...]]
    read: Mapping[str, float]
    bytes: Mapping[str, int]

    def as_text(self) -> str:
        """A Markdown table."""
        rows = []
        for size, seconds in self.written.items():
            took = median(seconds)
            rows.append(
                (
                    size,
                    f"{self.bytes[size] / 1e6:.0f}",
                    f"{took:.2f}",
                    f"{took / max(EVERY, SHARE * took):.1%}",
                    f"{self.read[size]:.2f}",
                )
            )
        head = ("Mpx out", "MB", "s a write", "share of the time", "s to read")
        said = f"Written every {EVERY:.0f} s of work, or {SHARE} times as long as a write takes."
        return f"{said}\n\n{table(head, rows)}"


def measure(megapixels: tuple[float, ...], rounds: int, folder: Path | None) -> Report:
    """Write states of these sizes, ``rounds`` times each."""
    written: dict[str, tuple[float, ...]] = {}
    read: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for size in megapixels:
        values = round(size * 1e6 * LATENT_VALUES)
        noise = np.random.default_rng(0)
        arrays = {
            name: noise.standard_normal(values, np.float32) for name in ("latent", "velocity")
        }
        with tempfile.TemporaryDirectory(dir=folder) as name:
            store, ticket = Store(Path(name)), Ticket("", "", 0)
            path, seconds = store.path(ticket), []
            for _ in range(rounds):
                start = time.perf_counter()
                store.save(path, {}, Place("denoise"), arrays)
                seconds.append(time.perf_counter() - start)
            start = time.perf_counter()
            if store.load(path, {}) is None:
                raise click.ClickException("the state does not come back")
            key = f"{size:g}"
            written[key], read[key] = tuple(seconds), time.perf_counter() - start
            sizes[key] = path.stat().st_size
    return Report(machine(), written, read, sizes)


@click.command()
@click.option("--megapixels", type=float, multiple=True, default=(4.0, 36.0), show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="On the disk to be measured.")
@save_option
def command(
    megapixels: tuple[float, ...], rounds: int, folder: Path | None, save: Path | None
) -> None:
    """Measure what keeping the state of a long job costs."""
    report = measure(megapixels, rounds, folder)
    click.echo(report.as_text())
    if save:
        keep(report, save, command_line(click.get_current_context()))


if __name__ == "__main__":
    run_as_script(command)
