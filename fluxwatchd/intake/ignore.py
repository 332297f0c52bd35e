"""Which names are none of our business, and why."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from typing import Final

from fluxwatchd.imageio import READABLE_SUFFIXES

TEMPORARY: Final = frozenset(
    {
        ".part",  # Firefox, wget, Nextcloud, ourselves
        ".partial",  # rclone, KDE
        ".tmp",
        ".temp",
        ".crdownload",  # Chromium
        ".download",  # Safari
        ".opdownload",  # Opera
        ".filepart",  # WinSCP
        ".aria2",
        ".!ut",  # uTorrent
        ".!qb",  # qBittorrent
    }
)


class Rules:
    """The names that a folder ignores. ``patterns`` are its own, as in the shell.

    A pattern without a slash is held against the name of every file and folder, one with a slash
    against the path below the inbox; ``*`` there goes over slashes.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._names = _compiled(p for p in patterns if "/" not in p)
        self._paths = _compiled(p for p in patterns if "/" in p)

    def reason(self, name: str, path: str) -> str | None:
        """Why a file or folder of this name, at this path below the inbox, is left alone."""
        if name.startswith("."):
            return "hidden"
        if name.startswith("~"):
            return "temporary"
        if self._names and self._names.match(name):
            return "ignore pattern"
        if self._paths and self._paths.match(path):
            return "ignore pattern"
        return None

    @staticmethod
    def suffix_reason(name: str) -> str | None:
        """Why a file with this name's suffix is left alone; None for a picture's."""
        stem, dot, suffix = name.lower().rpartition(".")
        suffix = dot + suffix if stem else ""
        if suffix in READABLE_SUFFIXES:
            return None
        if suffix in TEMPORARY:
            return "temporary"
        if suffix == ".toml":
            return "settings"
        return "not a picture"


def _compiled(patterns: Iterable[str]) -> re.Pattern[str] | None:
    parts = [fnmatch.translate(pattern.lstrip("/")) for pattern in patterns]
    return re.compile("|".join(parts)) if parts else None
