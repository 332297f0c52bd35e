"""SIGHUP, SIGTERM and SIGINT at every moment of the daemon's life, its first and its last too."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House, until

from fluxwatchd.signals import Stop

STOPS = [signal.SIGTERM, signal.SIGINT]


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A house whose daemon is gone after the test."""
    made = House(tmp_path)
    yield made
    made.kill()


def holds_back(house: House) -> bool:
    """Whether the process has got as far as its first line: the kernel keeps the signals."""
    assert house.process is not None
    text = Path(f"/proc/{house.process.pid}/status").read_text()
    (blocked,) = [line.split()[1] for line in text.splitlines() if line.startswith("SigBlk")]
    return bool(int(blocked, 16) >> (signal.SIGTERM - 1) & 1)


MOMENTS = {
    "at its first line": holds_back,
    "once it has locked its folder": lambda house: (house.state / "lock").exists(),
    "once it has a journal": lambda house: (house.state / "journal.sqlite").exists(),
    "once it makes folders": lambda house: house.outbox.exists(),
}


@pytest.mark.parametrize("number", STOPS, ids=lambda number: number.name)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stop_in_the_first_half_second_is_a_clean_one(
    house: House, number: int, moment: str
) -> None:
    house.drop("a.png")
    house.start()
    until(lambda: MOMENTS[moment](house), moment)
    house.signal(number)
    assert house.wait(20) == 0, house.said()
    assert len(house.events("stopped")) == 1
    assert "Traceback" not in house.said()
    assert len(house.places()["inbox"] + house.places()["archive"]) == 1
    assert house.run() == 0, house.said()
    assert house.delivered("a.png")


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_hangup_in_the_first_half_second_ends_nothing(house: House, moment: str) -> None:
    house.start()
    until(lambda: MOMENTS[moment](house), moment)
    house.signal(signal.SIGHUP)
    until(lambda: house.events("configuration read again"), "the reload")
    assert house.stop() == 0


@pytest.mark.parametrize("number", [*STOPS, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_while_it_ends_by_itself_changes_nothing(house: House, number: int) -> None:
    """From its last log line to the end of the process, as fast as they can be sent."""
    house.drop("bad.png").write_bytes(b"no picture")
    house.start("--until-idle")
    until(lambda: house.events("stopped"), "its last line")
    while not house.ended():
        house.signal(number)
    assert house.wait() == 1, house.said()
    assert "Traceback" not in house.said()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """The first one waits for the writer; the next start finds the picture where it was."""
    house = House(tmp_path, 'variant = "lanczos"\nscale = 8')
    try:
        house.start().ready()
        house.drop("big.png", size=(900, 700))
        until(lambda: list(house.outbox.glob(".*.part")), "seconds of encoding")
        house.signal(signal.SIGTERM)
        until(lambda: house.events("stopping"), "the drain")
        assert not house.ended()
        house.signal(signal.SIGTERM)
        assert house.wait(5) == 128 + signal.SIGTERM
        assert not house.events("stopped")
        assert house.places()["inbox"] == ["big.png"]
        assert not house.delivered("big.png")
        assert house.run() == 0, house.said()
        assert house.places()["outbox"] == ["big.png", "big.png.json"]
    finally:
        house.kill()


def test_hangups_while_it_stops_change_nothing(house: House) -> None:
    house.start().ready()
    house.signal(signal.SIGTERM)
    while not house.ended():
        house.signal(signal.SIGHUP)
    assert house.wait() == 0, house.said()
    assert len(house.events("stopped")) == 1


def test_a_stop_is_heard_by_all_who_wait_and_by_those_who_come_later() -> None:
    stop = Stop()
    heard: list[bool] = []
    waiting = [threading.Thread(target=lambda: heard.append(stop.wait(30))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    assert not stop.wait(0.01)
    assert not stop.is_set()
    stop.set()
    stop.set()
    for thread in waiting:
        thread.join(10)
    assert heard == [True] * 3
    assert stop.is_set()
    assert stop.wait()


def test_a_handler_may_set_it_while_the_main_thread_sets_it() -> None:
    """threading.Event hangs here sooner or later: the handler waits for the lock it stands on."""
    code = (
        "import os, signal, sys, threading, time\n"
        "from fluxwatchd.signals import Stop\n"
        "stops = []\n"
        "signal.signal(signal.SIGALRM, lambda *_: [stop.set() for stop in stops])\n"
        "signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)\n"
        "end = time.monotonic() + 2\n"
        "while time.monotonic() < end:\n"
        "    stops[:] = [Stop()]\n"
        "    stops[0].set()\n"
        "    stops[0].wait(0.0001)\n"
        "    assert stops[0].is_set()\n"
        "signal.setitimer(signal.ITIMER_REAL, 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert done.returncode == 0


def test_the_first_half_second_is_all_that_is_waited(house: House) -> None:
    """Signals are held back only until the daemon can handle them, not while it loads."""
    house.start().ready()
    assert not holds_back(house)
    began = time.monotonic()
    assert house.stop() == 0
    assert time.monotonic() - began < 10
