"""Talking to systemd: READY, STATUS, RELOADING, WATCHDOG, EXTEND_TIMEOUT, STOPPING.

The protocol is sd_notify(3): one datagram of ``KEY=value`` lines to the socket that systemd names
in the environment. Without that variable every function does nothing and returns False.
"""

import os
import socket
import time
from collections.abc import Mapping


def notify(*lines: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Send ``KEY=value`` lines; True if somebody listens and they were sent.

    An address that starts with ``@`` is in the abstract namespace. A manager that has gone away
    is no reason to stop a picture: an OSError gives False.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(0.5)  # a manager that does not read must not hold up a stop
            channel.sendto("\n".join(lines).encode("utf-8", "replace"), address)
    except OSError:
        return False
    return True


def ready(text: str) -> bool:
    """Start-up or a reload is over; ``text`` is what ``systemctl status`` shows."""
    return notify("READY=1", status_line(text))


def status(text: str) -> bool:
    """Say in one line what is being done."""
    return notify(status_line(text))


def reloading(text: str = "reading the configuration again") -> bool:
    """A reload begins; ready() ends it."""
    stamp = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    return notify("RELOADING=1", f"MONOTONIC_USEC={stamp}", status_line(text))


def stopping(text: str) -> bool:
    """The process is about to end."""
    return notify("STOPPING=1", status_line(text))


def watchdog() -> bool:
    """Work goes on."""
    return notify("WATCHDOG=1")


def extend_timeout(seconds: float) -> bool:
    """Ask for ``seconds`` from now for the start, reload or stop under way."""
    return notify(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")


def watchdog_interval(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two pings, half of what the unit allows; None where it asks for none.

    Raises ValueError if WATCHDOG_USEC is no number.
    """
    if environ.get("WATCHDOG_PID") not in (None, "", str(os.getpid())):
        return None
    microseconds = int(environ.get("WATCHDOG_USEC") or 0)
    return microseconds / 2e6 if microseconds > 0 else None


def status_line(text: str) -> str:
    """STATUS= with ``text`` on one line, since a line break would start another key."""
    return "STATUS=" + " ".join(text.split())
