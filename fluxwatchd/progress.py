"""Progress bars for a person who is looking: pictures, and the stage and tile of each at work."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fluxwatchd.printing import printable

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fluxwatchd.engine import Beat

STAGES = {
    "load": "loading the model",
    "compile": "compiling",
    "base": "resizing",
    "encode": "encoding",
    "dino": "looking (DINO)",
    "denoise": "denoising",
    "guide": "guiding (DINO)",
    "decode": "decoding",
    "color": "locking colours",
    "drift": "measuring drift",
    "finish": "finishing",
}
"""The engine's stages in a person's words."""


def watched() -> bool:
    """Whether a person is looking: stderr is a terminal."""
    return sys.stderr.isatty()


class Bars:
    """Bars on stderr: one for each picture that an engine has at hand, one for all pictures.

    Where nobody is looking it does nothing and imports nothing. It may be called from any thread.
    ``total`` is the number of pictures, None where it is not known. The name "" stands for the
    engine itself, which loads before it has a picture.
    """

    def __init__(self, total: int | None = None) -> None:
        self._progress = _make_progress() if watched() else None
        self._tasks: dict[str, TaskID] = {}
        self._all: TaskID | None = None
        if self._progress is not None and total is not None and total > 1:
            self._all = self._progress.add_task("pictures", total=total, stage="")

    def __call__(self, name: str, stage: str, done: int, total: int) -> None:
        """The picture ``name`` has ``done`` of ``total`` units of ``stage`` behind it."""
        if self._progress is None:
            return
        if name not in self._tasks:
            self._drop("")
            self._tasks[name] = self._progress.add_task(_short(name) or "engine", stage="")
        words = STAGES.get(stage, stage)
        self._progress.update(self._tasks[name], completed=done, total=total, stage=words)

    def end(self, name: str) -> None:
        """The picture ``name`` is done or has failed: its bar goes."""
        self._drop(name)
        if self._progress is not None and self._all is not None:
            self._progress.advance(self._all)

    def beat(self, name: str) -> Beat:
        """A Beat for the engine that moves the bar of ``name``."""

        def move(stage: str, done: int, total: int) -> None:
            self(name, stage, done, total)

        return move

    def _drop(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if self._progress is not None and task is not None:
            self._progress.remove_task(task)

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()


def _make_progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[stage]}", style="cyan", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


def _short(name: str, width: int = 40) -> str:
    """The end of a long name, which tells more than its beginning; fit for any terminal."""
    shown = printable(name)
    return shown if len(shown) <= width else f"...{shown[-(width - 3) :]}"
