"""Which filesystem a folder lies on, by /proc/self/mountinfo."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_TABLE = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """A mounted filesystem: its mount point, and its kind as in ``ext4`` or ``fuse.sshfs``."""

    point: str
    kind: str


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of mountinfo: what of a filesystem (``device``, from ``root`` on) lies where."""

    number: bytes
    parent: bytes
    device: bytes
    root: bytes
    point: bytes
    kind: str


def mount_of(path: Path, table: bytes | None = None) -> Mount:
    """The mount that ``path`` lies on, or would lie on if it existed.

    ``table`` is the text of mountinfo (see proc_pid_mountinfo(5)), the process's own by default.
    Where nothing is known of it, as in some containers, the answer is ``/`` of kind unknown.
    """
    found = _innermost(path, _lines(table))
    return Mount(os.fsdecode(found.point), found.kind) if found else Mount("/", "unknown")


def share_of(path: Path, table: bytes | None = None) -> str:
    """The mount point without which other files would lie at ``path``.

    Not every mount is one: a service's ReadWritePaths= shows each path, mounted upon itself, and
    what lies there is the same with and without it.
    """
    lines = _lines(table)
    numbered = {line.number: line for line in lines}
    found = _innermost(path, lines)
    while found and (parent := numbered.get(found.parent)) and _is_window(found, parent):
        found = parent
    return os.fsdecode(found.point) if found else "/"


def _is_window(line: _Line, parent: _Line) -> bool:
    """Whether a mount shows what its parent would show at the same place."""
    below = os.path.relpath(line.point, parent.point)
    seen = parent.root if below == b"." else os.path.join(parent.root, below)  # noqa: PTH118
    return line.device == parent.device and line.root == seen


def _innermost(path: Path, lines: list[_Line]) -> _Line | None:
    real = os.path.realpath(os.fsencode(path))
    found = None
    for line in lines:
        # of two mounts on one point the later one is on top
        longest = len(found.point) if found else -1
        if len(line.point) >= longest and _is_below(real, line.point):
            found = line
    return found


def _lines(table: bytes | None) -> list[_Line]:
    found = []
    for text in (_read_table() if table is None else table).splitlines():
        fields, _, tail = text.partition(b" - ")
        parts = fields.split()
        if len(parts) < 5 or not tail:
            continue
        number, parent, device, root, point = parts[:5]
        kind = tail.split()[0].decode("ascii", "replace")
        found.append(_Line(number, parent, device, _plain(root), _plain(point), kind))
    return found


def _plain(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field)


def is_below(path: str, folder: str) -> bool:
    """Whether ``path`` is ``folder`` or lies in it, by name alone."""
    return _is_below(os.fsencode(path), os.fsencode(folder))


def _is_below(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def _read_table() -> bytes:
    try:
        return _TABLE.read_bytes()
    except OSError:
        return b""
