"""The journal's tables, and how an older journal becomes one of today."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from fluxwatchd.errors import ConfigError

SCHEMA_VERSION = 1

MIGRATIONS: tuple[str, ...] = (
    # 0 -> 1
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        inbox BLOB NOT NULL,
        relative BLOB NOT NULL,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        state TEXT NOT NULL,
        attempt INTEGER NOT NULL,
        started REAL NOT NULL,
        finished REAL,
        profile TEXT,
        fingerprint TEXT,
        seed INTEGER,
        checkpoint TEXT,
        output BLOB,
        output_sha256 TEXT,
        outcome TEXT,
        moved_to BLOB,
        error_class TEXT,
        message TEXT,
        hint TEXT,
        transient INTEGER NOT NULL DEFAULT 0,
        next_try REAL
    );
    CREATE INDEX jobs_by_state ON jobs (state, outcome);
    CREATE INDEX jobs_by_source ON jobs (inbox, relative);
    CREATE INDEX jobs_by_content ON jobs (sha256, fingerprint, seed);
    CREATE INDEX jobs_by_output ON jobs (output) WHERE output IS NOT NULL;
    CREATE INDEX jobs_by_moved ON jobs (moved_to) WHERE moved_to IS NOT NULL;
    CREATE INDEX jobs_by_end ON jobs (finished);
    CREATE TABLE files (
        inbox BLOB NOT NULL,
        relative BLOB NOT NULL,
        size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL,
        sha256 TEXT NOT NULL DEFAULT '',
        attempts INTEGER NOT NULL DEFAULT 0,
        next_try REAL,
        held INTEGER NOT NULL DEFAULT 0,
        done INTEGER NOT NULL DEFAULT 0,
        alone INTEGER NOT NULL DEFAULT 0,
        changed REAL NOT NULL,
        PRIMARY KEY (inbox, relative)
    ) WITHOUT ROWID;
    CREATE TABLE requests (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        kind TEXT NOT NULL,
        path BLOB NOT NULL,
        at REAL NOT NULL
    );
    CREATE TABLE live (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    """,
)


class NoJournal(ConfigError):
    """There is no journal yet."""


def refuse_other(connection: sqlite3.Connection, path: Path) -> None:
    """Raise ConfigError where a reader cannot make sense of the journal; NoJournal if it is empty.

    It is empty for the moment between its making and its first tables.
    """
    version = _version(connection)
    _refuse_newer(version, path)
    if version == 0:
        raise no_journal(path)
    if version < SCHEMA_VERSION:
        raise ConfigError(
            f"the journal {path} has the older schema {version}",
            hint="Start the daemon: it migrates the journal and keeps a backup. If it has just "
            "been started, it is at that: try again in a moment.",
        )


def no_journal(path: Path) -> NoJournal:
    """The error of a reader that finds nothing."""
    return NoJournal(
        f"there is no journal at {path}",
        hint="Start the daemon once with this configuration, or name the right one with --config.",
    )


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring an older schema up to date, after copying the database beside itself.

    Raises ConfigError if the schema is newer than this program, sqlite3.Error.
    """
    version = _version(connection)
    _refuse_newer(version, path)
    if version == SCHEMA_VERSION:
        return
    if version:
        _back_up(connection, path.with_name(f"{path.stem}.schema{version}{path.suffix}"))
    for step in range(version, SCHEMA_VERSION):
        # one script, one transaction: a crash leaves the old schema whole
        connection.executescript(
            f"BEGIN IMMEDIATE;{MIGRATIONS[step]};PRAGMA user_version = {step + 1};COMMIT;"
        )


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _refuse_newer(version: int, path: Path) -> None:
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"the journal {path} has schema {version}; this program knows {SCHEMA_VERSION}",
            hint="Run the newer fluxwatchd that made it, or move the journal away: what is "
            "pending is found again by looking into the inboxes.",
        )


def _back_up(connection: sqlite3.Connection, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(target)) as copy:
        connection.backup(copy)
