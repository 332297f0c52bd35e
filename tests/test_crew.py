"""The reader and writer threads, and those that take the place of ones that a share holds up."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
from house import until

from fluxwatchd.config import Folder, answers
from fluxwatchd.daemon.crew import Crew
from fluxwatchd.daemon.queue import TurnQueue, Waiting
from fluxwatchd.daemon.stints import Stints
from fluxwatchd.delivery import Homes
from fluxwatchd.intake.scan import Entry

HANGS = Folder(inbox=Path("/share/in"), outbox=Path("/share/out"))
WELL = Folder(inbox=Path("/disk/in"), outbox=Path("/disk/out"))


class Hands:
    """Tasks that wait to be let go, and how many were done at once."""

    def __init__(self) -> None:
        self.go, self.lock = threading.Event(), threading.Lock()
        self.now = self.most = self.done = 0

    def wait(self) -> None:
        """One that a share holds up."""
        assert self.go.wait(60)

    def work(self) -> None:
        """One that is soon done."""
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        threading.Event().wait(0.01)
        with self.lock:
            self.now -= 1
            self.done += 1


@pytest.mark.parametrize("count", [1, 3])
def test_those_that_a_share_holds_up_are_replaced_until_it_answers(count: int) -> None:
    hands, stints = Hands(), Stints()
    crew = Crew(count, "crew", stints)
    # 1. All hang, and so nothing is done.
    for number in range(count):
        crew.submit(HANGS, f"{number}.png", hands.wait)
    until(lambda: len(stints.lasting(0)) == count, "their beginning")
    crew.submit(WELL, "a.png", hands.work)
    assert hands.done == 0
    # 2. Others take their places, no more than there were.
    crew.relieve({HANGS.inbox})
    for _ in range(20):
        crew.submit(WELL, "b.png", hands.work)
    until(lambda: hands.done == 21, "the tasks of the other folder")
    assert hands.most <= count
    assert stints.longest(but={HANGS.inbox}) == 0
    # 3. The share answers: as many threads as before.
    hands.go.set()
    crew.relieve(())
    for _ in range(20):
        crew.submit(WELL, "c.png", hands.work)
    crew.close(tuple)
    assert (hands.done, hands.most) == (41, count)


def test_an_end_waits_for_every_task_but_those_that_a_share_holds_up() -> None:
    hands, stints = Hands(), Stints()
    crew = Crew(1, "crew", stints)
    crew.submit(HANGS, "a.png", hands.wait)
    until(lambda: stints.lasting(0), "its beginning")
    for _ in range(3):
        crew.submit(WELL, "b.png", hands.work)
    crew.close(lambda: {HANGS.inbox})
    assert hands.done == 3
    assert [stint.file for stint in stints.lasting(0)] == ["a.png"]
    hands.go.set()
    until(lambda: not stints.lasting(0), "its end")


def test_an_end_may_drop_what_is_not_begun() -> None:
    hands, stints = Hands(), Stints()
    crew = Crew(1, "crew", stints)
    crew.submit(WELL, "a.png", hands.wait)
    until(lambda: stints.lasting(0), "its beginning")
    crew.submit(WELL, "b.png", hands.work)
    threading.Timer(0.1, hands.go.set).start()
    crew.close(tuple, drop=True)
    assert hands.done == 0


class Picture:
    """What a task has."""

    def look(self) -> None:
        """A task."""


def test_a_thread_that_waits_keeps_nothing_of_the_last_task() -> None:
    stints = Stints()
    crew = Crew(1, "crew", stints)
    picture = Picture()
    known = weakref.ref(picture)
    crew.submit(WELL, "a.png", picture.look)
    del picture
    until(lambda: known() is None, "its end")
    crew.close(lambda: ())


def test_what_a_silent_share_holds_up_is_not_waited_for() -> None:
    queued = TurnQueue()
    taken = Waiting(HANGS, Entry("a.png", 1, 1, 0, 1, 0))
    queued.claim(taken)
    assert not queued.empty_but(lambda _: False)
    assert not queued.empty_but(lambda _: False, frozenset({WELL.inbox}))
    assert queued.empty_but(lambda _: False, frozenset({HANGS.inbox}))
    queued.done(taken.key)
    assert queued.empty_but(lambda _: False)


def test_a_folder_that_lies_elsewhere_now_does_not_wait_for_the_share_where_it_lay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, answered = tmp_path / "old", threading.Event()
    visit = answers.visit

    def hangs(place: Path, tell: Callable[[Path], None]) -> None:
        """As visit(), but that `old` answers late."""
        if place == old:
            tell(old)
            assert answered.wait(60)
        visit(place, tell)

    monkeypatch.setattr(answers, "visit", hangs)
    monkeypatch.setattr(answers, "HASTE", 0.2)
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "mounts.json").write_text(json.dumps({str(folder): str(old)}))
    Homes(tmp_path / "mounts.json").check(folder)  # else: Away, or a wait for the share
    answered.set()
    until(lambda: answers.silent([old], 0.0) is None, "the late answer")
