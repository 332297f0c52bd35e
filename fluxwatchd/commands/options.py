"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

config_option = click.option(
    "--config",
    "config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The configuration; else $FLUXWATCHD_CONFIG, ./config.toml, "
    "~/.config/fluxwatchd/config.toml or /etc/fluxwatchd/config.toml.",
)

set_option = click.option(
    "--set",
    "assignments",
    multiple=True,
    metavar="KEY=VALUE",
    help="A profile's key, or engine.KEY or daemon.KEY; may be given again.",
)

NAMED = Path
"""The type of a path as it was written: click's own looks for it, and waits where a share hangs."""
