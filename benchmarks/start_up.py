"""How long the commands take that people wait for: from the start of the process to its end."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click

from fluxwatchd.bench.options import finish, run_as_script, save_option
from fluxwatchd.bench.report import machine, table

PROGRAM = (sys.executable, "-m", "fluxwatchd")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "check": ("check",),
    "status": ("status",),
    "status, the daemon has run": ("status",),
}
"""The words of each command by its name in the report."""
CONFIG = """
[daemon]
state_dir = "{state}"
[defaults]
variant = "lanczos"
[[folder]]
inbox = "inbox"
outbox = "outbox"
"""


@dataclass(frozen=True, slots=True)
class Report:
    """Wall seconds of every round, by command, and of an interpreter that does nothing."""

    commands: Mapping[str, tuple[float, ...]]
    python: tuple[float, ...]
    machine: dict[str, Any]

    def as_text(self) -> str:
        """A Markdown table and what it was measured on."""
        rows = [(f"fluxwatchd {name}", *_told(rounds)) for name, rounds in self.commands.items()]
        rows.append(("python, doing nothing", *_told(self.python)))
        head = (
            f"Wall time of {len(self.python)} rounds, in turns; {self.machine['processor']}, "
            f"{self.machine['cores']} cores. Target: a median under 0.4 s."
        )
        return f"{head}\n\n{table(('', 'median, s', 'fastest', 'slowest'), rows)}"


def _told(seconds: tuple[float, ...]) -> tuple[str, str, str]:
    return f"{median(seconds):.3f}", f"{min(seconds):.3f}", f"{max(seconds):.3f}"


def measure(rounds: int) -> Report:
    """Run every command ``rounds`` times, in turns, after once that does not count."""
    with tempfile.TemporaryDirectory() as name:
        fresh, used = Path(name, "fresh.toml"), Path(name, "used.toml")
        for config in (fresh, used):
            config.write_text(CONFIG.format(state=config.stem))
        (Path(name) / "inbox").mkdir()
        _run([*PROGRAM, "run", "--until-idle"], used)
        seconds: dict[str, list[float]] = {command: [] for command in COMMANDS}
        idle: list[float] = []
        for turn in range(rounds + 1):
            for command, words in COMMANDS.items():
                config = used if "has run" in command else fresh
                taken = _run([*PROGRAM, *words], config)
                seconds[command] += [taken] if turn else []
            taken = _run([sys.executable, "-c", ""], fresh)
            idle += [taken] if turn else []
    told = {command: tuple(found) for command, found in seconds.items()}
    return Report(told, tuple(idle), machine())


def _run(command: list[str], config: Path) -> float:
    """Wall seconds of a command on a configuration. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run(  # noqa: S603 # ourselves
        command,
        check=True,
        capture_output=True,
        env={**os.environ, "FLUXWATCHD_CONFIG": str(config)},
    )
    return time.perf_counter() - start


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=10, show_default=True)
@save_option
def command(rounds: int, save: Path | None) -> None:
    """Time the commands that people wait for."""
    report = measure(rounds)
    click.echo(report.as_text())
    finish(report, save)


if __name__ == "__main__":
    run_as_script(command)
