"""SQLite: jobs, attempts, history; the only SQL in the project."""

from fluxwatchd.journal.book import Journal
from fluxwatchd.journal.lock import StateLock, lock_state_dir
from fluxwatchd.journal.opening import FILE_NAME
from fluxwatchd.journal.rows import (
    Explained,
    FileState,
    Forgiven,
    Held,
    Request,
    RequestKind,
    Row,
    Snapshot,
)
from fluxwatchd.journal.schema import SCHEMA_VERSION, NoJournal
from fluxwatchd.journal.store import Patience

__all__ = [
    "FILE_NAME",
    "SCHEMA_VERSION",
    "Explained",
    "FileState",
    "Forgiven",
    "Held",
    "Journal",
    "NoJournal",
    "Patience",
    "Request",
    "RequestKind",
    "Row",
    "Snapshot",
    "StateLock",
    "lock_state_dir",
]
