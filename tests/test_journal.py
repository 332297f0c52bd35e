"""The journal: what it counts, what survives, who may have it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from house import open_up

from fluxwatchd.config import Folder, Profile
from fluxwatchd.errors import (
    ConfigError,
    InputRejected,
    JobFailed,
    StateBlocked,
    StateDamaged,
    StateLost,
)
from fluxwatchd.job import Checkpoint, Job, Taken
from fluxwatchd.journal import SCHEMA_VERSION, Forgiven, Journal, NoJournal, lock_state_dir
from fluxwatchd.sidecar import checkpoint_id, fingerprint

NANO = Checkpoint("nano", "bundled:nano", {"transformer": "sha256:abc"})


class Clock:
    """Seconds since the epoch, moved by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def journal(tmp_path: Path, clock: Clock) -> Iterator[Journal]:
    with Journal.open(tmp_path / "state", clock=clock) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(inbox=tmp_path / "in", outbox=tmp_path / "out")


def make(folder: Folder, name: str = "photo.jpg", **changes: Any) -> Job:
    job = Job(
        id=os.urandom(8).hex(),
        folder=folder,
        relative=Path(name),
        size=100,
        mtime_ns=1_600_000_000_000_000_001,
        sha256="a" * 64,
        profile=Profile(variant="lanczos"),
        seed=2**63 - 1,
        inode=42,
    )
    return replace(job, **changes)


def begin(journal: Journal, job: Job) -> Job:
    return replace(job, attempt=journal.begin(job))


def row(journal: Journal, job: Job | Taken) -> Any:
    found = journal.run(job.id)
    assert found is not None
    return found


# --- a job's way ----------------------------------------------------------------------------


def test_a_job_from_begin_to_retirement(journal, folder, clock):
    job = begin(journal, make(folder, "sub/photo.jpg"))
    assert job.attempt == 1
    assert row(journal, job).state == "running"
    assert row(journal, job).source == folder.inbox / "sub/photo.jpg"
    assert row(journal, job).started == clock.now
    assert row(journal, job).seed == 2**63 - 1
    assert row(journal, job).profile["variant"] == "lanczos"

    journal.delivering(job)
    assert [r.id for r in journal.interrupted_runs()] == [job.id]

    clock.now += 5
    journal.finish(job.id, folder.outbox / "sub/photo.png", "b" * 64, NANO)
    assert row(journal, job).state == "done"
    assert row(journal, job).finished == clock.now
    assert row(journal, job).checkpoint == checkpoint_id(NANO)
    assert [r.id for r in journal.unretired()] == [job.id]
    assert journal.interrupted_runs() == ()

    journal.retired(job.id, "archived", folder.archive_path / "sub/photo.jpg")
    assert journal.unretired() == ()
    assert row(journal, job).moved_to == folder.archive_path / "sub/photo.jpg"
    assert journal.file_states(folder) == {}


def test_an_attempt_is_counted_before_the_work_and_by_content(journal, folder):
    assert journal.attempts(folder, Path("photo.jpg"), "a" * 64) == 0
    first = begin(journal, make(folder))
    second = begin(journal, make(folder))
    assert (first.attempt, second.attempt) == (1, 2)
    assert journal.attempts(folder, Path("photo.jpg"), "a" * 64) == 2
    replaced = begin(journal, make(folder, sha256="c" * 64))
    assert replaced.attempt == 1
    elsewhere = begin(journal, make(folder, "other.jpg"))
    assert elsewhere.attempt == 1


def test_a_job_given_back_does_not_count(journal, folder):
    job = begin(journal, make(folder))
    journal.give_back(job.id)
    assert row(journal, job).state == "interrupted"
    assert journal.attempts(folder, job.relative, job.sha256) == 0
    assert begin(journal, make(folder)).attempt == 1


