"""The figures that the tests of scale, of kills and of quickness meet, beside their command."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import click

from fluxwatchd.bench.options import command_line, run_as_script, save_option
from fluxwatchd.bench.report import machine, table
from fluxwatchd.bench.report import save as keep

TESTS = (
    "tests/test_scale.py",
    "tests/crash/test_crash.py",
    "tests/test_fire.py::test_close_to_claim_is_the_settle_time",
)
LIMITS: Mapping[str, str] = {
    "scan, s": "1",
    "most memory above idle, MB": "150",
    "first result, s": "5",
    "status, s": "0.5",
    "kills": "200 at least",
    "files under fire": "",
    "close to claim above settle_seconds, ms": "100",
}
"""What each figure must not exceed, in the order of the report."""


@dataclass(frozen=True, slots=True)
class Report:
    """The figures by name, as the tests told them."""

    figures: Mapping[str, float]
    machine: dict[str, Any]

    def as_text(self) -> str:
        """A Markdown table and what it was measured on."""
        head = (
            "100,000 files in one inbox: processor time of a scan (best of three), most memory of "
            "the daemon (VmHWM) above an idle one, time from the start to the first result, and of "
            "`status`; kill -9 at every fault point, nothing lost, doubled or half-written; median "
            "from a file's arrival to its claim. "
            f"{self.machine['processor']}, {self.machine['cores']} cores."
        )
        rows = [(name, f"{self.figures[name]:.4g}", limit) for name, limit in LIMITS.items()]
        return f"{head}\n\n{table(('', 'measured', 'limit'), rows)}"


def measure() -> Report:
    """Run the tests, which must pass, and gather what they recorded."""
    with tempfile.TemporaryDirectory() as name:
        told = Path(name, "told.xml")
        words = [sys.executable, "-m", "pytest", "-q", "-o", "junit_family=xunit1"]
        words += [f"--junitxml={told}", *TESTS]  # the newer family has no properties of tests
        if subprocess.run(words, check=False).returncode:  # noqa: S603 # ourselves
            raise click.ClickException("a test failed; its output says why")
        found = Xml.parse(told).iter("property")  # noqa: S314 # pytest wrote it
        figures = {item.get("name", ""): float(item.get("value", "nan")) for item in found}
    return Report(figures, machine())


@click.command()
@save_option
def command(save: Path | None) -> None:
    """Run the tests that measure scale, kills and quickness, from the root of the sources."""
    report = measure()
    click.echo(report.as_text())
    if save:
        keep(report, save, command_line(click.get_current_context()))


if __name__ == "__main__":
    run_as_script(command)
