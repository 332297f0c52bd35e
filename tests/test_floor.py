"""The shop floor in one thread: a real server's parts, and letters in an order that is rare."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from house import photo

from fluxwatchd.config import parse
from fluxwatchd.daemon.floor import Floor
from fluxwatchd.daemon.handover import NoCopy, Waits
from fluxwatchd.daemon.letters import Again, Letter, Stuck
from fluxwatchd.daemon.queue import Waiting
from fluxwatchd.daemon.server import Server
from fluxwatchd.daemon.taking import NotYet, Prepared, Refused, taken_of
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
        self.root = root
        self.server = Server(parse(CONFIG, file=root / "config.toml"))
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
