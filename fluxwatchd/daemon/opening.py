"""Recovery in threads of its own: a share that hangs in the middle of it holds up nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fluxwatchd.config import Folder, answers
from fluxwatchd.delivery import Recovered

LOOK_EVERY: Final = 0.2
"""Seconds between two looks at whether a recovery gets further."""

Recover = Callable[[Callable[[], None]], Recovered]
"""Recovers a folder, and calls what it is given at every step."""


class _Recovery:
    """One under way; ``moved``, monotonic s, is when it got further."""

    def __init__(self, task: Recover) -> None:
        self._task, self.moved, self.over = task, time.monotonic(), threading.Event()
        self.found: Recovered | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        """Do it; for a thread of its own."""
        try:
            self.found = self._task(self._beat)
        except Exception as error:  # noqa: BLE001 - raised in the main thread
            self.error = error
        self.over.set()

    def _beat(self) -> None:
        self.moved = time.monotonic()


class Opening:
    """Recovers folders, for one thread, which waits as long as the folder answers.

    ``wait`` is called now and then meanwhile.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self._wait = wait
        self._left: dict[Path, _Recovery] = {}

    def is_under_way(self, inbox: Path) -> bool:
        """Whether a recovery that was left is not over: no other may begin."""
        left = self._left.get(inbox)
        return left is not None and not left.over.is_set()

    def recover(self, folder: Folder, task: Recover) -> Recovered:
        """What ``task`` comes to. Raises what it raises; Silent if the folder does not answer.

        Then the task is left, and what it comes to is forgotten: recover once more when it is over.
        """
        one = self._left[folder.inbox] = _Recovery(task)
        threading.Thread(target=one.run, name="recovery", daemon=True).start()
        while not one.over.wait(LOOK_EVERY):
            self._wait()
            if time.monotonic() - one.moved >= answers.PATIENCE:
                answers.expect(folder.places)
        del self._left[folder.inbox]
        if one.found is None:
            raise one.error or RuntimeError("a recovery ended without a result")
        return one.found
