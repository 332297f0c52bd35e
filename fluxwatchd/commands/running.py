"""``fluxwatchd run``: the daemon."""

from __future__ import annotations

from pathlib import Path

import click

from fluxwatchd.commands.options import config_option
from fluxwatchd.config import Settings, load


@click.command()
@config_option
@click.option("--until-idle", is_flag=True, help="End once nothing is pending.")
def run(config: Path | None, until_idle: bool) -> int:
    """Watch the folders and upscale what is dropped into them, until told to stop.

    SIGTERM or Ctrl-C ends it after the tiles at hand and gives the picture back; a second one ends
    it at once. SIGHUP reads the configuration anew. With --until-idle it ends with 0, or with 1 if
    any picture failed or has to wait, or an inbox could not be looked into; a result whose outbox
    takes nothing is waited for.
    """
    from fluxwatchd import daemon, log
    from fluxwatchd.progress import Bars

    def tell(settings: Settings) -> None:
        log.configure(settings.daemon.log_level)
        log.warn_without_effect(settings.notes())

    settings = load(config, places=False)
    tell(settings)
    with Bars() as bars:
        return daemon.serve(settings, until_idle=until_idle, listener=bars, on_reload=tell)
