"""``fluxwatchd doctor``: what this machine can run, what is missing, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from fluxwatchd.commands import machine
from fluxwatchd.commands.options import config_option
from fluxwatchd.config import Profile, Settings, load
from fluxwatchd.engine import health
from fluxwatchd.engine.health import Finding
from fluxwatchd.errors import ConfigError

MARKS = {0: "good", 1: "bad", 78: "bad"}


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="A list of findings for programs.")
def doctor(config: Path | None, as_json: bool) -> int:
    """Look at the device, memory, weights, folders, limits and the service.

    Says which memory plan would be chosen and why, and a remedy for all that is missing. Loads no
    model and changes nothing. Ends with 0 if pictures can be made, with 78 if a setting or a file
    is in the way, with 1 if the machine is.
    """
    found = list(findings(config))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        for finding in found:
            _print(finding)
    codes = {finding.code for finding in found}
    return 78 if 78 in codes else max(codes)


def findings(config: Path | None) -> Iterator[Finding]:
    """Everything there is to say. A configuration that cannot be read is all there is to say."""
    try:
        settings = load(config, required=config is not None)
        profiles = _profiles(settings)
    except ConfigError as error:
        for problem in error.problems:
            yield Finding("configuration", str(problem), error.hint, error.exit_code)
        return
    if settings.file is None:
        said, remedy = "none was found", "Write one with `fluxwatchd init DIR`."
        yield Finding("configuration", f"{said}; what follows is for the defaults", remedy)
    else:
        yield Finding("configuration", f"{settings.file}: good, {len(settings.folders)} folders")
    yield from health.look(settings.engine, profiles)
    yield health.packages()
    yield from machine.look(settings)


def _profiles(settings: Settings) -> list[Profile]:
    """What the folders' pictures get, or the defaults where there are no folders."""
    if not settings.folders:
        return [settings.named_profile()]
    return [settings.folder_profile(folder) for folder in settings.folders]


def _print(finding: Finding) -> None:
    mark = MARKS[finding.code]
    word = click.style(mark, fg="green" if mark == "good" else "red")
    click.echo(f"{word:4}  {finding.topic}: {finding.said}")
    if finding.remedy:
        click.echo(f"      -> {finding.remedy}")
