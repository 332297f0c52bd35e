"""Requests that nobody should have made, and many at once: told, answered, and the daemon lives."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House, photo, until


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A house whose daemon is gone after the test."""
    made = House(tmp_path)
    yield made
    made.kill()


def write(house: House, *rows: tuple[object, object]) -> None:
    """Requests written by hand: (kind, path)."""
    database = sqlite3.connect(house.state / "journal.sqlite", timeout=30)
    with database:
        database.executemany("INSERT INTO requests (kind, path, at) VALUES (?, ?, 0)", rows)
    database.close()


def waiting(house: House) -> int:
    """How many requests wait."""
    database = sqlite3.connect(house.state / "journal.sqlite", timeout=30)
    (count,) = database.execute("SELECT count(*) FROM requests").fetchone()
    database.close()
    return int(count)


def test_requests_that_make_no_sense_are_told_and_dropped(house: House) -> None:
    outside = house.root / "outside.png"
    photo().save(outside)
    (house.inbox / "link").symlink_to(house.root)
    house.start().ready()
    inbox = os.fsencode(house.inbox)
    rows: list[tuple[object, object]] = [
        (kind, path)
        for kind in ("cancel", "hold", "release", "retry")
        for path in (
            inbox + b"/../outside.png",
            inbox + b"/link/outside.png",
            inbox,
            inbox + b"/nowhere/x.png",
            inbox + b"/" + b"n" * 300 + b".png",
            inbox + b"/" + b"d/" * 3000 + b"x.png",
            inbox + b"/nul\0.png",
            b"relative.png",
            b"/etc/passwd",
            b"",
            "text.png",
            7,
        )
    ]
    write(house, *rows, ("burn", inbox + b"/a.png"), (3, b"/x"))
    until(lambda: house.ended() or waiting(house) == 0, "the end of them")
    assert not house.ended(), house.said()
    told = [
        *house.events("request not possible"),
        *house.events("request for a file that is not there"),
    ]
    assert len(told) + len(house.events("request done")) == len(rows) + 2
    assert not house.events("request done")
    assert outside.exists()
    assert Path("/etc/passwd").exists()
    house.drop("a.png", seed=1)
    until(lambda: house.closed("a.png"), "a picture after all that")
    assert house.stop() == 0


def test_a_file_held_while_it_is_written_stays_held_when_it_is_whole(house: House) -> None:
    whole = house.root / "whole.png"
    photo((60, 40)).save(whole)
    data = whole.read_bytes()
    house.start().ready()
    with (house.inbox / "slow.png").open("wb") as file:
        file.write(data[:100])
        file.flush()
        write(house, ("hold", os.fsencode(house.inbox / "slow.png")))
        until(lambda: house.events("request done"), "the hold")
        file.write(data[100:])
    house.drop("later.png", seed=3)
    until(lambda: house.closed("later.png"), "a picture that came later")
    house.drop("last.png", seed=4)
    until(lambda: house.closed("last.png"), "and another")
    assert (house.inbox / "slow.png").exists()
    write(house, ("release", os.fsencode(house.inbox / "slow.png")))
    until(lambda: house.closed("slow.png"), "the picture, released")
    assert house.stop() == 0


def test_ten_thousand_requests_at_once_hold_up_no_picture(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    held = [house.drop(f"{number}.png", seed=number) for number in range(5)]
    house.start().ready()
    until(lambda: all(house.closed(path.name) for path in held), "the first pictures")
    began = time.monotonic()
    write(house, *[("release", os.fsencode(house.inbox / "x.png"))] * 5000)
    kept = house.drop("kept.png", seed=20)
    write(house, *[("hold", os.fsencode(kept))] * 5000)
    # 1. Pictures come between them.
    house.drop("between.png", seed=9)
    until(lambda: house.closed("between.png"), "a picture")
    between = time.monotonic() - began
    # 2. All of them are answered.
    until(lambda: waiting(house) == 0, "the end of them", 200)
    with capsys.disabled():
        print(
            f"\n10,000 requests at once: a picture between them after {between:.1f} s, "
            f"all done after {time.monotonic() - began:.0f} s"
        )
    assert house.stop() == 0
