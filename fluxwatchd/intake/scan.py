"""What lies in an inbox: the truth about what is pending."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple

from fluxwatchd import trees
from fluxwatchd.config import Folder
from fluxwatchd.intake.ignore import Rules
from fluxwatchd.mounts import is_below, mount_of
from fluxwatchd.printing import printable


class Entry(NamedTuple):
    """A file in an inbox that has a picture's name; a tuple, since there may be 100,000.

    ``name`` is its path below the inbox as text (bytes that are not UTF-8 as surrogates), ``size``
    in bytes, times in ns since the epoch.
    """

    name: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int

    @property
    def relative(self) -> Path:
        """The path below the inbox."""
        return Path(self.name)


class Unreadable(NamedTuple):
    """A sub-folder or file that cannot be looked at: its path, printable, and why."""

    path: str
    why: str


@dataclass(frozen=True, slots=True)
class Scan:
    """One look at an inbox.

    ``entries`` come oldest first. ``ignored`` counts what stays where it is, by reason.
    ``unreadable`` are places below the inbox that cannot be looked at, ``problems`` sentences on
    all that could not. ``mount`` is the mount point
    that the inbox lies on. A state other than ok means that nothing is known about what is pending:
    the folder is paused.
    """

    state: Literal["ok", "missing", "unreadable"]
    entries: tuple[Entry, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)
    unreadable: tuple[Unreadable, ...] = ()
    problems: tuple[str, ...] = ()
    mount: str = ""


def scan(folder: Folder, last: Scan | None = None, beat: Callable[[], None] = lambda: None) -> Scan:
    """Look through an inbox once; never follows a symbolic link, never raises OSError.

    Give the ``last`` scan of the same folder to have an unmounted share told from an emptied
    folder: its state is ``missing`` then. ``beat`` is called at every folder and file.
    """
    mount = mount_of(folder.inbox).point
    if last and last.mount and last.mount != mount and is_below(last.mount, mount):
        problem = f"{printable(last.mount)} is no longer mounted"
        return Scan("missing", problems=(problem,), mount=last.mount)
    look = _Look(folder, beat)
    try:
        look.through()
    except (FileNotFoundError, NotADirectoryError) as error:
        return Scan("missing", problems=(_problem(folder.inbox, error),), mount=mount)
    except OSError as error:
        return Scan("unreadable", problems=(_problem(folder.inbox, error),), mount=mount)
    entries = sorted(look.entries, key=attrgetter("mtime_ns", "name"))
    return Scan(
        "ok",
        tuple(entries),
        dict(look.ignored),
        tuple(look.unreadable.values()),
        tuple(f"{path} cannot be read: {why}" for path, why in look.unreadable.values()),
        mount,
    )


def open_source(folder: Folder, relative: Path) -> int:
    """A descriptor for reading a file of the inbox, opened without following any link below it.

    Works for paths longer than the kernel takes at once. Raises OSError. The caller closes it.
    """
    return trees.open_file(folder.inbox, relative)


class _Look:
    """One pass through an inbox, folder by folder, without recursion."""

    def __init__(self, folder: Folder, beat: Callable[[], None]) -> None:
        self._folder, self._beat = folder, beat
        self._rules = Rules(folder.ignore)
        self._last: tuple[str, int] | None = None
        self.entries: list[Entry] = []
        self.ignored: Counter[str] = Counter()
        self.unreadable: dict[str, Unreadable] = {}

    def through(self) -> None:
        """Look through the whole tree; OSError only if the inbox itself cannot be read."""
        waiting = [""]
        try:
            while waiting:
                below = waiting.pop()
                self._beat()
                try:
                    waiting.extend(self._one_folder(below))
                except OSError as error:
                    if not below:
                        raise
                    if not isinstance(error, FileNotFoundError):  # gone since it was listed
                        self._note_trouble(below, error)
        finally:
            self._leave()

    def _one_folder(self, below: str) -> Iterator[str]:
        """Take note of one folder's files; its sub-folders are what it yields."""
        prefix = f"{below}/" if below else ""
        with os.scandir(self._enter(below)) as listing:
            for item in listing:
                self._beat()
                name = prefix + item.name
                reason = self._rules.reason(item.name, name)
                if item.is_symlink():
                    self.ignored["symbolic link"] += 1
                elif item.is_dir(follow_symlinks=False):
                    if reason is None and self._folder.recursive:
                        yield name
                    else:
                        self.ignored["folder"] += 1
                elif not item.is_file(follow_symlinks=False):
                    self.ignored["not a regular file"] += 1
                elif reason := reason or self._rules.suffix_reason(item.name):
                    self.ignored[reason] += 1
                else:
                    self._note(item, name)

    def _enter(self, below: str) -> int:
        """Open a folder: from the one before if it lies in that, so that depth costs nothing."""
        above, _, name = below.rpartition("/")
        if below and self._last and self._last[0] == above:
            place = os.open(name, trees.LIST | os.O_NOFOLLOW, dir_fd=self._last[1])
        else:
            place = trees.open_folder(self._folder.inbox, below)
        self._leave()
        self._last = below, place
        return place

    def _leave(self) -> None:
        if self._last:
            os.close(self._last[1])
            self._last = None

    def _note(self, item: os.DirEntry[str], name: str) -> None:
        try:
            found = item.stat(follow_symlinks=False)
        except FileNotFoundError:  # gone since it was listed
            return
        except PermissionError as error:  # the folder lists its names and lets nobody at them
            self._note_trouble(name.rpartition("/")[0], error)
            return
        except OSError as error:
            self._note_trouble(name, error)
            return
        self.entries.append(
            Entry(
                name,
                found.st_size,
                found.st_mtime_ns,
                found.st_ctime_ns,
                found.st_ino,
                found.st_dev,
            )
        )

    def _note_trouble(self, below: str, error: OSError) -> None:
        """Once for each place."""
        place = printable(self._folder.inbox / below)
        self.unreadable.setdefault(place, Unreadable(place, error.strerror or str(error)))


def _problem(place: Path, error: OSError) -> str:
    return f"{printable(place)} cannot be read: {error.strerror or error}"
