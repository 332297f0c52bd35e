"""A share that hangs (NFS mounted hard whose server is away) stops its own folder and no other."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from house import House, photo, until
from shares import Share
from test_floor import Shop
from test_stuck import troubles

from fluxwatchd.config import Folder
from fluxwatchd.config.answers import Silent
from fluxwatchd.daemon.opening import Opening
from fluxwatchd.delivery import Recovered
from fluxwatchd.journal import Journal

pytestmark = pytest.mark.machine

FAST = "settle_seconds = 0.1\nrescan_seconds = 1"
ROLES = {"inbox": "in", "outbox": "out", "archive": "in-archive", "failed": "in-failed"}


class Street:
    """A house with a second folder on a healthy disk, and a share for a place of the first."""

    def __init__(self, root: Path) -> None:
        self.house = House(root, daemon=FAST)
        self.root, self.share = root, None
        (root / "well").mkdir()
        self.house.config.write_text(
            '[[folder]]\ninbox = "in"\noutbox = "out"\n'
            '[[folder]]\ninbox = "well"\noutbox = "well-out"\n'
            f'[defaults]\nvariant = "lanczos"\n[daemon]\nstate_dir = "state"\n{FAST}\n'
        )

    def mount(self, role: str, *options: str) -> Share:
        """Have one of the first folder's places be a share."""
        self.share = Share(self.root / "behind", self.root / ROLES[role], *options)
        return self.share

    def serves(self, name: str, seed: int) -> None:
        """The folder on the healthy disk is served."""
        aside = self.root / f"aside-{name}"
        photo(seed=seed).save(aside)
        aside.rename(self.root / "well" / name)
        until((self.root / "well-archive" / name).exists, "the other folder's picture", 30)

    def state(self) -> str:
        """What `status` is told of the first folder."""
        with Journal.open(self.house.state, read_only=True) as journal:
            folders = journal.snapshot().live.get("folders", ())
        return next((str(f["state"]) for f in folders if f["inbox"].endswith("/in")), "")

    def silent(self) -> None:
        """Wait until the first folder is set aside, and the place that does not answer is named."""
        assert self.share is not None
        told = f"paused: {self.share.place} does not answer"
        until(lambda: self.state().startswith(told), "the pause", 30)

    def says(self, *words: str, code: int = 0, within: float = 20.0) -> str:
        """What a command says within some seconds, whatever the shares do."""
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-m", "fluxwatchd", *words, "--config", str(self.house.config)],
            timeout=60,
            capture_output=True,
            text=True,
            check=False,
        )
        assert time.monotonic() - began < within
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    def once(self, *names: str) -> None:
        """Each picture was made exactly once, and its source left."""
        found = self.house.places()
        assert found["inbox"] == []
        assert found["failed"] == []
        assert found["outbox"] == sorted(n + e for n in names for e in ("", ".json"))
        assert found["archive"] == sorted(names)


def answering(test: Callable[..., None]) -> Callable[..., None]:
    """Have the share answer as soon as a test is over: pytest looks at files to report on it."""

    @functools.wraps(test)
    def run(street: Street, **arguments: str) -> None:
        try:
            test(street=street, **arguments)
        finally:
            if street.share is not None:
                street.share.answer()

    return run


@pytest.fixture
def street(tmp_path: Path) -> Iterator[Street]:
    made = Street(tmp_path)
    try:
        yield made
    finally:
        made.house.kill()
        if made.share is not None:
            made.share.end()


@pytest.mark.parametrize("role", ["inbox", "outbox"])
@answering
def test_a_share_that_hangs_at_a_start(street: Street, role: str) -> None:
    house, share = street.house, street.mount(role)
    house.drop("a.png", seed=1)
    share.hang()
    # 1. The daemon starts without it, and says so.
    house.start().ready()
    street.silent()
    street.serves("x.png", 10)
    said = next(e for e in house.events("folder is paused"))
    assert f"{share.place} does not answer" in said["why"]
    assert "umount" in said["remedy"]
    # 2. Nobody who asks hangs; the folder is named with the reason.
    assert f"paused: {share.place} does not answer" in street.says("status", within=6)
    told = street.says("retry", str(house.inbox / "a.png"), code=1 if role == "inbox" else 0)
    assert "does not answer" in told or role != "inbox"
    assert f"{share.place} does not answer" in street.says("check", code=78)
    # 3. It answers again, and is taken up by itself.
    share.answer()
    until(lambda: house.closed("a.png"), "the picture")
    until(lambda: street.state() == "ok", "its state")
    street.once("a.png")
    assert house.stop() == 0


@pytest.mark.parametrize("role", ["inbox", "archive"])
@answering
def test_a_share_that_hangs_over_night(street: Street, role: str) -> None:
    """The folder is idle; then its share hangs, somebody asks, and a picture comes."""
    house, share = street.house, street.mount(role)
    house.start().ready()
    first = house.drop("a.png", seed=1)
    until(lambda: house.closed("a.png"), "the first picture")
    until(lambda: street.state() == "ok", "the state")
    share.hang()
    if role != "inbox":
        house.drop("b.png", seed=2)
    # 1. Requests of any kind come back, and so does what the daemon does with them.
    street.says("cancel", str(first), code=1 if role == "inbox" else 2)
    with Journal.open(house.state) as journal:  # as if asked before it hung
        journal.request("retry", house.inbox / "b.png")
    street.serves("x.png", 10)
    street.silent()
    street.serves("y.png", 11)
    assert "does not answer" in street.says("explain", str(house.inbox / "b.png"))
    assert f"paused: {share.place} does not answer" in street.says("status", within=6)
    # 2. A configuration is read again all the same.
    house.config.write_text(house.config.read_text() + "history_days = 7\n")
    until(lambda: house.events("configuration read again"), "the reload")
    street.serves("z.png", 12)
    # 3. It answers again; what was asked for is done.
    share.answer()
    until(lambda: street.state() == "ok", "its state")
    if role == "inbox":
        house.drop("b.png", seed=2)
    until(lambda: house.closed("b.png"), "the second picture")
    asked = ("request done", "request for a file that is not there")
    until(lambda: any(map(house.events, asked)), "the request")
    until(lambda: not house.places()["inbox"], "its leaving")
    street.once("a.png", "b.png")
    assert house.stop() == 0