def test_a_crash_counts_and_its_file_runs_alone(journal, folder):
    job = begin(journal, make(folder))
    journal.crashed(job.id)
    assert journal.interrupted_runs() == ()
    state = journal.file_states(folder)["photo.jpg"]
    assert (state.attempts, state.alone) == (1, True)
    assert begin(journal, make(folder)).attempt == 2


def test_a_failure_says_why_and_when_it_is_tried_again(journal, folder, clock):
    job = begin(journal, make(folder))
    error = JobFailed("the disk is full", hint="Free some space.", transient=True)
    journal.fail(job.id, error, next_try=clock.now + 60)

    failed = row(journal, job)
    assert (failed.state, failed.error_class, failed.message, failed.hint, failed.transient) == (
        "failed",
        "JobFailed",
        "the disk is full",
        "Free some space.",
        True,
    )
    assert journal.file_states(folder)["photo.jpg"].next_try == clock.now + 60
    assert journal.not_set_aside() == ()  # it stays in the inbox

    again = begin(journal, make(folder))
    assert again.attempt == 2
    assert journal.file_states(folder)["photo.jpg"].next_try is None
    journal.fail(again.id, InputRejected("no picture"))
    assert [r.id for r in journal.not_set_aside()] == [again.id]
    journal.retired(again.id, "failed", folder.failed_path / "photo.jpg")
    assert journal.not_set_aside() == ()


def test_a_source_kept_in_place_is_done_until_it_changes(journal, folder):
    job = begin(journal, make(folder))
    journal.finish(job.id, folder.outbox / "photo.png", "b" * 64)
    journal.retired(job.id, "kept", job.source)
    state = journal.file_states(folder)["photo.jpg"]
    assert (state.done, state.size, state.mtime_ns) == (True, job.size, job.mtime_ns)
    begin(journal, make(folder, sha256="c" * 64, size=7))
    assert not journal.file_states(folder)["photo.jpg"].done


def test_a_file_refused_before_it_had_settings(journal, folder):
    taken = Taken("0" * 16, folder, Path("bad.jpg"), 9, 1)
    assert journal.begin(taken) == 1
    journal.fail(taken.id, InputRejected("no picture"))
    assert row(journal, taken).profile is None
    assert row(journal, taken).seed is None


@pytest.mark.parametrize("name", ["a\nb.jpg", "\udcff\udcfe.jpg", "ü/ñ.jpg", "x" * 255])
def test_any_name_is_kept_byte_for_byte(journal, folder, name):
    job = begin(journal, make(folder, name))
    assert row(journal, job).relative == Path(name)
    assert list(journal.file_states(folder)) == [name]


def test_numbers_as_large_as_filesystems_give_them(journal, folder):
    job = begin(journal, make(folder, inode=2**64 - 1, mtime_ns=2**63 + 5, size=2**62))
    found = row(journal, job)
    assert (found.inode, found.size) == (2**64 - 1, 2**62)
    assert (found.mtime_ns - job.mtime_ns) % 2**64 == 0


# --- requests, holding, history -------------------------------------------------------------


def test_requests_wait_until_they_are_answered(journal, tmp_path):
    first = journal.request("retry", tmp_path / "in/photo.jpg")
    second = journal.request("hold", tmp_path / "in/\udcff.jpg")
    assert [(r.id, r.kind, r.path) for r in journal.take_requests()] == [
        (first, "retry", tmp_path / "in/photo.jpg"),
        (second, "hold", tmp_path / "in/\udcff.jpg"),
    ]
    journal.answer([first])
    assert [r.id for r in journal.take_requests()] == [second]
    journal.answer([second])
    assert journal.request("cancel", tmp_path) > second


def test_a_request_reaches_a_daemon_that_runs_or_starts_later(tmp_path):
    with Journal.open(tmp_path / "state") as daemon:
        with Journal.open(tmp_path / "state") as command:
            command.request("retry", tmp_path / "x")
        assert [r.kind for r in daemon.take_requests()] == ["retry"]
    with Journal.open(tmp_path / "state") as later:
        assert [r.kind for r in later.take_requests()] == ["retry"]


