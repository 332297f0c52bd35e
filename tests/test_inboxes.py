"""The inboxes as the daemon sees them: real folders, a real journal, clocks moved by hand."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from house import until
from hypothesis import given
from hypothesis import strategies as st

from fluxwatchd.config import Folder, parse
from fluxwatchd.daemon import inboxes, looking
from fluxwatchd.daemon.inboxes import Inboxes
from fluxwatchd.daemon.queue import TurnQueue, Waiting
from fluxwatchd.daemon.taking import pause_after
from fluxwatchd.errors import JobFailed
from fluxwatchd.intake.scan import Entry, Scan, scan
from fluxwatchd.job import Taken
from fluxwatchd.journal import Journal

CONFIG = """
[[folder]]
inbox = "in"
outbox = "out"
[daemon]
state_dir = "state"
settle_seconds = 0
rescan_seconds = 3600
"""


class Room:
    """One inbox, looked into by hand."""

    def __init__(self, root: Path, journal: Journal) -> None:
        self.now = self.costs = 0.0
        settings = parse(CONFIG, file=root / "config.toml")
        self.folder: Folder = settings.folders[0]
        self.journal, self.queue = journal, TurnQueue()
        self.boxes = Inboxes(settings, journal, self.queue, lambda: None, self._clock)

    def _clock(self) -> float:
        """Every look at it takes ``costs`` s."""
        self.now += self.costs
        return self.now

    def look(self) -> None:
        """A look that is due because something changed."""
        self.boxes.touch()
        self.now += 3600
        assert self.boxes.look()

    def take(self, *, idle: bool = True) -> Waiting | None:
        return self.boxes.take(only_alone=False, idle=idle)

    def taken(self) -> list[str]:
        """The names of all that may be taken now."""
        return [waiting.entry.name for waiting in iter(self.take, None)]

    def hold(self, entry: Entry, *, held: bool = True) -> None:
        self.journal.hold(
            self.folder, entry.relative, size=entry.size, mtime_ns=entry.mtime_ns, held=held
        )

    def entries(self) -> tuple[Entry, ...]:
        view = self.boxes._views[self.folder.inbox]
        assert view.scan is not None
        return view.scan.entries


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    (tmp_path / "in").mkdir()
    with Journal.open(tmp_path / "state") as journal:
        yield Room(tmp_path, journal)


def drop(room: Room, *names: str) -> None:
    for number, name in enumerate(names):
        path = room.folder.inbox / name
        path.write_bytes(b"x")
        os.utime(path, (1000 + number, 1000 + number))


def test_what_is_held_is_not_given_and_what_is_released_is_without_a_scan(room: Room) -> None:
    drop(room, "a.png", "b.png", "c.png")
    room.look()
    a, b, _ = room.entries()
    room.hold(a)
    room.hold(b)
    room.boxes.refresh()
    (told,) = room.boxes.describe()
    assert (told["pending"], told["held"]) == (1, 2)
    assert room.taken() == ["c.png"]
    room.hold(b, held=False)
    room.boxes.refresh()
    assert room.taken() == ["b.png"]  # and neither of those that are under way


def test_a_file_put_off_is_given_when_its_time_comes(room: Room) -> None:
    drop(room, "a.png", "b.png")
    room.look()
    first = room.take()
    assert first is not None
    job = Taken("0" * 16, room.folder, Path("a.png"), first.entry.size, first.entry.mtime_ns)
    room.journal.begin(job)
    due = time.time() + 0.3
    room.journal.fail(job.id, JobFailed("no memory", transient=True), next_try=due)
    room.queue.done(first.key)
    room.look()
    assert room.taken() == ["b.png"]
    (told,) = room.boxes.describe()
    assert told["pending"] == 1
    assert room.boxes.pending()
    while time.time() < due:
        time.sleep(0.05)
    room.now += room.boxes.wait()
    assert not room.boxes.look()  # no scan for that
    assert room.taken() == ["a.png"]


@pytest.mark.alone
def test_twenty_thousand_held_of_a_hundred_and_twenty_thousand_cost_next_to_nothing(
    room: Room, capsys: pytest.CaptureFixture[str]
) -> None:
    # 1. 120,000 files; as links, a filesystem allows 65,000 of one file.
    for number in range(120_000):
        if number % 30_000 == 0:
            source = room.folder.inbox.parent / f"{number}"
            source.write_bytes(b"x")
            os.utime(source, (number, number))
        os.link(source, room.folder.inbox / f"p{number:06}.png")
    room.look()
    # 2. 20,000 of them are held, the oldest: those whose turn would come first.
    held = room.entries()[:20_000]
    with room.journal._store.lock, room.journal._store._main as change:
        change.execute("BEGIN")
        change.executemany(
            "INSERT INTO files (inbox, relative, size, mtime_ns, held, changed) "
            "VALUES (?, ?, ?, ?, 1, 0)",
            [
                (os.fsencode(room.folder.inbox), os.fsencode(e.name), e.size, e.mtime_ns)
                for e in held
            ],
        )
    first = seconds(lambda: room.journal.file_states(room.folder))
    room.look()
    # 3. From then on only what changed is read, and no turn goes through them.
    again = seconds(lambda: room.journal.file_states(room.folder))
    took = seconds(lambda: [room.take() for _ in range(100)])
    room.hold(held[7], held=False)
    refreshed = seconds(room.boxes.refresh)
    with capsys.disabled():
        print(
            f"\n20,000 held: read once in {first * 1e3:.0f} ms, then in {again * 1e3:.2f} ms; "
            f"100 turns in {took * 1e3:.1f} ms; a release in {refreshed * 1e3:.0f} ms"
        )
    (told,) = room.boxes.describe()
    assert (told["held"], told["pending"]) == (19_999, 99_901)
    assert again < 0.01
    assert took < 0.05
    assert refreshed < 0.5


def test_a_scan_that_takes_longer_than_rescan_seconds_does_not_begin_at_once_again(
    room: Room,
) -> None:
    room.costs = 5000
    assert room.boxes.look()
    room.costs = 0
    assert room.boxes.wait() == 3600


def test_what_was_found_counts_while_a_scan_takes_long_but_not_once_it_gets_no_further(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(room, "a.png", "b.png")
    room.look()
    (told,) = room.boxes.describe()
    assert (told["state"], told["pending"]) == ("ok", 2)
    # 1. The next scan is a slow one.
    moves, over = threading.Event(), threading.Event()
    moves.set()

    def slow(folder: Folder, last: Scan | None, beat: Callable[[], None]) -> Scan:
        while not over.wait(0.01):
            if moves.is_set():
                beat()
        return scan(folder, last)

    monkeypatch.setattr(looking, "scan", slow)
    monkeypatch.setattr(looking, "PATIENCE", 0.5)
    room.look()
    (told,) = room.boxes.describe()
    assert (told["state"], told["pending"]) == ("ok", 2)
    assert room.take() is not None
    assert room.boxes.pending()
    # 2. It gets no further: nothing of the folder is taken, for who reads of it would hang.
    moves.clear()
    until(lambda: (room.look(), room.boxes.describe()[0]["state"] != "ok")[1], "silence")
    assert room.boxes.describe()[0]["state"] == f"paused: {room.folder.inbox} does not answer"
    assert room.take() is None
    assert room.boxes.reopened() == ()
    # 3. It is over at last.
    over.set()
    until(lambda: (room.look(), room.boxes.describe()[0]["state"] == "ok")[1], "its end")
    assert room.taken() == ["b.png"]


@given(attempt=st.integers(-3, 10**6), jitter=st.floats(0, 1))
def test_pauses_grow_up_to_ten_minutes_a_quarter_more_or_less(attempt: int, jitter: float) -> None:
    plain = pause_after(attempt, jitter=0.5)
    assert 5 <= plain <= 600
    assert plain <= pause_after(attempt + 1, jitter=0.5) <= 2 * plain
    assert 0.75 * plain <= pause_after(attempt, jitter=jitter) <= 1.25 * plain
    assert pause_after(attempt, jitter=0) < pause_after(attempt, jitter=1) < inboxes.LONGEST_WAIT


def test_the_first_pauses_are_five_ten_and_twenty_seconds() -> None:
    assert [pause_after(n, jitter=0.5) for n in (1, 2, 3, 7, 8, 9)] == [5, 10, 20, 320, 600, 600]
    assert (pause_after(1, jitter=0), pause_after(1, jitter=1)) == (3.75, 6.25)


def test_no_other_is_taken_while_one_that_must_run_alone_waits_for_its_turn(room: Room) -> None:
    drop(room, "a.png", "b.png", "c.png")
    room.look()
    a, b, _ = room.entries()
    job = Taken("0" * 16, room.folder, Path("b.png"), b.size, b.mtime_ns)
    room.journal.begin(job)
    room.journal.crashed(job.id)
    room.look()
    assert room.take(idle=False) == Waiting(room.folder, a)
    assert room.take(idle=False) is None
    assert room.take(idle=False) is None
    assert room.take() == Waiting(room.folder, b)
    assert room.taken() == ["c.png"]


@pytest.mark.parametrize("ahead", [-7200.0, 7200.0], ids=["set back", "set forward"])
def test_a_clock_that_is_set_puts_no_file_off_for_longer_than_any_pause(
    room: Room, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    drop(room, "a.png")
    room.look()
    first = room.take()
    assert first is not None
    job = Taken("0" * 16, room.folder, Path("a.png"), first.entry.size, first.entry.mtime_ns)
    room.journal.begin(job)
    wall = time.time
    due = wall() + pause_after(99, jitter=1)
    room.journal.fail(job.id, JobFailed("no memory", transient=True), next_try=due)
    room.queue.done(first.key)
    room.look()
    assert room.taken() == []
    monkeypatch.setattr(time, "time", lambda: wall() + ahead)
    room.look()
    assert room.taken() == ["a.png"]


def seconds(task: Callable[[], object]) -> float:
    """Processor time, so that a busy machine does not count."""
    start = time.process_time()
    task()
    return time.process_time() - start


def test_a_place_that_leads_out_of_the_inbox_holds_no_file(room: Room) -> None:
    outside = room.folder.inbox.parent / "outside"
    outside.mkdir()
    (outside / "x.png").write_bytes(b"x")
    (room.folder.inbox / "link").symlink_to(outside)
    drop(room, "a.png")
    assert room.boxes.entry(room.folder, Path("a.png")) is not None
    for way_out in ("link/x.png", "../outside/x.png", "link", "nothing.png"):
        assert room.boxes.entry(room.folder, Path(way_out)) is None
