"""One folder's trouble is its own: what cannot be ended now waits, and everything else goes on."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House, photo, until

from fluxwatchd.intake.events import CANARY
from fluxwatchd.journal import Journal

FAST = "settle_seconds = 0.1\nsettle_timeout = 1.5\nrescan_seconds = 1"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A house whose daemon is gone after the test."""
    made = House(tmp_path, daemon=FAST)
    yield made
    made.kill()


def troubles(house: House) -> dict[str, str]:
    """What `status` calls trouble."""
    with Journal.open(house.state, read_only=True) as journal:
        return dict(journal.snapshot().live.get("trouble", {}))


def states(house: House) -> dict[str, str]:
    """The state of every inbox by its name, as `status` shows it."""
    with Journal.open(house.state, read_only=True) as journal:
        live = journal.snapshot().live
    return {Path(folder["inbox"]).name: folder["state"] for folder in live.get("folders", ())}


def explained(house: House, path: Path) -> str:
    """What `explain` says of a file."""
    command = [sys.executable, "-m", "fluxwatchd", "explain", "--config", str(house.config)]
    return subprocess.check_output([*command, str(path)], text=True)


# --- sources that cannot leave, over restarts -----------------------------------------------


def test_a_source_that_cannot_leave_holds_up_nothing_after_a_restart(house: House) -> None:
    house.archive.mkdir()
    (house.archive / "sub").write_text("in the way")
    stuck = house.drop("sub/a.png", seed=1)
    house.start()
    until(lambda: house.delivered("sub/a.png"), "the result")
    until(lambda: str(stuck) in troubles(house), "the word on it")
    # 1. However often it starts, the others are served and nothing is made twice.
    for number in range(2):
        house.signal(signal.SIGKILL)
        house.wait()
        house.start()
        house.drop(f"free{number}.png", seed=10 + number)
        until(lambda n=number: house.closed(f"free{n}.png"), "the other picture")
        assert "cannot move the source to" in until(lambda: troubles(house).get(str(stuck)), "it")
        assert states(house) == {"in": "ok"}
    assert len(house.places()["outbox"]) == 6
    assert "cannot leave its inbox yet: cannot move the source to" in explained(house, stuck)
    # 2. A file that has taken its place is a picture of its own.
    house.drop("sub/a.png", seed=2)
    until(lambda: house.delivered("sub/a.2.png"), "the new picture's result")
    # 3. Once there is room for it, it leaves.
    (house.archive / "sub").unlink()
    until((house.archive / "sub/a.png").exists, "its leaving")
    assert house.places()["inbox"] == []
    until(lambda: not troubles(house), "the end of the trouble")


def test_a_failed_source_that_cannot_be_set_aside_holds_up_nothing(house: House) -> None:
    house.failed.mkdir()
    (house.failed / "sub").write_text("in the way")
    (house.inbox / "sub").mkdir()
    (house.inbox / "sub/bad.png").write_text("no picture")
    house.start()
    until(lambda: house.events("the source cannot leave the inbox yet"), "the failure")
    house.kill()
    # 1. The next start serves the others, and ends with 1: something is left to do.
    house.drop("free.png")
    assert house.run() == 1, house.said()
    assert house.closed("free.png")
    assert house.places()["inbox"] == ["sub/bad.png"]
    # 2. Then it can be set aside.
    (house.failed / "sub").unlink()
    house.run()
    assert house.places()["failed"] == ["sub/bad.png", "sub/bad.png.error.json"]


# --- full outboxes --------------------------------------------------------------------------


def street(house: House, names: list[str]) -> None:
    """A configuration of several folders; each one's outbox lies in a folder of its own."""
    tables = []
    for name in names:
        (house.root / name).mkdir()
        (house.root / f"{name}-disk").mkdir()
        tables.append(f'[[folder]]\ninbox = "{name}"\noutbox = "{name}-disk/out"\n')
    house.config.write_text(
        "\n".join(tables)
        + f'[defaults]\nvariant = "lanczos"\n[daemon]\nstate_dir = "state"\n{FAST}\n'
    )


def drop(house: House, name: str, picture: str, seed: int) -> None:
    """Put a picture into one of the street's inboxes, in one step."""
    aside = house.root / f"aside-{picture}"
    photo(seed=seed).save(aside)
    aside.rename(house.root / name / picture)


