"""The daemon, whole: the real process, watchdog, SQLite and model, from drop to result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House, photo, until
from PIL import Image

from fluxwatchd.journal import Journal


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A house whose daemon is gone after the test."""
    made = House(tmp_path)
    yield made
    made.kill()


@pytest.fixture
def running(house: House) -> House:
    """A house with a daemon that serves."""
    return house.start().ready()


def test_a_picture_that_was_there_before_the_start(house: House) -> None:
    house.drop("a.png")
    assert house.run() == 0, house.said()
    assert house.places() == {
        "inbox": [],
        "outbox": ["a.png", "a.png.json"],
        "archive": ["a.png"],
        "failed": [],
    }
    with Image.open(house.outbox / "a.png") as result:
        assert result.size == (48, 32)


def test_a_picture_dropped_while_it_runs(running: House) -> None:
    running.drop("a.png")
    until(lambda: running.closed("a.png"), "the picture")
    assert running.delivered("a.png")


def test_a_picture_written_slowly_in_chunks_is_taken_once_and_whole(running: House) -> None:
    whole = running.root / "whole.png"
    photo((160, 120)).save(whole)
    data = whole.read_bytes()
    with (running.inbox / "slow.png").open("wb") as file:
        for start in range(0, len(data), len(data) // 6 + 1):
            file.write(data[start : start + len(data) // 6 + 1])
            file.flush()
            time.sleep(0.3)  # longer than settle_seconds: the point of the test
    until(lambda: running.closed("slow.png"), "the picture")
    assert running.places()["outbox"] == ["slow.png", "slow.png.json"]
    with Image.open(running.outbox / "slow.png") as result:
        assert result.size == (320, 240)
    assert (running.archive / "slow.png").read_bytes() == data


def test_a_picture_renamed_in_from_a_name_that_is_ignored(running: House) -> None:
    photo().save(running.inbox / "b.png.part", format="PNG")
    (running.inbox / "b.png.part").rename(running.inbox / "b.png")
    until(lambda: running.closed("b.png"), "the picture")
    assert running.delivered("b.png")


def test_a_picture_linked_in(running: House) -> None:
    elsewhere = running.root / "original.png"
    photo().save(elsewhere)
    os.link(elsewhere, running.inbox / "c.png")
    until(lambda: running.closed("c.png"), "the picture")
    assert running.delivered("c.png")
    assert elsewhere.exists()


def test_a_folder_moved_in_is_mirrored(running: House) -> None:
    trip = running.root / "trip" / "day one"
    trip.mkdir(parents=True)
    photo(seed=1).save(trip / "x.png")
    photo(seed=2).save(trip.parent / "y.png")
    trip.parent.rename(running.inbox / "trip")
    until(lambda: running.closed("trip/day one/x.png") and running.closed("trip/y.png"), "both")
    assert running.delivered("trip/day one/x.png")
    assert running.delivered("trip/y.png")


def test_twenty_at_once(running: House) -> None:
    names = [f"p{number:02}.png" for number in range(20)]
    for number, name in enumerate(names):
        running.drop(name, seed=number)
    until(lambda: all(running.closed(name) for name in names), "twenty pictures")
    places = running.places()
    assert places["archive"] == names
    assert places["outbox"] == sorted(names + [f"{name}.json" for name in names])
    assert places["inbox"] == places["failed"] == []


def test_a_name_that_is_not_utf8(house: House) -> None:
    name = os.fsdecode(b"caf\xe9 \xff.png")
    house.drop(name)
    assert house.run() == 0, house.said()
    assert house.delivered(name)
    assert house.closed(name)


@pytest.mark.parametrize(
    ("name", "content"),
    [("broken.jpg", b"jpeg"), ("text.png", b"this is a text, not a picture\n"), ("empty.png", b"")],
)
def test_what_is_no_picture_is_set_aside_with_a_reason(
    house: House, name: str, content: bytes
) -> None:
    if content == b"jpeg":
        whole = house.root / "whole.jpg"
        photo((200, 200)).save(whole)
        content = whole.read_bytes()[:-2000]
    (house.inbox / name).write_bytes(content)
    assert house.run() == 1, house.said()
    places = house.places()
    assert places["failed"] == sorted([name, f"{name}.error.json"])
    assert places["inbox"] == places["outbox"] == places["archive"] == []
    error = json.loads((house.failed / f"{name}.error.json").read_text())
    assert error["why"]
    assert error["remedy"]
    assert (house.failed / name).read_bytes() == content


def test_a_picture_that_would_be_too_large_fails_at_once(house: House) -> None:
    house.configure('variant = "lanczos"\nmax_pixels = 1000')
    house.drop("big.png")
    started = time.monotonic()
    assert house.run() == 1
    assert time.monotonic() - started < 30
    error = json.loads((house.failed / "big.png.error.json").read_text())
    assert "max_pixels" in error["why"] + error["remedy"]


def test_an_existing_result_is_never_overwritten(house: House) -> None:
    house.outbox.mkdir()
    (house.outbox / "a.png").write_bytes(b"somebody's")
    house.drop("a.png")
    assert house.run() == 0, house.said()
    assert (house.outbox / "a.png").read_bytes() == b"somebody's"
    assert house.delivered("a.2.png")


def test_sigterm_in_mid_job_gives_the_picture_back_and_a_restart_finishes_it(
    tmp_path: Path,
) -> None:
    house = House(tmp_path, 'variant = "nano"\nsteps = 10')
    source = house.drop("slow.png", size=(96, 96))
    content = source.read_bytes()
    try:
        # 1. The daemon is at work: the engine has begun to denoise.
        house.start().ready()
        until(lambda: _stage(house) == "denoise", "the engine at work")
        # 2. A stop: it ends within ten seconds, cleanly.
        started = time.monotonic()
        assert house.stop() == 0
        assert time.monotonic() - started < 10
        # 3. The picture lies where it lay, and nothing else does.
        assert source.read_bytes() == content
        assert house.places()["outbox"] == []
        # 4. A restart finishes it.
        house.configure('variant = "nano"\nsteps = 1')
        assert house.run() == 0, house.said()
        assert house.delivered("slow.png")
        assert house.record("slow.png")["attempt"] == 1
    finally:
        house.kill()


def test_nano_upscales_and_records_how(tmp_path: Path) -> None:
    house = House(tmp_path, 'variant = "nano"')
    house.drop("a.png", size=(40, 30))
    assert house.run(patience=240) == 0, house.said()
    record = house.record("a.png")
    assert record["sigmas"][0] == record["profile"]["strength"] == 1.0
    assert len(record["sigmas"]) == record["profile"]["steps"] == 2
    assert (record["output"]["width"], record["output"]["height"]) == (160, 120)
    assert record["checkpoint"]["files"]
    assert record["dino"]["mode"] == "off"  # and yet its drift is known
    assert record["dino"]["drift"] is not None and record["dino"]["encoder"]


def test_nano_takes_what_comes_in_every_way_once_and_whole(tmp_path: Path) -> None:
    house = House(tmp_path, 'variant = "nano"')
    photo((40, 30)).save(tmp_path / "whole.png")
    data = (tmp_path / "whole.png").read_bytes()
    try:
        house.start().ready()
        # 1. One is written slowly, with pauses longer than settle_seconds.
        with (house.inbox / "slow.png").open("wb") as file:
            for start in range(0, len(data), len(data) // 3 + 1):
                file.write(data[start : start + len(data) // 3 + 1])
                file.flush()
                time.sleep(0.3)
        # 2. One is renamed in, from a name that is ignored.
        photo(seed=99).save(house.inbox / "b.png.part", format="PNG")
        (house.inbox / "b.png.part").rename(house.inbox / "b.png")
        # 3. Twenty come at once.
        many = [f"p{number:02}.png" for number in range(20)]
        for number, name in enumerate(many):
            house.drop(name, seed=number, size=(8, 6))
        names = sorted(["slow.png", "b.png", *many])
        until(lambda: all(house.closed(name) for name in names), "all of them", patience=240)
        places = house.places()
        assert places["archive"] == names
        assert places["outbox"] == sorted(names + [f"{name}.json" for name in names])
        assert places["inbox"] == places["failed"] == []
        assert (house.archive / "slow.png").read_bytes() == data
        with (
            Image.open(house.outbox / "slow.png") as slow,
            Image.open(house.outbox / "p07.png") as p,
        ):
            assert (slow.size, p.size) == ((160, 120), (32, 24))
        assert len({house.record(name)["output"]["sha256"] for name in names}) == len(names)
        assert house.stop() == 0
    finally:
        house.kill()


def test_a_good_reload_is_used_for_the_next_picture(running: House) -> None:
    running.configure('variant = "lanczos"\nscale = 3')
    running.signal(signal.SIGHUP)
    until(lambda: running.events("configuration read again"), "the reload")
    running.drop("a.png")
    until(lambda: running.closed("a.png"), "the picture")
    with Image.open(running.outbox / "a.png") as result:
        assert result.size == (72, 48)


def test_a_bad_reload_keeps_the_old_configuration_and_says_why(running: House) -> None:
    running.configure('variant = "lanczos"\nscale = 99')
    running.signal(signal.SIGHUP)
    told = until(
        lambda: running.events("the configuration is not used, the old one stays"), "the refusal"
    )
    assert "scale" in told[0]["why"]
    running.drop("a.png")
    until(lambda: running.closed("a.png"), "the picture")
    with Image.open(running.outbox / "a.png") as result:
        assert result.size == (48, 32)


def test_a_changed_file_reloads_without_a_signal(running: House) -> None:
    running.configure('variant = "lanczos"\nscale = 1')
    until(lambda: running.events("configuration read again"), "the reload")


def test_the_same_picture_again_is_copied_and_with_another_profile_computed(
    running: House,
) -> None:
    running.drop("first.png")
    until(lambda: running.closed("first.png"), "the first")
    # 1. The same content under another name: copied, and the record says of what.
    shutil.copy(running.archive / "first.png", running.inbox / "second.png")
    until(lambda: running.closed("second.png"), "the second")
    until(lambda: running.events("done: copied"), "the copy")
    first, second = (running.outbox / f"{name}.png" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    # 2. With another setting: computed.
    running.configure('variant = "lanczos"\nscale = 3')
    until(lambda: running.events("configuration read again"), "the reload")
    shutil.copy(running.archive / "first.png", running.inbox / "third.png")
    until(lambda: running.closed("third.png"), "the third")
    with Image.open(running.outbox / "third.png") as result:
        assert result.size == (72, 48)
    assert len(running.events("done: copied")) == 1


@pytest.mark.parametrize("lanes", [1, 2])
def test_the_same_picture_dropped_three_times_at_once_is_computed_once(
    house: House, lanes: int
) -> None:
    first = house.drop("a.png", size=(300, 200))
    for name in ("b.png", "c.png"):
        shutil.copyfile(first, house.inbox / name)
    house.drop("other.png", seed=5)
    house.configure('variant = "lanczos"\nscale = 8')
    code = (
        "import sys\n"
        "from fluxwatchd.cli import run\n"
        "from fluxwatchd.daemon.server import Server\n"
        f"Server._devices = lambda self, settings: ('cpu',) * {lanes}  # a machine with so many\n"
        "sys.exit(run(['run', '--until-idle', '--config', sys.argv[1]]))\n"
    )
    with house.log.open("ab") as log:
        done = subprocess.run(
            [sys.executable, "-c", code, str(house.config)], stderr=log, timeout=120, check=False
        )
    assert done.returncode == 0, house.said()
    assert len(house.events("done")) == 2, house.said()
    assert len(house.events("done: copied")) == 2
    results = {(house.outbox / f"{name}.png").read_bytes() for name in "abc"}
    assert len(results) == 1


def test_the_second_of_two_is_made_if_the_first_is_not(tmp_path: Path) -> None:
    house = House(tmp_path, 'variant = "nano"\nsteps = 10')
    try:
        house.drop("1.png", size=(64, 64))
        shutil.copyfile(house.inbox / "1.png", house.inbox / "2.png")
        house.start().ready()
        until(lambda: _stage(house) == "denoise", "the engine at work")
        first, second = ("1.png", "2.png") if "1.png" in _running(house) else ("2.png", "1.png")
        _ask(house, "cancel", house.inbox / first)
        until((house.failed / f"{first}.error.json").exists, "the cancelled picture")
        until(lambda: house.closed(second), "the other")
        assert house.delivered(second)
        assert not house.delivered(first)
        assert not house.events("done: copied")
        assert house.stop() == 0
    finally:
        house.kill()


def test_settings_beside_a_picture_are_its_own(house: House) -> None:
    house.drop("a.png", seed=1)
    house.drop("b.png", seed=2)
    (house.inbox / "a.png.toml").write_text("scale = 1.5\n")
    assert house.run() == 0, house.said()
    with Image.open(house.outbox / "a.png") as a, Image.open(house.outbox / "b.png") as b:
        assert a.size == (36, 24)
        assert b.size == (48, 32)


def test_a_lost_journal_is_rebuilt_by_the_scan(house: House) -> None:
    house.drop("a.png", seed=1)
    assert house.run() == 0
    shutil.rmtree(house.state)
    house.drop("b.png", seed=2)
    assert house.run() == 0, house.said()
    assert house.delivered("a.png")
    assert house.delivered("b.png")


def test_until_idle_says_which_inbox_it_could_not_look_into(house: House) -> None:
    house.drop("a.png")
    assert house.run() == 0, house.said()
    # 1. The share is away: nobody knows what is pending, so this is not done.
    house.inbox.rename(house.root / "away")
    assert house.run() == 1, house.said()
    (told,) = house.events("could not be looked into")
    assert told["place"] == str(house.inbox)
    assert "No such file or directory" in told["why"]
    # 2. It is back.
    (house.root / "away").rename(house.inbox)
    assert house.run() == 0, house.said()


def test_a_source_kept_in_place_is_done_once(house: House) -> None:
    house.configure('variant = "lanczos"', folder='on_success = "keep"')
    house.drop("a.png")
    assert house.run() == 0, house.said()
    assert house.run() == 0, house.said()
    assert house.places()["outbox"] == ["a.png", "a.png.json"]
    assert house.places()["inbox"] == ["a.png"]
    # and without its journal, by the sidecar
    shutil.rmtree(house.state)
    assert house.run() == 0, house.said()
    assert house.places()["outbox"] == ["a.png", "a.png.json"]


def test_a_second_daemon_on_the_same_state_folder_is_refused(running: House) -> None:
    other = House(running.root)
    other.log = running.root / "second.jsonl"
    other.start()
    assert other.wait() == 78
    assert "state" in other.said()


def test_a_failed_picture_is_tried_again_on_request(running: House) -> None:
    bad = running.inbox / "a.png"
    bad.write_bytes(b"nothing like a picture")
    until(lambda: running.closed("a.png"), "the failure")
    photo().save(running.failed / "a.png")
    command = [sys.executable, "-m", "fluxwatchd", "retry", "--config", str(running.config)]
    subprocess.run([*command, str(running.failed / "a.png")], check=True, timeout=60)
    until((running.archive / "a.png").exists, "the second try")
    assert running.delivered("a.png")
    assert not (running.failed / "a.png.error.json").exists()


def test_commands_of_the_folder_run_after_a_job(house: House) -> None:
    mark = house.root / "done"
    house.configure(
        'variant = "lanczos"',
        folder=f"on_done = ['sh', '-c', 'cp \"$FLUXWATCHD_RESULT\" {mark}']",
    )
    house.drop("a.png")
    assert house.run() == 0, house.said()
    until(mark.exists, "the command")
    assert mark.read_bytes() == (house.outbox / "a.png").read_bytes()


def _stage(house: House) -> str | None:
    """The stage of the job at work, as the daemon tells it for ``status``."""
    path = house.state / "journal.sqlite"
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            rows = database.execute("SELECT * FROM live").fetchall()
    except sqlite3.Error:
        return None
    text = " ".join(str(value) for row in rows for value in row)
    return "denoise" if '"stage": "denoise"' in text or '"stage":"denoise"' in text else None


def test_every_command_of_the_folder_runs_before_until_idle_ends(house: House) -> None:
    mark = house.root / "marks"
    mark.mkdir()
    hook = f"on_done = ['sh', '-c', 'sleep 0.2; touch {mark}/$(basename $FLUXWATCHD_RESULT)']"
    house.configure('variant = "lanczos"', folder=hook)
    for number in range(4):
        house.drop(f"{number}.png", seed=number)
    assert house.run() == 0, house.said()
    assert sorted(path.name for path in mark.iterdir()) == [f"{n}.png" for n in range(4)]


def test_what_a_command_starts_ends_with_it_at_a_stop(house: House) -> None:
    told = house.root / "pid"
    script = f"sleep 300 & echo $! > {told}.part; mv {told}.part {told}; wait"
    house.configure('variant = "lanczos"', folder=f"on_done = ['sh', '-c', '{script}']")
    house.start().ready()
    house.drop("a.png")
    until(told.exists, "the command")
    child = Path(f"/proc/{told.read_text().strip()}/cmdline")
    assert child.read_bytes().startswith(b"sleep")
    started = time.monotonic()
    assert house.stop() == 0
    assert time.monotonic() - started < 10
    assert not child.exists() or not child.read_bytes()


def test_what_a_command_leaves_running_holds_up_no_other(house: House) -> None:
    mark = house.root / "marks"
    mark.mkdir()
    script = f"sleep 300 & echo $! >> {mark}/pids"
    house.configure('variant = "lanczos"', folder=f"on_done = ['sh', '-c', '{script}']")
    for number in range(2):
        house.drop(f"{number}.png", seed=number)
    try:
        assert house.run() == 0, house.said()
        assert not house.events("hook failed")
        assert len((mark / "pids").read_text().split()) == 2
    finally:
        for pid in (mark / "pids").read_text().split():
            os.kill(int(pid), signal.SIGKILL)


def test_a_command_that_hangs_holds_up_no_other_folders(house: House) -> None:
    mark = house.root / "mark"
    house.configure(
        'variant = "lanczos"',
        folder="on_done = ['sleep', '50']\n[[folder]]\ninbox = 'two'\noutbox = 'two-out'\n"
        f"on_done = ['touch', '{mark}']",
    )
    (house.root / "two").mkdir()
    house.start().ready()
    house.drop("a.png")
    until(lambda: house.closed("a.png"), "the first folder's picture")
    shutil.copy(house.archive / "a.png", house.root / "two" / "b.png")
    until(mark.exists, "the second folder's command")
    assert house.stop() == 0


def test_a_command_of_the_folder_does_not_hold_up_a_stop(house: House) -> None:
    house.configure('variant = "lanczos"', folder="on_done = ['sleep', '50']")
    house.start().ready()
    house.drop("a.png")
    until(lambda: house.closed("a.png"), "the picture")
    started = time.monotonic()
    assert house.stop() == 0
    assert time.monotonic() - started < 10


def test_a_cancelled_picture_that_cannot_be_moved_ends_nothing(tmp_path: Path) -> None:
    """It was asked for, so it is answered; the source stays until it can leave."""
    house = House(tmp_path, daemon="settle_seconds = 30")
    try:
        house.start().ready()
        (house.failed / "sub").write_text("in the way")
        _ask(house, "cancel", house.drop("sub/b.png"))
        until(lambda: house.events("the source cannot leave the inbox yet"), "the word")
        assert not house.ended()
        (house.failed / "sub").unlink()
        until((house.failed / "sub/b.png").exists, "the move")
        assert house.stop() == 0
        assert house.places()["outbox"] == []
    finally:
        house.kill()


def test_a_picture_cancelled_behind_another_has_no_result(tmp_path: Path) -> None:
    house = House(tmp_path, 'variant = "nano"\nsteps = 15')
    try:
        house.drop("1.png", seed=1, size=(80, 80))
        house.drop("2.png", seed=2, size=(80, 80))
        house.start().ready()
        until(lambda: _stage(house) == "denoise", "the engine at work")
        waiting = next(p for p in ("1.png", "2.png") if p not in _running(house))
        _ask(house, "cancel", house.inbox / waiting)
        until((house.failed / f"{waiting}.error.json").exists, "the cancelled picture")
        assert house.stop() == 0
        assert not house.delivered(waiting)
    finally:
        house.kill()


def test_a_reload_to_a_model_that_is_not_there_is_refused_and_drains_nothing(
    house: House,
) -> None:
    house.start(HF_HUB_OFFLINE="1").ready()
    house.configure('variant = "schnell"')
    until(lambda: house.events("the configuration is not used, the old one stays"), "the refusal")
    house.drop("a.png")
    until(lambda: house.closed("a.png"), "the picture")
    assert house.record("a.png")["profile"]["variant"] == "lanczos"
    assert house.places()["failed"] == []


def test_a_reload_cannot_change_the_device_in_silence(house: House) -> None:
    house.start().ready()
    house.daemon += '\n[engine]\ndevice = "cuda:0"'
    house.configure('variant = "nano"')
    until(lambda: house.events("the configuration is not used, the old one stays"), "the refusal")


def test_a_slip_in_the_folders_own_settings_drains_no_inbox(house: House) -> None:
    (house.inbox / "fluxwatchd.toml").write_text("scale = ")
    for number in range(3):
        house.drop(f"{number}.png", seed=number)
    house.start().ready()
    until(lambda: house.events("tried again later"), "a try")
    assert house.places()["failed"] == []
    (house.inbox / "fluxwatchd.toml").write_text("scale = 1\n")
    until(lambda: all(house.closed(f"{number}.png") for number in range(3)), "the pictures")
    assert len(house.places()["outbox"]) == 6


def _ask(house: House, what: str, path: Path) -> None:
    """A command about one file, carried out."""
    command = [sys.executable, "-m", "fluxwatchd", what, "--config", str(house.config), str(path)]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    done = ("request done", "request for a file that is not there")
    until(
        lambda: [e for name in done for e in house.events(name) if e["file"] == str(path)],
        f"{what} of {path.name}",
    )


def _running(house: House) -> str:
    """What the daemon says is at work."""
    with Journal.open(house.state, read_only=True) as journal:
        return json.dumps(journal.snapshot().live.get("running"))


def test_results_that_no_outbox_can_take_do_not_stop_the_others(house: House) -> None:
    """A file stands where a folder of the outbox would have to be."""
    house.outbox.mkdir()
    (house.outbox / "x.png").write_text("in the way")
    for number in range(3):
        house.drop(f"x.png/{number}.png", seed=number)
    house.drop("good.png", seed=9)
    assert house.run() == 1, house.said()
    assert house.delivered("good.png")
    assert len([p for p in house.failed.rglob("*.error.json") if p.is_file()]) == 3
