"""Files that appear under their name whole or not at all, and never over another."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from fluxwatchd.crashpoints import crashpoint

_RENAME_NOREPLACE: Final = 1  # linux/fs.h
_FICLONE: Final = 0x40049409  # linux/fs.h
NO_LINKS: Final = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
"""What link(2) says where a filesystem has no hard links."""

TRIAL: Final = ".fluxwatchd-check-"
"""How the folder begins in which supports_commit() tries a filesystem."""

_CHUNK: Final = 1 << 20
_libc: Final = ctypes.CDLL(None, use_errno=True)


def create(name: str, parent: int, mode: int = 0o666) -> BinaryIO:
    """An empty file under a temporary name, opened to write, seek and read back.

    A file of that name, left by an earlier try, is removed first. Raises OSError.
    """
    remove(name, parent)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(name, flags, mode, dir_fd=parent), "w+b")


def sync(file: BinaryIO) -> None:
    """Bring a file's content to the disk. Raises OSError."""
    file.flush()
    os.fsync(file.fileno())


def remove(name: str, parent: int) -> bool:
    """Remove a file; False if there was none. Raises OSError."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return False
    return True


def status(name: str, parent: int) -> os.stat_result | None:
    """What lies under a name, links not followed; None if nothing does. Raises OSError."""
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def same_file(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    """Whether both are the same inode."""
    return one is not None and other is not None and os.path.samestat(one, other)


def link_new(part: str, name: str, folder: int) -> bool:
    """Give a temporary file its final name, which must be free; True if the part is still there.

    By link(2), or where the filesystem has no hard links by renaming. A share may do either and
    then answer with an error, or with one at the second try alone: it counts as made where the
    file lies under its name. Raises FileExistsError, OSError.
    """
    own = status(part, folder)
    try:
        os.link(part, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS:
            if not same_file(own, status(name, folder)):
                raise
            return True
    else:
        return True
    try:
        rename_new(part, folder, name, folder)
    except OSError:
        if not same_file(own, status(name, folder)):
            raise
    return False


def rename_new(source: str, source_folder: int, target: str, target_folder: int) -> None:
    """Rename a file to a name that must be free: renameat2(2) with RENAME_NOREPLACE.

    Raises FileExistsError; OSError with EINVAL where the filesystem cannot do that, EXDEV across
    devices.
    """
    if not hasattr(_libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), source)
    answer = _libc.renameat2(
        source_folder,
        os.fsencode(source),
        target_folder,
        os.fsencode(target),
        ctypes.c_uint(_RENAME_NOREPLACE),
    )
    if answer != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)


def digest(file: BinaryIO) -> str:
    """SHA-256 of a whole file, in hexadecimal, read from its start. Raises OSError."""
    file.seek(0)
    found = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        found.update(chunk)
    return found.hexdigest()


def digest_of(name: str, parent: int) -> str:
    """SHA-256 of the regular file under a name, links not followed. Raises OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, dir_fd=parent), "rb") as file:
        return digest(file)


def copy(source: BinaryIO, target: BinaryIO) -> None:
    """Copy content from where ``source`` stands to its end. Raises OSError."""
    while chunk := source.read(_CHUNK):
        target.write(chunk)


def copy_of(path: Path) -> Callable[[BinaryIO], None]:
    """A ``write`` for stage() that copies an earlier result, sharing its blocks where that works.

    What it returns raises OSError.
    """

    def write(target: BinaryIO) -> None:
        with path.open("rb") as source:
            try:
                fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
            except OSError:  # not the same filesystem, or one that shares no blocks
                copy(source, target)

    return write


def supports_commit(outbox: Path) -> bool:
    """Whether files can be linked, or renamed, into ``outbox`` without overwriting.

    Tries it with two small temporary files, and removes what a killed trial left before. Raises
    OSError if ``outbox`` cannot be written; a disk that is full says nothing about links.
    """
    _sweep_trials(outbox)
    with _trial(outbox) as folder:
        for name in ("one", "two"):
            create(name, folder).close()
            crashpoint("check.made")
        try:
            link_new("one", "linked", folder)
            link_new("two", "linked", folder)
        except FileExistsError:  # a name that is taken is refused
            return True
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
        return False


@contextlib.contextmanager
def _trial(outbox: Path) -> Iterator[int]:
    """A folder for a trial, locked so that nobody takes it for a dead process's."""
    while True:
        place = Path(tempfile.mkdtemp(prefix=TRIAL, dir=outbox))
        try:
            folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # swept before it could be locked
            continue
        with contextlib.suppress(OSError):  # a filesystem without locks
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(folder).st_nlink:
            break
        os.close(folder)
    try:
        yield folder
    finally:
        os.close(folder)
        shutil.rmtree(place, ignore_errors=True)


def _sweep_trials(outbox: Path) -> None:
    """Remove the folders of trials whose processes are gone: nobody holds their lock."""
    for place in outbox.glob(glob.escape(TRIAL) + "*"):
        try:
            folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:  # gone, or no folder of ours
            continue
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # under way, or a filesystem without locks
            continue
        finally:
            os.close(folder)
        shutil.rmtree(place, ignore_errors=True)


def keep_times(file: BinaryIO, like: os.stat_result) -> None:
    """Give a copy the original's modification time and permissions, where that is allowed."""
    with contextlib.suppress(OSError):
        os.utime(file.fileno(), ns=(like.st_atime_ns, like.st_mtime_ns))
    with contextlib.suppress(OSError):
        os.fchmod(file.fileno(), like.st_mode & 0o777)
