"""One daemon a state folder."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from fluxwatchd.errors import ConfigError, FluxwatchdError
from fluxwatchd.journal import trouble
from fluxwatchd.trees import make_root

_NO_LOCKS: Final = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class StateLock:
    """The sole right to a state folder; give it back with close() or by ending the process."""

    def __init__(self, folder: Path, descriptor: int) -> None:
        self.folder = folder
        self._path, self._descriptor = folder / "lock", descriptor

    def check(self) -> None:
        """Raise StateLost if the lock's file is gone: another daemon could have the folder too."""
        held = os.fstat(self._descriptor)
        try:
            found = self._path.stat()
        except FileNotFoundError:
            raise trouble.moved(self._path) from None
        if not os.path.samestat(held, found):
            raise trouble.moved(self._path)

    def close(self) -> None:
        """Let the next daemon have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def lock_state_dir(path: Path) -> StateLock:
    """Claim a state folder for this process, making it where it is missing.

    Raises ConfigError if another process has it (its id is named), it cannot be made, or its
    filesystem knows no locks; StateBlocked if its disk is full.
    """
    descriptor = _open(path)
    try:
        _claim(path, descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return StateLock(path, descriptor)


def _open(path: Path) -> int:
    try:
        make_root(path)
        return os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _refused(path, error) from error


def _claim(path: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        raise ConfigError(
            f"the state folder {path} belongs to a running fluxwatchd (process {holder})",
            hint="Stop that one first, or give this one another daemon.state_dir.",
        ) from None
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> FluxwatchdError:
    if trouble.is_full(error):
        return trouble.full(path / "lock", os.strerror(error.errno or 0))
    if error.errno in _NO_LOCKS:
        return ConfigError(
            f"the filesystem of the state folder {path} knows no locks: {error.strerror}",
            hint="Set daemon.state_dir to a folder on a disk of this machine.",
        )
    return ConfigError(
        f"the state folder {path} cannot be used: {error.strerror}",
        hint="Set daemon.state_dir to a folder that this user may write.",
    )
