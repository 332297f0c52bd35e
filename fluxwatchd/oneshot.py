"""`fluxwatchd upscale`: the same engine and delivery as the daemon's, once, without a journal."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import structlog

from fluxwatchd import work
from fluxwatchd.config import Folder, Profile, Settings
from fluxwatchd.delivery import Delivery
from fluxwatchd.engine import Beat, Engine, devices, open_engine
from fluxwatchd.engine.helpers import Helpers
from fluxwatchd.engine.shares import Offer
from fluxwatchd.errors import FluxwatchdError, InputRejected, Interrupted, JobFailed
from fluxwatchd.imageio import Picture
from fluxwatchd.job import Job, Result, Taken

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Watch:
    """Who looks on: ``beat`` makes the engine's Beat for a file, ``end`` is called after it."""

    beat: Callable[[str], Beat]
    end: Callable[[str], None]


def upscale(
    files: Sequence[Path],
    output: Path,
    settings: Settings,
    profile: Profile,
    watch: Watch | None = None,
) -> int:
    """Upscale ``files`` into ``output``; the files stay as they are. Returns 0, or 1 if one failed.

    While a picture is computed, the next one is decoded and the last one written. With fusion
    "final", the other devices that the settings name help with large ones. Raises
    ConfigError (a model that is not there), EngineLost, Interrupted.
    """
    first, *others = devices(settings.engine) if profile.kind.has_model else ("cpu",)
    state_dir = settings.daemon.state_dir
    opened = partial(open_engine, settings.engine, state_dir=state_dir)
    free = others if profile.fusion == "final" else ()
    first_beat = partial(_beat, watch, files[0])
    with (
        _stoppable() as stop,
        ThreadPoolExecutor(1, thread_name_prefix="reader") as reader,
        _Outgoing(state_dir) as outgoing,
        opened(device=first) as engine,
        Helpers(
            _others(free, opened, warm=partial(engine.warm, profile, first_beat(stop))), profile
        ) as helpers,
    ):
        upcoming = [reader.submit(_take, files[0], output, profile)]
        for number, file in enumerate(files):
            taken = upcoming.pop()
            if number + 1 < len(files):
                upcoming.append(reader.submit(_take, files[number + 1], output, profile))
            try:
                job, picture = taken.result()
                beat, offer = _beat(watch, file, stop), helpers.offer(str(file))
                result = _make(engine, job, picture, beat, offer=offer, state_dir=state_dir)
                outgoing.put(file, result)
                helpers.check()
            except JobFailed as error:
                outgoing.fail(file, error)
            finally:
                if watch is not None:
                    watch.end(str(file))
    return 1 if outgoing.failed else 0


def _others(
    names: Sequence[str], opened: Callable[..., Engine], *, warm: Callable[[], object]
) -> list[Engine]:
    """The engines of other devices, once the pictures' own is warm: they load one by one."""
    if names:
        warm()
    return [opened(device=name) for name in names]


class _Outgoing:
    """Writes each result while the next is made; tells of each failure once, by its file."""

    def __init__(self, state_dir: Path) -> None:
        self.failed = 0
        self._state_dir = state_dir
        self._delivery = Delivery()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._written: tuple[Path, Future[None]] | None = None

    def __enter__(self) -> _Outgoing:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._settle()
        finally:
            self._writer.shutdown()

    def put(self, file: Path, result: Result) -> None:
        """Begin to write a result; waits for the one before it, so that two at most are held."""
        self._settle()
        self._written = (file, self._writer.submit(self._write, result))

    def fail(self, file: Path, error: FluxwatchdError) -> None:
        """Say that ``file`` failed, and count it."""
        self.failed += 1
        log.error("failed", file=str(file), reason=str(error), remedy=error.hint)

    def _settle(self) -> None:
        """Wait for the result that is being written. Its failure is its own file's alone."""
        written, self._written = self._written, None
        if written is None:
            return
        file, future = written
        try:
            future.result()
        except FluxwatchdError as error:
            self.fail(file, error)

    def _write(self, result: Result) -> None:
        self._delivery.prepare(result.job.folder)
        done = work.deliver(self._delivery, result)
        work.forget_state(self._state_dir, result.job)
        seconds = round(result.finished - result.started, 2)
        log.info("done", file=str(result.job.source), result=str(done.picture), seconds=seconds)


def _take(file: Path, output: Path, profile: Profile) -> tuple[Job, Picture]:
    """Read and decode one file. Raises InputRejected."""
    file = file.absolute()
    folder = Folder(inbox=file.parent, outbox=output.absolute(), on_success="keep")
    try:
        content = work.read_source(folder, Path(file.name))
    except OSError as error:
        raise InputRejected(
            f"the file cannot be read: {error.strerror}", hint="Name a file that you may read."
        ) from error
    taken = Taken(
        work.new_id(),
        folder,
        Path(file.name),
        content.size,
        content.mtime_ns,
        content.sha256,
        inode=content.inode,
    )
    return work.make_job(taken, profile), work.decode(content.data, profile, file.name)


def _make(
    engine: Engine,
    job: Job,
    picture: Picture,
    beat: Beat,
    *,
    offer: Offer | None,
    state_dir: Path,
) -> Result:
    """Upscale one picture; what was kept of one that failed for good is removed."""
    engine.warm(job.profile, beat)
    started = time.time()
    try:
        ticket = work.ticket(job)
        upscaled = engine.upscale(picture, job.profile, job.seed, beat, ticket=ticket, offer=offer)
    except JobFailed as error:
        if not error.transient:
            work.forget_state(state_dir, job)
        raise
    return Result(job, upscaled, started, time.time(), (picture.width, picture.height))


def _beat(watch: Watch | None, file: Path, stop: list[int]) -> Beat:
    shown = watch.beat(str(file)) if watch is not None else None

    def beat(stage: str, done: int, total: int) -> None:
        if shown is not None:
            shown(stage, done, total)
        if stop:
            raise Interrupted("stopped; the pictures that are done lie in the output folder")

    return beat


@contextmanager
def _stoppable() -> Iterator[list[int]]:
    """A list that gets the signals that ask for a stop; the second one ends the process at once."""
    caught: list[int] = []

    def catch(number: int, frame: FrameType | None) -> None:
        caught.append(number)
        if len(caught) > 1:
            os._exit(128 + number)

    before = {n: signal.signal(n, catch) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
