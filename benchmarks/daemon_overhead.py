"""What the daemon costs: its time over `upscale` on the same pictures, and its CPU share when idle.

Both are run as processes, from start to end, in turns; the daemon by `run --until-idle` over a
full inbox. Every run has new folders, so nothing is taken from an earlier one.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from PIL import Image

from fluxwatchd.bench.options import command_line, run_as_script, save_option
from fluxwatchd.bench.pictures import find, pair
from fluxwatchd.bench.report import machine, table
from fluxwatchd.bench.report import save as keep

PROGRAM = (sys.executable, "-m", "fluxwatchd")
CONFIG = """
[daemon]
state_dir = "state"
[[folder]]
inbox = "inbox"
outbox = "outbox"
"""
CALM = 5.0
"""Seconds after READY before idleness is measured."""


@dataclass(frozen=True, slots=True)
class Report:
    """``upscale`` and ``daemon``: wall seconds a round; ``overhead``: ratio of medians, less 1.

    ``idle_share`` is CPU time over wall time in ``idle_seconds`` with nothing to do, of one core.
    """

    pictures: int
    output_megapixels: float
    upscale: tuple[float, ...]
    daemon: tuple[float, ...]
    overhead: float
    idle_seconds: float
    idle_share: float
    machine: dict[str, Any]

    def as_text(self) -> str:
        """A Markdown table and what it was measured on."""
        rows = (
            ("fluxwatchd upscale, s", f"{median(self.upscale):.1f}", _each(self.upscale)),
            ("fluxwatchd run --until-idle, s", f"{median(self.daemon):.1f}", _each(self.daemon)),
            ("the daemon adds", f"{self.overhead:+.1%}", "target: under 5 %"),
            (
                f"CPU of one core, idle for {self.idle_seconds:.0f} s",
                f"{self.idle_share:.2%}",
                "target: under 0.5 %",
            ),
        )
        head = (
            f"{self.pictures} pictures, {self.output_megapixels:.2f} Mpx of output; "
            f"{self.machine['processor']}, {self.machine['cores']} cores. Settings as shipped "
            "(the daemon waits 2 s for a file to settle)."
        )
        return f"{head}\n\n{table(('', 'median', 'rounds'), rows)}"


def _each(seconds: tuple[float, ...]) -> str:
    return ", ".join(f"{one:.1f}" for one in seconds)


def time_upscale(sources: list[Path], folder: Path) -> float:
    """Wall seconds of `fluxwatchd upscale` over ``sources``; its cache of features starts empty."""
    config = make_folders(folder)
    words = ["upscale", *map(str, sources), "--output", str(folder / "big")]
    words += ["--config", str(config)]
    return _timed(words, expected=len(sources), outbox=folder / "big")


def time_daemon(sources: list[Path], folder: Path) -> float:
    """Wall seconds of the daemon over an inbox that holds ``sources``, until it is idle."""
    config = make_folders(folder)
    for source in sources:
        shutil.copy(source, folder / "inbox")
    words = ["run", "--config", str(config), "--until-idle"]
    return _timed(words, expected=len(sources), outbox=folder / "outbox")


def make_folders(folder: Path) -> Path:
    """An inbox and an outbox in ``folder``, and their configuration's file."""
    for name in ("inbox", "outbox"):
        (folder / name).mkdir(parents=True)
    config = folder / "config.toml"
    config.write_text(CONFIG)
    return config


def _timed(words: list[str], *, expected: int, outbox: Path) -> float:
    start = time.perf_counter()
    subprocess.run([*PROGRAM, *words], check=True, capture_output=True)  # noqa: S603 # ourselves
    seconds = time.perf_counter() - start
    found = len(list(outbox.glob("*.png")))
    if found != expected:
        raise click.ClickException(f"{found} results of {expected}: {' '.join(words[:1])}")
    return seconds


def idle_share(folder: Path, seconds: float) -> float:
    """CPU time over wall time of a daemon that is ready and has nothing to do."""
    config = make_folders(folder)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = folder / "notify"
        manager.bind(str(address))
        manager.settimeout(300)
        daemon = subprocess.Popen(  # noqa: S603 # ourselves
            [*PROGRAM, "run", "--config", str(config)],
            env={**os.environ, "NOTIFY_SOCKET": str(address)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while b"READY=1" not in manager.recv(65536):
                pass
            _listen(manager, CALM)
            before, start = cpu_seconds(daemon.pid), time.perf_counter()
            _listen(manager, seconds)
            used, passed = cpu_seconds(daemon.pid) - before, time.perf_counter() - start
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(60)
    return used / passed


def _listen(manager: socket.socket, seconds: float) -> None:
    """Take the daemon's messages for that long, as systemd would."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        manager.settimeout(left)
        with suppress(TimeoutError):
            manager.recv(65536)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads and its ended children (proc(5), stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def measure(images: Path, limit: int, rounds: int, idle_seconds: float) -> Report:
    """All of it, in a temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        shrunk = [pair(path, 4) for path in find(images, limit)]
        (root / "sources").mkdir()
        sources = []
        for one in shrunk:
            sources.append(root / "sources" / f"{Path(one.name).stem}.png")
            Image.fromarray(one.small).save(sources[-1])
        upscale, daemon = [], []
        for turn in range(rounds):
            upscale.append(time_upscale(sources, root / f"upscale{turn}"))
            daemon.append(time_daemon(sources, root / f"daemon{turn}"))
        share = idle_share(root / "idle", idle_seconds)
    return Report(
        pictures=len(sources),
        output_megapixels=sum(one.truth.size for one in shrunk) / 3e6,
        upscale=tuple(upscale),
        daemon=tuple(daemon),
        overhead=median(daemon) / median(upscale) - 1,
        idle_seconds=idle_seconds,
        idle_share=share,
        machine=machine(),
    )


@click.command()
@click.option("--images", type=click.Path(path_type=Path), required=True, help="Shrunk by 4 first.")
@click.option("--limit", type=click.IntRange(min=1), default=24, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--idle-seconds", type=click.FloatRange(min=1), default=120.0, show_default=True)
@save_option
def command(images: Path, limit: int, rounds: int, idle_seconds: float, save: Path | None) -> None:
    """Time the daemon against `fluxwatchd upscale`, and watch it idle."""
    report = measure(images, limit, rounds, idle_seconds)
    click.echo(report.as_text())
    if save:
        keep(report, save, command_line(click.get_current_context()))


if __name__ == "__main__":
    run_as_script(command)
