"""A result into its outbox, a source out of its inbox: each step undone or finished, never half."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final, Literal

from fluxwatchd import trees
from fluxwatchd.config import Folder
from fluxwatchd.crashpoints import crashpoint
from fluxwatchd.delivery import aside, files, moves, names, records
from fluxwatchd.delivery.homes import Homes
from fluxwatchd.delivery.moves import Place, Replaced
from fluxwatchd.delivery.outcomes import Delivered, Retired, SetAside, Staged
from fluxwatchd.delivery.records import Record
from fluxwatchd.delivery.trouble import explained, failed, out_of
from fluxwatchd.errors import ConfigError, DeliveryFailed
from fluxwatchd.job import Job, Taken

_MAY_PASS: Final = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.ESTALE,
    errno.ENOTCONN,
    errno.ETIMEDOUT,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
}
"""What a disk or a share says that may be well again later: a folder waits then."""


class Delivery:
    """Puts results into outboxes and takes sources out of inboxes. Safe to use from any thread.

    No folder is used while the mount that it lay on is away: ``homes`` knows (in memory alone if
    none are given).
    """

    def __init__(self, homes: Homes | None = None) -> None:
        self._homes = homes or Homes()
        self._begun: dict[str, str] = {}

    def prepare(self, folder: Folder, *, inbox: bool = False) -> None:
        """Make the outbox, archive and failed folders where they are missing, and try them.

        With ``inbox`` that one is made too.
        Raises DeliveryFailed for what may pass: a share that is away (nothing is made then), a
        full disk. Raises ConfigError if a folder cannot be made or written, or if the outbox's
        filesystem cannot link without overwriting.
        """
        roots = {"outbox": folder.outbox, "failed": folder.failed_path}
        if folder.on_success == "archive":
            roots["archive"] = folder.archive_path
        with explained("use", folder.inbox):
            self._homes.check(folder.inbox)
        for key, root in roots.items():
            try:
                self._homes.check(root)
                trees.make_root(root)
                usable = files.supports_commit(root)
            except OSError as error:
                trouble = failed("write to", root, error)
                if error.errno in _MAY_PASS:
                    raise trouble from error
                raise ConfigError(f"folder.{key}: {trouble}", hint=trouble.hint) from error
            if not usable and key == "outbox":
                raise ConfigError(
                    f"folder.outbox: the filesystem of {root} can neither link nor rename without "
                    "overwriting, so a result could replace a file of yours",
                    hint="Choose an outbox on another filesystem.",
                )
        if inbox:
            self._make_inbox(folder)

    def _make_inbox(self, folder: Folder) -> None:
        """Make an inbox that is new, and see that sources can be taken from it."""
        needed = os.R_OK | os.X_OK | (0 if folder.on_success == "keep" else os.W_OK)
        try:
            folder.inbox.mkdir(parents=True, exist_ok=True)
            if not os.access(folder.inbox, needed):
                raise PermissionError(errno.EACCES, "Permission denied")
        except OSError as error:
            trouble = failed("use", folder.inbox, error)
            if error.errno in _MAY_PASS:
                raise trouble from error
            raise ConfigError(f"folder.inbox: {trouble}", hint=trouble.hint) from error

    def stage(self, job: Job, suffix: str, write: Callable[[BinaryIO], None]) -> Staged:
        """Write the picture beside its final place, as ``.name.jobid.part``, and sync it.

        ``suffix`` is the output's, as in ``.png``; ``write`` gets an empty file that can seek and
        be read back. Raises DeliveryFailed (transient for a full disk or a share that is gone, not
        for a name or size that the outbox never takes), and whatever ``write`` raises other than
        OSError; nothing is left then.
        """
        directory = job.folder.outbox / job.relative.parent
        part = names.part_name(names.split(job.relative.name)[0] + suffix, job.id)
        crashpoint("stage.before-folder")
        outbox = job.folder.outbox
        with explained("write to", directory, outbox), self._open(outbox, job) as place:
            crashpoint("stage.before-part")
            try:
                with files.create(part, place) as file:
                    crashpoint("stage.before-write")
                    write(file)
                    crashpoint("stage.written")
                    files.sync(file)
                    crashpoint("stage.synced")
                    size = os.fstat(file.fileno()).st_size
                    return Staged(job, directory, part, suffix, size, files.digest(file))
            except BaseException:
                with contextlib.suppress(OSError):
                    files.remove(part, place)
                raise

    def commit(self, staged: Staged, record: Callable[[str], Record]) -> Delivered:
        """Link the sidecar, then the picture, under a name that is free; sync the folder.

        ``record`` makes the sidecar's content for the final file name it is given; it may be called
        again where another program takes that name first. Raises DeliveryFailed, transient as in
        stage(); the staged part is kept then, so that commit can be tried again.
        """
        job = staged.job
        outbox = job.folder.outbox
        with explained("deliver to", staged.directory, outbox), self._open(outbox, job) as place:
            name = self._linked_before(staged, place) or self._link_both(staged, record, place)
            trees.sync_folder(place)
            crashpoint("commit.folder-synced")
            files.remove(staged.part, place)
            crashpoint("commit.picture-part-removed")
            files.remove(_record_part(staged), place)
            crashpoint("commit.done")  # a power loss may bring the parts back: recovery sweeps them
        self._begun.pop(job.id, None)
        picture = staged.directory / name
        return Delivered(
            picture, staged.directory / (name + names.RECORD), staged.size, staged.sha256
        )

    def holds(self, staged: Staged) -> bool:
        """Whether a staged picture can still be committed; not where its folder was swept.

        Raises DeliveryFailed.
        """
        job = staged.job
        with explained("deliver to", staged.directory), self._open(job.folder.outbox, job) as place:
            found = files.status(staged.part, place)
            is_whole = found is not None and found.st_size == staged.size
            return is_whole or self._linked_before(staged, place) is not None

    def discard(self, staged: Staged) -> None:
        """Remove a staged picture that will not be committed; no error if it is gone.

        A commit that failed half way is undone. Raises DeliveryFailed where that cannot be now.
        """
        job = staged.job
        with explained("write to", staged.directory), self._open(job.folder.outbox, job) as place:
            if name := self._begun.get(job.id):
                self._undo(staged, name, place)
            files.remove(staged.part, place)
            files.remove(_record_part(staged), place)
        self._begun.pop(job.id, None)

    def retire(self, job: Job | Taken, *, again: bool = False) -> Retired:
        """Take the source of a committed job out of the inbox, as the folder's on_success says.

        Only the file that the job read: one that was replaced meanwhile stays. ``again``: a try
        before this one may have moved it. Raises DeliveryFailed (the source is still in the inbox,
        or whole in the archive).
        """
        crashpoint("retire.before")
        if job.folder.on_success == "keep":
            return Retired("kept", job.source)
        with explained("take from the inbox", job.source), self._still_there(job) as source:
            found = "gone" if source is None else moves.find_source(job, source)
            if source is None or isinstance(found, str):
                path = self._archived(job) if again and found == "gone" else None
                outcome: Literal["gone", "replaced"] = "gone" if found == "gone" else "replaced"
                return Retired("archived", path) if path else Retired(outcome)
            if job.folder.on_success == "delete":
                crashpoint("retire.before-delete")
                try:
                    with out_of(source.folder, job.source.parent):
                        moves.remove(job, source, found)
                except Replaced:
                    return Retired("replaced")
                crashpoint("retire.deleted")
                trees.sync_folder(source.folder)
                return Retired("deleted")
            with explained("move the source to", job.folder.archive_path / job.relative.parent):
                return self._archive(job, source, found)

    def fail(self, job: Job | Taken, record: Callable[[str], Record]) -> SetAside:
        """Move a source to failed/ with its error record beside it, ``photo.jpg.error.json``.

        ``record`` makes the record for the name that the file gets in failed/. A move that an
        earlier try made is found by its record. Raises DeliveryFailed.
        """
        with explained("set aside", job.source), self._still_there(job) as source:
            found = "gone" if source is None else moves.find_source(job, source)
            if source is None or isinstance(found, str):
                outcome: Literal["gone", "replaced"] = "gone" if found == "gone" else "replaced"
                return self._aside(job) or SetAside(outcome)
            root = job.folder.failed_path
            try:
                with self._open(root, job) as place, out_of(source.folder, job.source.parent):
                    name = aside.set_aside(job, source, found, place, record)
            except Replaced:
                return SetAside("replaced")
            path = root / job.relative.parent / name
            return SetAside("failed", path, path.with_name(name + names.ERROR))

    def bring_back(self, folder: Folder, relative: Path) -> Path:
        """Move a file from failed/ to the inbox, for ``retry``, and drop its error record.

        ``relative`` is the path below failed/. Returns the path below the inbox: the one it came
        from, or the next free name. Raises DeliveryFailed (not transient if it is not there).
        """
        path = folder.failed_path / relative
        with explained("bring back", path), contextlib.ExitStack() as stack:
            origin = stack.enter_context(trees.folder(folder.failed_path, relative.parent))
            source = Place(origin, relative.name)
            found = source.status()
            job_id, original = _origin(relative.name, origin)
            error, wanted = relative.name + names.ERROR, names.split(original or relative.name)
            target = stack.enter_context(self._root(folder.inbox, relative.parent))
            stack.enter_context(out_of(origin, path.parent))
            if found is not None and stat.S_ISREG(found.st_mode):
                came = Taken(job_id, folder, relative, found.st_size, found.st_mtime_ns)
                name = moves.move(came, source, found, target, names.numbered(*wanted))
            elif back := None if found else _back_already(error, origin, wanted, target):
                name = back
            else:
                raise DeliveryFailed(
                    f"there is no {path}", hint="Name a file in failed/.", transient=False
                )
            files.remove(error, origin)
            return relative.with_name(name)

    # steps

    def _linked_before(self, staged: Staged, place: int) -> str | None:
        """The name that an earlier try of this commit gave, if both files still lie there."""
        name = self._begun.get(staged.job.id)
        if name is None or not _is_our_record(staged, name, place):
            return None
        return name if _is_our_picture(staged, name, place) else None

    def _link_both(self, staged: Staged, record: Callable[[str], Record], place: int) -> str:
        """Give sidecar and picture the first name that is free for both.

        A name that an earlier try gave to one of them is free: a share may have answered with an
        error and done it all the same.
        """
        stem = names.split(staged.job.relative.name)[0]
        for name in names.numbered(stem, staged.suffix, names.RECORD):
            is_linked = _is_our_picture(staged, name, place)
            if not is_linked and files.status(name, place):
                continue
            self._begun[staged.job.id] = name
            if not self._link_record(staged, name, record, place):
                if is_linked:
                    files.remove(name, place)
                continue
            if is_linked or self._link_picture(staged, name, place):
                crashpoint("commit.picture-linked")
                return name
        raise AssertionError("names never end")

    def _link_record(
        self, staged: Staged, name: str, record: Callable[[str], Record], place: int
    ) -> bool:
        """The sidecar first, so that no picture lacks one. False if its name is taken."""
        if files.status(name + names.RECORD, place):
            if not _is_our_record(staged, name, place):
                return False
            trees.sync_folder(place)  # the try that linked it may have failed at that
            return True
        part = _record_part(staged)
        crashpoint("commit.before-record")
        records.write_record(part, place, record(name))
        crashpoint("commit.record-synced")
        try:
            files.link_new(part, name + names.RECORD, place)
        except FileExistsError:  # taken since we looked
            return False
        crashpoint("commit.record-linked")
        trees.sync_folder(place)  # no picture without its record, even where the power fails
        crashpoint("commit.record-name-synced")
        return True

    def _link_picture(self, staged: Staged, name: str, place: int) -> bool:
        """The commit itself; without it the sidecar goes again. False if the name is taken."""
        try:
            files.link_new(staged.part, name, place)
        except FileExistsError:
            files.remove(name + names.RECORD, place)
            return False
        except OSError:
            if files.status(name, place) is None:
                files.remove(name + names.RECORD, place)
            raise
        return True

    def _undo(self, staged: Staged, name: str, place: int) -> None:
        """Take back the names that a commit gave; they are off the disk before its parts are."""
        if _is_our_picture(staged, name, place):
            files.remove(name, place)
        if _is_our_record(staged, name, place):
            files.remove(name + names.RECORD, place)
        trees.sync_folder(place)

    def _archive(self, job: Job | Taken, source: Place, found: os.stat_result) -> Retired:
        root = job.folder.archive_path
        try:
            with self._open(root, job) as place, out_of(source.folder, job.source.parent):
                wanted = names.numbered(*names.split(job.relative.name))
                name = moves.move(job, source, found, place, wanted)
        except Replaced:
            return Retired("replaced")
        crashpoint("retire.done")
        return Retired("archived", root / job.relative.parent / name)

    def _archived(self, job: Job | Taken) -> Path | None:
        """Where a source lies in the archive, by its size and time. Raises OSError."""
        directory = job.folder.archive_path / job.relative.parent
        try:
            with trees.folder(job.folder.archive_path, job.relative.parent) as place:
                for name in names.numbered(*names.split(job.relative.name)):
                    found = files.status(name, place)
                    if found is None:
                        return None
                    if moves.looks_like(job, found):
                        return directory / name
        except FileNotFoundError:
            return None
        raise AssertionError("names never end")

    def _aside(self, job: Job | Taken) -> SetAside | None:
        """Where an earlier try set a source aside. Raises OSError."""
        directory = job.folder.failed_path / job.relative.parent
        try:
            with trees.folder(job.folder.failed_path, job.relative.parent) as place:
                name = aside.moved_before(job, place)
        except FileNotFoundError:
            return None
        return (
            SetAside("failed", directory / name, directory / (name + names.ERROR)) if name else None
        )

    @contextlib.contextmanager
    def _still_there(self, job: Job | Taken) -> Iterator[Place | None]:
        """The source's place; OSError where its share is gone, which is not the file's end.

        Where an earlier try hid the source and got no further, it is brought back first: under
        another name if somebody took its own, and it is still this job's.
        """
        self._homes.check(job.folder.inbox)
        with source_of(job) as source:
            yield source and moves.unhide(job, source)

    def _open(self, root: Path, job: Job | Taken) -> contextlib.AbstractContextManager[int]:
        """The folder below ``root`` that mirrors the job's place in the inbox."""
        return self._root(root, job.relative.parent)

    @contextlib.contextmanager
    def _root(self, root: Path, below: Path) -> Iterator[int]:
        self._homes.check(root)
        try:
            descriptor = trees.open_folder(root, below, make=True)
        except FileNotFoundError:
            root.parent.stat()  # somebody removed it; its parent still has to be there
            trees.make_root(root)
            descriptor = trees.open_folder(root, below, make=True)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _record_part(staged: Staged) -> str:
    name = names.split(staged.job.relative.name)[0] + staged.suffix
    return names.record_part(name, staged.job.id)


