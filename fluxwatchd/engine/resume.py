"""Where an unfinished picture stands, kept on the disk, so that a restart goes on from there.

A state is one safetensors file. Its header names all that the numbers in it depend on; one that
differs in anything, or is damaged, is not used. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import structlog
from numpy.typing import NDArray

from fluxwatchd.engine import Beat, Ticket
from fluxwatchd.errors import Interrupted

if TYPE_CHECKING:
    from torch import Tensor

log = structlog.get_logger(__name__)

FORMAT: Final = "1"
FOLDER: Final = "resume"
SUFFIX: Final = ".safetensors"

INTERVAL: Final = "FLUXWATCHD_STATE_SECONDS"
"""The environment variable by which a test has states written more often; 0: at every beat."""
EVERY = 30.0
"""Seconds of work between two writes."""
SHARE = 50
"""The work between two writes takes at least so many times as long as the last write."""

MOST_STATES = 16
MOST_BYTES = 8 * 10**9
"""What the folder may hold; the oldest go first. One state may take a quarter of it."""
HEADER = 1 << 16
"""Bytes of a state beside its numbers, amply."""
OLDEST = 14 * 86400.0
"""Seconds after which nobody will come back for a state."""
OLDEST_PART = 3600.0

STOP_SECONDS = 4.0
"""A state that takes longer to write is not written at a stop, which must end within 10 s."""
SLOW_DISK = 100e6
"""Bytes a second, as long as nothing was written yet."""

Arrays = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture stands: ``step`` steps, and ``done`` tiles of the next, of ``stage``.

    With ``fusion = "final"`` it is ``done`` tiles, and ``step`` steps of the next batch. ``batch``
    is the tiles that go at once: a GPU rounds otherwise in batches of another size.
    """

    stage: str
    step: int = 0
    done: int = 0
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Before:
    """What an earlier try left of a stage; nothing, where there was none."""

    place: Place
    arrays: Arrays = field(default_factory=dict)

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self.place.step

    @property
    def done(self) -> int:
        """Tiles that are done."""
        return self.place.done

    def tensor(self, name: str, default: Tensor) -> Tensor:
        """The tensor kept as ``name``, on the device of ``default``; else ``default`` itself."""
        if name not in self.arrays:
            return default
        import torch

        return torch.from_numpy(self.arrays[name]).to(default.device)


class Unfit(Exception):
    """A state that is damaged, or another picture's."""


class Store:
    """The folder of states. Several processes may use it: a file appears whole or not at all."""

    def __init__(self, state_dir: Path) -> None:
        self.folder = state_dir / FOLDER

    def path(self, ticket: Ticket, turn: int = 1, run: str = "") -> Path:
        """Where the state of this work lies.

        ``turn`` counts the passes of a picture; ``run`` names what a pass denoises again.
        """
        within = f"{turn}-{run}" if run else f"{turn}"
        return self.folder / f"{_name(ticket)}.{within}{SUFFIX}"

    def load(self, path: Path, identity: Mapping[str, str]) -> Before | None:
        """The state that ``identity`` fits in every word; None without one.

        One that does not fit is removed, with a line in the log.
        """
        try:
            return _read(path, identity)
        except FileNotFoundError:
            return None
        except (Unfit, OSError) as error:
            log.warning("a state was not used: the picture starts over", why=str(error))
            _remove(path)
            return None

    def save(self, path: Path, identity: Mapping[str, str], place: Place, arrays: Arrays) -> None:
        """Write a state in place of the one before it, and bring it to the disk. Raises OSError."""
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        self.prune(keep=path, room=HEADER + sum(array.nbytes for array in arrays.values()))
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
        os.close(handle)
        aside = Path(name)
        words = {"place": json.dumps(asdict(place)), "digest": _digest(place, arrays)}
        try:
            save_file(dict(arrays), aside, {**identity, **words})
            _sync(aside)
            aside.replace(path)
            _sync(self.folder)
        except SafetensorError as error:  # its words for what the system said
            raise OSError(str(error)) from error
        finally:
            aside.unlink(missing_ok=True)

    def forget(self, ticket: Ticket) -> None:
        """Remove what was kept of work that is over; no error if there is nothing."""
        for path in self.folder.glob(f"{_name(ticket)}.*{SUFFIX}"):
            _remove(path)

    def prune(self, *, keep: Path | None = None, room: int = 0) -> None:
        """Remove what is old, and the oldest until ``room`` bytes more are within the bounds.

        What belongs to the same work as ``keep`` stays.
        """
        now, states = time.time(), []
        for path in self.folder.glob("*") if self.folder.is_dir() else ():
            with suppress(OSError):  # another process removed it
                stat = path.stat()
                limit = OLDEST if path.suffix == SUFFIX else OLDEST_PART
                if now - stat.st_mtime > limit:
                    path.unlink()
                elif path.suffix == SUFFIX and not (keep and _work(path) == _work(keep)):
                    states.append((stat.st_mtime, stat.st_size, path))
        states.sort()
        held = sum(size for _, size, _ in states)
        while states and (held + room > MOST_BYTES or len(states) >= MOST_STATES):
            _, size, path = states.pop(0)
            held -= size
            with suppress(OSError):
                path.unlink()


