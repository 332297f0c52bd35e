"""Recovery: what is told from what, and that nothing which is all there is goes."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import killed
import pytest
from house import House
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_delivery import OTHER, RESULT, SOURCE, Room, everything

from fluxwatchd import sidecar
from fluxwatchd.delivery import Recovered, already_delivered, names, recover, supports_commit
from fluxwatchd.errors import DeliveryFailed, InputRejected
from fluxwatchd.job import Job, Taken
from fluxwatchd.journal import Journal

LONG_AGO = 90_000.0
"""Seconds; more than a day."""


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal.open(tmp_path / "state") as opened:
        yield opened


@pytest.fixture
def there() -> Iterator[Path]:
    """A folder on another filesystem than the temporary one."""
    place = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield place
    shutil.rmtree(place)


def delivered(room: Room, journal: Journal) -> Job:
    """A job whose result is committed and journalled, and whose source has yet to retire."""
    job = room.drop()
    job = replace(job, attempt=journal.begin(job))
    done = room.deliver(job)
    journal.finish(job.id, done.picture, done.sha256)
    return job


def outcome(journal: Journal, job: Job | Taken) -> str | None:
    row = journal.run(job.id)
    assert row is not None
    return row.outcome


def put(path: Path, content: bytes, like: Job | Taken | None = None) -> Path:
    """A file, with the time of a job's source if that is what it is a copy of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    if like is not None:
        os.utime(path, ns=(like.mtime_ns, like.mtime_ns))
    return path


# --- copies to another device ---------------------------------------------------------------


def test_half_a_copy_never_gets_a_name(tmp_path, there, journal):
    """The copy was broken off, and then somebody took the original away."""
    room = Room(tmp_path, archive=there / "archive")
    job = delivered(room, journal)
    part = there / "archive/sub" / names.part_name("photo.jpg", job.id)
    put(part, SOURCE[:5000])
    job.source.unlink()

    recover(room.delivery, room.folder, journal)

    assert everything(there) == {}
    assert outcome(journal, job) == "gone"


def test_a_whole_copy_is_named_though_another_file_has_its_originals_name(tmp_path, there, journal):
    """Where there are no links the copy has no name yet when the original goes."""
    room = Room(tmp_path, archive=there / "archive")
    job = delivered(room, journal)
    put(there / "archive/sub" / names.part_name("photo.jpg", job.id), SOURCE, like=job)
    job.source.unlink()
    put(job.source, OTHER)

    recover(room.delivery, room.folder, journal)

    assert everything(there) == {"archive/sub/photo.jpg": SOURCE}
    assert everything(tmp_path / "in") == {"sub/photo.jpg": OTHER}
    assert outcome(journal, job) == "replaced"


def test_a_copy_beside_its_original_is_not_named(tmp_path, there, journal):
    room = Room(tmp_path, archive=there / "archive")
    job = delivered(room, journal)
    put(there / "archive/sub" / names.part_name("photo.2.jpg", job.id), SOURCE, like=job)

    recover(room.delivery, room.folder, journal)

    assert everything(there) == {"archive/sub/photo.jpg": SOURCE}
    assert outcome(journal, job) == "archived"


def test_a_copy_of_a_file_that_was_never_read_is_told_by_its_size_and_time(
    tmp_path, there, journal
):
    room = Room(tmp_path, failed=there / "failed")
    read = room.drop()
    job = Taken(read.id, read.folder, read.relative, read.size, read.mtime_ns)
    journal.begin(job)
    journal.fail(job.id, InputRejected("it may not be read"))
    put(there / "failed/sub" / names.part_name("photo.jpg", job.id), SOURCE, like=job)
    error = sidecar.failure(job, InputRejected("no"), name="photo.jpg", finished=1e9)
    put(there / "failed/sub/photo.jpg.error.json", sidecar.encode(error))
    job.source.unlink()

    recover(room.delivery, room.folder, journal)

    assert set(everything(there)) == {"failed/sub/photo.jpg", "failed/sub/photo.jpg.error.json"}
    assert outcome(journal, job) == "failed"