def _is_our_record(staged: Staged, name: str, place: int) -> bool:
    """Whether the sidecar beside that name tells of this very job."""
    record = records.read_record(name + names.RECORD, place)
    return record is not None and record.get("job_id") == staged.job.id


def _is_our_picture(staged: Staged, name: str, place: int) -> bool:
    """Whether the staged picture lies under that name.

    Where there are no links its temporary name is gone by then: its record and its content tell.
    """
    found = files.status(name, place)
    if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != staged.size:
        return False
    part = files.status(staged.part, place)
    if part is not None:
        return files.same_file(part, found)
    return _is_our_record(staged, name, place) and files.digest_of(name, place) == staged.sha256


@contextlib.contextmanager
def source_of(job: Job | Taken) -> Iterator[Place | None]:
    """The source's place in the inbox; None if its folder is gone."""
    try:
        descriptor = trees.open_folder(job.folder.inbox, job.relative.parent)
    except FileNotFoundError:
        yield None
        return
    try:
        yield Place(descriptor, job.relative.name)
    finally:
        os.close(descriptor)


def _origin(file: str, place: int) -> tuple[str, str | None]:
    """The job's id and the file's first name, by its error record; made up where it has none.

    A name counts only if this file's may have been made from it: anybody can write a record.
    """
    record = records.read_record(file + names.ERROR, place)
    if record is None:
        return os.urandom(8).hex(), None
    stem, suffix = names.split(name := record["source"]["name"])
    fits = names.could_be(file, stem) and names.split(file)[1] == suffix
    is_plain = bool(stem) and not {"/", "\0"} & set(name) and "\\x" not in name
    return record["job_id"], name if fits and is_plain and not name.startswith(".") else None


def _back_already(error: str, origin: int, wanted: tuple[str, str], target: int) -> str | None:
    """The name in the inbox of a file that was moved there before a kill; None if it was not.

    It is told by the size and time that its error record names.
    """
    record = records.read_record(error, origin)
    if record is None:
        return None
    said = record["source"].get("size"), record["source"].get("mtime_ns")
    for name in names.numbered(*wanted):
        found = files.status(name, target)
        if found is None:
            return None
        if (found.st_size, found.st_mtime_ns) == said:
            return name
    raise AssertionError("names never end")
