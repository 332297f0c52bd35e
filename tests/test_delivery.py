"""Delivery: whole or not at all, never over another, and nothing lost by a kill at any step."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import killed
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxwatchd import crashpoints, delivery, sidecar, trees
from fluxwatchd.config import Folder
from fluxwatchd.delivery import (
    Delivery,
    Recovered,
    already_delivered,
    copy_of,
    files,
    names,
    recover,
    supports_commit,
)
from fluxwatchd.errors import DeliveryFailed
from fluxwatchd.job import Job, Taken
from fluxwatchd.journal import Journal
from fluxwatchd.mounts import mount_of, share_of

SOURCE = b"a photograph" * 1000
RESULT = killed.RESULT


class Room:
    """An inbox with one photograph, and what delivery needs around it."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.folder = Folder(inbox=root / "in", outbox=root / "out", **settings)
        self.folder.inbox.mkdir()
        self.delivery = Delivery()
        self.delivery.prepare(self.folder)

    def drop(self, name: str = "sub/photo.jpg", content: bytes = SOURCE) -> Job:
        path = self.folder.inbox / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return killed.job_of(self.folder, Path(name), os.urandom(8).hex())

    def deliver(self, job: Job, suffix: str = ".png", content: bytes = RESULT) -> Any:
        staged = self.delivery.stage(job, suffix, lambda file: _write(file, content))
        return self.delivery.commit(staged, lambda name: killed.record_of(staged, name))

    def fail(self, job: Job | Taken) -> Any:
        error = DeliveryFailed("it would not", hint="Make it.", transient=False)
        return self.delivery.fail(
            job, lambda name: sidecar.failure(job, error, name=name, finished=1e9)
        )


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


@pytest.fixture
def other_disk() -> Iterator[Path]:
    """A folder on another filesystem than the temporary one."""
    place = Path("/dev/shm") / f"fluxwatchd-test-{os.getpid()}-{os.urandom(4).hex()}"
    place.mkdir()
    yield place
    shutil.rmtree(place)


def _write(file: Any, content: bytes) -> None:
    file.write(content)


def everything(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
    }


# --- the outbox -----------------------------------------------------------------------------


def test_a_result_and_its_record_arrive_where_the_source_lay(room, tmp_path):
    done = room.deliver(room.drop())

    assert done.picture == tmp_path / "out/sub/photo.png"
    assert done.picture.read_bytes() == RESULT
    record = sidecar.read(done.sidecar)
    assert record["output"] == {"name": "photo.png", "sha256": done.sha256, "size": len(RESULT)}
    assert done.sha256 == hashlib.sha256(RESULT).hexdigest()
    assert set(everything(tmp_path / "out")) == {"sub/photo.png", "sub/photo.png.json"}


@pytest.mark.parametrize("taken", ["photo.png", "photo.png.json"])
def test_an_existing_name_is_never_overwritten(room, tmp_path, taken):
    (tmp_path / "out/sub").mkdir()
    (tmp_path / "out/sub" / taken).write_bytes(b"somebody's own")

    done = room.deliver(room.drop())

    assert done.picture.name == "photo.2.png"
    assert sidecar.read(done.sidecar)["output"]["name"] == "photo.2.png"
    assert (tmp_path / "out/sub" / taken).read_bytes() == b"somebody's own"


@pytest.mark.parametrize("taken", ["photo.png", "photo.png.json"])
def test_a_name_taken_in_the_last_moment_is_not_overwritten(room, tmp_path, taken):
    job = room.drop()
    staged = room.delivery.stage(job, ".png", lambda file: _write(file, RESULT))
    (thief := tmp_path / "out/sub" / taken).unlink(missing_ok=True)

    def record(name: str) -> dict[str, Any]:
        if name == "photo.png":
            thief.write_bytes(b"quicker")
        return killed.record_of(staged, name)

    done = room.delivery.commit(staged, record)

    assert done.picture.name == "photo.2.png"
    expected = {f"sub/{taken}", "sub/photo.2.png", "sub/photo.2.png.json"}
    assert set(everything(tmp_path / "out")) == expected
    assert thief.read_bytes() == b"quicker"