def test_an_unknown_jobs_copy_is_left_alone_while_its_original_may_be_there(
    tmp_path, there, journal
):
    """The journal is lost: photo.2.jpg may be a copy of photo.jpg, or of a file that is gone."""
    room = Room(tmp_path, archive=there / "archive")
    job = room.drop()
    part = put(there / "archive/sub" / names.part_name("photo.2.jpg", job.id), SOURCE[:5000])
    later = part.stat().st_ctime + LONG_AGO

    assert recover(room.delivery, room.folder, journal, lambda: later) == Recovered()
    assert part.exists()

    job.source.unlink()
    recover(room.delivery, room.folder, journal, lambda: later)
    assert everything(there) == {"archive/sub/photo.2.jpg": SOURCE[:5000]}


def test_a_file_that_was_hidden_gets_its_name_back_whatever_lies_in_failed(tmp_path, journal):
    """Killed with a stranger's file hidden, which had taken the source's name in that moment."""
    room = Room(tmp_path, on_success="delete")
    job = delivered(room, journal)
    put(tmp_path / "in-failed/sub/photo.jpg", b"an older failure of that name")
    job.source.unlink()
    put(tmp_path / "in/sub" / names.hidden_name("photo.jpg", job.id), OTHER)

    recover(room.delivery, room.folder, journal)

    assert everything(tmp_path / "in") == {"sub/photo.jpg": OTHER}
    assert outcome(journal, job) == "replaced"


def test_a_source_that_was_hidden_for_its_deletion_is_deleted(tmp_path, journal):
    room = Room(tmp_path, on_success="delete")
    job = delivered(room, journal)
    job.source.rename(tmp_path / "in/sub" / names.hidden_name("photo.jpg", job.id))

    recover(room.delivery, room.folder, journal)

    assert everything(tmp_path / "in") == {}
    assert outcome(journal, job) == "deleted"


@pytest.mark.parametrize("across", [False, True], ids=["delete", "across"])
def test_a_source_under_both_names_of_its_removal_leaves_once(tmp_path, there, journal, across):
    """A power loss kept the name that a renaming gave, and did not take the old one."""
    how = {"archive": there / "archive"} if across else {"on_success": "delete"}
    room = Room(tmp_path, **how)
    job = delivered(room, journal)
    if across:
        put(there / "archive/sub/photo.jpg", SOURCE, like=job)
        part = there / "archive/sub" / names.part_name("photo.jpg", job.id)
        part.hardlink_to(there / "archive/sub/photo.jpg")
    (tmp_path / "in/sub" / names.hidden_name("photo.jpg", job.id)).hardlink_to(job.source)

    recover(room.delivery, room.folder, journal)

    assert everything(tmp_path / "in") == {}
    assert everything(there) == ({"archive/sub/photo.jpg": SOURCE} if across else {})
    assert outcome(journal, job) == ("archived" if across else "deleted")


def test_a_source_of_a_job_that_is_over_is_put_back_under_one_name(tmp_path, journal):
    """The hidden name came back after all was journalled: nobody's now, and not two pictures."""
    room = Room(tmp_path, on_success="delete")
    job = delivered(room, journal)
    journal.retired(job.id, "deleted", None)
    (tmp_path / "in/sub" / names.hidden_name("photo.jpg", job.id)).hardlink_to(job.source)

    recover(room.delivery, room.folder, journal)

    assert everything(tmp_path / "in") == {"sub/photo.jpg": SOURCE}


@pytest.mark.parametrize("content", [OTHER, SOURCE], ids=["another", "the same again"])
def test_a_file_dropped_over_a_hidden_source_stays_and_the_source_leaves(
    tmp_path, journal, content
):
    """The source is this job's under any name; what took its name is a picture of its own."""
    room = Room(tmp_path, on_success="delete")
    job = delivered(room, journal)
    job.source.rename(tmp_path / "in/sub" / names.hidden_name("photo.jpg", job.id))
    put(job.source, content)

    recover(room.delivery, room.folder, journal)

    assert everything(tmp_path / "in") == {"sub/photo.jpg": content}
    assert outcome(journal, job) == "deleted"