def test_a_file_is_held_until_it_is_released(journal, folder):
    path = Path("photo.jpg")
    journal.hold(folder, path, size=100, mtime_ns=5, held=True)
    assert journal.file_states(folder)["photo.jpg"].held
    journal.hold(folder, path, size=100, mtime_ns=5, held=False)
    assert not journal.file_states(folder)["photo.jpg"].held


def test_retry_forgives(journal, folder, clock):
    job = begin(journal, make(folder))
    journal.fail(job.id, JobFailed("no", transient=True), next_try=clock.now + 9)
    journal.crashed(job.id)
    journal.answer((), (Forgiven(folder, job.relative),))
    state = journal.file_states(folder)["photo.jpg"]
    assert (state.attempts, state.next_try, state.alone) == (0, None, False)


def test_the_same_work_is_found_and_other_work_is_not(journal, folder):
    job = begin(journal, make(folder))
    journal.finish(job.id, folder.outbox / "photo.png", "b" * 64, NANO)
    key = (job.sha256, fingerprint(job.profile), job.seed, checkpoint_id(NANO))
    assert [r.id for r in journal.find_same(*key)] == [job.id]
    other = fingerprint(Profile(variant="lanczos", scale=3.0))
    assert journal.find_same(key[0], other, key[2], key[3]) == ()
    assert journal.find_same(key[0], key[1], 8, key[3]) == ()
    assert journal.find_same("f" * 64, *key[1:]) == ()
    assert journal.find_same(*key[:3], checkpoint_id(replace(NANO, dtype="bfloat16"))) == ()


def test_settings_that_say_the_same_have_one_fingerprint():
    plain = fingerprint(Profile(variant="nano"))
    assert fingerprint(Profile(variant="nano", scale=4.0, steps=2)) == plain
    assert fingerprint(Profile(variant="nano", seed=5)) == plain  # the number is kept apart
    assert fingerprint(Profile(variant="nano", steps=3)) != plain
    assert fingerprint(Profile(variant="nano", format="jpeg")) != plain


def test_live_is_replaced_as_a_whole(journal, tmp_path):
    journal.set_live({"state": "running", "pid": 7, "folders": [{"pending": 3}]})
    journal.set_live({"state": "idle", "progress": 0.5})
    assert journal.snapshot().live == {"state": "idle", "progress": 0.5}
    with Journal.open(tmp_path / "state", read_only=True) as command:
        assert command.snapshot().live["state"] == "idle"


def test_a_file_is_explained_by_any_of_its_names(journal, folder, tmp_path):
    old = begin(journal, make(folder, "sub/photo.jpg"))
    journal.fail(old.id, InputRejected("no picture"))
    journal.retired(old.id, "failed", tmp_path / "in-failed/sub/photo.jpg")
    new = begin(journal, make(folder, "sub/photo.jpg"))
    journal.finish(new.id, tmp_path / "out/sub/photo.png", "b" * 64)
    journal.retired(new.id, "archived", tmp_path / "in-archive/sub/photo.2.jpg")
    journal.request("retry", tmp_path / "in/sub/photo.jpg")

    def ids(path: str) -> set[str]:
        return {r.id for r in journal.explain(tmp_path / path).rows}

    assert ids("in/sub/photo.jpg") == {old.id, new.id}
    assert ids("out/sub/photo.png") == {new.id}
    assert ids("out/sub/photo.png.json") == {new.id}
    assert ids("in-archive/sub/photo.2.jpg") == {new.id}
    assert ids("in-failed/sub/photo.jpg.error.json") == {old.id}
    assert ids("in/other.jpg") == set()
    assert len(journal.explain(tmp_path / "in/sub/photo.jpg").requests) == 1


