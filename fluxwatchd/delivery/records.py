"""The records beside files: written whole, and told from everything else that may lie there."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping
from typing import Any, Final

from fluxwatchd import sidecar, trees
from fluxwatchd.crashpoints import crashpoint
from fluxwatchd.delivery import files, names
from fluxwatchd.delivery.outcomes import Delivered
from fluxwatchd.job import Job

Record = Mapping[str, Any]

_FOREIGN: Final = {errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EPERM}
"""Gone, a link, a socket, somebody else's: what open(2) says of that which is no record of ours."""


def write_record(part: str, place: int, record: Record) -> None:
    """Write a record under its temporary name and sync it. Raises OSError."""
    with files.create(part, place) as file:
        file.write(sidecar.encode(record))
        crashpoint("record.written")
        files.sync(file)


def read_record(name: str, place: int) -> dict[str, Any] | None:
    """The record under a name; None where there is none of ours.

    Raises OSError where the disk does not answer: then it may be one.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=place)
    except OSError as error:
        if error.errno in _FOREIGN:
            return None
        raise
    try:
        return sidecar.read_open(descriptor)
    except ValueError:
        return None
    finally:
        os.close(descriptor)


def records_of(place: int, stem: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records in a folder that may belong to files of ``stem``: (name, record).

    What is no record of ours is passed over. Raises OSError.
    """
    with os.scandir(place) as listing:
        found = sorted(
            item.name
            for item in listing
            if item.name.endswith(names.RECORD)
            and not item.name.startswith(".")
            and names.could_be(item.name, stem)
        )
    for name in found:
        record = read_record(name, place)
        if record is not None:
            yield name, record


def result_of(job_id: str, stem: str, place: int) -> tuple[str, dict[str, Any]] | None:
    """The picture's name and the sidecar of a job, by the sidecars in its outbox folder."""
    for name, record in records_of(place, stem):
        if record["kind"] == "result" and record["job_id"] == job_id:
            return name.removesuffix(names.RECORD), record
    return None


def error_of(job_id: str, stem: str, place: int) -> tuple[str, dict[str, Any]] | None:
    """The file's name and the error record of a job, by the records in its failed folder."""
    for name, record in records_of(place, stem):
        if record["kind"] == "error" and record["job_id"] == job_id and name.endswith(names.ERROR):
            return name.removesuffix(names.ERROR), record
    return None


def holds(name: str, record: Record, place: int) -> bool:
    """Whether the file under ``name`` is the picture that a sidecar tells of, whole."""
    found, output = files.status(name, place), record["output"]
    if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != output["size"]:
        return False
    return bool(files.digest_of(name, place) == output["sha256"])


def already_delivered(job: Job) -> Delivered | None:
    """An earlier result of the same source and settings, by the sidecars in its outbox folder.

    This is what makes a source kept in place done when the journal is lost. The picture's hash is
    checked against its sidecar. None if there is none or the outbox cannot be read.
    """
    directory = job.folder.outbox / job.relative.parent
    stem = names.split(job.relative.name)[0]
    wanted = sidecar.source_key(job)
    with (
        contextlib.suppress(OSError),
        trees.folder(job.folder.outbox, job.relative.parent) as place,
    ):
        for name, record in records_of(place, stem):
            picture = name.removesuffix(names.RECORD)
            made = sidecar.made_from(record, any_seed=job.profile.seed == "random")
            if made == wanted and holds(picture, record, place):
                trees.sync_folder(place)  # a kill may have come before that
                output = record["output"]
                path = directory / picture
                return Delivered(path, directory / name, output["size"], output["sha256"])
    return None