@answering
def test_a_share_that_hangs_and_is_unmounted_by_force(street: Street) -> None:
    """The remedy that the log and `status` name."""
    house, share = street.house, street.mount("archive")
    house.start().ready()
    house.drop("a.png", seed=1)
    until(lambda: house.closed("a.png"), "the first picture")
    share.hang()
    house.drop("b.png", seed=2)
    street.silent()
    subprocess.run(["umount", "-f", "-l", str(share.place)], check=True)
    until(lambda: "is not mounted, where it lay before" in str(troubles(house)), "its absence")
    assert list(share.place.iterdir()) == []
    share.end()
    street.mount("archive")
    until(lambda: house.closed("b.png"), "the second picture")
    until(lambda: not house.places()["inbox"], "its leaving")
    street.once("a.png", "b.png")


def open_files(house: House) -> set[str]:
    """The names of the files that the daemon has open."""
    assert house.process is not None
    found = set()
    for descriptor in Path(f"/proc/{house.process.pid}/fd").iterdir():
        with suppress(OSError):
            found.add(descriptor.readlink().name)
    return found


@answering
def test_a_share_that_hangs_while_a_picture_is_read(street: Street) -> None:
    house, share = street.house, street.mount("inbox", "--read-rate=20000")
    house.start().ready()
    photo((200, 150), seed=1).save(street.root / "a.png")
    (street.root / "a.png").rename(share.behind / "a.png")
    until(lambda: "a.png" in open_files(house), "the reading")
    share.hang()
    # 1. Others are served by another thread; the folder and what waits in it are named.
    for number in range(3):
        street.serves(f"{number}.png", 10 + number)
    street.silent()
    until(lambda: "a.png" in street.state(), "the picture's name")
    # 2. It goes on where it was.
    share.answer()
    until(lambda: house.closed("a.png"), "the picture")
    street.once("a.png")
    assert house.record("a.png")["attempt"] == 1
    assert house.stop() == 0


@answering
def test_a_share_that_hangs_while_a_result_is_written(street: Street) -> None:
    house, share = street.house, street.mount("outbox", "--write-rate=20000")
    house.start().ready()
    names = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(names):
        house.drop(name, seed=number, size=(60, 40))
    until(lambda: list(share.behind.glob(".*.part")), "the writing")
    share.hang()
    # 1. Others are served, also when every writer there was hangs.
    for number in range(5):
        street.serves(f"{number}.png", 10 + number)
    street.silent()
    # 2. A stop does not wait for it; the process is gone once the kernel lets go of it.
    house.signal(signal.SIGTERM)
    until(lambda: house.events("stopped"), "the end", 30)
    left = house.events("left behind: its share does not answer")
    assert {one["file"] for one in left} <= set(names)
    assert left
    share.answer()
    assert house.wait() == 0
    house.start()
    until(lambda: all(map(house.closed, names)), "the pictures")
    until(lambda: not house.places()["inbox"], "their leaving")
    street.once(*names)


def test_a_thread_that_a_share_holds_up_is_no_hang_but_one_that_nothing_does_is(
    tmp_path: Path,
) -> None:
    """So that the watchdog ends no daemon whose other folders are served."""
    share, over = Share(tmp_path / "behind", tmp_path / "out"), threading.Event()
    try:
        (tmp_path / "in").mkdir()
        with Journal.open(tmp_path / "state") as journal:
            shop = Shop(tmp_path, journal)
            alive = shop.server._reporter.alive
            with shop.server._bell:
                shop.until(shop.floor.ready)
                shop.hang("a.png", over)
                shop.ahead += 1900
                assert not alive()
                share.hang()
                until(alive, "what is known of the share")
                share.answer()
                until(lambda: not alive(), "its answer")
                over.set()
                shop.server._shutdown()
    finally:
        over.set()
        share.end()


def test_a_share_that_hangs_in_the_middle_of_a_recovery(tmp_path: Path) -> None:
    share, go = Share(tmp_path / "behind", tmp_path / "out"), threading.Event()
    folder, opening = Folder(inbox=tmp_path / "in", outbox=tmp_path / "out"), Opening()

    def recover(step: Callable[[], None]) -> Recovered:
        step()
        assert go.wait(60)
        return Recovered()

    try:
        # 1. It is left once nothing of the folder answers, and none begins beside it.
        share.hang()
        with pytest.raises(Silent) as caught:
            opening.recover(folder, recover)
        assert caught.value.place == share.place
        assert opening.is_under_way(folder.inbox)
        # 2. It answers: the recovery is over some time, and another one is waited for.
        share.answer()
        go.set()
        until(lambda: not opening.is_under_way(folder.inbox), "its end")
        assert opening.recover(folder, recover) == Recovered()
    finally:
        go.set()
        share.end()


@answering
def test_until_idle_ends_and_names_what_does_not_answer(street: Street) -> None:
    share = street.mount("inbox")
    share.hang()
    assert street.house.run() == 1
    told: list[dict[str, Any]] = street.house.events("could not be looked into")
    assert f"{share.place} does not answer" in json.dumps(told)
