"""The daemon: wakes, takes in, has the engine work, delivers; for months."""

from __future__ import annotations

from collections.abc import Callable

from fluxwatchd.config import Settings
from fluxwatchd.daemon.pulse import Listener
from fluxwatchd.daemon.server import Server


def serve(
    settings: Settings,
    *,
    until_idle: bool = False,
    listener: Listener | None = None,
    on_reload: Callable[[Settings], None] | None = None,
) -> int:
    """Run the daemon in this process, in the main thread; returns the exit code.

    ``until_idle`` ends it once nothing is left to do: 0, or 1 if any job failed. ``listener`` is
    told each step of work, ``on_reload`` each new configuration that is taken. Raises
    ConfigError, EngineLost.
    """
    server = Server(settings, until_idle=until_idle, listener=listener, on_reload=on_reload)
    return server.run()
