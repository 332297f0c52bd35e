"""Folders by descriptor: no symbolic link below a root is followed, no path is too long."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Final

LOOK = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
LIST = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

_NO_SYNC: Final = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
_making: dict[int, threading.Lock] = {}
"""By device: on a share that hangs the making of a folder never ends."""


def sync_folder(folder: int) -> None:
    """Bring a folder's names to the disk, where its filesystem knows how. Raises OSError."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def make_root(path: Path) -> None:
    """Make a folder, and those above it, where they are missing; their names are on the disk then.

    The name of one that was there is brought to the disk too: it may have been made a moment ago.
    A folder that may not be read cannot be synced; that is left to the kernel. Raises OSError.
    """
    missing = [above for above in path.parents if not above.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in (path, *missing):
        with contextlib.suppress(PermissionError), folder(made.parent) as parent:
            sync_folder(parent)


def open_folder(root: Path, below: PurePath | str = "", *, make: bool = False) -> int:
    """A descriptor of the folder ``below`` a root, which the caller closes.

    The root itself may be a symbolic link; a link below it raises NotADirectoryError, so that
    nobody who may write into the root can lead us out of it. With ``make``, missing folders below
    the root are made (the root is not) and their making is synced. Raises OSError; ValueError for
    an absolute path or one with ``..``.
    """
    parts = _parts(below)
    here = os.open(root, LIST if make or not parts else LOOK)
    try:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            flags = (LIST if make or last else LOOK) | os.O_NOFOLLOW
            following = _open_or_make(part, here, flags) if make else _open_at(part, here, flags)
            os.close(here)
            here = following
    except BaseException:
        os.close(here)
        raise
    return here


@contextlib.contextmanager
def folder(root: Path, below: PurePath | str = "", *, make: bool = False) -> Iterator[int]:
    """open_folder() for a ``with`` statement."""
    descriptor = open_folder(root, below, make=make)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_file(root: Path, relative: PurePath) -> int:
    """A descriptor for reading the file ``relative`` below a root, following no link.

    Does not wait where the file is a FIFO. Raises OSError. The caller closes it.
    """
    with folder(root, relative.parent) as parent:
        return os.open(
            relative.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent
        )


def _parts(below: PurePath | str) -> tuple[str, ...]:
    parts = PurePath(below).parts
    if ".." in parts or (parts and parts[0].startswith("/")):
        msg = f"not a path below a folder: {os.fsdecode(below)!r}"
        raise ValueError(msg)
    return parts


def _open_at(name: str, parent: int, flags: int) -> int:
    return os.open(name, flags, dir_fd=parent)


def _open_or_make(name: str, parent: int, flags: int) -> int:
    """Open a folder whose name is on the disk.

    One job makes it while others wait: none may put a result into a folder that is not synced yet.
    """
    with _making.setdefault(os.fstat(parent).st_dev, threading.Lock()):
        try:
            return os.open(name, flags, dir_fd=parent)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # another program makes the same folder
                os.mkdir(name, dir_fd=parent)
            sync_folder(parent)
            return os.open(name, flags, dir_fd=parent)