def test_many_at_once_under_one_name_each_get_their_own(room, tmp_path):
    jobs = [replace(room.drop(), id=f"{number:016x}") for number in range(12)]
    contents = {job.id: b"result %d" % index for index, job in enumerate(jobs)}
    done: dict[str, Any] = {}

    def work(job: Job) -> None:
        done[job.id] = room.deliver(job, content=contents[job.id])

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len({one.picture for one in done.values()}) == 12
    for job in jobs:
        assert done[job.id].picture.read_bytes() == contents[job.id]
        assert sidecar.read(done[job.id].sidecar)["job_id"] == job.id


def test_what_the_encoder_raises_passes_and_leaves_nothing(room, tmp_path):
    def broken(file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("an encoder's own error")

    with pytest.raises(RuntimeError, match="own error"):
        room.delivery.stage(room.drop(), ".png", broken)
    assert everything(tmp_path / "out") == {}


def test_a_full_disk_is_transient_and_leaves_nothing(room, tmp_path):
    job = room.drop()

    def fill(file: Any) -> None:
        file.write(RESULT)
        with Path("/dev/full").open("wb", buffering=0) as full:  # writing fails, as on a full disk
            full.write(RESULT)

    with pytest.raises(DeliveryFailed, match=r"cannot write to .*out/sub: No space left") as no:
        room.delivery.stage(job, ".png", fill)
    assert no.value.transient
    assert no.value.hint
    assert everything(tmp_path / "out") == {}
    assert room.deliver(job).picture.exists()


def test_a_result_too_large_for_the_filesystem_is_not_tried_again(room, tmp_path):
    job = room.drop()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(
            DeliveryFailed, match=r"cannot write to .*out/sub: File too large"
        ) as no:
            room.delivery.stage(job, ".png", lambda file: _write(file, RESULT))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert not no.value.transient
    assert "another outbox" in no.value.hint
    assert everything(tmp_path / "out") == {}
    assert room.deliver(job).picture.exists()


def test_a_file_where_a_folder_is_needed_is_not_tried_again(room, tmp_path):
    (tmp_path / "out/sub").write_bytes(b"somebody's own")
    with pytest.raises(DeliveryFailed, match="Not a directory") as no:
        room.deliver(room.drop())
    assert not no.value.transient
    assert "move it" in no.value.hint

    job = room.drop("other/photo.jpg")
    staged = room.delivery.stage(job, ".png", lambda file: _write(file, RESULT))
    (tmp_path / "out/other").rename(tmp_path / "away")
    (tmp_path / "out/other").write_bytes(b"somebody's own")
    with pytest.raises(DeliveryFailed, match="Not a directory") as no:
        room.delivery.commit(staged, lambda name: killed.record_of(staged, name))
    assert not no.value.transient


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EILSEQ, errno.ENAMETOOLONG, errno.EISDIR])
def test_a_name_that_the_outbox_never_takes_is_not_tried_again(tmp_path, number):
    error = OSError(number, os.strerror(number))
    told = delivery.trouble.failed("write to", tmp_path, error, tmp_path)
    assert not told.transient
    assert re.search("rename the file|shorten the file|move it", told.hint)
    gone = delivery.trouble.failed("write to", tmp_path, error, tmp_path / "unmounted")
    assert gone.transient


def test_a_commit_that_could_not_be_is_tried_again_from_the_staged_picture(room, tmp_path):
    job = room.drop()
    staged = room.delivery.stage(job, ".png", lambda file: _write(file, RESULT))
    (tmp_path / "out").rename(tmp_path / "away")
    (tmp_path / "out").write_bytes(b"a file in the way")

    with pytest.raises(DeliveryFailed, match="cannot deliver to") as no:
        room.delivery.commit(staged, lambda name: killed.record_of(staged, name))
    assert no.value.transient

    (tmp_path / "out").unlink()
    (tmp_path / "away").rename(tmp_path / "out")
    done = room.delivery.commit(staged, lambda name: killed.record_of(staged, name))
    assert done.picture.read_bytes() == RESULT
    assert set(everything(tmp_path / "out")) == {"sub/photo.png", "sub/photo.png.json"}


