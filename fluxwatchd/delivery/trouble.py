"""An operating system's error, as a failed delivery in words."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fluxwatchd.delivery.homes import Away
from fluxwatchd.errors import DeliveryFailed

_HINTS: Final = {
    errno.ENOSPC: "Free some space there; the delivery goes on by itself.",
    errno.EDQUOT: "Raise the quota or free some space there; the delivery goes on by itself.",
    errno.EROFS: "Mount it for writing; the delivery goes on by itself.",
    errno.EACCES: "Let the service's user write there (and list it in ReadWritePaths of the unit).",
    errno.EPERM: "Let the service's user write there (and list it in ReadWritePaths of the unit).",
    errno.ENOENT: "Make the folder again, or mount the share it lies on.",
    errno.ENOTDIR: "Something that is no folder (a symbolic link?) lies in the way: move it.",
    errno.ENOTCONN: "Mount the share again; the delivery goes on by itself.",
    errno.ESTALE: "Mount the share again; the delivery goes on by itself.",
    errno.EIO: "Look at the system's log for a failing disk or share.",
    errno.EFBIG: "The filesystem takes no file that large; choose another outbox or format.",
    errno.EISDIR: "A folder lies where a file is to go: move it.",
    errno.EINVAL: "The filesystem may refuse the name: rename the file, or choose another outbox.",
    errno.EILSEQ: "The filesystem refuses the name: rename the file, or choose another outbox.",
    errno.ENAMETOOLONG: "The filesystem takes no name that long: shorten the file's and folders'.",
    errno.EMFILE: "Raise LimitNOFILE of the unit.",
}
_NO_USE: Final = {
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EINVAL,
    errno.EILSEQ,
    errno.ENAMETOOLONG,
    errno.EFBIG,
}
"""What is wrong with one file or its name, and goes on being wrong however often it is tried."""
_REFUSALS: Final = {errno.EACCES, errno.EPERM, errno.EROFS}
_STICKY: Final = "Take the folder's sticky bit away (chmod -t), or let the service's user own it."


def failed(
    doing: str, place: Path, error: OSError, outbox: Path | None = None, *, hint: str = ""
) -> DeliveryFailed:
    """``error`` as what could not be done, and the remedy: ``hint``, or the error number's.

    Transient, but for what is wrong with this one file in an ``outbox`` that is itself a folder.
    """
    reason = error.strerror or str(error)
    where = os.fsencode(place).decode("utf-8", "backslashreplace")
    number = error.errno or 0
    hint = hint or _HINTS.get(number, "See that the folder is there and may be written.")
    if isinstance(error, Away):
        hint = error.remedy
    hopeless = outbox is not None and number in _NO_USE and outbox.is_dir()
    return DeliveryFailed(f"cannot {doing} {where}: {reason}", hint=hint, transient=not hopeless)


@contextlib.contextmanager
def explained(doing: str, place: Path, outbox: Path | None = None) -> Iterator[None]:
    """Turn an OSError of the block into failed(): ``cannot {doing} {place}: reason``."""
    try:
        yield
    except OSError as error:
        raise failed(doing, place, error, outbox) from error


@contextlib.contextmanager
def out_of(folder: int, path: Path) -> Iterator[None]:
    """Turn a refusal in the block into failed(), where the folder that a file is to leave refuses.

    ``folder`` is its descriptor. A move needs the right to change two folders, and the error does
    not say which one lacks it: every other OSError passes.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        if not os.access(".", os.W_OK | os.X_OK, dir_fd=folder):
            raise failed("take files out of", path, error) from error
        if error.errno == errno.EPERM and _is_sticky(folder):
            doing = "take somebody else's files out of"
            raise failed(doing, path, error, hint=_STICKY) from error
        raise


def _is_sticky(folder: int) -> bool:
    """Whether a folder's sticky bit keeps us from renaming what is somebody else's."""
    found = os.stat(folder)
    return bool(found.st_mode & stat.S_ISVTX) and os.geteuid() not in {0, found.st_uid}
