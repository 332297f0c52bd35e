"""A failed source beside its error record: the record first, so that no file there lacks one."""

from __future__ import annotations

import os
from collections.abc import Callable

from fluxwatchd import trees
from fluxwatchd.crashpoints import crashpoint
from fluxwatchd.delivery import files, moves, names, records
from fluxwatchd.delivery.moves import Place
from fluxwatchd.delivery.records import Record
from fluxwatchd.job import Job, Taken


def set_aside(
    job: Job | Taken,
    source: Place,
    found: os.stat_result,
    place: int,
    record: Callable[[str], Record],
) -> str:
    """Link the error record, then move the source beside it, under a name free for both.

    Where an earlier try linked the record, it goes on from there. Raises as moves.move().
    """
    stem, suffix = names.split(job.relative.name)
    part = names.record_part(job.relative.name, job.id, names.ERROR)
    told = records.error_of(job.id, stem, place)
    if told is not None:
        trees.sync_folder(place)  # a kill may have come before that
        target = Place(place, told[0])
        if moves.finish(job, source, found, target) or _move(job, source, found, target):
            files.remove(part, place)
            return told[0]
    for name in names.numbered(stem, suffix, names.ERROR):
        if files.status(name, place) or files.status(name + names.ERROR, place):
            continue
        crashpoint("fail.before-record")
        records.write_record(part, place, record(name))
        crashpoint("fail.record-synced")
        try:
            files.link_new(part, name + names.ERROR, place)
        except FileExistsError:
            continue
        crashpoint("fail.record-linked")
        trees.sync_folder(place)
        crashpoint("fail.folder-synced")
        try:
            if not _move(job, source, found, Place(place, name)):
                continue
        finally:
            files.remove(part, place)
        crashpoint("fail.record-part-removed")
        trees.sync_folder(place)
        crashpoint("fail.done")
        return name
    raise AssertionError("names never end")


def moved_before(job: Job | Taken, place: int) -> str | None:
    """The name under which an earlier try set the source aside, by the job's error record.

    A record without its file is removed: it is not true. Raises OSError.
    """
    told = records.error_of(job.id, names.split(job.relative.name)[0], place)
    if told is None:
        return None
    if files.status(told[0], place) is None:
        files.remove(told[0] + names.ERROR, place)
        trees.sync_folder(place)
        return None
    trees.sync_folder(place)
    return told[0]


def _move(job: Job | Taken, source: Place, found: os.stat_result, target: Place) -> bool:
    """Move the source beside its record; False if the name is taken, the record gone again.

    Where it raises, the record stays only if the file lies beside it by then, perhaps as a copy.
    """
    record = target.name + names.ERROR
    try:
        moves.move_to(job, source, found, target)
    except FileExistsError:
        files.remove(record, target.folder)
        return False
    except BaseException:
        if target.status() is None:
            files.remove(record, target.folder)
        raise
    crashpoint("fail.source-moved")
    return True