class Share:
    """A share in trouble: a link or renaming is made, and its answer is an error."""

    def __init__(self, monkeypatch: Any, nth: int, *, silent: bool, links: bool = True) -> None:
        self.calls, self.nth, self.silent, self.links = 0, nth, silent, links
        self.is_away = False
        self.link, self.stat, self.rename = os.link, os.stat, files.rename_new
        monkeypatch.setattr(os, "link", self._link)
        monkeypatch.setattr(os, "stat", self._stat)
        monkeypatch.setattr(files, "rename_new", self._rename)

    def _link(self, *args: Any, **more: Any) -> None:
        if not self.links:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self.link(*args, **more)
        self._answer()

    def _rename(self, *args: Any) -> None:
        self.rename(*args)
        self._answer()

    def _stat(self, path: Any, **more: Any) -> os.stat_result:
        if self.is_away and "dir_fd" in more:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return self.stat(path, **more)

    def _answer(self) -> None:
        self.calls += 1
        if self.calls == self.nth:
            self.is_away = self.silent
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("silent", [False, True], ids=["answers", "silent"])
@pytest.mark.parametrize("nth", [1, 2], ids=["the record", "the picture"])
def test_a_name_that_was_given_with_an_error_for_an_answer_is_not_given_twice(  # noqa: PLR0917 - fixtures and cases
    room, tmp_path, monkeypatch, nth, silent, links
):
    """NFS mounted soft: link() takes effect, and what comes back is EIO."""
    job = room.drop()
    staged = room.delivery.stage(job, ".png", lambda file: _write(file, RESULT))
    share = Share(monkeypatch, nth, silent=silent, links=links)

    if silent:  # not even what lies there can be told then
        with pytest.raises(DeliveryFailed, match="Input/output"):
            room.delivery.commit(staged, lambda name: killed.record_of(staged, name))
        share.is_away = False
        assert room.delivery.holds(staged)
    done = room.delivery.commit(staged, lambda name: killed.record_of(staged, name))

    assert share.calls >= 2
    assert done.picture.name == "photo.png"
    assert done.picture.read_bytes() == RESULT
    assert sidecar.read(done.sidecar)["job_id"] == job.id
    assert set(everything(tmp_path / "out")) == {"sub/photo.png", "sub/photo.png.json"}


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.parametrize("nth", [1, 2], ids=["the record", "the picture"])
def test_a_result_that_is_given_up_leaves_no_name_whatever_the_share_answered(
    room, tmp_path, monkeypatch, nth, links
):
    staged = room.delivery.stage(room.drop(), ".png", lambda file: _write(file, RESULT))
    share = Share(monkeypatch, nth, silent=True, links=links)
    with pytest.raises(DeliveryFailed, match="Input/output"):
        room.delivery.commit(staged, lambda name: killed.record_of(staged, name))
    with pytest.raises(DeliveryFailed, match="Input/output"):
        room.delivery.discard(staged)
    share.is_away = False

    room.delivery.discard(staged)

    assert everything(tmp_path / "out") == {}


def test_a_staged_picture_can_be_thrown_away(room, tmp_path):
    staged = room.delivery.stage(room.drop(), ".png", lambda file: _write(file, RESULT))
    assert list(everything(tmp_path / "out")) == [f"sub/.photo.png.{staged.job.id}.part"]
    room.delivery.discard(staged)
    room.delivery.discard(staged)
    assert everything(tmp_path / "out") == {}


def test_an_outbox_that_was_removed_is_made_again(room, tmp_path):
    shutil.rmtree(tmp_path / "out")
    assert room.deliver(room.drop()).picture.exists()


def test_a_link_in_the_outbox_leads_nobody_out_of_it(room, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DeliveryFailed, match="Not a directory"):
        room.deliver(room.drop())
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_results_have_the_usual_permissions_and_the_folders_group_bit(room, tmp_path):
    (tmp_path / "out").chmod(0o2775)
    before = os.umask(0o027)
    try:
        done = room.deliver(room.drop())
    finally:
        os.umask(before)
    assert done.picture.stat().st_mode & 0o777 == 0o640
    assert done.sidecar.stat().st_mode & 0o777 == 0o640
    assert done.picture.parent.stat().st_mode & 0o7777 == 0o2750


def test_the_same_content_is_copied_from_an_earlier_result(room, tmp_path):
    first = room.deliver(room.drop("one.jpg"))
    staged = room.delivery.stage(room.drop("two.jpg"), ".png", copy_of(first.picture))
    assert staged.sha256 == first.sha256
    with pytest.raises(DeliveryFailed, match="No such file"):
        room.delivery.stage(room.drop("three.jpg"), ".png", copy_of(tmp_path / "nothing"))


