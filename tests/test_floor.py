"""The shop floor in one thread: a real server's parts, and letters in an order that is rare."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import killed
import pytest
from house import photo, until
from test_recovery import fails_at
from test_systemd import Manager

from fluxwatchd.config import parse
from fluxwatchd.daemon import report
from fluxwatchd.daemon.floor import Floor
from fluxwatchd.daemon.handover import Linger, NoCopy, Waits
from fluxwatchd.daemon.letters import Again, Letter, Stuck
from fluxwatchd.daemon.patience import Patience
from fluxwatchd.daemon.queue import Waiting
from fluxwatchd.daemon.server import Server
from fluxwatchd.daemon.state import NO_JOB
from fluxwatchd.daemon.station import Station
from fluxwatchd.daemon.taking import NotYet, Prepared, Refused, taken_of
from fluxwatchd.daemon.worker import Worker
from fluxwatchd.daemon.writers import Writers
from fluxwatchd.errors import DeliveryFailed, InputRejected, JobFailed
from fluxwatchd.imageio import read
from fluxwatchd.intake.scan import Entry
from fluxwatchd.journal import Journal
from fluxwatchd.work import make_job

CONFIG = """
[[folder]]
inbox = "in"
outbox = "out"
[defaults]
variant = "lanczos"
[daemon]
state_dir = "state"
settle_seconds = 0
"""


class Shop:
    """A server that has started, whose main loop the test turns by hand."""

    def __init__(self, root: Path, journal: Journal) -> None:
        self.root, self.ahead = root, 0.0
        settings = parse(CONFIG, file=root / "config.toml")
        self.server = Server(settings, clock=lambda: time.monotonic() + self.ahead)
        self.server._build(journal)
        self.server._startup()
        self.floor: Floor = self.server._floor

    def reading(self, name: str) -> Waiting:
        """A picture in the inbox that a reader has, as far as the floor knows."""
        path = self.root / "in" / name
        photo().save(path)
        known = path.stat()
        folder = self.server._settings.folders[0]
        entry = Entry(name, known.st_size, known.st_mtime_ns, 0, known.st_ino, 0)
        waiting = Waiting(folder, entry)
        self.floor._queue.claim(waiting)
        self.floor.tally.reading.add(waiting.key)
        return waiting

    def hang(self, name: str, until: threading.Event) -> None:
        """Have a writer thread at a picture until then."""
        waiting, began = self.reading(name), threading.Event()
        self.floor.tally.reading.discard(waiting.key)

        def task() -> None:
            began.set()
            until.wait(60)

        self.floor._hand(waiting, taken_of(waiting), task, "neither")
        assert began.wait(20)

    def turn(self) -> bool:
        """One round of the main loop; True, to be said in a condition."""
        self.floor.read_letters()
        self.server._inboxes.look()
        self.floor.feed()
        return True

    def until(self, found: Callable[[], object]) -> None:
        """Read letters until there is something."""
        end = time.monotonic() + 20
        while not found():
            assert time.monotonic() < end
            self.floor.read_letters()
            time.sleep(0.02)


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "in").mkdir()
    with Journal.open(tmp_path / "state") as journal:
        made = Shop(tmp_path, journal)
        with made.server._bell:
            yield made
            made.server._shutdown()


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """systemd's socket."""
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    one = Manager(address)
    yield one
    one.socket.close()


def reason(shop: Shop, name: str) -> str:
    """Why a picture lies in failed/."""
    told = json.loads((shop.root / "in-failed" / f"{name}.error.json").read_text())
    assert (shop.root / "in-failed" / name).exists()
    return str(told["why"])


BROKEN = InputRejected("a.png: the end is missing", transient=True)
SHORT = JobFailed("the file could not be read", transient=True)


@pytest.mark.parametrize(
    "found",
    [
        lambda waiting: NotYet(waiting, "later", BROKEN),
        lambda waiting: NotYet(waiting, "later"),
        lambda waiting: Refused(waiting, taken_of(waiting), SHORT, counted=False),
        lambda waiting: Refused(waiting, taken_of(waiting), BROKEN, counted=False),
    ],
    ids=["not whole", "written to", "put off", "refused"],
)
def test_a_file_cancelled_while_it_is_read_is_set_aside_whatever_it_holds(
    shop: Shop, found: Callable[[Waiting], NotYet | Refused]
) -> None:
    waiting = shop.reading("a.png")
    assert shop.floor.cancel(waiting)
    shop.floor.send(found(waiting))
    shop.until(lambda: shop.floor.tally.failed)
    assert "was cancelled" in reason(shop, "a.png")
    assert not shop.floor.outstanding()


