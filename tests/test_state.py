"""The state folder lost, damaged or full under the real daemon: no file is lost, all goes on."""

from __future__ import annotations

import errno
import hashlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from house import House, until

from fluxwatchd.journal import Journal

LOST = 75
"""What systemd starts the service again for."""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    """A house whose daemon is gone after the test."""
    made = House(tmp_path)
    yield made
    made.kill()


def no_trace(house: House) -> None:
    assert "Traceback" not in house.said(), house.said()


@pytest.mark.parametrize("what", ["the folder", "the folder, made again", "the journal"])
def test_a_state_folder_that_is_deleted_ends_the_daemon_and_a_restart_goes_on(
    house: House, what: str
) -> None:
    house.start().ready()
    house.drop("a.png", seed=1)
    until(lambda: house.closed("a.png"), "the first picture")
    # 1. It goes while the daemon runs: noticed, said, and told to whoever starts it again.
    if what == "the journal":
        (house.state / "journal.sqlite").unlink()
    else:
        shutil.rmtree(house.state)
    if what == "the folder, made again":
        house.state.mkdir()
    assert house.wait(10) == LOST, house.said()
    (event,) = house.events("the state folder is lost")
    assert "was deleted or replaced" in event["why"]
    assert event["remedy"]
    no_trace(house)
    # 2. The inbox is untouched, and the next start goes on by the scan.
    house.drop("b.png", seed=2)
    assert house.run() == 0, house.said()
    assert house.places()["archive"] == ["a.png", "b.png"]
    assert len(house.places()["outbox"]) == 4


def test_a_request_after_the_loss_reaches_the_next_daemon(house: House) -> None:
    house.daemon = "settle_seconds = 5"  # the daemon takes nothing before it is asked
    house.configure('variant = "lanczos"')
    house.start().ready()
    shutil.rmtree(house.state)
    source = house.drop("a.png")
    ask(house, "hold", source)  # makes a journal of its own where there is none
    assert house.wait(10) in (LOST, 0)
    if source.exists():
        assert house.run() == 0, house.said()
        assert source.exists()
        assert not house.delivered("a.png")


def test_a_journal_damaged_while_the_daemon_runs_is_kept_and_begun_anew(house: House) -> None:
    house.start().ready()
    for number in range(3):
        house.drop(f"{number}.png", seed=number)
    until(lambda: all(house.closed(f"{n}.png") for n in range(3)), "three pictures")
    # 1. Nonsense in the midst of it: noticed as soon as those pages are read.
    for name in ("journal.sqlite", "journal.sqlite-wal"):
        overwrite(house.state / name, 100)
    house.drop("a.png", seed=9)
    assert house.wait() == LOST, house.said()
    assert "is damaged" in house.events("the state folder is lost")[0]["why"]
    no_trace(house)
    # 2. Kept under another name, whole as it was; a new one begins.
    (told,) = house.events("the journal was damaged: a new one begins, the old one is kept")
    kept = Path(told["kept"])
    assert kept.parent == house.state
    assert kept.exists()
    assert house.run() == 0, house.said()
    assert house.delivered("a.png")
    assert kept.exists()
    assert house.places()["archive"] == ["0.png", "1.png", "2.png", "a.png"]


def test_a_journal_damaged_before_the_start_is_kept_and_begun_anew(house: House) -> None:
    house.drop("a.png", seed=1)
    assert house.run() == 0
    (house.state / "journal.sqlite").write_bytes(b"\0" * 50_000)
    house.drop("b.png", seed=2)
    said = status(house)
    assert said.returncode == LOST
    assert "damaged" in said.stderr
    assert house.run() == 0, house.said()
    assert house.delivered("b.png")
    assert list(house.state.glob("journal.damaged-*.sqlite"))
    assert status(house).returncode == 0


def test_a_journal_lost_between_commit_and_retirement_doubles_nothing(house: House) -> None:
    house.drop("a.png", seed=1)
    assert house.run(FLUXWATCHD_CRASHPOINT="journal.finished") < 0
    assert house.places()["inbox"] == ["a.png"]
    shutil.rmtree(house.state)
    house.drop("b.png", seed=2)
    assert house.run() == 0, house.said()
    assert house.places()["archive"] == ["a.png", "b.png"]
    assert house.places()["outbox"] == ["a.png", "a.png.json", "b.png", "b.png.json"]