def test_an_ordinary_filesystem_can_commit(tmp_path, other_disk):
    assert supports_commit(tmp_path)
    assert supports_commit(other_disk)
    assert list(tmp_path.iterdir()) == []


# --- names ----------------------------------------------------------------------------------

WEIRD = [
    "a\nb.jpg",
    "\udcff\udcfe.jpg",
    "ü" * 125 + ".jpg",
    "x" * 251 + ".jpg",
    ".jpg.jpg",
    "a.b.c.jpg",
]


@pytest.mark.parametrize("name", WEIRD, ids=ascii)
def test_any_name_goes_all_the_way(room, tmp_path, name):
    job = room.drop(f"sub/{name}")
    done = room.deliver(job)
    assert done.picture.read_bytes() == RESULT
    assert room.delivery.retire(job).path == tmp_path / "in-archive/sub" / name

    again = room.drop(f"sub/{name}")
    aside = room.fail(again)
    assert aside.path.read_bytes() == SOURCE
    assert sidecar.read(aside.record)["job_id"] == again.id
    back = room.delivery.bring_back(room.folder, aside.path.relative_to(tmp_path / "in-failed"))
    assert (tmp_path / "in" / back).read_bytes() == SOURCE
    assert [p for p in everything(tmp_path) if p.endswith(".part")] == []


@given(
    stem=st.binary(min_size=1, max_size=255).filter(lambda b: not {0, 47} & set(b)),
    suffix=st.sampled_from([".png", ".jpg", ".tiff", ""]),
    reserve=st.sampled_from(["", ".json", ".error.json"]),
)
def test_every_name_fits_and_numbers_differ(stem, suffix, reserve):
    made = names.numbered(os.fsdecode(stem), suffix, reserve)
    first = [next(made) for _ in range(12)]
    assert len(set(first)) == 12
    for name in first:
        assert len(os.fsencode(name + reserve)) <= 255
        assert names.could_be(name, os.fsdecode(stem))
        for part in (names.part_name(name, "0" * 16), names.record_part(name, "0" * 16)):
            assert len(os.fsencode(part)) <= 255
            assert names.parse_part(part)[1] == "0" * 16


def test_a_name_is_cut_between_characters():
    name = names.fit("ü" * 200, ".png")
    assert len(name.encode()) <= 255
    assert re.fullmatch(r"ü+~[0-9a-f]{8}\.png", name)


# --- retiring -------------------------------------------------------------------------------


def test_a_source_goes_to_the_archive_never_over_another(room, tmp_path):
    (tmp_path / "in-archive/sub").mkdir()
    (tmp_path / "in-archive/sub/photo.jpg").write_bytes(b"an older one")
    job = room.drop()
    inode = job.source.stat().st_ino

    done = room.delivery.retire(job)

    assert done.outcome == "archived"
    assert done.path == tmp_path / "in-archive/sub/photo.2.jpg"
    assert done.path.stat().st_ino == inode
    assert not job.source.exists()
    assert (tmp_path / "in-archive/sub/photo.jpg").read_bytes() == b"an older one"


@pytest.mark.parametrize("on_success", ["archive", "delete", "keep"])
def test_on_success_is_followed(tmp_path, on_success):
    room = Room(tmp_path, on_success=on_success)
    job = room.drop()
    outcome = room.delivery.retire(job).outcome
    assert outcome == {"archive": "archived", "delete": "deleted", "keep": "kept"}[on_success]
    assert job.source.exists() == (on_success == "keep")
    assert (tmp_path / "in-archive/sub/photo.jpg").exists() == (on_success == "archive")


@pytest.mark.parametrize("on_success", ["archive", "delete"])
def test_a_source_that_was_replaced_stays(tmp_path, on_success):
    room = Room(tmp_path, on_success=on_success)
    job = room.drop()
    times = job.source.stat()
    replacement = job.source.with_name("new")
    replacement.write_bytes(SOURCE[::-1])  # same size, same time: only the content tells
    os.utime(replacement, ns=(times.st_atime_ns, times.st_mtime_ns))
    replacement.rename(job.source)

    assert room.delivery.retire(job).outcome == "replaced"
    assert job.source.read_bytes() == SOURCE[::-1]
    assert room.fail(job).outcome == "replaced"
    assert job.source.read_bytes() == SOURCE[::-1]
    assert everything(tmp_path / "in-failed") == {}


