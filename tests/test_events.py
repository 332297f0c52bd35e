"""Events: the real watchdog wakes the scan, and what it cannot see is polled, with the reason."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from house import until

from fluxwatchd.config import Folder
from fluxwatchd.intake.events import CANARY, Watcher, silence
from fluxwatchd.intake.scan import scan


class Bell:
    """Counts the wakes."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.count += 1

    def rings_for(self, act: Callable[[], object]) -> None:
        before = self.count
        act()
        until(lambda: self.count > before, "a wake")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "in").mkdir()
    return Folder(inbox=tmp_path / "in", outbox=tmp_path / "out")


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def watcher(folder: Folder, bell: Bell) -> Iterator[Watcher]:
    one = Watcher([folder], bell, poll_seconds=3600)
    one.start()
    until(lambda: one.health(folder).mode == "events", "the watch")
    yield one
    one.stop()


def test_whatever_may_bring_a_picture_wakes(watcher, folder, bell, tmp_path):
    inbox = folder.inbox
    (tmp_path / "outside.jpg").write_bytes(b"x")
    (tmp_path / "album").mkdir()
    (tmp_path / "album/inner.jpg").write_bytes(b"x")
    bell.rings_for(lambda: (inbox / "made.jpg").write_bytes(b"x"))
    bell.rings_for(lambda: (inbox / "made.jpg").open("ab").close())
    bell.rings_for(lambda: (tmp_path / "outside.jpg").rename(inbox / "moved-in.jpg"))
    bell.rings_for(lambda: (inbox / "linked.jpg").hardlink_to(inbox / "made.jpg"))
    bell.rings_for(lambda: (inbox / "made.jpg").rename(inbox / "renamed.jpg"))
    bell.rings_for(lambda: (tmp_path / "album").rename(inbox / "album"))
    bell.rings_for(lambda: (inbox / "album/later.jpg").write_bytes(b"x"))
    bell.rings_for(lambda: (inbox / "new/deep/er").mkdir(parents=True))
    bell.rings_for(lambda: (inbox / "new/deep/er/photo.jpg").write_bytes(b"x"))


def test_what_we_do_ourselves_does_not(watcher, folder, bell):
    (folder.inbox / "sub").mkdir()
    (folder.inbox / "sub/a.jpg").write_bytes(b"x")
    (folder.inbox / "b.jpg").write_bytes(b"x")
    quiet = settled(bell)

    scan(folder)
    (folder.inbox / "sub/a.jpg").read_bytes()
    (folder.inbox / "b.jpg").unlink()

    assert settled(bell) == quiet
    bell.rings_for(lambda: (folder.inbox / "c.jpg").write_bytes(b"x"))  # it was not asleep


def settled(bell: Bell) -> int:
    """The count once no wake has come for a second."""
    count = -1
    while count != bell.count:
        count = bell.count
        threading.Event().wait(1)
    return count


def test_the_canary_is_gone_and_leaves_no_trace(watcher, folder):
    assert list(folder.inbox.iterdir()) == []
    assert scan(folder).ignored == {}


def test_a_canary_that_a_crash_left_is_removed(folder, bell):
    stale = folder.inbox / f"{CANARY}0123"
    stale.mkdir()
    (stale / "file").touch()
    watcher = Watcher([folder], bell)
    watcher.start()
    until(lambda: watcher.health(folder).mode == "events", "the watch")
    watcher.stop()
    assert list(folder.inbox.iterdir()) == []


def test_a_flat_folder_is_watched_too(folder, bell):
    flat = folder.model_copy(update={"recursive": False})
    watcher = Watcher([flat], bell)
    watcher.start()
    until(lambda: watcher.health(flat).mode == "events", "the watch")
    bell.rings_for(lambda: (folder.inbox / "a.jpg").write_bytes(b"x"))
    watcher.stop()


def test_an_inbox_removed_and_made_again_is_watched_again(watcher, folder, bell):
    shutil.rmtree(folder.inbox)
    until(lambda: watcher.health(folder).mode == "polling", "the loss")
    assert watcher.health(folder).reason in ("the inbox is not there", "the watch died")
    folder.inbox.mkdir()
    until(lambda: watcher.health(folder).mode == "events", "the new watch")
    bell.rings_for(lambda: (folder.inbox / "a.jpg").write_bytes(b"x"))


def test_another_folder_in_the_inboxs_place_is_watched(watcher, folder, bell, tmp_path):
    (tmp_path / "other").mkdir()
    folder.inbox.rename(tmp_path / "away")
    (tmp_path / "other").rename(folder.inbox)
    before = bell.count
    until(lambda: bell.count > before and watcher.health(folder).mode == "events", "the watch")
    bell.rings_for(lambda: (folder.inbox / "a.jpg").write_bytes(b"x"))


