"""The journal: what every job, file and request has come to."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fluxwatchd.config import Folder
from fluxwatchd.crashpoints import crashpoint
from fluxwatchd.errors import FluxwatchdError
from fluxwatchd.job import Checkpoint, Job, Taken
from fluxwatchd.journal import opening
from fluxwatchd.journal.lock import StateLock
from fluxwatchd.journal.rows import (
    FILE_COLUMNS,
    JOB_COLUMNS,
    Explained,
    FileState,
    Forgiven,
    Held,
    Request,
    RequestKind,
    Row,
    Snapshot,
    blob,
    file_state_of,
    path_of,
    request_of,
    row_of,
    wrap,
)
from fluxwatchd.journal.states import FileStates
from fluxwatchd.journal.store import Patience, Step, Store, none_at_all
from fluxwatchd.sidecar import checkpoint_id, fingerprint


class Journal:
    """The history of all jobs in one state folder. Safe to use from any thread.

    Every method that changes something returns only when the change is on the disk (WAL,
    synchronous=FULL), but for set_live, whose loss does no harm. All raise StateLost if the
    database cannot be used, StateBlocked if it cannot be written now and patience is at its end.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._states = FileStates(store)

    @classmethod
    def open(
        cls, state_dir: Path, *, read_only: bool = False, clock: Callable[[], float] = time.time
    ) -> Self:
        """Open or make ``state_dir/journal.sqlite``; an older schema is migrated, with a backup.

        For commands; ``read_only``: nothing is made or migrated. ``clock`` gives s since the epoch.
        Raises ConfigError: the schema is newer than this program, the folder cannot be written;
        NoJournal: read only, and there is none; StateLost: it is damaged, or the disk is full.
        """
        path = state_dir / opening.FILE_NAME
        with opening.told(path):
            if read_only:
                main = live = opening.to_read(path)
            else:
                main, live = opening.to_write(path)
        return cls(Store(path, main, live), clock)

    @classmethod
    def open_in(
        cls,
        lock: StateLock,
        *,
        patience: Patience = none_at_all,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Open or make the journal of a locked state folder, for the daemon.

        A damaged one is kept aside, see ``kept_aside``, and begun anew: a scan finds again what is
        pending. ``patience`` is asked while there is no room to write. Raises ConfigError,
        StateLost.
        """
        return cls(Store.of_daemon(lock, patience), clock)

    @property
    def kept_aside(self) -> Path | None:
        """Where a damaged journal lies now, found so at the opening or before the closing."""
        return self._store.kept_aside

    def check(self) -> None:
        """Raise StateLost if the state folder's files were deleted or replaced under the daemon."""
        self._store.check()

    def close(self) -> None:
        """Close the database; no method may be called afterwards. Raises OSError."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # a job's way, in the order of its steps

    def attempts(self, folder: Folder, relative: Path, sha256: str) -> int:
        """How often this content at this place was begun and neither given back nor forgiven."""
        row = self._store.one(
            "SELECT attempts FROM files WHERE inbox = ? AND relative = ? AND sha256 = ?",
            (blob(folder.inbox), blob(relative), sha256),
        )
        return int(row[0]) if row else 0

    def begin(self, job: Job | Taken) -> int:
        """Write down that ``job`` starts, before the engine does; returns its attempt, from 1.

        Put that number into the job: ``replace(job, attempt=journal.begin(job))``.
        """
        settings = _settings_columns(job)
        key = (blob(job.folder.inbox), blob(job.relative))
        attempt = self.attempts(job.folder, job.relative, job.sha256) + 1
        crashpoint("journal.before-begin")
        self._store.write(
            (
                _BEGIN_FILE,
                (*key, job.size, wrap(job.mtime_ns), job.sha256, attempt, self._clock()),
            ),
            (
                _BEGIN_JOB,
                (
                    *(job.id, *key, job.size, wrap(job.mtime_ns), wrap(job.inode), job.sha256),
                    *(attempt, self._clock()),
                    *settings,
                ),
            ),
        )
        crashpoint("journal.begun")
        return attempt

    def delivering(self, job: Job) -> None:
        """The engine is done; the result is being put into the outbox."""
        crashpoint("journal.before-delivering")
        self._store.write(("UPDATE jobs SET state = 'delivering' WHERE id = ?", (job.id,)))
        crashpoint("journal.delivering")

    def finish(
        self,
        job_id: str,
        output: Path,
        output_sha256: str,
        checkpoint: Checkpoint | str | None = None,
    ) -> None:
        """The result is committed at ``output``; the source has yet to retire.

        ``checkpoint`` is the weights that made it, or their checkpoint_id.
        """
        if isinstance(checkpoint, Checkpoint):
            checkpoint = checkpoint_id(checkpoint)
        crashpoint("journal.before-finish")
        self._store.write(
            (
                "UPDATE jobs SET state = 'done', finished = ?, output = ?, output_sha256 = ?, "
                "checkpoint = ? WHERE id = ?",
                (self._clock(), blob(output), output_sha256, checkpoint, job_id),
            )
        )
        crashpoint("journal.finished")

    def retired(self, job_id: str, outcome: str, path: Path | None) -> None:
        """The source is out of the way: delivery's Retired or SetAside, written down."""
        crashpoint("journal.before-retired")
        left = (
            f"DELETE FROM files WHERE {_OF_JOB} AND {_OF_ITS_FILE}",  # noqa: S608 - constants
            (job_id, job_id),
        )
        kept = self._change_file(job_id, "done = 1, attempts = 0, next_try = NULL, alone = 0")
        self._store.write(
            (
                "UPDATE jobs SET outcome = ?, moved_to = ? WHERE id = ?",
                (outcome, blob(path) if path else None, job_id),
            ),
            kept if outcome == "kept" else left,
        )
        crashpoint("journal.retired")

    def fail(self, job_id: str, error: BaseException, *, next_try: float | None = None) -> None:
        """The job failed. With ``next_try``, s since the epoch, its file is tried again then."""
        kind, message, hint, transient = error_words(error)
        crashpoint("journal.before-fail")
        self._store.write(
            (
                "UPDATE jobs SET state = 'failed', finished = ?, error_class = ?, message = ?, "
                "hint = ?, transient = ?, next_try = ? WHERE id = ?",
                (self._clock(), kind, message, hint, transient, next_try, job_id),
            ),
            self._change_file(job_id, "next_try = ?", next_try),
        )
        crashpoint("journal.failed")

    def give_back(self, job_id: str) -> None:
        """The job was interrupted through no fault of its own: the attempt does not count."""
        crashpoint("journal.before-give-back")
        self._store.write(
            (
                "UPDATE jobs SET state = 'interrupted', finished = ? WHERE id = ?",
                (self._clock(), job_id),
            ),
            self._change_file(job_id, "attempts = max(attempts - 1, 0)"),
        )
        crashpoint("journal.given-back")

    # after a crash

    def interrupted_runs(self) -> tuple[Row, ...]:
        """Jobs that were running or delivering when an earlier process ended."""
        return self._rows("state IN ('running', 'delivering') ORDER BY number")

    def crashed(self, job_id: str) -> None:
        """Such a job has no result: its attempt counts, and its file runs alone next time."""
        self._store.write(
            (
                "UPDATE jobs SET state = 'interrupted', finished = ?, error_class = 'Crash', "
                "message = 'the process ended while this job was under way' WHERE id = ?",
                (self._clock(), job_id),
            ),
            self._change_file(job_id, "alone = 1"),
        )

    def unretired(self) -> tuple[Row, ...]:
        """Jobs that are done but whose source is not known to have left the inbox."""
        return self._rows("state = 'done' AND outcome IS NULL ORDER BY number")

    def not_set_aside(self) -> tuple[Row, ...]:
        """Jobs that failed for good but whose source is not known to have left the inbox."""
        return self._rows(
            "state = 'failed' AND outcome IS NULL AND next_try IS NULL ORDER BY number"
        )

    def run(self, job_id: str) -> Row | None:
        """A job by its id."""
        rows = self._rows("id = ?", (job_id,))
        return rows[0] if rows else None

    # files in the inboxes

    def has_jobs(self, folder: Folder) -> bool:
        """Whether any job of this folder's inbox is known."""
        return bool(self._rows("inbox = ? LIMIT 1", (blob(folder.inbox),)))

    def file_states(self, folder: Folder) -> Mapping[str, FileState]:
        """What is known about the folder's files, by Entry.name; most files are not in it.

        It stays true until the next call, from the same thread.
        """
        return self._states.of(blob(folder.inbox))

    def hold(self, folder: Folder, relative: Path, *, size: int, mtime_ns: int, held: bool) -> None:
        """Hold a file back until it is released."""
        self.answer((), (Held(folder, relative, size, mtime_ns, held),))

    # what commands and the daemon tell each other

    def request(self, kind: RequestKind, path: Path) -> int:
        """Ask the daemon for something; returns the request's number."""
        values = (kind, blob(path), self._clock())
        cursor = self._store.write(
            ("INSERT INTO requests (kind, path, at) VALUES (?, ?, ?)", values)
        )
        return int(cursor.lastrowid or 0)

    def take_requests(self) -> tuple[Request, ...]:
        """The requests that wait, oldest first; they stay until answered."""
        rows = self._store.all("SELECT id, kind, path, at FROM requests ORDER BY id")
        return tuple(request_of(row) for row in rows)

    def answer(self, requests: Iterable[int], orders: Iterable[Held | Forgiven] = ()) -> None:
        """Requests have been carried out: write down what they came to, and drop them, at once."""
        dropped = [("DELETE FROM requests WHERE id = ?", (number,)) for number in requests]
        if steps := [*map(self._order, orders), *dropped]:
            self._store.write(*steps)

    def set_live(self, values: Mapping[str, Any]) -> None:
        """Replace what the daemon says of itself (JSON values); not synced, so cheap."""
        rows = [(key, json.dumps(value, default=str)) for key, value in values.items()]
        self._store.write_live(
            ("DELETE FROM live", ()), many=("INSERT INTO live (key, value) VALUES (?, ?)", rows)
        )

    # history

    def since(self) -> float:
        """When its first job began, s since the epoch; infinite if there is none."""
        row = self._store.one("SELECT started FROM jobs ORDER BY number LIMIT 1")
        return float(row[0]) if row else float("inf")

    def find_same(
        self, sha256: str, fingerprint: str, seed: int, checkpoint: str
    ) -> tuple[Row, ...]:
        """Finished jobs of the same content, settings, seed and model, the last one first."""
        return self._rows(
            "sha256 = ? AND fingerprint = ? AND seed = ? AND checkpoint = ? AND state = 'done' "
            "ORDER BY number DESC",
            (sha256, fingerprint, seed, checkpoint),
        )

    def snapshot(self, limit: int = 20) -> Snapshot:
        """Counts and the last ``limit`` of each kind."""
        with self._store.lock:
            counts = dict(self._store.all("SELECT state, count(*) FROM jobs GROUP BY state"))
            live = {k: json.loads(v) for k, v in self._store.all("SELECT key, value FROM live")}
            waiting = self._store.all(
                f"SELECT inbox, {FILE_COLUMNS} FROM files "  # noqa: S608 - constant text
                "WHERE held OR next_try IS NOT NULL ORDER BY changed DESC LIMIT ?",
                (limit,),
            )
            return Snapshot(
                counts=counts,
                live=live,
                running=self.interrupted_runs(),
                failed=self._rows(
                    "state = 'failed' AND NOT EXISTS (SELECT 1 FROM jobs AS later WHERE "
                    "later.inbox = jobs.inbox AND later.relative = jobs.relative AND "
                    "later.sha256 = jobs.sha256 AND later.number > jobs.number) "
                    "ORDER BY number DESC LIMIT ?",
                    (limit,),
                ),
                recent=self._rows("state = 'done' ORDER BY number DESC LIMIT ?", (limit,)),
                waiting=tuple((path_of(row[0]), file_state_of(row[1:])) for row in waiting),
                requests=self.take_requests(),
            )

    def explain(self, path: Path) -> Explained:
        """Every job that read, made or moved the file at ``path`` (absolute).

        ``path`` may be a sidecar or an error record too.
        """
        names = [path]
        for ending in (".error.json", ".json"):
            if path.name.endswith(ending) and path.name != ending:
                names.append(path.with_name(path.name.removesuffix(ending)))
        with self._store.lock:
            sources = [pair for name in names for pair in self._as_sources(name)]
            rows = [
                *(row for pair in sources for row in self._rows(_OF_SOURCE, pair)),
                *(row for n in names for row in self._rows("output = ?", (blob(n),))),
                *(row for n in names for row in self._rows("moved_to = ?", (blob(n),))),
            ]
            unique = {row.id: row for row in rows}
            found = self._one_file(sources)
            requests = tuple(r for r in self.take_requests() if r.path == path)
        newest_first = sorted(unique.values(), key=lambda row: row.started, reverse=True)
        return Explained(path, tuple(newest_first), found, requests)

    def prune(self, days: float) -> int:
        """Forget jobs that ended longer ago; returns how many. Kept sources stay done."""
        before = self._clock() - days * 86400
        cursor = self._store.write(
            (
                "DELETE FROM jobs WHERE finished < ? AND NOT (state = 'done' AND outcome IS NULL)",
                (before,),
            ),
            ("DELETE FROM files WHERE changed < ? AND NOT held AND NOT done", (before,)),
        )
        return cursor.rowcount

    # plumbing

    def _order(self, order: Held | Forgiven) -> Step:
        key = (blob(order.folder.inbox), blob(order.relative))
        if isinstance(order, Forgiven):
            return _FORGIVE, (self._clock(), *key)
        values = (order.size, wrap(order.mtime_ns), order.held, self._clock())
        return _HOLD, (*key, *values)

    def _change_file(self, job_id: str, assignments: str, *values: object) -> Step:
        return (
            f"UPDATE files SET {assignments}, changed = ? WHERE {_OF_JOB}",  # noqa: S608 - constant
            (*values, self._clock(), job_id),
        )

    def _rows(self, where: str, values: Sequence[object] = ()) -> tuple[Row, ...]:
        sql = f"SELECT {JOB_COLUMNS} FROM jobs WHERE {where}"  # noqa: S608 - constant text
        return tuple(row_of(columns) for columns in self._store.all(sql, values))

    def _as_sources(self, path: Path) -> list[tuple[bytes, bytes]]:
        """``path`` as (inbox, relative), for every folder above it that could be an inbox."""
        return [(blob(above), blob(path.relative_to(above))) for above in path.parents]

    def _one_file(self, sources: Sequence[tuple[bytes, bytes]]) -> FileState | None:
        for pair in sources:
            row = self._store.one(f"SELECT {FILE_COLUMNS} FROM files WHERE {_OF_SOURCE}", pair)  # noqa: S608
            if row:
                return file_state_of(row)
        return None


_BEGIN_FILE = """
    INSERT INTO files (inbox, relative, size, mtime_ns, sha256, attempts, changed)
    VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET
        size = excluded.size, mtime_ns = excluded.mtime_ns, sha256 = excluded.sha256,
        attempts = excluded.attempts, next_try = NULL, done = 0, changed = excluded.changed
"""
_BEGIN_JOB = """
    INSERT INTO jobs (id, inbox, relative, size, mtime_ns, inode, sha256, state, attempt, started,
        profile, fingerprint, seed)
    VALUES (?, ?, ?, ?, ?, ?, ?, 'running', ?, ?, ?, ?, ?)
"""
_OF_SOURCE = "inbox = ? AND relative = ?"
_OF_JOB = "(inbox, relative) IN (SELECT inbox, relative FROM jobs WHERE id = ?)"
_OF_ITS_FILE = "(size, mtime_ns) IN (SELECT size, mtime_ns FROM jobs WHERE id = ?)"
"""Not another file that has taken its name."""
_SAME_FILE = "files.size = excluded.size AND files.mtime_ns = excluded.mtime_ns"
_FORGIVE = """
    UPDATE files SET attempts = 0, next_try = NULL, done = 0, alone = 0, changed = ?
    WHERE inbox = ? AND relative = ?
"""
_HOLD = f"""
    INSERT INTO files (inbox, relative, size, mtime_ns, held, changed) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET
        held = excluded.held, done = done AND {_SAME_FILE}, alone = alone AND {_SAME_FILE},
        attempts = attempts * ({_SAME_FILE}), next_try = CASE WHEN {_SAME_FILE} THEN next_try END,
        size = excluded.size, mtime_ns = excluded.mtime_ns, changed = excluded.changed
"""  # noqa: S608 - constants


def _settings_columns(job: Job | Taken) -> tuple[str | None, str | None, int | None]:
    if isinstance(job, Taken):
        return None, None, None
    return job.profile.model_dump_json(), fingerprint(job.profile), job.seed


def error_words(error: BaseException) -> tuple[str, str, str, bool]:
    """An error's class, message, hint and whether it is transient."""
    hint = error.hint if isinstance(error, FluxwatchdError) else ""
    return type(error).__name__, str(error), hint, bool(getattr(error, "transient", False))