def test_a_file_brought_back_from_another_device_is_there_once(tmp_path, there, journal):
    """Killed when the copy had its name in the inbox and the original still lay in failed."""
    room = Room(tmp_path, failed=there / "failed")
    job = room.drop()
    journal.begin(job)
    journal.fail(job.id, InputRejected("no"))
    aside = room.fail(job)
    journal.retired(job.id, aside.outcome, aside.path)
    part = put(tmp_path / "in/sub" / names.part_name("photo.jpg", job.id), SOURCE, like=job)
    os.link(part, tmp_path / "in/sub/photo.jpg")

    recover(room.delivery, room.folder, journal)

    assert everything(tmp_path / "in") == {"sub/photo.jpg": SOURCE}
    assert everything(there) == {}


def test_a_file_brought_back_just_before_a_kill_leaves_no_record_behind(room, tmp_path):
    """The request is served once more after the restart: the file is in the inbox already."""
    aside = room.fail(room.drop())
    aside.path.rename(tmp_path / "in/sub/photo.jpg")

    assert room.delivery.bring_back(room.folder, Path("sub/photo.jpg")) == Path("sub/photo.jpg")
    assert everything(tmp_path / "in-failed") == {}
    with pytest.raises(DeliveryFailed, match="there is no"):
        room.delivery.bring_back(room.folder, Path("sub/photo.jpg"))
    with pytest.raises(DeliveryFailed, match="there is no"):
        room.delivery.bring_back(room.folder, Path("sub"))


@pytest.mark.parametrize("name", ["x" * 251 + ".jpg", "ü" * 125 + ".jpg"], ids=ascii)
def test_a_long_name_is_whole_again_after_a_kill(tmp_path, there, journal, name):
    """Temporary names are shortened; a file may not come back without its suffix."""
    room = Room(tmp_path, archive=there / "archive")
    one, two = room.drop(name), room.drop(f"sub/{name}", OTHER)
    for job in (one, two):
        journal.begin(job)
        done = room.deliver(job)
        journal.finish(job.id, done.picture, done.sha256)
    one.source.rename(tmp_path / "in" / names.hidden_name(name, one.id))
    put(there / "archive/sub" / names.part_name(name, two.id), OTHER, like=two)
    two.source.unlink()

    recover(room.delivery, room.folder, journal)

    assert everything(there) == {f"archive/{name}": SOURCE, f"archive/sub/{name}": OTHER}
    assert everything(tmp_path / "in") == {}


@pytest.mark.machine
def test_between_two_mounts_of_one_filesystem_a_source_is_archived(tmp_path):
    """A service's ReadWritePaths= are mounts of their own: rename(2) says EXDEV between them."""
    room = Room(tmp_path)
    share = tmp_path / "in-archive"
    subprocess.run(["mount", "--bind", str(share), str(share)], check=True)
    try:
        job = room.drop()
        done = room.delivery.retire(job)
        assert (done.outcome, done.path) == ("archived", share / "sub/photo.jpg")
        assert everything(share) == {"sub/photo.jpg": SOURCE}
        assert everything(tmp_path / "in") == {}
    finally:
        subprocess.run(["umount", str(share)], check=True)


@pytest.mark.machine
def test_an_archive_on_a_full_disk_keeps_no_half_copy(tmp_path):
    room = Room(tmp_path)
    disk = tmp_path / "in-archive"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], check=True)
    try:
        (disk / "filler").write_bytes(bytes(56 << 10))
        job = room.drop()
        with pytest.raises(DeliveryFailed, match="No space left") as no:
            room.delivery.retire(job)
        assert no.value.transient
        assert list(everything(disk)) == ["filler"]
        assert job.source.read_bytes() == SOURCE
        (disk / "filler").unlink()
        assert room.delivery.retire(job, again=True).outcome == "archived"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- one job's trouble is its own -----------------------------------------------------------