def _name(ticket: Ticket) -> str:
    """What the states of a ticket's work are called, up to the first dot."""
    named = json.dumps(asdict(ticket), sort_keys=True)
    return hashlib.sha256(named.encode()).hexdigest()[:32]


def _work(path: Path) -> str:
    """The name of the work that a state belongs to."""
    return path.name.partition(".")[0]


def _read(path: Path, identity: Mapping[str, str]) -> Before:
    """A whole state. Raises Unfit, OSError."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            words = dict(file.metadata() or {})
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise Unfit(f"it is damaged ({error})") from error
    told, digest = words.pop("place", ""), words.pop("digest", "")
    apart = sorted(key for key in {*words, *identity} if words.get(key) != identity.get(key))
    if apart:
        raise Unfit(f"it was made with another {', '.join(apart)}")
    try:
        place = Place(**json.loads(told))
    except (ValueError, TypeError) as error:
        raise Unfit("it does not say where it stands") from error
    if _digest(place, arrays) != digest:
        raise Unfit("its content is not what was written")
    return Before(place, arrays)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("a state could not be removed", why=str(error))


def _digest(place: Place, arrays: Arrays) -> str:
    """sha256 over where it stands and every number."""
    found = hashlib.sha256(repr(place).encode())
    for name in sorted(arrays):
        found.update(f"{name}{arrays[name].shape}".encode())
        found.update(np.ascontiguousarray(arrays[name]).reshape(-1).data)
    return found.hexdigest()


def _sync(path: Path) -> None:
    """Bring a file or a folder to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Keeper:
    """Keeps one picture's state: every 30 s of work, and at a stop.

    It stands between the engine and the engine's Beat, where the tensors that were noted last are
    whole. Without a ``store`` it does nothing. ``turn`` counts the passes of a picture; ``clock``
    is monotonic seconds.
    """

    def __init__(
        self,
        store: Store | None = None,
        ticket: Ticket | None = None,
        beat: Beat | None = None,
        *,
        turn: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._ticket, self._inner, self._clock = store, ticket, beat, clock
        self._turn, self._run, self._resumed_run = turn, "", ""
        self._identity: Mapping[str, str] = {}
        self._before: Before | None = None
        self._resumed: Place | None = None
        self._noted: tuple[Place, Mapping[str, Tensor]] | None = None
        self._pause = float(os.environ.get(INTERVAL, EVERY))
        self._start = clock()
        self._due = self._start + self._pause
        self._speed = SLOW_DISK
        self._ran = self._writes = 0
        self._spent = 0.0

    def open(self, identity: Mapping[str, Any]) -> int | None:
        """Look for an earlier try's state; the size of its batches, None without a state.

        ``identity`` is what the numbers depend on beside the ticket.
        """
        if self._ticket is None:
            return None
        everything = {"format": FORMAT, **asdict(self._ticket), **identity}
        self._identity = {
            key: value if isinstance(value, str) else json.dumps(value, sort_keys=True)
            for key, value in everything.items()
        }
        return self._look()

    def again(self, run: str, tiles: Sequence[int] = ()) -> int | None:
        """The picture, or these ``tiles`` of it, are denoised once more: ``run``, a state beside.

        What was noted before is written, as the new run builds on it. Returns the size of an
        earlier try's batches, None without a state of this run.
        """
        self._write()
        if self._store is None or self._ticket is None:
            return None
        self._run = run
        self._identity = {**self._identity, "tiles": json.dumps([*tiles])}
        return self._look()

    def _look(self) -> int | None:
        """Load the state of the run at hand; the size of its batches, None without one."""
        if self._store is None or self._ticket is None:
            return None
        path = self._store.path(self._ticket, self._turn, self._run)
        self._before = self._store.load(path, self._identity)
        if self._before is None:
            return None
        self._resumed, self._resumed_run, self._ran = self._before.place, self._run, 0
        log.info("resumed", content=self._ticket.content[:16], **self._where())
        return self._resumed.batch

    def _where(self) -> dict[str, object]:
        """Where the picture was gone on with; ``run`` where that is not the first."""
        named = {"run": self._resumed_run} if self._resumed_run else {}
        return {**asdict(self._resumed), **named} if self._resumed else {}

    def before(self, stage: str) -> Before:
        """What an earlier try left of ``stage``; told once, so that its memory is not held."""
        found = self._before
        if found is None or found.place.stage != stage:
            return Before(Place(stage))
        self._before = None
        return found

    def note(self, place: Place, tensors: Mapping[str, Tensor], *, ran: int = 0) -> None:
        """The picture stands at ``place``; ``ran`` tiles were evaluated since the last note.

        ``tensors``, float32, must not change before the next beat.
        """
        if self._ticket is not None:
            self._ran += ran
            self._noted = (place, tensors)

    def beat(self, stage: str, done: int, total: int) -> None:
        """The engine's Beat: write what is due, and before a stop."""
        if self._inner is not None:
            try:
                self._inner(stage, done, total)
            except Interrupted:
                self._write(most=STOP_SECONDS)
                raise
        if self._noted is not None and self._clock() >= self._due:
            self._write()

    def settle(self) -> None:
        """A pass is done: keep its end, if what was done would be missed."""
        if self._clock() - self._start >= self._pause:
            self._write()

    def told(self) -> dict[str, object]:
        """What the record says: where the picture was gone on with, and what states it wrote."""
        said: dict[str, object] = {}
        if self._resumed is not None:
            said["resumed"] = {**self._where(), "tiles_evaluated_since": self._ran}
        if self._writes:
            said["states"] = {"written": self._writes, "seconds": round(self._spent, 3)}
        return said

    def _write(self, most: float = float("inf")) -> None:
        """Write what was noted last, unless that takes longer than ``most`` s."""
        noted, self._noted = self._noted, None
        if noted is None or self._store is None or self._ticket is None:
            return
        place, tensors = noted
        size = sum(tensor.nbytes for tensor in tensors.values())
        if not size:  # what others did lies beyond a gap, and before it is nothing
            return
        if size / self._speed > most:
            log.info("the state takes too long to be written at a stop", megabytes=size // 10**6)
            return
        if size > MOST_BYTES // 4:
            log.warning("the state is too large to be written", megabytes=size // 10**6)
            self._store = None
            return
        start = self._clock()
        try:
            arrays = {name: tensor.cpu().contiguous().numpy() for name, tensor in tensors.items()}
            path = self._store.path(self._ticket, self._turn, self._run)
            self._store.save(path, self._identity, place, arrays)
        except OSError as error:
            log.warning("the state cannot be written; the picture goes on without", why=str(error))
            self._store = None
            return
        took = self._clock() - start
        self._writes, self._spent = self._writes + 1, self._spent + took
        self._speed = size / max(took, 1e-3)
        self._due = self._clock() + (max(self._pause, SHARE * took) if self._pause else 0.0)


NOBODY: Final = Keeper()
"""Keeps nothing."""
