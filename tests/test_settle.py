"""Settling: quiet and whole, by an injected clock; and who has a file open."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fluxwatchd.intake.scan import Entry
from fluxwatchd.intake.settle import LONGEST_PAUSE, Settler, has_writer

SECONDS, TIMEOUT = 2.0, 60.0
PHOTO = Entry("photo.jpg", 1000, 5, 5, 11, 1)


@pytest.fixture
def settler() -> Settler:
    return Settler(SECONDS, TIMEOUT)


def test_a_file_is_ready_when_it_was_quiet_long_enough(settler):
    first = settler.observe("in", [PHOTO], 100.0)
    assert (first.ready, first.due) == ((), 2.0)
    assert settler.observe("in", [PHOTO], 101.5).due == 0.5
    done = settler.observe("in", [PHOTO], 102.0)
    assert (done.ready, done.due) == ((PHOTO,), None)
    assert settler.observe("in", [PHOTO], 200.0).ready == (PHOTO,)


@pytest.mark.parametrize("change", ["size", "mtime_ns", "inode", "device"])
def test_any_change_starts_anew(settler, change):
    settler.observe("in", [PHOTO], 0.0)
    changed = PHOTO._replace(**{change: 77})
    assert settler.observe("in", [changed], 1.9).due == 2.0
    assert settler.observe("in", [changed], 3.8).ready == ()
    assert settler.observe("in", [changed], 3.9).ready == (changed,)


def test_a_change_of_permissions_or_a_new_link_is_none(settler):
    settler.observe("in", [PHOTO], 0.0)
    assert settler.observe("in", [PHOTO._replace(ctime_ns=99)], 2.0).ready != ()


def test_a_file_that_went_and_came_back_starts_anew(settler):
    settler.observe("in", [PHOTO], 0.0)
    settler.observe("in", [], 1.0)
    assert settler.observe("in", [PHOTO], 2.5).ready == ()
    assert settler.observe("in", [PHOTO], 4.5).ready == (PHOTO,)


def test_a_ready_file_that_is_replaced_settles_again(settler):
    settler.observe("in", [PHOTO], 0.0)
    assert settler.observe("in", [PHOTO], 2.0).ready
    replaced = PHOTO._replace(inode=12)
    assert settler.observe("in", [replaced], 3.0).ready == ()
    assert settler.observe("in", [replaced], 5.0).ready == (replaced,)


def test_a_copy_in_chunks_is_never_ready_before_its_end(settler):
    for step in range(20):
        now = step * 1.9
        assert (
            settler.observe("in", [PHOTO._replace(size=step + 1, mtime_ns=step)], now).ready == ()
        )


def test_folders_do_not_mix(settler):
    settler.observe("one", [PHOTO], 0.0)
    settler.observe("two", [PHOTO], 1.0)
    assert settler.observe("one", [PHOTO], 2.0).ready == (PHOTO,)
    assert settler.observe("two", [PHOTO], 2.0).ready == ()
    settler.forget("one")
    assert settler.observe("one", [PHOTO], 2.1).ready == ()


def test_files_that_are_due_together_are_looked_at_together(settler):
    entries = [PHOTO._replace(name=f"{n}.jpg") for n in range(3)]
    settler.observe("in", entries[:1], 10.00)
    settler.observe("in", entries[:2], 10.04)
    look = settler.observe("in", entries, 10.50)
    assert look.due == pytest.approx(1.54)  # the second's, not the third's
    assert len(settler.observe("in", entries, 10.50 + look.due).ready) == 2


def test_an_empty_file_is_hopeless_after_the_timeout(settler):
    empty = PHOTO._replace(size=0)
    assert settler.observe("in", [empty], 0.0).due == TIMEOUT
    look = settler.observe("in", [empty], 59.9)
    assert (look.ready, look.hopeless) == ((), ())
    assert settler.observe("in", [empty], 60.0).hopeless == (empty,)
    assert settler.observe("in", [PHOTO], 61.0).hopeless == ()  # somebody filled it


def test_a_file_that_does_not_decode_is_put_off_with_growing_pauses(settler):
    settler.observe("in", [PHOTO], 0.0)
    now, pauses = 2.0, []
    while not settler.gave_up("in", PHOTO, now):
        assert settler.observe("in", [PHOTO], now).ready == (PHOTO,)
        pauses.append(settler.retry_later("in", PHOTO, now))
        look = settler.observe("in", [PHOTO], now)
        assert (look.ready, look.due) == ((), pauses[-1])
        now += pauses[-1]
    assert pauses == [2.0, 4.0, 8.0, 16.0, 28.0]  # the last one is cut by the timeout
    assert now == TIMEOUT


def test_pauses_have_an_upper_end():
    settler = Settler(1.0, 1e9)
    settler.observe("in", [PHOTO], 0.0)
    pauses = [settler.retry_later("in", PHOTO, 1.0) for _ in range(9)]
    assert pauses[-1] == LONGEST_PAUSE


def test_a_file_that_changed_meanwhile_is_neither_put_off_nor_given_up(settler):
    settler.observe("in", [PHOTO], 0.0)
    changed = PHOTO._replace(size=5)
    settler.observe("in", [changed], 90.0)
    assert settler.retry_later("in", PHOTO, 90.0) == 0.0
    assert not settler.gave_up("in", PHOTO, 90.0)
    assert not settler.gave_up("in", changed, 90.0)
    assert not settler.gave_up("elsewhere", changed, 900.0)


def test_no_settle_time_means_at_once():
    assert Settler(0.0, 0.0).observe("in", [PHOTO], 5.0).ready == (PHOTO,)


@given(
    steps=st.lists(
        st.tuples(st.floats(0.001, 5), st.one_of(st.none(), st.integers(0, 3))), max_size=40
    ),
    seconds=st.floats(0, 4),
)
def test_ready_exactly_when_nothing_changed_for_settle_seconds(steps, seconds):
    """Against the rule itself, for any history of sizes and disappearances."""
    settler = Settler(seconds, 1000.0)
    now, size, since = 0.0, None, 0.0
    for wait, new in steps:
        now += wait
        if new != size:
            size, since = new, now
        entries = [] if size is None else [PHOTO._replace(size=size)]
        look = settler.observe("in", entries, now)
        quiet = size is not None and size > 0 and since + seconds <= now
        assert bool(look.ready) == quiet
        assert (look.due is None) == (size is None or quiet)
        if look.due is not None:
            limit = 1000.0 if size == 0 else seconds
            assert math.isclose(look.due, since + limit - now, abs_tol=1e-6)


# --- writers --------------------------------------------------------------------------------


def test_a_writer_is_seen_and_a_reader_is_not_one(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"x")
    assert has_writer(path) is False
    with path.open("ab"):
        assert has_writer(path) is True
    with path.open("rb") as reader:
        assert has_writer(path) is False
        assert has_writer(reader.fileno()) is False
    assert has_writer(path) is False


def test_another_process_that_writes_is_seen(tmp_path):
    path = tmp_path / "photo.jpg"
    code = "import sys; f = open(sys.argv[1], 'wb'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        assert has_writer(path) is True
        process.communicate()
    assert has_writer(path) is False


def test_what_cannot_be_told_is_unknown(tmp_path):
    assert has_writer(tmp_path / "nothing.jpg") is None
    (tmp_path / "link.jpg").symlink_to("nothing.jpg")
    assert has_writer(tmp_path / "link.jpg") is None
    code = (
        "import os; from pathlib import Path\n"
        "from fluxwatchd.intake.settle import has_writer\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "print(has_writer(Path('/etc/passwd')))"  # somebody else's file
    )
    assert subprocess.check_output([sys.executable, "-c", code]) == b"None\n"


def test_one_who_opens_the_file_in_the_middle_of_asking_ends_nobody(tmp_path):
    """A broken lease sends a signal; thousands of them leave this process alive."""
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"x")
    code = "import sys, os\nwhile True: os.close(os.open(sys.argv[1], os.O_WRONLY))"
    answers = set()
    with subprocess.Popen([sys.executable, "-c", code, path]) as process:
        while len(answers) < 2 or process.poll() is not None:
            answers.add(has_writer(path))
        for _ in range(2000):
            answers.add(has_writer(path))
        process.kill()
    assert answers == {True, False}