def test_what_cannot_be_ended_now_is_handed_back_and_the_rest_is_done(room, tmp_path, journal):
    stuck = delivered(room, journal)
    free = room.drop("other/photo.jpg")
    journal.begin(free)
    room.deliver(free)
    (tmp_path / "in-archive/sub").write_text("in the way")

    found = recover(room.delivery, room.folder, journal)

    assert [action.kind for action in found.actions] == ["finished", "retired"]
    assert [one.job.source for one in found.unsettled] == [stuck.source]
    with pytest.raises(DeliveryFailed):
        found.unsettled[0].again()
    (tmp_path / "in-archive/sub").unlink()
    assert [action.kind for action in found.unsettled[0].again()] == ["retired"]
    assert outcome(journal, stuck) == "archived"


def test_a_job_whose_outbox_folder_cannot_be_read_waits_and_is_not_made_again(
    room, tmp_path, journal
):
    """Whether its result is there cannot be known now: it is neither done nor to be done."""
    job = room.drop()
    journal.begin(job)
    room.deliver(job)
    (tmp_path / "out/sub").rename(tmp_path / "aside")
    (tmp_path / "out/sub").write_text("in the way")

    (left,) = recover(room.delivery, room.folder, journal).unsettled
    assert [run.id for run in journal.interrupted_runs()] == [job.id]

    (tmp_path / "out/sub").unlink()
    (tmp_path / "aside").rename(tmp_path / "out/sub")
    assert [action.kind for action in left.again()] == ["finished", "retired"]


def test_recovery_says_that_it_moves_on_at_every_folder_and_job(room, tmp_path, journal):
    for number in range(20):
        (tmp_path / "out" / f"{number}").mkdir()
    beats = []
    recover(room.delivery, room.folder, journal, beat=lambda: beats.append(1))
    assert len(beats) >= 20
    before = len(beats)
    delivered(room, journal)
    recover(room.delivery, room.folder, journal, beat=lambda: beats.append(1))
    assert len(beats) > 2 * before


def test_a_job_that_was_given_back_leaves_no_half_result(room, tmp_path, journal):
    """A stop gave the picture back; what was staged could not be removed then."""
    job = room.drop()
    journal.begin(job)
    staged = room.delivery.stage(job, ".png", lambda file: file.write(RESULT) and None)
    put(
        tmp_path / "out/sub/photo.png.json",
        sidecar.encode(killed.record_of(staged, "photo.png")),
    )
    journal.give_back(job.id)

    recover(room.delivery, room.folder, journal)

    assert everything(tmp_path / "out") == {}


def test_a_job_that_was_given_back_leaves_no_whole_result_either(
    room, tmp_path, journal, monkeypatch
):
    """Both names were given, the share went away before it could say so, and then came a stop."""
    job = room.drop()
    journal.begin(job)
    journal.delivering(job)
    staged = room.delivery.stage(job, ".png", lambda file: file.write(RESULT) and None)
    fails_at(monkeypatch, 2)
    with pytest.raises(DeliveryFailed, match="Input/output"):
        room.delivery.commit(staged, lambda name: killed.record_of(staged, name))
    journal.give_back(job.id)
    assert (tmp_path / "out/sub/photo.png").read_bytes() == RESULT

    kinds = [action.kind for action in recover(room.delivery, room.folder, journal).actions]

    assert kinds == ["removed"] * 3
    assert everything(tmp_path / "out") == {}
    assert job.source.exists()