def test_history_is_pruned_by_age_but_kept_sources_stay_done(journal, folder, clock):
    kept = begin(journal, make(folder, "kept.jpg"))
    journal.finish(kept.id, folder.outbox / "kept.png", "b" * 64)
    journal.retired(kept.id, "kept", kept.source)
    stuck = begin(journal, make(folder, "stuck.jpg"))
    journal.finish(stuck.id, folder.outbox / "stuck.png", "b" * 64)
    journal.hold(folder, Path("held.jpg"), size=1, mtime_ns=1, held=True)
    clock.now += 91 * 86400
    young = begin(journal, make(folder, "young.jpg"))

    assert journal.prune(90) == 1

    assert journal.run(kept.id) is None
    assert journal.run(stuck.id) is not None  # its source has yet to retire
    assert journal.run(young.id) is not None
    assert journal.file_states(folder)["kept.jpg"].done
    assert journal.file_states(folder)["held.jpg"].held


@pytest.mark.alone
def test_status_of_a_hundred_thousand_jobs_is_quick(tmp_path, folder):
    with Journal.open(tmp_path / "state") as journal:
        job = begin(journal, make(folder))
        journal.finish(job.id, folder.outbox / "photo.png", "b" * 64)
        journal.retired(job.id, "archived", None)
    database = sqlite3.connect(tmp_path / "state/journal.sqlite")
    columns = [c[1] for c in database.execute("PRAGMA table_info(jobs)") if c[1] != "number"]
    others = ", ".join(c for c in columns if c not in ("id", "relative"))
    database.execute(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) "
        f"INSERT INTO jobs (id, relative, {others}) "
        f"SELECT printf('%016x', i), CAST('p' || i AS BLOB), {others} FROM jobs, n"
    )
    database.commit()
    database.close()
    with Journal.open(tmp_path / "state", read_only=True) as journal:
        taken = []
        for _ in range(5):  # the best of them: the first reads the file, and others use the CPU
            start = time.process_time()
            snapshot = journal.snapshot()
            explained = journal.explain(folder.inbox / "p77777")
            taken.append(time.process_time() - start)
    assert min(taken) < 0.25
    assert snapshot.counts == {"done": 100_001}
    assert len(snapshot.recent) == 20
    assert len(explained.rows) == 1


def test_threads_share_it(journal, folder):
    def work(number: int) -> None:
        for index in range(10):
            job = begin(journal, make(folder, f"{number}-{index}.jpg"))
            journal.finish(job.id, folder.outbox / "x.png", "b" * 64)
            journal.retired(job.id, "archived", None)
            journal.set_live({"by": number})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.snapshot().counts == {"done": 80}


# --- versions, damage, rights ---------------------------------------------------------------


def test_every_change_is_on_the_disk_before_the_call_returns(journal):
    for name, wanted in (("journal_mode", "wal"), ("synchronous", 2)):
        assert journal._store._main.execute(f"PRAGMA {name}").fetchone()[0] == wanted


def test_a_newer_journal_is_refused(tmp_path):
    Journal.open(tmp_path).close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as database:
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    for read_only in (False, True):
        with pytest.raises(ConfigError, match=f"schema {SCHEMA_VERSION + 1}") as no:
            Journal.open(tmp_path, read_only=read_only)
        assert "newer" in no.value.hint


def test_an_older_journal_is_migrated_with_a_backup(tmp_path, monkeypatch, folder):
    with Journal.open(tmp_path) as journal:
        job = begin(journal, make(folder))
    monkeypatch.setattr("fluxwatchd.journal.schema.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setattr(
        "fluxwatchd.journal.schema.MIGRATIONS",
        (*[""] * SCHEMA_VERSION, "ALTER TABLE jobs ADD COLUMN mood TEXT"),
    )
    with pytest.raises(ConfigError, match="older schema"):
        Journal.open(tmp_path, read_only=True)
    with Journal.open(tmp_path) as journal:
        assert row(journal, job).state == "running"
        assert journal._store.one("SELECT mood FROM jobs") == (None,)
    with sqlite3.connect(tmp_path / f"journal.schema{SCHEMA_VERSION}.sqlite") as backup:
        assert backup.execute("SELECT id FROM jobs").fetchall() == [(job.id,)]
        assert backup.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)
    backup.close()


