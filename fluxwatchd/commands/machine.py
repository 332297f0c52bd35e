"""What ``fluxwatchd doctor`` looks at beside the engine: folders, limits, service, clock."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from fluxwatchd.commands.system import UNIT
from fluxwatchd.config import Settings
from fluxwatchd.engine.health import Finding

LEAST_FREE = 2 << 30
"""Bytes a state folder should have left: text states, DINO features, compiled kernels, journal."""
CLOCK_SKEW = 5.0
"""Seconds by which a folder's clock may differ from ours."""
INOTIFY = Path("/proc/sys/fs/inotify")
UNITS = (
    UNIT,
    Path("/usr/lib/systemd/system/fluxwatchd.service"),
    Path("~/.config/systemd/user/fluxwatchd.service"),
)


def look(settings: Settings) -> Iterator[Finding]:
    """The state folder, the folders of pictures, inotify's limits, the service and the clock."""
    yield state_folder(settings.daemon.state_dir)
    for folder in settings.folders:
        for path in (folder.inbox, folder.outbox):
            yield folder_space(path)
    yield inotify(settings)
    yield service()
    yield clock(settings.daemon.state_dir)


def _standing(path: Path) -> Path:
    """The folder itself, or the nearest above it that is there."""
    return next(place for place in (path, *path.parents) if place.exists())


def state_folder(path: Path) -> Finding:
    """Whether journal and caches can be written, and have room."""
    place = _standing(path)
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding(
            "state folder",
            f"{path} cannot be written by user {os.geteuid()}",
            f"Run as the service's user, or: chown {os.geteuid()} {place}",
            code=78,
        )
    free = shutil.disk_usage(place).free
    said = f"{path}: {free / 1e9:.1f} GB free"
    if free < LEAST_FREE:
        remedy = f"Free space there, {LEAST_FREE / 1e9:.0f} GB or more, or move [daemon] state_dir."
        return Finding("state folder", said, remedy, code=1)
    return Finding("state folder", said)


def folder_space(path: Path) -> Finding:
    """Whether a folder of pictures is there and has room for some."""
    if not path.is_dir():
        return Finding("folder", f"{path} is not there; it is made at start")
    free = shutil.disk_usage(path).free
    said = f"{path}: {free / 1e9:.1f} GB free"
    if free < LEAST_FREE // 4:
        return Finding("folder", said, "Free space there.", code=1)
    return Finding("folder", said)


def inotify(settings: Settings) -> Finding:
    """Whether the kernel allows as many watches as the inboxes have folders."""
    try:
        most = int((INOTIFY / "max_user_watches").read_text())
        instances = int((INOTIFY / "max_user_instances").read_text())
    except (OSError, ValueError):
        return Finding("inotify", "the kernel has none: inboxes are looked at every minute instead")
    wanted = sum(folders(folder.inbox, deep=folder.recursive) for folder in settings.folders)
    said = f"{wanted} of {most} watches are needed, and {len(settings.folders)} of {instances} "
    said += "instances"
    if wanted > most or len(settings.folders) > instances:
        return Finding(
            "inotify",
            f"{said}: pictures are found by looking every {settings.daemon.rescan_seconds:g} s",
            f"sysctl fs.inotify.max_user_watches={2 * wanted} "
            f"fs.inotify.max_user_instances={max(instances, 2 * len(settings.folders))}",
            code=1,
        )
    return Finding("inotify", said)


def folders(inbox: Path, *, deep: bool) -> int:
    """How many folders an inbox has, itself included."""
    return 1 + (sum(len(below) for _, below, _ in os.walk(inbox)) if deep else 0)


def service() -> Finding:
    """Whether systemd is here and has our unit."""
    if not Path("/run/systemd/system").is_dir():
        return Finding("service", "systemd does not run here")
    found = [str(unit) for unit in UNITS if unit.expanduser().exists()]
    if found:
        return Finding("service", f"unit {found[0]}")
    remedy = "To install one, run as root: fluxwatchd init --system"
    return Finding("service", "no systemd unit is installed", remedy)


def clock(state_dir: Path) -> Finding:
    """Whether the clock can be right, and the state folder's filesystem agrees with it.

    A clock that is behind our own files was never set. Settling compares times of files with it.
    """
    now = time.time()
    built = Path(__file__).stat().st_mtime
    if now < built:
        remedy = "Set the clock: timedatectl set-ntp true"
        return Finding("clock", "it is behind the date of this installation", remedy, code=1)
    place = _standing(state_dir)
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding("clock", "it is ahead of this installation's date, as it should be")
    with tempfile.NamedTemporaryFile(dir=place, prefix=".fluxwatchd-clock-") as stream:
        skew = Path(stream.name).stat().st_mtime - now
    if abs(skew) > CLOCK_SKEW:
        remedy = "Set both machines' clocks by NTP: timedatectl set-ntp true"
        return Finding("clock", f"{place} is {skew:+.0f} s from this machine's clock", remedy, 1)
    return Finding("clock", f"it agrees with {place} within {CLOCK_SKEW:.0f} s")