def results(house: House, name: str) -> list[str]:
    """The pictures in one of the street's outboxes."""
    return sorted(path.name for path in (house.root / f"{name}-disk/out").glob("[!.]*.png"))


def begun(house: House, name: str) -> int:
    """How often a picture of a folder was begun."""
    with Journal.open(house.state, read_only=True) as journal:
        rows = {row.id for row in (*journal.snapshot(1000).running, *journal.snapshot(1000).recent)}
        return sum(journal.run(one).inbox.name == name for one in rows)  # type: ignore[union-attr]


def test_outboxes_that_take_nothing_hold_up_no_other_folder(house: House) -> None:
    """Four of them: more than there are writers, and than results that are kept."""
    away = ["one", "two", "three", "four"]
    street(house, [*away, "well"])
    house.start().ready()
    for number, name in enumerate(away):
        shutil.rmtree(house.root / f"{name}-disk")
        drop(house, name, "a.png", seed=number)
    waits = "delivery waits"
    until(lambda: len({e["file"] for e in house.events(waits)}) == 4, "four that wait")
    # 1. The fifth folder is served.
    drop(house, "well", "a.png", seed=10)
    until(lambda: results(house, "well") == ["a.png"], "the other folder's picture")
    waiting = [house.root / name / "a.png" for name in away]
    until(lambda: any("It waits: cannot" in explained(house, p) for p in waiting), "the reason")
    # 2. Its success ends no other's trouble, and no more is taken of a folder that waits.
    assert any("one-disk" in place or "two-disk" in place for place in troubles(house))
    for number in range(3):
        drop(house, "one", f"more{number}.png", seed=20 + number)
    drop(house, "well", "b.png", seed=11)
    until(lambda: results(house, "well") == ["a.png", "b.png"], "the next one")
    assert begun(house, "one") <= 1
    # 3. What was full takes results again: one for each picture, the first at its first attempt.
    for name in away:
        (house.root / f"{name}-disk").mkdir()
    until(lambda: all("a.png" in results(house, name) for name in away), "their results")
    until(lambda: len(results(house, "one")) == 4, "those that came later")
    until(lambda: not troubles(house), "the end of the troubles")
    for name in away:
        assert [n for n in results(house, name) if ".2." in n] == []
        record = json.loads((house.root / f"{name}-disk/out/a.png.json").read_text())
        assert record["attempt"] == 1
    assert house.stop() == 0


def test_a_result_that_waits_goes_back_at_a_stop(house: House) -> None:
    street(house, ["one"])
    house.start().ready()
    shutil.rmtree(house.root / "one-disk")
    drop(house, "one", "a.png", seed=1)
    until(lambda: house.events("delivery waits"), "the wait")
    assert house.stop() == 0
    (house.root / "one-disk").mkdir()
    assert house.run() == 0, house.said()
    assert results(house, "one") == ["a.png"]
    record = json.loads((house.root / "one-disk/out/a.png.json").read_text())
    assert record["attempt"] == 1


@pytest.mark.machine
def test_an_outbox_that_was_emptied_while_a_result_waited_gets_it_whole(house: House) -> None:
    """The staged picture went with the old disk; the result is written once more."""
    house.outbox.mkdir()
    mount("-t", "tmpfs", "-o", "nr_inodes=100", "tmpfs", str(house.outbox))
    try:
        house.start().ready()
        # 1. The picture can be staged (two names are free), its record cannot be linked.
        (house.outbox / "filler").touch()
        mount("-o", "remount,nr_inodes=4", str(house.outbox))
        house.drop("a.png", size=(40, 30))
        until(lambda: house.events("delivery waits"), "the wait")
        # 2. Everything there is removed, behind the daemon's back.
        for path in house.outbox.iterdir():
            path.unlink()
        mount("-o", "remount,nr_inodes=100", str(house.outbox))
        until(lambda: house.closed("a.png"), "the delivery")
        assert house.places()["outbox"] == ["a.png", "a.png.json"]
        assert house.record("a.png")["attempt"] == 1
    finally:
        house.kill()
        unmount(house.outbox)


# --- shares that are away at a start --------------------------------------------------------


def mount(*arguments: str) -> None:
    """mount(8)."""
    subprocess.run(["mount", *arguments], check=True)


def unmount(place: Path) -> None:
    """umount(8), also where nothing is mounted."""
    subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)