def test_files_may_not_grow(house: House) -> None:
    """RLIMIT_FSIZE: to every writer of the process a disk that is full from here on."""
    for number in range(12):
        house.drop(f"{number}.png", seed=number)
    house.start("--until-idle", prefix=("prlimit", "--fsize=90000"))
    code = house.wait()
    assert code == LOST, house.said()
    no_trace(house)
    assert all_accounted_for(house, 12)
    assert house.run() == 0, house.said()
    assert len(house.places()["archive"]) == 12
    assert len(house.places()["outbox"]) == 24


@pytest.mark.machine
def test_a_full_state_folder_holds_work_up_until_there_is_room(house: House) -> None:
    disk = Disk(house.state, "8m")
    try:
        house.start().ready()
        house.drop("a.png", seed=1)
        until(lambda: house.closed("a.png"), "the first picture")
        # 1. The disk fills; what comes now waits in the inbox, and the log says for what.
        disk.fill()
        for number in range(6):
            house.drop(f"{number}.png", seed=10 + number)
        (told,) = until(lambda: house.events("work waits for the state folder"), "the word")
        assert "no room" in told["why"]
        assert "Free some space" in told["remedy"]
        assert all_accounted_for(house, 7)
        # 2. Room comes: it goes on by itself, and each picture has one result.
        disk.free()
        until(lambda: all(house.closed(f"{n}.png") for n in range(6)), "the others")
        assert house.stop() == 0, house.said()
        assert len(house.places()["outbox"]) == 14
        no_trace(house)
    finally:
        house.kill()
        disk.close()


@pytest.mark.machine
def test_a_stop_while_the_state_folder_is_full_is_told_in_a_sentence(house: House) -> None:
    disk = Disk(house.state, "8m")
    try:
        house.start().ready()
        house.drop("a.png", seed=1)
        until(lambda: house.closed("a.png"), "the first picture")
        disk.fill()
        for number in range(6):
            house.drop(f"{number}.png", seed=10 + number)
        until(lambda: house.events("work waits for the state folder"), "the word")
        assert house.stop(20) == 0
        assert not house.events("the state folder is lost")
        no_trace(house)
        assert all_accounted_for(house, 7)
        # The next start, still without room, waits or says so; it harms nothing either.
        house.start()
        until(
            lambda: house.ended() or len(house.events("work waits for the state folder")) > 1,
            "the word",
        )
        assert house.ended() or house.stop(20) == 0
        no_trace(house)
        disk.free()
        assert house.run() == 0, house.said()
        assert len(house.places()["outbox"]) == 14
    finally:
        house.kill()
        disk.close()


@pytest.mark.machine
def test_a_log_on_a_full_disk_ends_nothing(house: House) -> None:
    place = house.root / "logs"
    place.mkdir()
    disk = Disk(place, "64k")
    house.log = place / "log.jsonl"
    try:
        house.start().ready()
        disk.fill()
        for number in range(6):
            house.drop(f"{number}.png", seed=number)
        until(lambda: all(house.closed(f"{n}.png") for n in range(6)), "the pictures")
        assert house.stop() == 0
        assert len(house.places()["outbox"]) == 12
    finally:
        house.kill()
        disk.close()


def test_a_journal_that_another_program_holds_holds_work_up(house: House) -> None:
    house.start().ready()
    holder = sqlite3.connect(house.state / "journal.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    house.drop("a.png")
    (told,) = until(lambda: house.events("work waits for the state folder"), "the word")
    assert "is locked" in told["why"]
    assert "End the program that holds it" in told["remedy"]
    assert (house.inbox / "a.png").exists()
    holder.execute("ROLLBACK")
    until(lambda: house.closed("a.png"), "the picture")
    assert house.stop() == 0
    holder.close()
    no_trace(house)


def test_of_daemons_that_start_at_the_same_moment_one_serves(house: House) -> None:
    house.drop("a.png")
    others = [House(house.root) for _ in range(4)]
    for number, other in enumerate(others):
        other.log = house.root / f"other{number}.jsonl"
        other.start()
    try:
        until(lambda: sum(other.ended() for other in others) == 3, "three refusals")
        (one,) = [other for other in others if not other.ended()]
        one.ready()
        until(lambda: house.closed("a.png"), "the picture")
        for other in others:
            if other is not one:
                assert other.wait() == 78
                assert "belongs to a running fluxwatchd (process" in other.said()
        assert one.stop() == 0
        assert len(house.places()["outbox"]) == 2
    finally:
        for other in others:
            other.kill()


def test_status_at_every_moment_of_a_start_is_no_error(house: House) -> None:
    house.start()
    while not house.events("ready"):
        said = status(house)
        assert said.returncode == 0, said.stderr
    assert "is ready" in until(lambda: "is ready" in (s := status(house)).stdout and s.stdout, "it")
    assert house.stop() == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP], ids=["nolock", "none"])