def test_a_migration_that_fails_leaves_the_old_schema(tmp_path, monkeypatch, folder):
    with Journal.open(tmp_path) as journal:
        job = begin(journal, make(folder))
    monkeypatch.setattr("fluxwatchd.journal.schema.SCHEMA_VERSION", SCHEMA_VERSION + 1)
    monkeypatch.setattr(
        "fluxwatchd.journal.schema.MIGRATIONS",
        (*[""] * SCHEMA_VERSION, "ALTER TABLE jobs ADD COLUMN mood TEXT; SELECT nonsense FROM x"),
    )
    with pytest.raises(ConfigError, match="cannot be opened"):
        Journal.open(tmp_path)
    monkeypatch.undo()
    with Journal.open(tmp_path) as journal:
        assert row(journal, job).state == "running"


def test_a_command_leaves_what_is_no_database_to_the_daemon(tmp_path):
    text = "not a database at all" * 100
    (tmp_path / "journal.sqlite").write_text(text)
    for read_only in (False, True):
        with pytest.raises(StateDamaged, match="damaged: file is not a database") as no:
            Journal.open(tmp_path, read_only=read_only)
        assert no.value.exit_code == 75
        assert "keeps the damaged file under another name" in no.value.hint
    assert (tmp_path / "journal.sqlite").read_text() == text


def test_a_reader_finds_no_journal_before_its_tables_are_made(tmp_path):
    with pytest.raises(NoJournal, match="there is no journal"):
        Journal.open(tmp_path / "nowhere", read_only=True)
    (tmp_path / "journal.sqlite").touch()
    with pytest.raises(NoJournal, match="there is no journal"):
        Journal.open(tmp_path, read_only=True)


def test_a_damaged_journal_is_kept_aside_and_begun_anew(tmp_path, folder):
    with lock_state_dir(tmp_path) as lock:
        with Journal.open_in(lock) as journal:
            for number in range(300):
                begin(journal, make(folder, f"{number}.jpg"))
        content = bytearray((tmp_path / "journal.sqlite").read_bytes())
        content[8192:60000] = b"\xa5" * (60000 - 8192)
        (tmp_path / "journal.sqlite").write_bytes(content)
        with Journal.open_in(lock) as journal:
            assert journal.kept_aside is not None
            assert journal.kept_aside.read_bytes() == content
            assert journal.snapshot().counts == {}
            begin(journal, make(folder))
        (tmp_path / "journal.sqlite").write_text("not a database at all" * 100)
        with Journal.open_in(lock) as journal:
            assert journal.snapshot().counts == {}
    assert len(list(tmp_path.glob("journal.damaged-*.sqlite"))) == 2


def test_damage_found_on_the_way_is_kept_aside_at_the_end(tmp_path, folder):
    with lock_state_dir(tmp_path) as lock:
        journal = Journal.open_in(lock)
        begin(journal, make(folder))
        for name in ("journal.sqlite", "journal.sqlite-wal"):
            overwrite(tmp_path / name, 100)
        with pytest.raises(StateDamaged, match="malformed"):
            journal.set_live({})  # then nothing is remembered of the pages as they were
            journal.prune(0)
        journal.close()
        assert journal.kept_aside is not None
        assert not (tmp_path / "journal.sqlite").exists()
        with Journal.open_in(lock) as journal:
            assert journal.kept_aside is None
            assert begin(journal, make(folder)).attempt == 1


@pytest.mark.parametrize("name", ["journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"])
@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_file_that_is_deleted_or_replaced_is_noticed(tmp_path, folder, name, how):
    with lock_state_dir(tmp_path) as lock, Journal.open_in(lock) as journal:
        begin(journal, make(folder))
        journal.check()
        copy = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        if how == "replaced":
            (tmp_path / name).write_bytes(copy)
        with pytest.raises(StateLost, match=f"{name} was deleted or replaced") as no:
            journal.check()
        assert no.value.exit_code == 75