@pytest.fixture
def at(monkeypatch) -> Callable[[str, Callable[[], Any]], None]:
    """Lets something happen the first time that delivery comes by a crash point."""
    awaited: dict[str, Callable[[], Any]] = {}
    for module in ("moves", "deliver", "aside"):
        monkeypatch.setattr(
            f"fluxwatchd.delivery.{module}.crashpoint",
            lambda name: awaited.pop(name, lambda: None)(),
        )
    return awaited.__setitem__


def overwrite(path: Path, content: bytes) -> None:
    """Save another picture under a name, as programs do: written elsewhere, then renamed."""
    (new := path.parents[2] / "new").write_bytes(content)
    new.replace(path)


OTHER = b"another photograph, and the only one"


@pytest.mark.parametrize(
    ("on_success", "other_device", "renames", "point"),
    [
        ("delete", False, True, "retire.before-delete"),
        ("delete", False, True, "move.hidden"),
        ("delete", False, False, "retire.before-delete"),
        ("archive", False, False, "move.before"),
        ("archive", False, False, "move.linked"),
        ("archive", True, True, "move.linked"),
        ("archive", True, True, "move.hidden"),
        ("archive", True, True, "move.compared"),
    ],
)
def test_a_source_replaced_in_the_very_moment_stays(  # noqa: PLR0917 - fixtures and cases
    tmp_path, other_disk, monkeypatch, at, on_success, other_device, renames, point
):
    there = other_disk if other_device else tmp_path
    room = Room(tmp_path, on_success=on_success, archive=there / "archive")
    if not renames:  # a C library, or a filesystem, without a rename that refuses to overwrite
        monkeypatch.setattr("fluxwatchd.delivery.files._libc", object())
    job = room.drop()
    at(point, lambda: overwrite(job.source, OTHER))

    outcome = room.delivery.retire(job).outcome

    over = {"archive": "archived", "delete": "deleted"}[on_success]
    assert outcome == (over if point == "move.hidden" else "replaced")
    assert everything(tmp_path / "in") == {"sub/photo.jpg": OTHER}
    kept = on_success == "archive" and point in {"move.linked", "move.hidden"}
    assert list(everything(there / "archive").values()) == [SOURCE] * kept


def test_what_is_put_back_is_not_put_over_a_third(tmp_path, at):
    room = Room(tmp_path, on_success="delete")
    job = room.drop()
    at("retire.before-delete", lambda: overwrite(job.source, OTHER))
    at("move.hidden", lambda: overwrite(job.source, b"a third"))

    assert room.delivery.retire(job).outcome == "replaced"
    assert everything(tmp_path / "in") == {"sub/photo.jpg": b"a third", "sub/photo.2.jpg": OTHER}


