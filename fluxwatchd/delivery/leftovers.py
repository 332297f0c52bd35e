"""The temporary files that a crash left: found, and brought to their end by what each one is.

=====================================  ===========================================================
temporary picture only                 removed; the picture is made again
sidecar linked, its picture not        picture linked from its whole part, else both removed
both linked, but the job given back    both removed; the picture is made again
copy to another device, original there removed; a move goes on by itself
copy, original gone or another's       named, if it is whole; removed if not
original hidden for its removal        gets its name back; keeps one where it has both
=====================================  ===========================================================

What is whole is told by the hash in the journal; where the journal does not know it, by size and
time. Files of jobs that the journal does not know (it was lost, or another daemon shares the
folder) are left alone for a day; then a copy is named only if no file lies where its original
would, for such a file may be its original.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from fluxwatchd import trees
from fluxwatchd.config import Folder
from fluxwatchd.delivery import files, moves, names, records
from fluxwatchd.delivery.ledger import Ledger, Run, taken_of
from fluxwatchd.delivery.moves import Place

ABANDONED: Final = 86400.0
"""Seconds after which a temporary file of an unknown job is nobody's."""

LONE: Final = "a sidecar without its picture"
UNWANTED: Final = "the result of a picture that was given back, and is made again"


@dataclass(frozen=True, slots=True)
class Action:
    """One thing that recovery did, in words for the log."""

    kind: Literal["completed", "finished", "removed", "retired", "set aside"]
    path: Path
    text: str


@dataclass(frozen=True, slots=True)
class Leftover:
    """A temporary file. ``name`` is what it was to become, or was; perhaps shortened.

    ``hidden``: a source on its way out, no part of something.
    """

    root: Path
    directory: Path
    file: str
    name: str
    job_id: str
    hidden: bool = False

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.root / self.directory / self.file

    @property
    def is_record(self) -> bool:
        """Whether it was to become a record."""
        return self.name.endswith(names.RECORD)

    @contextlib.contextmanager
    def open(self) -> Iterator[tuple[int, os.stat_result | None]]:
        """The folder that it lies in, and its status there; None if it is gone by now."""
        with trees.folder(self.root, self.directory) as place:
            yield place, files.status(self.file, place)


@dataclass(frozen=True, slots=True)
class Claim:
    """What may be dealt with in a folder: what its own jobs left that are not under way.

    Folders may share an outbox, and so one's recovery sees what another is writing. ``now`` is s
    since the epoch.
    """

    folder: Folder
    ledger: Ledger
    busy: frozenset[str]
    now: float

    def covers(self, left: Leftover, found: os.stat_result) -> bool:
        """Whether a temporary file may be dealt with: of a job of ours, or nobody's and old."""
        if left.job_id in self.busy:
            return False
        run = self.ledger.run(left.job_id)
        if run is None:  # by its change time: a copy has its original's modification time
            return self.now - found.st_ctime > ABANDONED
        return run.inbox == self.folder.inbox


def leftovers(folder: Folder, beat: Callable[[], None] = lambda: None) -> Iterator[Leftover]:
    """Every temporary file in a folder's outbox, archive, failed folder and inbox.

    ``beat`` is called at every folder: there may be many.
    Raises OSError where one of these cannot be looked into at all; where one is missing, or a
    folder below may not be read, none of ours lies there.
    """
    for root in (folder.outbox, folder.archive_path, folder.failed_path, folder.inbox):
        yield from _below(root, folder.recursive, beat)


def _below(root: Path, recursive: bool, beat: Callable[[], None]) -> Iterator[Leftover]:
    waiting = [Path()]
    while waiting:
        beat()
        below = waiting.pop()
        try:
            place = trees.open_folder(root, below)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            if below == Path():
                raise
            continue
        try:
            with os.scandir(place) as listing:
                for item in listing:
                    if found := _parse(item, root, below):
                        yield found
                    elif recursive and _may_hold_some(item):
                        waiting.append(below / item.name)
        finally:
            os.close(place)


def _parse(item: os.DirEntry[str], root: Path, below: Path) -> Leftover | None:
    part, hidden = names.parse_part(item.name), names.parse_hidden(item.name)
    parsed = part or hidden
    if parsed is None or not item.is_file(follow_symlinks=False):
        return None
    return Leftover(root, below, item.name, *parsed, hidden=hidden is not None)


def _may_hold_some(item: os.DirEntry[str]) -> bool:
    return not item.name.startswith(".") and item.is_dir(follow_symlinks=False)


def sweep(left: Leftover, claim: Claim) -> Iterator[Action]:
    """Remove a temporary file that settle() has seen and nothing needs. Raises OSError.

    An unknown job's copy that got no name stays: its original may be there, or may not.
    """
    with _there(left, claim) as found:
        if found is None or left.hidden:
            return
        place, status = found
        is_copy = left.root != claim.folder.outbox and not left.is_record
        if is_copy and status.st_nlink == 1 and claim.ledger.run(left.job_id) is None:
            return
        files.remove(left.file, place)
        yield Action("removed", left.path, "a temporary file that a crash left")


def settle(left: Leftover, claim: Claim) -> Iterator[Action]:
    """Do with a temporary file what keeps content; sweep() then takes what is over.

    Raises OSError.
    """
    with _there(left, claim) as found:
        if found is None:
            return
        place, status = found
        run = claim.ledger.run(left.job_id)
        if left.hidden:
            name = moves.put_back(Place(place, left.file), Place(place, _wanted(left, run)))
            yield Action("completed", left.path.with_name(name), "its removal was not over")
        elif left.root == claim.folder.outbox:
            if not left.is_record:
                yield from _complete(left, run, place)
        elif left.is_record:
            return
        elif left.root == claim.folder.inbox and status.st_nlink > 1:
            yield from _finish_bringing_back(left, run, claim.folder, place)
        elif status.st_nlink == 1 and _is_all_there_is(left, run, claim.folder, place):
            name = _name(left, _wanted(left, run), place)
            yield Action("completed", left.path.with_name(name), "its move to another device")