def test_a_filesystem_without_locks_is_refused_with_the_remedy(house: House, number: int) -> None:
    """As NFS mounted without its lock service: the kernel refuses flock()."""
    done = without(house, "flock", number)
    assert done.returncode == 78, done.stderr
    assert "knows no locks" in done.stderr
    assert "a disk of this machine" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("archive", ["beside", "on another disk"])
def test_an_outbox_without_hard_links_gets_its_results_by_renaming(
    tmp_path: Path, archive: str
) -> None:
    """As exFAT in the kernel and some SMB shares: link() is refused, a rename is not."""
    house = House(tmp_path)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as there:
        if archive == "on another disk":
            house.archive = Path(there) / "archive"
            house.configure('variant = "lanczos"', f'archive = "{house.archive}"')
        for number in range(3):
            house.drop(f"{number}.png", seed=number)
        house.outbox.mkdir()
        (house.outbox / "1.png").write_text("somebody's own")
        done = without(house, "link", errno.EPERM, "--until-idle")
        assert done.returncode == 0, done.stderr
        names = ["0.png", "1.2.png", "2.png"]
        expected = sorted(["1.png", *names, *(f"{name}.json" for name in names)])
        assert house.places()["outbox"] == expected
        assert (house.outbox / "1.png").read_text() == "somebody's own"
        assert house.places()["archive"] == ["0.png", "1.png", "2.png"]
        assert house.places()["inbox"] == []
        for name in names:
            digest = hashlib.sha256((house.outbox / name).read_bytes()).hexdigest()
            assert house.record(name)["output"]["sha256"] == digest


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
def test_a_result_that_is_whole_though_its_picture_was_given_back_is_not_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Both names were given, the share went away, and a stop gave the picture back."""
    house = House(tmp_path)

    def run() -> int:
        if links:
            return house.run()
        return without(house, "link", errno.EPERM, "--until-idle").returncode

    house.drop("first.png", seed=1)
    assert run() == 0
    house.drop("a.png", seed=2)
    monkeypatch.setenv("FLUXWATCHD_CRASHPOINT", "commit.picture-linked")
    assert run() == -signal.SIGKILL
    monkeypatch.delenv("FLUXWATCHD_CRASHPOINT")
    assert house.delivered("a.png")
    with Journal.open(house.state) as journal:
        (row,) = journal.interrupted_runs()
        journal.give_back(row.id)
    assert run() == 0
    assert house.places()["outbox"] == ["a.png", "a.png.json", "first.png", "first.png.json"]
    assert house.places()["archive"] == ["a.png", "first.png"]
    assert house.places()["inbox"] == []


def without(house: House, call: str, number: int, *more: str) -> subprocess.CompletedProcess[str]:
    """A daemon that the kernel refuses a system call."""
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from killed import deny\n"
        f"deny({{{call!r}: {number}}})\n"
        "from fluxwatchd.cli import run\n"
        "sys.exit(run(['run', '--config', *sys.argv[1:]]))\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(house.config), *more],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Disk:
    """A small disk of its own, mounted on a folder."""

    def __init__(self, place: Path, size: str) -> None:
        self.place, self.filler = place, place / "filler"
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)

    def fill(self) -> None:
        """Leave no room."""
        with self.filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(512))
            except OSError:
                return

    def free(self) -> None:
        """Make room again."""
        self.filler.unlink()

    def close(self) -> None:
        """Unmount it."""
        subprocess.run(["umount", "--lazy", self.place], check=True)


def all_accounted_for(house: House, count: int) -> bool:
    """Every source lies in inbox or archive."""
    places = house.places()
    return len(places["inbox"]) + len(places["archive"]) == count and not places["failed"]


def overwrite(file: Path, start: int) -> None:
    """Fill a file with nonsense from ``start`` on, in place."""
    length = file.stat().st_size - start
    with file.open("r+b") as stream:
        stream.seek(start)
        stream.write(b"\xa5" * max(length, 0))


def command(house: House, *words: object) -> subprocess.CompletedProcess[str]:
    """A command on the house's configuration."""
    return subprocess.run(
        [sys.executable, "-m", "fluxwatchd", *map(str, words), "--config", str(house.config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def ask(house: House, what: str, path: Path) -> None:
    said = command(house, what, path)
    assert said.returncode == 0, said.stderr


def status(house: House) -> subprocess.CompletedProcess[str]:
    return command(house, "status")