def test_a_lock_that_is_deleted_is_noticed(tmp_path):
    with lock_state_dir(tmp_path) as lock, Journal.open_in(lock) as journal:
        (tmp_path / "lock").unlink()
        with lock_state_dir(tmp_path), pytest.raises(StateLost, match="lock was deleted"):
            journal.check()


def test_without_room_a_change_waits_as_long_as_patience_has_it(tmp_path, folder):
    """A limit on the file's pages is a full disk to SQLite."""
    asked: list[StateBlocked | None] = []

    def wait(why: StateBlocked | None) -> bool:
        asked.append(why)
        if len(asked) == 3:
            limit(journal, 1 << 20)
        return len(asked) < 5

    def work() -> None:
        limit(journal, 1)
        for number in range(200):
            begin(journal, make(folder, f"{number}.jpg"))

    with lock_state_dir(tmp_path) as lock, Journal.open_in(lock, patience=wait) as journal:
        # 1. Room comes at the third time of asking: nothing was lost, nothing done twice.
        work()
        assert [type(why) for why in asked] == [StateBlocked] * 3 + [type(None)]
        assert "no room in the state folder" in str(asked[0])
        assert journal.snapshot().counts == {"running": 200}
        # 2. Patience ends: an error in words.
        with pytest.raises(StateBlocked, match="no room") as no:
            work()
        assert no.value.exit_code == 75
        # 3. What need not be written does not wait.
        before = len(asked)
        with pytest.raises(StateBlocked):
            journal.set_live({"much": "x" * 1_000_000})
        assert len(asked) == before


def overwrite(file: Path, start: int) -> None:
    """Fill a file with nonsense from ``start`` on, in place."""
    length = file.stat().st_size - start
    with file.open("r+b") as stream:
        stream.seek(start)
        stream.write(b"\xa5" * max(length, 0))


def limit(journal: Journal, pages: int) -> None:
    for connection in (journal._store._main, journal._store._live):
        connection.execute(f"PRAGMA max_page_count = {pages}")


def test_a_reader_does_not_take_a_locked_journal_for_one_that_nobody_writes(tmp_path):
    Journal.open(tmp_path).close()
    holder = sqlite3.connect(tmp_path / "journal.sqlite")
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(StateBlocked, match="locked"):
            Journal.open(tmp_path, read_only=True)
    finally:
        holder.close()


def test_it_can_be_read_where_nothing_may_be_written(tmp_path, folder):
    with Journal.open(tmp_path / "state") as journal:
        begin(journal, make(folder))
    (tmp_path / "state").chmod(0o555)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from fluxwatchd.journal import Journal\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "with Journal.open(Path(sys.argv[1]), read_only=True) as journal:\n"
        "    print(journal.snapshot().counts)\n"
    )
    open_up(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "state"],
        capture_output=True,
        text=True,
        check=False,
    )
    (tmp_path / "state").chmod(0o755)
    assert done.stdout == "{'running': 1}\n", done.stderr


# --- one daemon a state folder --------------------------------------------------------------


def test_one_process_has_the_state_folder(tmp_path):
    with lock_state_dir(tmp_path / "state"):
        with pytest.raises(ConfigError, match=f"process {os.getpid()}") as no:
            lock_state_dir(tmp_path / "state")
        assert "Stop that one" in no.value.hint
    lock_state_dir(tmp_path / "state").close()


def test_a_killed_process_leaves_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from fluxwatchd.journal import lock_state_dir\n"
        "lock = lock_state_dir(Path(sys.argv[1])); print('locked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        with pytest.raises(ConfigError, match=f"process {process.pid}"):
            lock_state_dir(tmp_path)
        process.kill()
        process.wait()
        lock_state_dir(tmp_path).close()


def test_a_state_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used: Not a directory"):
        lock_state_dir(tmp_path / "file" / "state")