@pytest.mark.machine
@pytest.mark.parametrize("role", ["outbox", "archive", "inbox"])
def test_a_share_that_is_away_at_a_start_is_not_replaced(house: House, role: str) -> None:
    share, place = house.root / "share", getattr(house, role)
    share.mkdir()
    place.mkdir(exist_ok=True)
    mount("--bind", str(share), str(place))
    try:
        house.drop("a.png", seed=1)
        assert house.run() == 0, house.said()
        before = house.places()
        # 1. It is gone: the folder waits, with the reason, and nothing is put below the share.
        unmount(place)
        below = house.root / "in" if role != "inbox" else share
        photo(seed=2).save(below / "b.png")
        house.start()
        state = until(lambda: "paused" in states(house).get("in", "") and states(house)["in"], "it")
        assert f"{place} is not mounted" in state
        assert "mounts.json" in state
        # nothing was made below the mount point, but for the trial of a watch, which goes at once
        assert [p.name for p in place.iterdir() if not p.name.startswith(CANARY)] == []
        # 2. It is back: the folder goes on by itself.
        mount("--bind", str(share), str(place))
        until(lambda: house.closed("b.png"), "the second picture")
        assert set(house.places()["outbox"]) > set(before["outbox"])
    finally:
        house.kill()
        unmount(place)


@pytest.mark.machine
def test_a_folder_that_was_moved_for_good_is_used_once_somebody_says_so(house: House) -> None:
    house.outbox.mkdir()
    mount("-t", "tmpfs", "tmpfs", str(house.outbox))
    try:
        house.drop("a.png", seed=1)
        assert house.run() == 0, house.said()
        unmount(house.outbox)
        house.drop("b.png", seed=2)
        house.start()
        until(lambda: "paused" in states(house).get("in", ""), "the pause")
        (house.state / "mounts.json").unlink()
        until(lambda: house.closed("b.png"), "the picture")
        assert house.places()["outbox"] == ["b.png", "b.png.json"]
    finally:
        house.kill()
        unmount(house.outbox)


@pytest.mark.parametrize("role", ["outbox", "failed"])
def test_a_folder_that_is_unusable_at_a_start_waits_if_it_ever_worked(
    house: House, role: str
) -> None:
    place = getattr(house, role)
    place.write_text("in the way")
    # 1. A folder that never had a job: a slip in the configuration, which is told at once.
    assert house.run() == 78
    assert str(place) in house.said()
    place.unlink()
    house.drop("a.png", seed=1)
    assert house.run() == 0, house.said()
    # 2. One that worked before waits with the reason, and goes on by itself.
    kept = house.root / "kept"
    place.rename(kept)
    place.write_text("in the way")
    house.drop("b.png", seed=2)
    house.start().ready()
    state = until(lambda: "paused" in states(house).get("in", "") and states(house)["in"], "it")
    assert str(place) in state
    place.unlink()
    kept.rename(place)
    until(lambda: house.closed("b.png"), "the second picture")
    assert house.stop() == 0


@pytest.mark.machine
def test_a_disk_that_is_full_at_a_start_pauses_its_folder(house: House) -> None:
    house.outbox.mkdir()
    mount("-t", "tmpfs", "-o", "nr_inodes=2", "tmpfs", str(house.outbox))
    try:
        (house.outbox / "filler").touch()
        house.drop("a.png")
        house.start()
        until(lambda: house.events("folder is paused"), "the word on it")
        until(lambda: "No space left" in states(house).get("in", ""), "the pause")
        (house.outbox / "filler").unlink()
        mount("-o", "remount,nr_inodes=100", str(house.outbox))
        until(lambda: house.closed("a.png"), "the picture")
    finally:
        house.kill()
        unmount(house.outbox)


def test_a_folder_whose_outbox_is_changed_to_an_unusable_one_waits(house: House) -> None:
    house.drop("a.png", seed=1)
    assert house.run() == 0, house.said()
    (house.root / "blocked").write_text("in the way")
    text = house.config.read_text()
    house.start().ready()
    house.config.write_text(text.replace('outbox = "out"', 'outbox = "blocked"'))
    state = until(lambda: "paused" in states(house).get("in", "") and states(house)["in"], "it")
    assert "blocked" in state
    house.drop("b.png", seed=2)
    (house.root / "blocked").unlink()
    until(lambda: house.closed("b.png"), "the picture")
    assert (house.root / "blocked" / "b.png").exists()
    assert house.stop() == 0