def test_an_inbox_that_comes_later_is_polled_until_then(folder, bell):
    folder.inbox.rmdir()
    watcher = Watcher([folder], bell, poll_seconds=0.1)
    assert watcher.health(folder).mode == "polling"
    watcher.start()
    until(lambda: watcher.health(folder).reason == "the inbox is not there", "the reason")
    bell.rings_for(lambda: None)
    folder.inbox.mkdir()
    until(lambda: watcher.health(folder).mode == "events", "the watch")
    watcher.stop()


@pytest.mark.parametrize("victim", ["_inotify", "_observer"])
def test_a_thread_of_watchdogs_that_dies_is_noticed_and_replaced(watcher, folder, bell, victim):
    dead = watcher._watches[folder.inbox]._observer
    getattr(dead, victim).stop()
    until(lambda: watcher._watches[folder.inbox]._observer is not dead, "the notice")
    until(lambda: watcher.health(folder).mode == "events", "the new watch")
    bell.rings_for(lambda: (folder.inbox / "a.jpg").write_bytes(b"x"))


def test_a_reload_changes_what_is_watched(watcher, folder, bell, tmp_path):
    second = Folder(inbox=tmp_path / "second", outbox=tmp_path / "out")
    second.inbox.mkdir()
    before = watcher._watches[folder.inbox]

    watcher.replace([folder, second])
    until(lambda: watcher.health(second).mode == "events", "the second watch")
    assert watcher._watches[folder.inbox] is before
    bell.rings_for(lambda: (second.inbox / "a.jpg").write_bytes(b"x"))

    watcher.replace([second])
    assert watcher.health(folder).reason == "it is not watched"
    until(lambda: before._observer is None, "the end of the first")
    bell.rings_for(lambda: (second.inbox / "b.jpg").write_bytes(b"x"))


def test_nothing_wakes_after_the_stop(folder, bell):
    threads = set(threading.enumerate())
    watcher = Watcher([folder], bell, poll_seconds=0.01)
    watcher.start()
    until(lambda: watcher.health(folder).mode == "events", "the watch")
    watcher.stop()
    before = bell.count
    (folder.inbox / "a.jpg").write_bytes(b"x")
    assert set(threading.enumerate()) == threads
    assert bell.count == before


def test_many_watches_leave_no_descriptor_open(folder, bell):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        watcher = Watcher([folder], bell)
        watcher.start()
        until(lambda one=watcher: one.health(folder).mode == "events", "the watch")
        watcher.stop()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    "kind", ["nfs4", "cifs", "9p", "fuse", "fuse.sshfs", "fuse.mergerfs", "vboxsf"]
)
def test_filesystems_that_tell_nothing_are_polled(kind):
    assert kind in silence(kind)


@pytest.mark.parametrize(
    "kind", ["ext4", "xfs", "btrfs", "zfs", "tmpfs", "overlay", "fuseblk", "vfat"]
)
def test_filesystems_of_this_machine_are_watched(kind):
    assert silence(kind) == ""


FLOODED = """
import sys, threading, time
from pathlib import Path
from fluxwatchd.config import Folder
from fluxwatchd.intake.events import Watcher
from fluxwatchd.intake.scan import scan

folder = Folder(inbox=Path(sys.argv[1]), outbox=Path("/nowhere"))
woken = threading.Event()
watcher = Watcher([folder], woken.set, poll_seconds=3600)
watcher.start()
while watcher.health(folder).mode != "events":
    time.sleep(0.01)
print("watching", flush=True)
while True:
    woken.wait()
    woken.clear()
    print(len(scan(folder).entries), flush=True)
"""


def test_a_queue_that_overflowed_is_a_wake_and_new_folders_are_watched(folder):
    """20,000 files while the process is stopped: more than the kernel's queue of events holds."""
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", FLOODED, folder.inbox],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # watchdog says on its own that the queue overflowed
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert next(lines) == "watching\n"
        process.send_signal(signal.SIGSTOP)
        for number in range(max(20_000, limit // 3 + 1000)):  # create, modify, close
            (folder.inbox / f"{number}.jpg").write_bytes(b"x")
        (folder.inbox / "late").mkdir()
        (folder.inbox / "late/a.jpg").touch()
        process.send_signal(signal.SIGCONT)
        total = len(scan(folder).entries)
        assert f"{total}\n" in lines
        (folder.inbox / "late/b.jpg").touch()
        assert f"{total + 1}\n" in lines
        process.kill()