@contextlib.contextmanager
def _there(left: Leftover, claim: Claim) -> Iterator[tuple[int, os.stat_result] | None]:
    """The folder and status of a temporary file that is still there and may be dealt with."""
    try:
        with left.open() as (place, status):
            may = status is not None and claim.covers(left, status)
            yield (place, status) if status is not None and may else None
    except FileNotFoundError:
        if left.path.parent.exists():
            raise


# the outbox


def _complete(left: Leftover, run: Run | None, place: int) -> Iterator[Action]:
    """Finish the commit of a picture whose sidecar was linked, from its temporary file.

    A job that was given back is made again: what it left is undone.
    """
    if run is not None and run.state == "done":
        return
    stem = names.split(left.name)[0]
    linked = records.result_of(left.job_id, stem.rpartition("~")[0] or stem, place)
    if linked is None:
        return
    picture, record = linked
    given_back = run is not None and run.state in ("interrupted", "failed")
    is_whole = records.holds(picture, record, place)
    if is_whole and not given_back:
        return
    is_free = files.status(picture, place) is None
    if is_free and not given_back and records.holds(left.file, record, place):
        trees.sync_folder(place)
        files.link_new(left.file, picture, place)
        trees.sync_folder(place)
        yield Action("completed", left.path.with_name(picture), "its sidecar was there already")
        return
    if is_whole:
        files.remove(picture, place)
    files.remove(picture + names.RECORD, place)
    trees.sync_folder(place)
    lone, text = (picture, UNWANTED) if is_whole else (picture + names.RECORD, LONE)
    yield Action("removed", left.path.with_name(lone), text)


# copies to another device


def _is_all_there_is(left: Leftover, run: Run | None, folder: Folder, place: int) -> bool:
    """Whether a copy without a name is whole and its original gone, so that it must be named."""
    if run is None:
        return not _may_be_there(left, folder)
    if any(_is_there(run, folder, original) for original in _originals(run, folder)):
        return False
    return not isinstance(moves.find_source(taken_of(run, folder), Place(place, left.file)), str)


def _originals(run: Run, folder: Folder) -> Iterator[tuple[Path, Path]]:
    """Where the file that a run read may lie, as (root, path below it).

    In the inbox, or where the journal says it went.
    """
    yield folder.inbox, run.relative
    for root in (folder.archive_path, folder.failed_path):
        if run.moved_to is not None and run.moved_to.is_relative_to(root):
            yield root, run.moved_to.relative_to(root)


def _is_there(run: Run, folder: Folder, original: tuple[Path, Path]) -> bool:
    """Whether the very file that a run read lies there."""
    root, below = original
    try:
        with trees.folder(root, below.parent) as place:
            found = moves.find_source(taken_of(run, folder), Place(place, below.name))
            return not isinstance(found, str)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _may_be_there(left: Leftover, folder: Folder) -> bool:
    """Whether any file could be the original of an unknown job's copy, by its name."""
    root = folder.failed_path if left.root == folder.inbox else folder.inbox
    try:
        with trees.folder(root, left.directory) as place, os.scandir(place) as listing:
            return any(_could_become(item.name, left.name) for item in listing)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _could_become(original: str, name: str) -> bool:
    """Whether a copy of one may have been named as the other: a number may be there, or not."""
    stems = (names.split(original)[0], names.split(name)[0])
    return any(names.could_be(other, stem) for stem, other in (stems, stems[::-1]))


def _wanted(left: Leftover, run: Run | None) -> str:
    """The name that a file is to get: in full, where its temporary one had to be shortened."""
    if run is not None and run.relative.parent == left.directory:
        full = run.relative.name
        if left.file in (names.part_name(full, run.id), names.hidden_name(full, run.id)):
            return full
    return left.name


def _name(left: Leftover, wanted: str, place: int) -> str:
    """Give a copy its name, or the next one that is free."""
    for name in names.numbered(*names.split(wanted)):
        try:
            files.link_new(left.file, name, place)
        except FileExistsError:
            continue
        trees.sync_folder(place)
        return name
    raise AssertionError("names never end")


def _finish_bringing_back(
    left: Leftover, run: Run | None, folder: Folder, place: int
) -> Iterator[Action]:
    """A copy for ``retry`` that was proven and named: its original leaves failed/ at last."""
    if run is None or run.moved_to is None:
        return
    if not run.moved_to.is_relative_to(folder.failed_path):
        return
    below = run.moved_to.relative_to(folder.failed_path)
    named = _twin(left, place)
    if named is None or not _is_there(run, folder, (folder.failed_path, below)):
        return
    with trees.folder(folder.failed_path, below.parent) as failed:
        files.remove(below.name, failed)
        files.remove(below.name + names.ERROR, failed)
        trees.sync_folder(failed)
    yield Action("completed", left.path.with_name(named), "its way back to the inbox")


def _twin(left: Leftover, place: int) -> str | None:
    """The other name that a temporary file has in its folder."""
    own = files.status(left.file, place)
    with os.scandir(place) as listing:
        for item in listing:
            if item.name == left.file or item.inode() != (own.st_ino if own else None):
                continue
            if stat.S_ISREG(item.stat(follow_symlinks=False).st_mode):
                return item.name
    return None
