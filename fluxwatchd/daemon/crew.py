"""The reader or writer threads: one that a share holds up is replaced until the share answers."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from fluxwatchd.config import Folder
from fluxwatchd.daemon.stints import Stints

Task = Callable[[], object]

LOOK_EVERY: Final = 0.2
"""Seconds between two looks at what is held up, while an end is waited for."""


class Crew:
    """``count`` threads that do tasks in the order in which they come. A task raises nothing.

    A task is one of a folder and a file; ``stints`` is told of it. The threads end with the
    process: none that hangs keeps it.
    """

    def __init__(self, count: int, name: str, stints: Stints) -> None:
        self._count, self._name, self._stints = count, name, stints
        self._change = threading.Condition()
        self._waiting: deque[tuple[Folder, str, Task]] = deque()
        self._at_work: list[Path] = []
        self._threads = self._held_up = 0
        self._is_over = False

    def submit(self, folder: Folder, file: str, task: Task) -> None:
        """Have a thread do ``task``."""
        with self._change:
            self._waiting.append((folder, file, task))
            self._man()
            self._change.notify_all()

    def relieve(self, silent: Collection[Path]) -> None:
        """Have others for the threads at work for these inboxes, whose folders do not answer."""
        with self._change:
            self._held_up = sum(inbox in silent for inbox in self._at_work)
            self._man()

    def close(self, silent: Callable[[], Collection[Path]], *, drop: bool = False) -> None:
        """End once what was submitted is done, or with ``drop`` begun; what is held up is left."""
        with self._change:
            if drop:
                self._waiting.clear()
            while self._waiting or self._at_work:
                held_up = silent()
                if not self._waiting and all(inbox in held_up for inbox in self._at_work):
                    break
                self._held_up = sum(inbox in held_up for inbox in self._at_work)
                self._man()
                self._change.wait(LOOK_EVERY)
            self._is_over = True
            self._change.notify_all()

    def _man(self) -> None:
        """Start threads where there are too few."""
        wanted = min(self._count, len(self._waiting) + len(self._at_work)) + self._held_up
        while self._threads < wanted:
            self._threads += 1
            threading.Thread(target=self._work, name=self._name, daemon=True).start()

    def _work(self) -> None:
        """Do one task after the other, until there is no more need of this thread."""
        while True:
            with self._change:
                while not self._waiting and not self._is_over and not self._is_surplus():
                    self._change.wait()
                if not self._waiting or self._is_surplus():
                    self._threads -= 1
                    return
                folder, file, task = self._waiting.popleft()
                self._at_work.append(folder.inbox)
            try:
                with self._stints.one(folder, file):
                    task()
            finally:
                del task  # it has a whole picture, which is not to be kept until the next one comes
                with self._change:
                    self._at_work.remove(folder.inbox)
                    self._change.notify_all()

    def _is_surplus(self) -> bool:
        return self._threads > self._count + self._held_up