def fails_at(monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """From here on the ``nth`` sync of a folder fails, and no other."""
    calls = iter(range(1, 1000))

    def sync(place: int) -> None:
        if next(calls) == nth:
            raise OSError(5, "Input/output error")
        os.fsync(place)

    monkeypatch.setattr("fluxwatchd.trees.sync_folder", sync)


def test_a_commit_tried_again_does_not_believe_in_what_is_gone(room, tmp_path, monkeypatch):
    """Both names were given, the folder could not be synced, and then everything was removed."""
    job = room.drop()
    staged = room.delivery.stage(job, ".png", lambda file: file.write(RESULT) and None)
    with monkeypatch.context() as broken:
        fails_at(broken, 2)
        with pytest.raises(DeliveryFailed, match="Input/output"):
            room.delivery.commit(staged, lambda name: killed.record_of(staged, name))
    assert room.delivery.holds(staged)
    for path in (tmp_path / "out/sub").iterdir():
        path.unlink()

    assert not room.delivery.holds(staged)
    with pytest.raises(DeliveryFailed, match="No such file"):
        room.delivery.commit(staged, lambda name: killed.record_of(staged, name))
    assert room.deliver(job).picture.read_bytes() == RESULT


# --- what lies in the outbox and is not ours ------------------------------------------------

WRONG = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "..", "a/b", "\0", "0" * 16, "0" * 64, "result", "error"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def mutate(record: Any, dice: random.Random, value: Any) -> Any:
    """The record with one value, at any depth, replaced or left out."""
    if not isinstance(record, dict) or not record or dice.random() < 0.1:
        return value
    key = dice.choice(list(record))
    if dice.random() < 0.2:
        return {name: one for name, one in record.items() if name != key}
    return {**record, key: mutate(record[key], dice, value)}


@given(seed=st.integers(0, 10**6), value=WRONG, cut=st.none() | st.floats(0, 1))
@example(seed=0, value=None, cut=0.0)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_no_record_however_damaged_ends_anything_or_costs_a_file(seed, value, cut):
    """Not as a sidecar, in every state of a job, nor as an error record, for `retry`."""
    dice = random.Random(seed)
    root = Path(tempfile.mkdtemp())
    try:
        room = Room(root)
        with Journal.open(root / "state") as journal:
            job = room.drop()
            job = replace(job, attempt=journal.begin(job))
            done = room.deliver(job)
            damage(done.sidecar, dice, value, cut)
            already_delivered(replace(job, id="f" * 16))
            recover(room.delivery, room.folder, journal)
            kept = everything(root / "in") | everything(root / "in-archive")
            assert list(kept.values()) == [SOURCE]
            assert done.picture.read_bytes() == RESULT

            aside = room.fail(room.drop("sub/bad.jpg", OTHER))
            damage(aside.record, dice, value, cut)
            recover(room.delivery, room.folder, journal)
            back = room.delivery.bring_back(room.folder, Path("sub/bad.jpg"))
            assert (root / "in" / back).read_bytes() == OTHER
            assert back.name == "bad.jpg"
    finally:
        shutil.rmtree(root)


def damage(path: Path, dice: random.Random, value: Any, cut: float | None) -> None:
    content = json.dumps(mutate(json.loads(path.read_bytes()), dice, value)).encode()
    path.write_bytes(content if cut is None else content[: int(cut * len(content))])


def test_what_is_no_file_or_nested_or_huge_is_no_record(room, tmp_path, journal):
    job = room.drop()
    journal.begin(job)
    outbox = tmp_path / "out/sub"
    outbox.mkdir()
    (outbox / "photo.1.json").write_bytes(b"[" * 10**6)
    (outbox / "photo.2.json").write_bytes(b'{"a":' * 10**5)
    (outbox / "photo.3.json").mkdir()
    os.mkfifo(outbox / "photo.4.json")
    (outbox / "photo.5.json").symlink_to("/dev/zero")
    with (outbox / "photo.6.json").open("wb") as huge:
        huge.truncate(1 << 40)
    (outbox / "photo.7.json").write_bytes(b"9" * 10**5)

    assert already_delivered(job) is None
    assert recover(room.delivery, room.folder, journal) == Recovered()
    assert journal.interrupted_runs() == ()
    for name in ("photo.3.json", "photo.4.json", "photo.5.json"):
        with pytest.raises((ValueError, OSError)):
            sidecar.read(outbox / name)


def test_a_result_whose_place_is_taken_by_a_folder_is_made_again(room, tmp_path, journal):
    job = room.drop()
    journal.begin(job)
    done = room.deliver(job)
    done.picture.unlink()
    done.picture.mkdir()

    recover(room.delivery, room.folder, journal)

    assert journal.interrupted_runs() == ()
    assert job.source.exists()
    assert not done.sidecar.exists()


@pytest.mark.parametrize("name", ["..", ".", "", "a\0b", ".hidden.jpg", "other.jpg", "photo.exe"])
def test_an_error_record_cannot_choose_any_name(room, tmp_path, name):
    aside = room.fail(room.drop())
    record = sidecar.read(aside.record)
    record["source"]["name"] = name
    aside.record.write_bytes(sidecar.encode(record))
    assert room.delivery.bring_back(room.folder, Path("sub/photo.jpg")) == Path("sub/photo.jpg")


def test_foreign_records_do_not_end_the_daemon(tmp_path):
    house = House(tmp_path, daemon="settle_seconds = 0.1")
    house.outbox.mkdir()
    for number, content in enumerate([b'{"output": null}', b"[]", b"{}", b"[" * 10**5]):
        (house.outbox / f"a{number}.png.json").write_bytes(content)
    house.drop("a.png", seed=1)
    assert house.run(FLUXWATCHD_CRASHPOINT="commit.picture-linked") == -signal.SIGKILL
    record = json.loads((house.outbox / "a.png.json").read_bytes())
    (house.outbox / "a.2.png.json").write_text(json.dumps({**record, "output": None}))
    house.drop("b.png", seed=2)
    assert house.run() == 0, house.said()
    assert house.places()["archive"] == ["a.png", "b.png"]


def test_two_daemons_with_one_outbox_leave_each_others_work_alone(tmp_path):
    """Pictures of the same name, and a kill of one in every step of its commit."""
    one, two = House(tmp_path / "one"), House(tmp_path / "two")
    shared = tmp_path / "shared"
    for house in (one, two):
        house.outbox = shared
        house.config.write_text(
            house.config.read_text().replace('outbox = "out"', f'outbox = "{shared}"')
        )
    points = ("stage.written", "commit.record-linked", "commit.picture-linked", "commit.done")
    for number, point in enumerate(points):
        one.drop("a.png", seed=number)
        two.drop("a.png", seed=10 + number)
        assert one.run(FLUXWATCHD_CRASHPOINT=point) == -signal.SIGKILL
        assert two.run() == 0, two.said()
        assert one.run() == 0, one.said()
    found = everything(shared)
    pictures = {name for name in found if name.endswith(".png")}
    assert set(found) == pictures | {f"{name}.json" for name in pictures}
    assert len(pictures) == 2 * len(points)
    told = [json.loads(found[f"{name}.json"]) for name in pictures]
    assert len({record["source"]["sha256"] for record in told}) == 2 * len(points)


# --- the trial of a folder ------------------------------------------------------------------


def test_what_a_kill_leaves_of_a_folders_trial_is_swept_at_the_next_start(tmp_path):
    house = House(tmp_path)
    for nth in (1, 2, 5):
        point = f"check.made:{nth}"
        assert house.run(FLUXWATCHD_CRASHPOINT=point) == -signal.SIGKILL
        assert list(tmp_path.glob("*/.fluxwatchd-check-*"))
    assert house.run() == 0, house.said()
    assert list(tmp_path.glob("*/.fluxwatchd-check-*")) == []


def test_a_trial_under_way_is_not_swept(tmp_path):
    place = tmp_path / ".fluxwatchd-check-other"
    place.mkdir()
    folder = os.open(place, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    assert supports_commit(tmp_path)
    assert place.exists()
    os.close(folder)
    assert supports_commit(tmp_path)
    assert not place.exists()