def test_a_source_that_could_be_hidden_and_not_removed_goes_at_the_next_try(tmp_path, monkeypatch):
    room = Room(tmp_path, on_success="delete")
    job = room.drop()

    def refuse(name: str, *, dir_fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error", name)

    with monkeypatch.context() as broken:
        broken.setattr("fluxwatchd.delivery.moves.os.unlink", refuse)
        with pytest.raises(DeliveryFailed, match="Input/output"):
            room.delivery.retire(job)

    assert room.delivery.retire(job, again=True).outcome == "deleted"
    assert everything(tmp_path / "in") == {}


def test_a_failed_source_replaced_after_its_copy_keeps_its_record(tmp_path, other_disk, at):
    room = Room(tmp_path, failed=other_disk / "failed")
    job = room.drop()
    at("move.linked", lambda: overwrite(job.source, OTHER))

    assert room.fail(job).outcome == "replaced"
    assert everything(tmp_path / "in") == {"sub/photo.jpg": OTHER}
    failed = everything(other_disk / "failed")
    assert set(failed) == {"sub/photo.jpg", "sub/photo.jpg.error.json"}
    assert failed["sub/photo.jpg"] == SOURCE


def test_a_source_that_was_only_touched_retires(room):
    job = room.drop()
    os.utime(job.source, (1, 1))
    assert room.delivery.retire(job).outcome == "archived"


def test_a_source_that_is_gone_is_no_error(room, tmp_path):
    job = room.drop()
    shutil.rmtree(tmp_path / "in/sub")
    assert room.delivery.retire(job).outcome == "gone"
    assert room.fail(job).outcome == "gone"


def test_to_another_device_by_copy_with_its_time(tmp_path, other_disk):
    assert other_disk.stat().st_dev != tmp_path.stat().st_dev
    room = Room(tmp_path, archive=other_disk / "archive", failed=other_disk / "failed")
    job = room.drop()
    (other_disk / "archive/sub").mkdir()
    (other_disk / "archive/sub/photo.jpg").write_bytes(b"an older one")

    done = room.delivery.retire(job)

    assert done.path == other_disk / "archive/sub/photo.2.jpg"
    assert done.path.read_bytes() == SOURCE
    assert done.path.stat().st_mtime_ns == job.mtime_ns
    assert not job.source.exists()
    aside = room.fail(again := room.drop())
    assert aside.path.read_bytes() == SOURCE
    back = room.delivery.bring_back(room.folder, aside.path.relative_to(other_disk / "failed"))
    assert back == again.relative
    assert again.source.read_bytes() == SOURCE
    assert [
        p for p in (*everything(tmp_path), *everything(other_disk)) if p.endswith(".part")
    ] == []


def test_a_failure_puts_the_reason_beside_the_source(room, tmp_path):
    (tmp_path / "in-failed/sub").mkdir()
    (tmp_path / "in-failed/sub/photo.jpg").write_bytes(b"an older one")
    job = room.drop()

    aside = room.fail(job)

    assert aside.path == tmp_path / "in-failed/sub/photo.2.jpg"
    assert aside.record == tmp_path / "in-failed/sub/photo.2.jpg.error.json"
    record = sidecar.read(aside.record)
    assert (record["name"], record["why"], record["remedy"]) == (
        "photo.2.jpg",
        "it would not",
        "Make it.",
    )
    assert not job.source.exists()


def test_a_failed_file_comes_back_under_its_own_name(room, tmp_path):
    (tmp_path / "in-failed/sub").mkdir()
    (tmp_path / "in-failed/sub/photo.jpg").write_bytes(b"an older one")
    room.fail(room.drop())

    assert room.delivery.bring_back(room.folder, Path("sub/photo.2.jpg")) == Path("sub/photo.jpg")
    assert (tmp_path / "in/sub/photo.jpg").read_bytes() == SOURCE
    assert set(everything(tmp_path / "in-failed")) == {"sub/photo.jpg"}

    assert room.delivery.bring_back(room.folder, Path("sub/photo.jpg")) == Path("sub/photo.2.jpg")
    with pytest.raises(DeliveryFailed, match="there is no") as no:
        room.delivery.bring_back(room.folder, Path("sub/photo.jpg"))
    assert not no.value.transient


def test_a_result_is_found_again_when_the_journal_is_lost(room, tmp_path):
    job = room.drop()
    assert already_delivered(job) is None
    done = room.deliver(job)
    later = replace(job, id="f" * 16)
    assert already_delivered(later) == done
    assert already_delivered(replace(later, seed=8)) is None
    assert already_delivered(replace(later, sha256="0" * 64)) is None
    other = later.profile.model_copy(update={"scale": 3.0})
    assert already_delivered(replace(later, profile=other)) is None
    done.picture.write_bytes(b"damaged")
    assert already_delivered(later) is None


# --- a share that goes away -----------------------------------------------------------------


def test_mounts_are_read_from_the_kernels_table():
    table = (
        b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
        b"30 22 0:40 / /mnt/my\\040share rw shared:9 master:2 - fuse.sshfs host: rw\n"
        b"31 22 0:41 / /mnt/my\\040share/deep rw - nfs4 host:/x rw\n"
        b"32 22 0:42 / /mnt/my\\040share/deep rw - tmpfs tmpfs rw\n"
        b"broken line\n"
    )
    kinds = {
        "/home": ("/", "ext4"),
        "/mnt/my share": ("/mnt/my share", "fuse.sshfs"),
        "/mnt/my share/a": ("/mnt/my share", "fuse.sshfs"),
        "/mnt/my share/deeper": ("/mnt/my share", "fuse.sshfs"),
        "/mnt/my share/deep/x": ("/mnt/my share/deep", "tmpfs"),
    }
    for path, (point, kind) in kinds.items():
        found = mount_of(Path(path), table)
        assert (found.point, found.kind) == (point, kind)
    assert mount_of(Path("/proc/self")).kind == "proc"
    assert mount_of(Path("/"), b"").kind == "unknown"


def test_a_folder_that_a_unit_shows_at_its_own_place_is_no_share():
    """ReadWritePaths= mounts a path upon itself; where the disk is away, what is below it."""
    table = (
        b"22 1 254:0 / / rw - ext4 /dev/vda rw\n"
        b"30 22 0:40 / /mnt/disk rw - xfs /dev/vdb rw\n"
        b"41 22 254:0 /srv/in /srv/in rw - ext4 /dev/vda rw\n"
        b"42 30 0:40 /out /mnt/disk/out rw - xfs /dev/vdb rw\n"
        b"43 22 254:0 /mnt/away /mnt/away rw - ext4 /dev/vda rw\n"
        b"44 22 254:0 /data/photos /srv/photos rw - ext4 /dev/vda rw\n"
    )
    points = {
        "/srv/in/sub": "/",
        "/mnt/disk/out/sub": "/mnt/disk",
        "/mnt/away/out": "/",
        "/srv/photos/in": "/srv/photos",
    }
    assert {path: share_of(Path(path), table) for path in points} == points
    assert share_of(Path("/any"), b"") == "/"


# --- folders by descriptor ------------------------------------------------------------------


def test_paths_longer_than_the_kernel_takes(tmp_path):
    deep = Path(*["d" * 100] * 60)
    with trees.folder(tmp_path, deep, make=True) as place:
        os.close(os.open("photo.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=place))
    os.close(trees.open_file(tmp_path, deep / "photo.jpg"))
    subprocess.run(["rm", "-rf", tmp_path / ("d" * 100)], check=True)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc"])
def test_no_path_leads_out_of_a_root(tmp_path, path):
    with pytest.raises(ValueError, match="not a path below"):
        trees.open_folder(tmp_path, path)


# --- kill -9 --------------------------------------------------------------------------------


class Killer:
    """The program of killed.py, asked for one life after the other."""

    def __init__(self, log: Path) -> None:
        here = Path(__file__).parent
        self._log = log.open("w+")
        self._process = subprocess.Popen(
            [sys.executable, here / "killed.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": str(here.parent)},
        )

    def live(self, case: dict[str, Any], point: str = "") -> int:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({**case, "point": point}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._log.close()


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    one = Killer(tmp_path_factory.mktemp("killer") / "log")
    yield one
    one.close()


CASES = [
    ("archive", False, []),
    ("archive", True, []),
    ("delete", False, []),
    ("keep", False, []),
    ("fail", False, []),
    ("fail", True, []),
    ("stop", False, []),
    # filesystems without hard links, and without a rename that refuses to overwrite
    ("archive", False, ["link"]),
    ("archive", True, ["link"]),
    ("fail", True, ["link"]),
    ("archive", False, ["renameat2"]),
    ("fail", False, ["renameat2"]),
]


@pytest.mark.parametrize(("mode", "other_device", "refuse"), CASES)
def test_a_kill_at_any_point_loses_and_doubles_nothing(  # noqa: PLR0917 - fixtures and cases
    killer, tmp_path, other_disk, mode, other_device, refuse
):
    killed_at = []
    for number, point in enumerate(crashpoints.NAMES):
        root = tmp_path / str(number)
        there = (other_disk if other_device else root) / str(number)
        case = {
            "root": str(root),
            "mode": mode,
            "archive": str(there / "in-archive"),
            "failed": str(there / "in-failed"),
            "refuse": refuse,
        }
        (root / "in/sub").mkdir(parents=True)
        (root / "in/sub/photo.jpg").write_bytes(SOURCE)

        first = killer.live(case, point)
        assert first in (0, -signal.SIGKILL), killer.log()
        if first:
            killed_at.append(point)
            # the next life may be killed at the same place, in its recovery
            assert killer.live(case, point) in (0, -signal.SIGKILL), killer.log()
            assert killer.live(case) == 0, killer.log()

        check(mode, root, there, f"{mode} {other_device} {refuse} {point}")
    assert len(killed_at) >= {"stop": 6, "delete": 20, "keep": 20}.get(mode, 15)


def check(mode: str, root: Path, there: Path, case: str) -> None:
    """Every source in exactly one place; one whole result for it; nothing temporary."""
    found = everything(root) | {f"there/{k}": v for k, v in everything(there).items()}
    files = {k: v for k, v in found.items() if not re.match(r"state/|\d+/", k)}
    sources = [k for k, v in files.items() if v == SOURCE]
    assert [k for k in files if k.endswith(".part")] == [], case
    assert len(sources) == (0 if mode == "delete" else 1), (case, sorted(files))
    with Journal.open(root / "state") as journal:
        assert journal.interrupted_runs() == (), case
        assert journal.unretired() == (), case
        assert journal.not_set_aside() == (), case
    if mode == "stop":
        assert sources == ["in/sub/photo.jpg"], case
        return
    where = {"archive": "there/in-archive", "keep": "in", "fail": "there/in-failed"}.get(mode)
    assert mode == "delete" or sources == [f"{where}/sub/photo.jpg"], (case, sorted(files))
    if mode == "fail":
        record = json.loads(files["there/in-failed/sub/photo.jpg.error.json"])
        assert record["why"] == "not a picture", case
        assert not any(k.startswith("out/") for k in files), case
        return
    results = {k: v for k, v in files.items() if k.startswith("out/")}
    assert set(results) == {"out/sub/photo.png", "out/sub/photo.png.json"}, (case, sorted(files))
    assert results["out/sub/photo.png"] == RESULT, case
    assert json.loads(results["out/sub/photo.png.json"])["output"]["name"] == "photo.png", case


def test_every_crash_point_is_listed_and_is_in_the_code():
    code = "\n".join(path.read_text() for path in Path(delivery.__file__).parents[1].rglob("*.py"))
    assert sorted(set(re.findall(r'crashpoint\("([^"]+)"\)', code))) == sorted(crashpoints.NAMES)
    assert len(set(crashpoints.NAMES)) == len(crashpoints.NAMES)


def test_a_strangers_temporary_file_is_left_alone_for_a_day(room, tmp_path):
    stranger = tmp_path / "out/.photo.png.0123456789abcdef.part"
    stranger.write_bytes(b"another daemon's")
    os.utime(stranger, (1, 1))  # a copy has the time of its original, however old that is
    with Journal.open(tmp_path / "state") as journal:
        recover(room.delivery, room.folder, journal)
        assert stranger.exists()
        recover(room.delivery, room.folder, journal, lambda: stranger.stat().st_ctime + 90_000)
        assert not stranger.exists()


def test_recovery_leaves_what_others_are_writing_into_the_same_outbox(room, tmp_path):
    other = Folder(inbox=tmp_path / "in2", outbox=room.folder.outbox)
    other.inbox.mkdir()
    with Journal.open(tmp_path / "state") as journal:
        job = room.drop()
        job = replace(job, attempt=journal.begin(job))
        staged = room.delivery.stage(job, ".png", lambda file: _write(file, RESULT))

        assert recover(room.delivery, other, journal) == Recovered()
        assert recover(room.delivery, room.folder, journal, busy=frozenset({job.id})) == Recovered()

        done = room.delivery.commit(staged, lambda name: killed.record_of(staged, name))
        assert done.picture.read_bytes() == RESULT


def test_recovery_tells_the_journal_nothing_of_a_job_under_way(room, tmp_path):
    with Journal.open(tmp_path / "state") as journal:
        job = room.drop()
        job = replace(job, attempt=journal.begin(job))
        room.deliver(job)

        assert recover(room.delivery, room.folder, journal, busy=frozenset({job.id})) == Recovered()
        assert [run.id for run in journal.interrupted_runs()] == [job.id]

        kinds = [action.kind for action in recover(room.delivery, room.folder, journal).actions]
        assert kinds == ["finished", "retired"]


def test_recovery_of_a_folder_that_is_not_there_waits(room, tmp_path):
    lost = Folder(inbox=tmp_path / "lost/in", outbox=tmp_path / "lost/out")
    with (
        Journal.open(tmp_path / "state") as journal,
        pytest.raises(
            DeliveryFailed, match=r"half-made deliveries of .*lost/in: No such file"
        ) as no,
    ):
        recover(room.delivery, lost, journal)
    assert no.value.transient


def test_a_disks_words_reach_the_person():
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    told = delivery.trouble.failed("deliver to", Path("/out"), error)
    assert str(told) == "cannot deliver to /out: No space left on device"
    assert told.hint == "Free some space there; the delivery goes on by itself."
    assert told.transient
