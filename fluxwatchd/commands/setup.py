"""``fluxwatchd init``: a commented configuration and its folders, or the whole service."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

import click

from fluxwatchd.errors import ConfigError

SAMPLE = "sample.jpg"


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path), required=False)
@click.option("--sample", is_flag=True, help="Put a small photograph into the inbox.")
@click.option(
    "--system",
    is_flag=True,
    help="Set up the system service: user, group, folders, configuration and unit; needs root. "
    "DIR, /srv/fluxwatchd if none is named, gets the inbox and the outbox.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    metavar="ROOT",
    help="With --system: the root folder of another system, as for an image that is built.",
)
def init(directory: Path | None, sample: bool, system: bool, root: Path | None) -> None:
    """Write DIR/config.toml, every key in it with a comment, and make the folders it names.

    Nothing that exists is overwritten.
    """
    if system:
        _init_system(directory, root or Path("/"), sample=sample)
    elif root is not None:
        raise click.UsageError("--root goes with --system")
    elif directory is None:
        raise click.UsageError("Missing argument 'DIR'.")
    else:
        _init_folder(directory, sample=sample)


def _init_folder(directory: Path, *, sample: bool) -> None:
    config = directory / "config.toml"
    inbox, outbox = directory / "inbox", directory / "outbox"
    try:
        for folder in (inbox, outbox):
            folder.mkdir(parents=True, exist_ok=True)
        _write_config(config)
        picture = _put_sample(inbox) if sample else None
    except FileExistsError as error:
        raise ConfigError(
            f"{error.filename} exists and is left as it is",
            hint="Name another folder, or move that file away first.",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be written: {error.strerror}",
            hint="Name a folder that you may write.",
        ) from error
    click.echo(f"wrote {config}")
    if picture is not None:
        click.echo(f"put a sample into {picture}")
    click.echo(f"drop pictures into {inbox} and start it with:")
    click.echo(f"  fluxwatchd run --config {config}")


def _init_system(directory: Path | None, root: Path, *, sample: bool) -> None:
    from fluxwatchd.commands import system

    if directory is not None and not directory.is_absolute():
        raise click.UsageError(f"the service needs an absolute path, not {directory}")
    if os.geteuid() != 0:
        raise click.UsageError("--system needs root: run it with sudo")
    plan = system.install(directory, root, click.echo)
    if sample:
        inbox = plan.here(plan.settings.folders[0].inbox)
        click.echo(f"put a sample into {_put_sample(inbox)}")
    click.echo("let somebody drop pictures and read results (it counts from their next login):")
    click.echo(f"  usermod --append --groups {system.NAME} NAME")
    click.echo("start it now and at every boot, and look at it:")
    click.echo(f"  systemctl enable --now {system.UNIT.name}")
    click.echo("  fluxwatchd status")


def _write_config(config: Path) -> None:
    from fluxwatchd.config.example import example

    with config.open("x", encoding="utf-8") as file:
        file.write(example(commented=True))


def _put_sample(inbox: Path) -> Path:
    """Copy the bundled photograph; one that is there already stays."""
    target = inbox / SAMPLE
    content = files("fluxwatchd").joinpath("data", SAMPLE).read_bytes()
    try:
        with target.open("xb") as file:
            file.write(content)
    except FileExistsError:
        click.echo(f"{target} exists and is left as it is", err=True)
    return target
