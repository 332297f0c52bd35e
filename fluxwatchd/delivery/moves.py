"""A source on its way out of the inbox: the file that was read, never another, never over one."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal

from fluxwatchd import trees
from fluxwatchd.crashpoints import crashpoint
from fluxwatchd.delivery import files, names
from fluxwatchd.errors import DeliveryFailed
from fluxwatchd.job import Job, Taken

_CANNOT_RENAME: Final = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


class Replaced(Exception):
    """Another file lies where the source lay; it was left there."""


@dataclass(frozen=True, slots=True)
class Place:
    """A name in a folder that is open."""

    folder: int
    name: str

    def status(self) -> os.stat_result | None:
        """What lies there, links not followed."""
        return files.status(self.name, self.folder)


def find_source(job: Job | Taken, place: Place) -> os.stat_result | Literal["gone", "replaced"]:
    """The source's status, if it is still the file that the job read.

    A file of the same size whose inode or time differs (a share mounted again, a touch) is read
    once more and is still the same if its hash is. Raises OSError.
    """
    found = place.status()
    if found is None:
        return "gone"
    if not stat.S_ISREG(found.st_mode) or found.st_size != job.size:
        return "replaced"
    if looks_like(job, found) and (found.st_ino == job.inode or not job.sha256):
        return found
    if job.sha256 and files.digest_of(place.name, place.folder) == job.sha256:
        return found
    return "replaced"


def looks_like(job: Job | Taken, found: os.stat_result) -> bool:
    """Whether a moved or copied file may be the source, by its size and time."""
    return found.st_size == job.size and (found.st_mtime_ns - job.mtime_ns) % 2**64 == 0


def move(
    job: Job | Taken, source: Place, found: os.stat_result, folder: int, wanted: Iterable[str]
) -> str:
    """Move a source into ``folder`` under the first of the ``wanted`` names that is free.

    By renaming; where the filesystem cannot refuse to overwrite, by link and unlink; across
    devices by copy, fsync, compare, link, unlink. Both folders are synced. Raises Replaced,
    OSError, DeliveryFailed (a copy that differs from its original).
    """
    for name in wanted:
        try:
            move_to(job, source, found, Place(folder, name))
        except FileExistsError:
            continue
        return name
    raise AssertionError("names never end")


def move_to(job: Job | Taken, source: Place, found: os.stat_result, target: Place) -> None:
    """Move a source to one place. Raises FileExistsError where that is taken, and as move()."""
    crashpoint("move.before")
    try:
        _rename(source, target)
    except OSError as error:
        if error.errno == errno.EXDEV:  # also between two mounts of one filesystem
            _copy_over(job, source, found, target)
        elif error.errno in _CANNOT_RENAME or _is_torn(error, source, target):
            _link_over(job, source, found, target)
        else:
            raise
    else:
        crashpoint("move.renamed")
        _put_back_a_stranger(job, source, found, target)
    trees.sync_folder(target.folder)
    crashpoint("move.target-synced")
    trees.sync_folder(source.folder)
    crashpoint("move.done")


def _is_torn(error: OSError, source: Place, target: Place) -> bool:
    """Whether a power loss left both names of a rename."""
    return error.errno == errno.EEXIST and files.same_file(source.status(), target.status())


def finish(job: Job | Taken, source: Place, found: os.stat_result, target: Place) -> bool:
    """Remove a source that an earlier try brought to ``target``, whole; False if it did not.

    The same content is proof enough. Raises Replaced, OSError.
    """
    there = target.status()
    if there is None or not stat.S_ISREG(there.st_mode) or there.st_size != found.st_size:
        return False
    contents = {files.digest_of(place.name, place.folder) for place in (source, target)}
    if len(contents) > 1:
        return False
    trees.sync_folder(target.folder)
    remove(job, source, found)
    trees.sync_folder(source.folder)
    return True


def remove(job: Job | Taken, source: Place, found: os.stat_result) -> None:
    """Remove a source: the file that was ``found``, never one that takes its name meanwhile.

    It first gets a temporary name, under which nobody replaces it, and is looked at once more.
    Where a filesystem cannot rename without overwriting, it is looked at just before. A crash in
    between leaves the hidden file, which the next try brings back (unhide). Raises Replaced (also
    where nothing lies there any more), OSError.
    """
    hidden = Place(source.folder, names.hidden_name(source.name, job.id))
    try:
        _rename(source, hidden)
    except FileNotFoundError as error:
        raise Replaced from error
    except OSError as error:
        if error.errno not in _CANNOT_RENAME | {errno.EEXIST}:
            raise
        _remove_in_sight(job, source, found)
        return
    crashpoint("move.hidden")
    if not _is_still(job, hidden, found):
        put_back(hidden, source)
        raise Replaced
    os.unlink(hidden.name, dir_fd=hidden.folder)


def unhide(job: Job | Taken, source: Place) -> Place:
    """Where a source lies: under its name, or another where an earlier remove() left it hidden.

    That one gets its name back, or the next one that is free. Raises OSError.
    """
    hidden = Place(source.folder, names.hidden_name(source.name, job.id))
    if hidden.status() is None:
        return source
    return Place(source.folder, put_back(hidden, source))


def _remove_in_sight(job: Job | Taken, source: Place, found: os.stat_result) -> None:
    """Look, then unlink by name. Raises Replaced, OSError."""
    if not _is_still(job, source, found):
        raise Replaced
    os.unlink(source.name, dir_fd=source.folder)


def _is_still(job: Job | Taken, place: Place, found: os.stat_result) -> bool:
    """Whether the file at ``place`` is the one ``found``, or (an inode may change) its content."""
    now = place.status()
    if now is None:
        return False
    if _mark(now) == _mark(found):
        return True
    return bool(job.sha256) and not isinstance(find_source(job, place), str)


def _mark(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns


def put_back(moved: Place, source: Place) -> str:
    """Undo a renaming: give the file its name again, or the next one that is free; which it was.

    Whoever took the name meanwhile keeps it. A file that a power loss left under both names of a
    renaming loses the other one: it must not become two. Raises OSError.
    """
    for name in names.numbered(*names.split(source.name)):
        target = Place(source.folder, name)
        try:
            _rename(moved, target)
        except FileExistsError as error:
            if not _is_torn(error, moved, target):
                continue
            files.remove(moved.name, moved.folder)
        trees.sync_folder(source.folder)
        return name
    raise AssertionError("names never end")


def _rename(source: Place, target: Place) -> None:
    files.rename_new(source.name, source.folder, target.name, target.folder)


def _link_over(job: Job | Taken, source: Place, found: os.stat_result, target: Place) -> None:
    """Link, then unlink; goes on where a crash left the file under both names.

    Raises Replaced; the file that was found keeps the name it was given then.
    """
    try:
        os.link(
            source.name,
            target.name,
            src_dir_fd=source.folder,
            dst_dir_fd=target.folder,
            follow_symlinks=False,
        )
    except FileExistsError:
        if not files.same_file(source.status(), target.status()):
            raise
    crashpoint("move.linked")
    trees.sync_folder(target.folder)
    if not files.same_file(found, target.status()):  # another one was linked: undo that
        files.remove(target.name, target.folder)
        raise Replaced
    remove(job, source, found)


def _put_back_a_stranger(
    job: Job | Taken, source: Place, found: os.stat_result, target: Place
) -> None:
    """If the file was replaced in the very moment of renaming, undo that: it is not done yet.

    Raises Replaced. A kill just here leaves the other file, whole, where the source would be.
    """
    if target.status() is not None and not _is_still(job, target, found):
        put_back(target, source)
        raise Replaced


def _copy_over(job: Job | Taken, source: Place, found: os.stat_result, target: Place) -> None:
    """Copy to the other device; the original goes only when the copy is proven and named.

    A kill between any two steps leaves one of these, each of which recovery tells from the others:

    1. a part, perhaps not whole, and the original: the copy is made again, the part removed;
    2. part and target, two names of one whole copy, and the original: the original goes;
    3. the same, and the original hidden: it gets its name back and goes then;
    4. the same, and no original: the part goes;
    5. a whole part, no target and no original, where there are no links: the part is named. Whole
       is what has the content that the job read: a part that has not is never named.

    Where the source is replaced once the copy has its name, the copy keeps it: it may be all that
    is left of the original. Another file under the original's name is never taken for it.
    """
    part = names.part_name(target.name, job.id)
    if not _was_copied(part, target):
        if target.status() is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target.name)
        _copy_part(job, source, part, target)
    if not _is_still(job, source, found):
        files.remove(part, target.folder)
        raise Replaced
    try:
        linked = _link_only(part, target)
    except FileExistsError:
        files.remove(part, target.folder)
        raise
    crashpoint("move.linked")
    trees.sync_folder(target.folder)
    try:
        # a copy without a name must not lie beside a hidden original: recovery would name both
        (remove if linked else _remove_in_sight)(job, source, found)
    except Replaced:
        files.remove(part, target.folder)
        raise
    crashpoint("move.source-removed")
    trees.sync_folder(source.folder)
    crashpoint("move.source-synced")
    if linked:
        files.remove(part, target.folder)
    else:  # whoever took the name meanwhile keeps it: nothing may be left without a name
        put_back(Place(target.folder, part), target)


def _was_copied(part: str, target: Place) -> bool:
    """Whether an earlier try, ended by a crash, already proved and named the copy."""
    return files.same_file(files.status(part, target.folder), target.status())


def _link_only(part: str, target: Place) -> bool:
    """Link a part to its name if the filesystem has links; whether it has."""
    try:
        os.link(
            part,
            target.name,
            src_dir_fd=target.folder,
            dst_dir_fd=target.folder,
            follow_symlinks=False,
        )
    except FileExistsError:
        if not _was_copied(part, target):
            raise
    except OSError as error:
        if error.errno not in files.NO_LINKS:
            raise
        return False
    return True


def _copy_part(job: Job | Taken, source: Place, part: str, target: Place) -> None:
    """Copy the source to a temporary name, sync, read it back and compare; nothing left if not."""
    crashpoint("move.before-copy")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    reading = os.open(source.name, flags, dir_fd=source.folder)
    try:
        with os.fdopen(reading, "rb") as original, files.create(part, target.folder) as copy:
            same = _copy_and_compare(job, original, copy)
    except OSError:
        with contextlib.suppress(OSError):  # what fills a disk must not stay there
            files.remove(part, target.folder)
        raise
    crashpoint("move.compared")
    if not same:
        files.remove(part, target.folder)
        raise DeliveryFailed(
            f"the copy of {source.name!a} on the other device differs from the original",
            hint="The original was left in the inbox. Look at the system's log for a failing disk.",
        )


def _copy_and_compare(job: Job | Taken, original: BinaryIO, copy: BinaryIO) -> bool:
    files.copy(original, copy)
    crashpoint("move.copied")
    files.keep_times(copy, os.fstat(original.fileno()))
    files.sync(copy)
    crashpoint("move.copy-synced")
    os.posix_fadvise(copy.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # compare what is on disk
    return files.digest(copy) == (job.sha256 or files.digest(original))
