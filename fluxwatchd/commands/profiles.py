"""``fluxwatchd profile show``: the effective profile, and where each value was set."""

from __future__ import annotations

from pathlib import Path

import click

from fluxwatchd.commands.options import NAMED, config_option
from fluxwatchd.config import Explained, Folder, Settings, load
from fluxwatchd.config.paths import real
from fluxwatchd.errors import ConfigError


@click.group()
def profile() -> None:
    """The settings that a folder's pictures get."""


@profile.command()
@click.argument("folder", metavar="FOLDER", type=NAMED)
@config_option
def show(folder: Path, config: Path | None) -> None:
    """The effective profile of FOLDER as TOML, each value with where it was set.

    FOLDER is an inbox, a folder inside one, or a picture in one.
    """
    settings = load(config)
    owner = _owner(settings, folder)
    explained = settings.explain_profile(owner, _relative(owner, folder))
    click.echo(f"# {folder}")
    for line in _lines(explained):
        click.echo(line)


def _owner(settings: Settings, path: Path) -> Folder:
    owner = settings.folder_at(path)
    if owner is None:
        known = ", ".join(str(folder.inbox) for folder in settings.folders)
        raise ConfigError(
            f"{path} is no inbox of {settings.file} and lies in none; there are: {known}",
            hint="Name one of these, or another configuration with --config.",
        )
    return owner


def _relative(owner: Folder, path: Path) -> Path:
    """A picture's path below the inbox; for a folder, that of any picture in it."""
    below = real(path).relative_to(real(owner.inbox))
    return below / "*" if path.is_dir() or not path.suffix else below


def _lines(explained: dict[str, Explained]) -> list[str]:
    """TOML, the origins as comments in a column of their own."""
    from fluxwatchd.config.example import toml_value

    pairs = [(f"{key} = {_line(toml_value(it.value))}", it.origin) for key, it in explained.items()]
    width = min(40, max(len(text) for text, _ in pairs))
    return [f"{text:{width}}  # {origin}" for text, origin in pairs]


def _line(toml: str) -> str:
    """A value on one line: tomli-w breaks lists, and an array may stand on one line."""
    return " ".join(part.strip() for part in toml.splitlines()).replace(",]", "]")