def test_a_file_that_was_cancelled_and_is_another_by_now_stays(shop: Shop) -> None:
    waiting = shop.reading("a.png")
    assert shop.floor.cancel(waiting)
    shop.floor.send(NotYet(waiting, "gone"))
    shop.until(lambda: not shop.floor.outstanding())
    assert (shop.root / "in" / "a.png").exists()
    assert shop.floor.tally.failed == 0


def test_every_device_has_a_picture_before_one_has_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GPUs, on each of which two pictures are under way."""
    (tmp_path / "in").mkdir()
    monkeypatch.setattr(Server, "_devices", lambda self, settings: ("cpu", "cpu"))
    monkeypatch.setattr(Station, "workers", 2)
    with Journal.open(tmp_path / "state") as journal:
        shop = Shop(tmp_path, journal)
        given: list[Worker] = []
        monkeypatch.setattr(Worker, "give", lambda worker, prepared: given.append(worker))
        with shop.server._bell:
            shop.until(shop.floor.ready)
            for number in range(4):
                waiting = shop.reading(f"{number}.png")
                shop.floor.tally.reading.discard(waiting.key)
                profile = shop.server._settings.folder_profile(waiting.folder)
                job = make_job(replace(taken_of(waiting), sha256=f"{number}" * 64), profile)
                shop.floor.tally.ready.append(Prepared(waiting, job, read(waiting.path)))
            shop.floor.feed()
            shop.floor.tally.busy.clear()
            shop.server._shutdown()
    first, second = shop.floor.stations
    assert [worker.station for worker in given] == [first, second, first, second]


def test_a_copy_that_waited_and_cannot_be_made_any_more_is_no_success(shop: Shop) -> None:
    waiting = shop.reading("a.png")
    profile = shop.server._settings.folder_profile(waiting.folder)
    job = make_job(replace(taken_of(waiting), sha256="0" * 64), profile)
    prepared = Prepared(waiting, job, read(waiting.path))
    letters: list[Letter] = []
    writers = Writers(shop.floor._handover, letters.append, 1)

    def gone() -> None:
        raise NoCopy(prepared)

    def first() -> None:
        raise Waits(job, DeliveryFailed("no room", transient=True), gone)

    for task in (first, gone):
        writers.hand(waiting, job, task, "done")
    writers.shutdown()
    stuck, again = letters
    assert isinstance(stuck, Stuck)
    assert stuck.linger.again is gone
    assert isinstance(again, Again)
    assert again.prepared is prepared


def test_a_result_is_given_up_only_once_its_outbox_holds_nothing_of_it(shop: Shop) -> None:
    """Else its picture would be made again beside a result that is whole."""
    # 1. A result that is committed, as far as the outbox goes, when its share goes away.
    waiting = shop.reading("a.png")
    profile = shop.server._settings.folder_profile(waiting.folder)
    job = make_job(replace(taken_of(waiting), sha256="0" * 64), profile)
    job = replace(job, attempt=shop.server._journal.begin(job))
    shop.server._journal.delivering(job)
    delivery, outbox = shop.server._delivery, shop.root / "out"
    staged = delivery.stage(job, ".png", lambda file: file.write(b"a result") and None)
    with pytest.MonkeyPatch.context() as share:
        fails_at(share, 2)
        with pytest.raises(DeliveryFailed):
            delivery.commit(staged, lambda name: killed.record_of(staged, name))
    assert (outbox / "a.png").exists()
    outbox.rename(shop.root / "away")
    outbox.write_text("in the way")
    handover = shop.floor._handover
    waits = handover._waits(job, DeliveryFailed("no room", transient=True), lambda: None, staged)
    # 2. It is one too many: its picture stays taken until the outbox is back.
    writers = Writers(handover, letters := Letters(), 1)
    writers.hand(waiting, job, lambda: handover.give_back(waits), "neither")
    writers.shutdown()
    (stuck,) = letters
    assert isinstance(stuck, Stuck)
    assert isinstance(stuck.linger, Linger)
    assert not isinstance(stuck.linger, Waits)
    assert state_of(shop, job.id) == "delivering"
    # 3. Then it is given back, once, and nothing of it is left.
    outbox.unlink()
    (shop.root / "away").rename(outbox)
    stuck.linger.again()
    assert list(outbox.iterdir()) == []
    assert state_of(shop, job.id) == "interrupted"


class Letters(list[Letter]):
    """What writers say, kept."""

    def __call__(self, letter: Letter) -> None:
        self.append(letter)


def state_of(shop: Shop, job_id: str) -> str:
    """What the journal says of a job."""
    row = shop.server._journal.run(job_id)
    assert row is not None
    return row.state


def test_a_share_that_fails_slowly_stalls_no_other_picture(shop: Shop) -> None:
    """Many sources that cannot leave, all due at once, and each try takes for ever."""
    slow, tries = threading.Event(), []

    def again() -> None:
        tries.append(time.monotonic())
        slow.wait(60)

    try:
        for number in range(8):
            waiting = shop.reading(f"stuck{number}.png")
            job = taken_of(waiting)
            linger = Linger(job, DeliveryFailed("the share is slow", transient=True), again)
            shop.floor.send(Stuck(waiting, job, linger, "neither", reading=True))
        shop.until(lambda: shop.turn() and tries)
        photo(seed=5).save(shop.root / "in" / "free.png")
        shop.until(lambda: shop.turn() and (shop.root / "in-archive" / "free.png").exists())
        assert len(tries) == 1
    finally:
        slow.set()
    shop.until(lambda: shop.turn() and len(tries) == 8)


def test_a_writer_or_reader_that_hangs_is_no_sign_of_life(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.until(shop.floor.ready)
    alive, over = shop.server._reporter.alive, threading.Event()
    try:
        # 1. A slow disk is no hang, an hour at one file is.
        shop.hang("a.png", over)
        shop.ahead += 1700
        assert alive()
        shop.ahead += 200
        assert not alive()
        # 2. But not where it waits for room in the state folder.
        shop.server._troubles.note(shop.root, NO_JOB, JobFailed("no room"))
        assert alive()
        shop.server._troubles.end(NO_JOB)
        assert not alive()
    finally:
        over.set()
    shop.until(lambda: not shop.floor.outstanding())
    assert alive()
    # 3. The same for a reader.
    over.clear()
    began = threading.Event()

    def take(*_: object, **__: object) -> NotYet:
        began.set()
        over.wait(60)
        return NotYet(waiting, "gone")

    monkeypatch.setattr(shop.floor._taker, "take", take)
    waiting = shop.reading("b.png")
    shop.floor._read(waiting)
    assert began.wait(20)
    shop.ahead += 1900
    assert not alive()
    over.set()
    shop.until(lambda: not shop.floor.outstanding())
    assert alive()


def test_a_stop_asks_for_time_as_long_as_something_moves_on(
    shop: Shop, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "EXTEND_EVERY", 0.05)
    shop.until(shop.floor.ready)
    over = threading.Event()
    shop.hang("a.png", over)
    stopping = threading.Thread(target=shop.server._shutdown)
    stopping.start()
    try:
        until(lambda: manager.heard() == {"EXTEND_TIMEOUT_USEC": "60000000"}, "the first")
        assert manager.heard() == {"EXTEND_TIMEOUT_USEC": "60000000"}
        # A writer that hangs gets no more.
        shop.ahead += 1900
        manager.socket.settimeout(1)
        with pytest.raises(TimeoutError):
            for _ in range(10):
                manager.heard()
    finally:
        over.set()
        stopping.join(20)


def test_a_start_asks_for_time_while_it_looks_for_what_a_crash_left(
    tmp_path: Path, manager: Manager
) -> None:
    for number in range(5):
        (tmp_path / "out" / f"{number}").mkdir(parents=True)
    times = itertools.count(0.0, 1.0)
    server = Server(parse(CONFIG, file=tmp_path / "config.toml"), clock=lambda: next(times))
    with Journal.open(tmp_path / "state") as journal, server._bell:
        server._build(journal)
        server._open_first(server._settings.folders[0])
    heard = [manager.heard() for _ in range(6)]
    assert heard.count({"EXTEND_TIMEOUT_USEC": "90000000"}) == 2
    assert heard.count({"WATCHDOG": "1"}) == 2


@pytest.mark.parametrize("tries", [1, 3, 9])
def test_each_place_is_tried_once_at_a_time_and_the_longest_due_first(
    shop: Shop, tries: int
) -> None:
    patience = Patience(most=9, tries=tries)
    (folder,) = shop.server._settings.folders
    for number in range(3):
        for name in ("one", "two", "three"):
            own = folder.model_copy(update={"inbox": shop.root / name})
            waiting = Waiting(own, Entry(f"{number}.png", 1, 1, 0, 1, 0))
            job = replace(taken_of(waiting), id=f"{name}{number}")
            why = DeliveryFailed("no", transient=True)
            patience.add(Stuck(waiting, job, Linger(job, why, lambda: None)), float(number))
    seen = []
    while due := patience.due(100.0):
        assert len(due) == min(tries, 3)
        assert len({stuck.waiting.folder.inbox for stuck in due}) == len(due)
        assert patience.due(100.0) == ()
        seen += [stuck.job.id for stuck in due]
        for stuck in due:
            patience.end(stuck.job.id)
    assert [one[-1] for one in seen] == list("000111222")
