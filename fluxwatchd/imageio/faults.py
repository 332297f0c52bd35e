"""How a file is refused, and how the libraries' warnings are kept from leaking."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from fluxwatchd.errors import InputRejected, JobFailed, OutOfMemory

COPY_AGAIN = "Copy the file again, or open it in a picture editor and save it anew."


def rejected(name: str, what: str, *, hint: str = "", unfinished: bool = False) -> InputRejected:
    """The error for a file that is not read. ``unfinished``: it may still be arriving."""
    return InputRejected(f"{name}: {what}", hint=hint, transient=unfinished)


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Whatever a decoder raises means that the file is truncated or damaged; nothing leaks.

    Raises InputRejected (transient: the file may still be arriving), OutOfMemory, and JobFailed
    (transient) where the disk, not the picture, is at fault.
    """
    try:
        with quiet():
            yield
    except JobFailed:
        raise
    except MemoryError as error:
        raise OutOfMemory(
            f"{name}: no memory to decode it", hint="Lower max_pixels, or free memory."
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise JobFailed(f"{name}: cannot be read: {error}", transient=True) from error
        raise damaged(name, error) from error
    except Exception as error:
        # Decoders meet hostile bytes: they raise anything from KeyError to their own classes.
        raise damaged(name, error) from error


def damaged(name: str, why: object) -> InputRejected:
    """A picture's beginning is there, but the rest cannot be decoded."""
    return rejected(name, f"truncated or damaged ({why})", hint=COPY_AGAIN, unfinished=True)


class _Quiet:
    """Warnings ignored while any thread is inside; warnings.catch_warnings alone mixes threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.simplefilter("ignore")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_QUIET = _Quiet()


def quiet() -> _Quiet:
    """Pillow's and tifffile's warnings stay here: what they warn of is refused or harmless."""
    return _QUIET
