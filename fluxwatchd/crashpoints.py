"""Places at which a test may kill the process: before and after every step that must survive it."""

import os
import signal
from collections import Counter
from typing import Final

VARIABLE: Final = "FLUXWATCHD_CRASHPOINT"
"""The environment variable that arms one point: ``name``, or ``name:n`` for its nth pass."""

NAMES: Final = (
    # a folder is tried
    "check.made",
    # the journal takes the job in
    "journal.before-begin",
    "journal.begun",
    # the picture is written beside its place
    "stage.before-folder",
    "stage.before-part",
    "stage.before-write",
    "stage.written",
    "stage.synced",
    "journal.before-delivering",
    "journal.delivering",
    # sidecar and picture get their names
    "commit.before-record",
    "record.written",
    "commit.record-synced",
    "commit.record-linked",
    "commit.record-name-synced",
    "commit.picture-linked",
    "commit.folder-synced",
    "commit.picture-part-removed",
    "commit.done",
    "journal.before-finish",
    "journal.finished",
    # the source retires
    "retire.before",
    "retire.before-delete",
    "retire.deleted",
    "move.before",
    "move.before-copy",
    "move.copied",
    "move.copy-synced",
    "move.compared",
    "move.linked",
    "move.hidden",
    "move.source-removed",
    "move.source-synced",
    "move.renamed",
    "move.target-synced",
    "move.done",
    "retire.done",
    "journal.before-retired",
    "journal.retired",
    # or the job fails and its source is set aside
    "journal.before-fail",
    "journal.failed",
    "fail.before-record",
    "fail.record-synced",
    "fail.record-linked",
    "fail.folder-synced",
    "fail.source-moved",
    "fail.record-part-removed",
    "fail.done",
    # or it is given back
    "journal.before-give-back",
    "journal.given-back",
    # a crash in recovery itself
    "recover.before",
    "recover.swept",
    "recover.delivered",
    "recover.done",
)
"""Every point, in the order in which a job meets them."""

_passes: Counter[str] = Counter()


def crashpoint(name: str) -> None:
    """Kill this process here if the environment asks for it; otherwise do nothing."""
    wanted = os.environ.get(VARIABLE)
    if wanted is None:
        return
    armed, _, nth = wanted.partition(":")
    if armed != name:
        return
    _passes[name] += 1
    if _passes[name] == int(nth or 1):
        os.kill(os.getpid(), signal.SIGKILL)
