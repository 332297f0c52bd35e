"""On which mount each folder lies: a share that is away is not replaced by what lies below it."""

from __future__ import annotations

import errno
import json
import logging
import os
import threading
from pathlib import Path

from fluxwatchd import trees
from fluxwatchd.config import answers
from fluxwatchd.mounts import share_of

log = logging.getLogger(__name__)


class Away(OSError):
    """The mount that a folder lay on is not there; ``remedy`` says what to do."""

    def __init__(self, root: Path, point: str, file: Path | None) -> None:
        super().__init__(errno.ENOTCONN, f"{point} is not mounted, where it lay before", str(root))
        self.remedy = "Mount it; this goes on by itself."
        if file is not None:
            self.remedy += f" If the folder was moved for good, remove its line from {file}."


class Homes:
    """Remembers the mount of every folder from its first use on; over restarts, in ``file``.

    Safe to use from any thread. A person who moves a folder for good takes it out of the file (or
    removes the file), which counts at once. Folders on the root filesystem are not written down.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._known: dict[str, str] | None = None

    def check(self, root: Path) -> None:
        """Raise Away if the mount that ``root`` lay on is gone; OSError if it cannot be noted."""
        point, key = share_of(root), os.fspath(root)
        with self._lock:
            before = self._remembered().get(key)
        if before == point:
            return
        gone = before is not None and _is_gone(Path(before))  # it may hang: no lock
        with self._lock:
            if before is not None and gone and self._is_meant(key):
                raise Away(root, before, self._file)
            if before is not None:
                log.info("%s lies on another mount now: %s, before %s", key, point, before)
            self._remembered()[key] = point
            if point != "/" or before is not None:
                self._write()

    def _remembered(self) -> dict[str, str]:
        if self._known is None:
            self._known = self._read()
        return self._known

    def _is_meant(self, key: str) -> bool:
        """Whether the file still says where this folder lies; what it no longer says is forgotten.

        Without a file, memory is meant.
        """
        if self._file is None or self._known is None:
            return True
        written = self._read()
        self._known = {k: v for k, v in self._known.items() if k in written or v == "/"}
        return key in self._known

    def _read(self) -> dict[str, str]:
        if self._file is None:
            return {}
        try:
            found = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError) as error:
            log.warning("the list of mounts %s is made anew: %s", self._file, error)
            return {}
        pairs = found.items() if isinstance(found, dict) else ()
        return {key: value for key, value in pairs if isinstance(value, str)}

    def _write(self) -> None:
        """Replace the file in one step, durably. Raises OSError."""
        if self._file is None or self._known is None:
            return
        shares = {key: point for key, point in sorted(self._known.items()) if point != "/"}
        aside = self._file.with_suffix(".new")
        with aside.open("w") as file:
            json.dump(shares, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self._file)
        with trees.folder(self._file.parent) as folder:
            trees.sync_folder(folder)


def _is_gone(point: Path) -> bool:
    """Whether nothing is mounted there any more; a share that does not answer still is."""
    return answers.given([point], answers.HASTE) and share_of(point) != os.fspath(point)
