"""``fluxwatchd upscale``: files once, by the daemon's engine and delivery, without the daemon."""

from __future__ import annotations

from pathlib import Path

import click

from fluxwatchd.commands.options import config_option, set_option
from fluxwatchd.config import load, parse_assignments


@click.command()
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option(
    "--output",
    metavar="DIR",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where results and their records go; made if it is missing.",
)
@config_option
@click.option("--profile", "name", metavar="NAME", help="A [profile.NAME] of the configuration.")
@set_option
def upscale(
    files: tuple[Path, ...],
    output: Path,
    config: Path | None,
    name: str | None,
    assignments: tuple[str, ...],
) -> int:
    """Upscale FILEs into DIR; the files stay as they are.

    Needs no configuration. Ends with 1 if any picture failed.

    \b
    fluxwatchd upscale photo.jpg --output big
    fluxwatchd upscale *.png --output big --set variant=schnell --set scale=2
    """  # noqa: D301 - \b is click's mark for lines to be left as they are
    from fluxwatchd import log, oneshot
    from fluxwatchd.progress import Bars

    settings = load(config, overrides=parse_assignments(assignments), required=False)
    profile = settings.named_profile(name)
    log.configure(settings.daemon.log_level)
    log.warn_without_effect(profile.without_effect())
    with Bars(len(files)) as bars:
        watch = oneshot.Watch(bars.beat, bars.end)
        return oneshot.upscale(files, output, settings, profile, watch)
