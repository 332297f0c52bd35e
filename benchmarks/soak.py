"""A soak: one real daemon on three folders for an hour, under random traffic, kills and reloads.

Small pictures arrive, are replaced and deleted at random; the daemon is killed, stopped, reloaded
with good and bad configurations. Every file that the soak puts into an inbox is written down, and
at the end each is looked for: it lies in exactly one of archive (with one whole result) and failed
(with its reason), or the soak itself took it away. Nothing here trusts the daemon's own journal.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from PIL import Image

from fluxwatchd.bench.options import command_line, run_as_script, save_option
from fluxwatchd.bench.report import machine, table
from fluxwatchd.bench.report import save as keep

SETTLE = 0.5
"""Seconds: the daemon's settle_seconds here."""
FOLDERS = ("one", "two", "three")
CALM = (0.30, 0.78)
"""The part of the run without kill or stop, so that one process lives long enough to judge."""
YOUNG = 300.0
"""Seconds of a process's life after which its memory should no longer grow."""
FLAT = {"resident": 12e6, "anonymous": 8e6, "descriptors": 6.0, "threads": 4.0}
"""What a figure may grow by from then on: allocators keep some; a leak of 1 kB a job is more."""
SAMPLE_EVERY = 10.0
SUFFIXES = (".png", ".png", ".jpg", ".webp")
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}
BYSTANDERS = ("notes.txt", "photo.jpg.xmp", ".hidden.png", "coming.part", "sub/half.crdownload")
"""Files that are none of the daemon's business: they must lie there at the end as they were."""

Key = tuple[str, str, int]
"""A folder's name, the content's SHA-256, its modification time in ns."""


# what arrives


@dataclass(frozen=True, slots=True)
class Content:
    """A file's bytes, its suffix, and whether it is a whole picture."""

    data: bytes
    suffix: str
    is_good: bool


class Painter:
    """Makes small pictures, some with alpha, some broken, some that were there before."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._noise = np.random.default_rng(chance.getrandbits(64))
        self._earlier: deque[Content] = deque(maxlen=300)

    def next(self) -> Content:
        """The next content; about 1 in 16 is an earlier one again, 1 in 40 is broken."""
        if self._earlier and self._chance.random() < 0.06:
            return self._chance.choice(self._earlier)
        suffix = self._chance.choice(SUFFIXES)
        content = Content(self._picture(suffix), suffix, is_good=True)
        if self._chance.random() < 0.025:
            content = Content(self._broken(content.data), suffix, is_good=False)
        self._earlier.append(content)
        return content

    def _picture(self, suffix: str) -> bytes:
        """A file of 16x12 to 64x48 px: gradients and noise, grey, colour, or colour and alpha."""
        width, height = self._chance.randint(16, 64), self._chance.randint(12, 48)
        channels = self._chance.choice((1, 3, 3, 3) if suffix == ".jpg" else (1, 3, 3, 4))
        ramp = np.linspace(0, 200, width)[None, :, None] + np.zeros((height, 1, channels))
        pixels = (ramp + self._noise.integers(0, 56, ramp.shape)).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels.squeeze()).save(file, FORMATS[suffix])
        return file.getvalue()

    def _broken(self, data: bytes) -> bytes:
        """Cut off, rubbish, or nothing."""
        kind = self._chance.choice(("cut", "cut", "rubbish", "empty"))
        if kind == "cut":
            return data[: int(len(data) * self._chance.uniform(0.3, 0.8))]
        return self._chance.randbytes(300) if kind == "rubbish" else b""


@dataclass(slots=True)
class Arrival:
    """A file that lay in an inbox. ``withdrawn`` says how the soak took it away again, if it did.

    ``mtime_ns`` is 0 until the file is complete.
    """

    folder: str
    path: Path
    sha256: str
    is_good: bool
    mtime_ns: int = 0
    withdrawn: str = ""

    @property
    def key(self) -> Key:
        """By which it is found again, whatever its name is then."""
        return (self.folder, self.sha256, self.mtime_ns)


@dataclass(slots=True)
class Writing:
    """A file that is being written into an inbox in pieces; ``stream`` is None between two."""

    arrival: Arrival
    pieces: deque[bytes]
    pause: float
    due: float
    reopens: bool
    stream: io.FileIO | None


class Traffic:
    """Puts files into the inboxes, replaces and deletes them, and writes down what it did.

    Whether a file was taken away by the soak or by the daemon first is never guessed: unlink and
    rename answer it, and of a file that is renamed over, its number of links.
    """

    def __init__(self, root: Path, chance: random.Random) -> None:
        self.root, self._chance = root, chance
        self.arrivals: list[Arrival] = []
        self.odd: list[str] = []
        self._painter = Painter(chance)
        self._at: dict[Path, Arrival] = {}
        self._recent: deque[Arrival] = deque(maxlen=6)
        self._writings: list[Writing] = []
        self._count = self._aside_count = self._withdrawn = 0
        self._aside = root / "aside"
        self._aside.mkdir()
        for folder in FOLDERS:
            for name in BYSTANDERS:
                place = root / folder / name
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(name)

    def standing(self) -> int:
        """How many arrivals are the daemon's to do."""
        return len(self.arrivals) - self._withdrawn

    def arrive(self) -> None:
        """One more file comes, in one of the ways files come."""
        content, folder = self._painter.next(), self._chance.choice(FOLDERS)
        path = self._new_path(folder, content.suffix)
        way = self._chance.choices(
            (self._moved_in, self._renamed, self._written, self._in_pieces, self._linked),
            (35, 15, 20, 18, 12),
        )[0]
        arrival = Arrival(folder, path, hashlib.sha256(content.data).hexdigest(), content.is_good)
        way(arrival, content)
        self.arrivals.append(arrival)
        self._recent.append(arrival)

    def replace(self) -> None:
        """Another file is renamed over one that came a moment ago, if that is still there."""
        if not (old := self._victim()):
            return
        content = self._painter.next()
        while content.suffix != old.path.suffix:
            content = self._painter.next()
        digest = hashlib.sha256(content.data).hexdigest()
        new = Arrival(old.folder, old.path, digest, content.is_good)
        self._moved_in(new, content)
        self.arrivals.append(new)
        self._recent.append(new)

    def delete(self) -> None:
        """A file that came a moment ago is deleted or moved elsewhere, if it is still there."""
        if not (victim := self._victim()):
            return
        with suppress(FileNotFoundError):
            if self._chance.random() < 0.5:
                victim.path.unlink()
            else:
                victim.path.rename(self._aside_name())
            self._withdraw(victim, "deleted")

    def write_on(self, now: float) -> None:
        """The next piece of every file being written that is due."""
        for writing in [one for one in self._writings if one.due <= now]:
            self._write_piece(writing, now)

    def finish(self) -> None:
        """Write all that is being written to its end."""
        while self._writings:
            self._write_piece(self._writings[0], time.monotonic())

    def _withdraw(self, arrival: Arrival, how: str) -> None:
        arrival.withdrawn = how
        self._withdrawn += 1

    def _victim(self) -> Arrival | None:
        """One of the last arrivals that may still lie under its name."""
        there = [
            one for one in self._recent
            if one.mtime_ns and not one.withdrawn and self._at.get(one.path) is one
        ]  # fmt: skip
        return self._chance.choice(there) if there else None

    def _new_path(self, folder: str, suffix: str) -> Path:
        """A new name below an inbox; 1 in 30 is one that was there before and is free."""
        if self._at and self._chance.random() < 1 / 30:
            known = self._chance.choice(self.arrivals)
            busy = any(one.arrival.path == known.path for one in self._writings)
            if known.folder == folder and known.path.suffix == suffix and not busy:
                return known.path
        self._count += 1
        below = self._chance.choice(("", "", "a", "b/c", f"days/{self._count // 500}"))
        path = self.root / folder / below / f"picture {self._count}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _aside_name(self) -> Path:
        self._aside_count += 1
        return self._aside / str(self._aside_count)

    def _moved_in(self, arrival: Arrival, content: Content) -> None:
        """Renamed from elsewhere; 1 in 6 with an old time."""
        aside = self._aside_name()
        aside.write_bytes(content.data)
        if self._chance.random() < 1 / 6:
            old = time.time_ns() - self._chance.randrange(10**17)
            os.utime(aside, ns=(old, old))
        self._rename(aside, arrival)

    def _renamed(self, arrival: Arrival, content: Content) -> None:
        """Written beside its place under a temporary name, then renamed."""
        aside = arrival.path.with_name(f"{arrival.path.name}.part")
        aside.write_bytes(content.data)
        self._rename(aside, arrival)

    def _rename(self, source: Path, arrival: Arrival) -> None:
        """Rename over whatever lies there, and find out whether something did."""
        arrival.mtime_ns = source.stat().st_mtime_ns
        try:
            old = arrival.path.open("rb")
        except FileNotFoundError:
            source.rename(arrival.path)
        else:
            with old:
                before = os.fstat(old.fileno()).st_nlink
                source.replace(arrival.path)
                if os.fstat(old.fileno()).st_nlink < before:
                    self._withdraw(self._at[arrival.path], "replaced")
        self._at[arrival.path] = arrival

    def _written(self, arrival: Arrival, content: Content) -> None:
        """Written under its own name at one go."""
        with self._create(arrival) as stream:
            stream.write(content.data)
            arrival.mtime_ns = os.fstat(stream.fileno()).st_mtime_ns

    def _linked(self, arrival: Arrival, content: Content) -> None:
        """A second link to a file that lies elsewhere."""
        aside = self._aside_name()
        aside.write_bytes(content.data)
        if arrival.path.exists():
            arrival.path = self._unused(arrival.path)
        os.link(aside, arrival.path)
        arrival.mtime_ns = aside.stat().st_mtime_ns
        self._at[arrival.path] = arrival

    def _in_pieces(self, arrival: Arrival, content: Content) -> None:
        """Written in pieces: closed for a moment between them, or kept open for long pauses."""
        size = max(1, len(content.data) // 3)
        pieces = (content.data[at : at + size] for at in range(0, len(content.data), size))
        reopens = self._chance.random() < 0.3
        pause = SETTLE * (0.3 if reopens else self._chance.uniform(0.2, 4))
        stream = self._create(arrival)
        due = time.monotonic()
        self._writings.append(Writing(arrival, deque(pieces), pause, due, reopens, stream))

    def _create(self, arrival: Arrival) -> io.FileIO:
        if arrival.path.exists():
            arrival.path = self._unused(arrival.path)
        self._at[arrival.path] = arrival
        return arrival.path.open("xb", buffering=0)

    def _unused(self, path: Path) -> Path:
        self._count += 1
        return path.with_name(f"picture {self._count}{path.suffix}")

    def _write_piece(self, writing: Writing, now: float) -> None:
        try:
            stream = writing.stream or io.FileIO(os.open(writing.arrival.path, os.O_WRONLY), "w")
        except FileNotFoundError:
            self.odd.append(f"{writing.arrival.path} was taken before it was written whole")
            self._writings.remove(writing)
            return
        stream.seek(0, os.SEEK_END)
        if writing.pieces:
            stream.write(writing.pieces.popleft())
        writing.due = now + writing.pause
        writing.stream = stream
        if not writing.pieces:
            writing.arrival.mtime_ns = os.fstat(stream.fileno()).st_mtime_ns
            self._writings.remove(writing)
        if writing.reopens or not writing.pieces:
            stream.close()
            writing.stream = None


# the daemon


@dataclass(frozen=True, slots=True)
class Sample:
    """The daemon at ``age`` s of its process: memory in bytes, and counts.

    ``resident`` is VmRSS, ``anonymous`` its part that is not of files; ``journal`` the bytes of the
    database and its log; ``cpu`` user and system seconds so far.
    """

    age: float
    resident: int
    anonymous: int
    descriptors: int
    threads: int
    journal: int
    cpu: float


@dataclass(slots=True)
class Life:
    """One process of the daemon: when it started and ended (s since the soak began), and how."""

    started: float
    samples: list[Sample] = field(default_factory=list)
    ended: float = 0.0
    how: str = ""


class Daemon:
    """The daemon as a process, its configuration, and what its log says."""

    def __init__(self, root: Path, python: str, clock: Callable[[], float]) -> None:
        self.root, self._python, self._clock = root, python, clock
        self.config, self.state = root / "config.toml", root / "state"
        self.lives: list[Life] = []
        self.events: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self._log, self._read = root / "log.jsonl", 0
        self._process: subprocess.Popen[bytes] | None = None
        self._turn = self._readied = 0
        self.configure()

    @property
    def is_up(self) -> bool:
        """Whether the process runs; notes it if it ended by itself."""
        if self._process is None:
            return False
        if (code := self._process.poll()) is None:
            return True
        self._over(f"ended by itself: {code}")
        return False

    def start(self) -> None:
        """Start it with a good configuration."""
        self.configure()
        self.read_log()
        self._readied = self.events["ready"]
        self.lives.append(Life(self._clock()))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 # ourselves
                self._words("run"), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def end(self, number: signal.Signals) -> None:
        """Send SIGKILL or SIGTERM and wait."""
        if self._process is None or not self.is_up:
            return
        self._process.send_signal(number)
        code = self._process.wait(120)
        wanted = -signal.SIGKILL if number is signal.SIGKILL else 0
        self._over(number.name if code == wanted else f"{number.name} gave exit code {code}")

    def hang_up(self) -> None:
        """Ask for a reload; a process that is not ready yet reads the configuration anyway."""
        self.read_log()
        if self._process is not None and self.is_up and self.events["ready"] > self._readied:
            self._process.send_signal(signal.SIGHUP)

    def drain(self) -> int:
        """Run until idle; the exit code."""
        self.configure()
        with self._log.open("ab") as log:
            words = self._words("run", "--until-idle")
            done = subprocess.run(words, stdout=log, stderr=log, timeout=900, check=False)  # noqa: S603 # ourselves
        return done.returncode

    def status(self) -> dict[str, Any]:
        """What `fluxwatchd status --json` says."""
        words = self._words("status", "--json")
        said = subprocess.run(words, capture_output=True, check=True)  # noqa: S603 # ourselves
        return dict(json.loads(said.stdout))

    def configure(self, *, bad: bool = False) -> None:
        """Write the configuration in one step: every good one differs, a bad one has a mistake."""
        self._turn += 1
        scale = (2.0, 1.5, 3.0)[self._turn % 3]
        text = _config(scale, priority=self._turn % 2)
        if bad:
            text += ("[daemon\n", 'no_such_key = "x"\n', "settle_timeout = -1\n")[self._turn % 3]
        aside = self.config.with_suffix(".new")
        aside.write_text(text)
        aside.replace(self.config)

    def sample(self) -> None:
        """Note how the process is now."""
        if self._process is None or not self.is_up:
            return
        place = Path("/proc", str(self._process.pid))
        status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines())
        ticks = (place / "stat").read_text().rpartition(")")[2].split()[11:13]
        life = self.lives[-1]
        life.samples.append(
            Sample(
                age=self._clock() - life.started,
                resident=int(status["VmRSS"].split()[0]) * 1024,
                anonymous=int(status["RssAnon"].split()[0]) * 1024,
                descriptors=len(list((place / "fd").iterdir())),
                threads=int(status["Threads"]),
                journal=sum(file.stat().st_size for file in self.state.glob("journal.sqlite*")),
                cpu=sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
            )
        )

    def read_log(self) -> None:
        """Count what was logged since the last call."""
        if not self._log.exists():
            return
        with self._log.open("rb") as log:
            log.seek(self._read)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                self._note(line)

    def _note(self, line: bytes) -> None:
        try:
            said = json.loads(line)
        except ValueError:
            self.errors[line.decode(errors="replace").strip()[:200]] += 1
            return
        self.events[said["event"]] += 1
        if said["level"] in ("error", "critical"):
            self.errors[said["event"]] += 1

    def _over(self, how: str) -> None:
        self.lives[-1].ended, self.lives[-1].how = self._clock(), how
        self._process = None

    def _words(self, command: str, *more: str) -> list[str]:
        program = [self._python, "-m", "fluxwatchd", command, "--config", str(self.config)]
        return [*program, *more]


def _config(scale: float, priority: int) -> str:
    own = (f"scale = {scale}", 'scale = 1.5\nformat = "same"', f"priority = {priority}")
    folders = "".join(
        f'[[folder]]\ninbox = "{name}"\noutbox = "{name}-out"\n{keys}\n'
        for name, keys in zip(FOLDERS, own, strict=True)
    )
    return (
        f'{folders}[defaults]\nvariant = "lanczos"\n'
        f'[daemon]\nstate_dir = "state"\nsettle_seconds = {SETTLE}\nsettle_timeout = 6\n'
    )


# the hour


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens when, in s since the start; ``seconds`` is the whole run."""

    seconds: float
    ends: tuple[tuple[float, signal.Signals, float], ...]
    reloads: tuple[float, ...]
    mistakes: tuple[float, ...]

    @classmethod
    def make(cls, minutes: float, chance: random.Random) -> Plan:
        """Kills outside CALM about every 70 s, reloads every 40 s, bad ones every 3 minutes.

        A run shorter than an hour has them closer together. An end is (when, signal, s until the
        daemon is started again).
        """
        seconds = minutes * 60
        short = max(0.1, min(1.0, minutes / 60))
        calm = (CALM[0] * seconds, CALM[1] * seconds)
        ends = []
        for when in _moments(chance, seconds, 70 * short):
            if not calm[0] < when < calm[1]:
                number = chance.choice((signal.SIGKILL,) * 3 + (signal.SIGTERM,))
                down = chance.choice((0.0, 1.0, 3.0, 3.0, 20.0)) * max(short, 0.25)
                ends.append((when, number, down))
        reloads = tuple(_moments(chance, seconds, 40 * short))
        return cls(seconds, tuple(ends), reloads, tuple(_moments(chance, seconds, 180 * short)))


def _moments(chance: random.Random, end: float, every: float) -> Iterator[float]:
    moment = every * chance.uniform(0.5, 1.5)
    while moment < end:
        yield moment
        moment += every * chance.uniform(0.5, 1.5)


class Soak:
    """The run: traffic and trouble by the plan, samples at regular times."""

    def __init__(self, root: Path, python: str, jobs: int, minutes: float, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 # no secret
        self._start = time.monotonic()
        self.plan, self.jobs = Plan.make(minutes, chance), jobs
        self.traffic = Traffic(root, chance)
        self.daemon = Daemon(root, python, self._clock)
        self._chance = chance
        self._ends, self._reloads = deque(self.plan.ends), deque(self.plan.reloads)
        self._mistakes = deque(self.plan.mistakes)
        self._start_at, self._mend_at, self._sample_at = 0.0, float("inf"), SAMPLE_EVERY
        self._end_at = 0.0

    def run(self) -> None:
        """All of it, up to the drained inboxes."""
        self._start = time.monotonic()
        while (now := self._clock()) < self.plan.seconds or self.traffic.standing() < self.jobs:
            self._keep_daemon(now)
            self._trouble(now)
            self._traffic(now)
            if now >= self._sample_at:
                self._sample_at = now + SAMPLE_EVERY
                self.daemon.sample()
                self.daemon.read_log()
            time.sleep(0.05)
        self.traffic.finish()
        self.daemon.end(signal.SIGTERM)

    def _clock(self) -> float:
        return time.monotonic() - self._start

    def _keep_daemon(self, now: float) -> None:
        if not self.daemon.is_up and now >= self._start_at:
            self.daemon.start()

    def _trouble(self, now: float) -> None:
        """Kill, stop or reload if it is time."""
        if now >= self._mend_at:
            self._mend_at = float("inf")
            self.daemon.configure()
            self.daemon.hang_up()
        if self._ends and now >= self._ends[0][0] and not self._end_at:
            for _ in range(15):  # so that it has its hands full
                self.traffic.arrive()
            self._end_at = now + SETTLE + self._chance.uniform(0, 0.5)
        elif self._end_at and now >= self._end_at:
            _, number, down = self._ends.popleft()
            self._end_at = 0.0
            self._mend_at = float("inf")  # a start writes a good configuration
            self.daemon.end(number)
            self._start_at = self._clock() + down
        elif self._mistakes and now >= self._mistakes[0]:
            self._mistakes.popleft()
            self.daemon.configure(bad=True)
            self.daemon.hang_up()
            self._mend_at = now + 4
        elif self._reloads and now >= self._reloads[0] and self._mend_at == float("inf"):
            self._reloads.popleft()
            self.daemon.configure()
            if self._chance.random() < 0.5:  # else it is seen by itself
                self.daemon.hang_up()

    def _traffic(self, now: float) -> None:
        """Keep up with the pace, in bursts; sometimes replace or delete."""
        self.traffic.write_on(time.monotonic())
        due = self.jobs * min(1.0, now / self.plan.seconds) - self.traffic.standing()
        if due >= self._chance.randint(1, 12) or now >= self.plan.seconds:
            for _ in range(max(1, int(due))):
                self.traffic.arrive()
        if self._chance.random() < 0.03:
            self.traffic.replace()
        if self._chance.random() < 0.02:
            self.traffic.delete()


# the account


@dataclass(frozen=True, slots=True)
class Account:
    """Where everything is in the end. Every number of ``wrong`` is to be 0."""

    arrived: int
    deleted: int
    replaced: int
    archived: int
    failed: int
    copied: int
    made_though_withdrawn: int
    wrong: dict[str, int]
    examples: list[str]


class Auditor:
    """Looks through all folders and holds what it finds against what arrived."""

    def __init__(self, root: Path, traffic: Traffic) -> None:
        self._root, self._traffic = root, traffic
        self._wrong: Counter[str] = Counter()
        self._examples: list[str] = []
        self._copied = 0

    def account(self) -> Account:
        """Look at everything once."""
        archived, failed, left, results = (Counter[Key]() for _ in range(4))
        for name in FOLDERS:
            archived += self._sources(name, "-archive")
            failed += self._sources(name, "-failed")
            left += self._left(name)
            results += self._results(name)
            self._temporary(name)
        for odd in self._traffic.odd:
            self._blame("taken half-written", odd)
        extra = self._compare(archived, failed, left, results)
        ways = Counter(one.withdrawn for one in self._traffic.arrivals)
        kinds = (
            "lost", "doubled", "unknown", "left in an inbox", "without a result",
            "with two results", "results that are not whole", "results without a source",
            "good pictures in failed", "broken pictures in archive", "failed without a reason",
            "reasons without a file", "temporary files", "bystanders touched", "taken half-written",
        )  # fmt: skip
        return Account(
            arrived=len(self._traffic.arrivals),
            deleted=ways["deleted"],
            replaced=ways["replaced"],
            archived=archived.total(),
            failed=failed.total(),
            copied=self._copied,
            made_though_withdrawn=extra,
            wrong={kind: self._wrong[kind] for kind in kinds},
            examples=self._examples[:40],
        )

    def pending(self) -> int:
        """How many files still lie in the inboxes that are no bystanders."""
        return sum(len(list(self._inbox(name))) for name in FOLDERS)

    def _compare(
        self,
        archived: Counter[Key],
        failed: Counter[Key],
        left: Counter[Key],
        results: Counter[Key],
    ) -> int:
        """Hold places against arrivals, key by key; gives results of withdrawn pictures."""
        stays, gone, good = Counter[Key](), Counter[Key](), {}
        for one in self._traffic.arrivals:
            (gone if one.withdrawn else stays)[one.key] += 1
            good[one.key] = one.is_good
        extra = 0
        for key in set(good) | set(archived) | set(failed) | set(left) | set(results):
            found = archived[key] + failed[key] + left[key]
            known = key in good
            self._blame("unknown", key, 0 if known else found)
            self._blame("lost", key, stays[key] - found)
            self._blame("doubled", key, found - stays[key] if known else 0)
            self._blame("left in an inbox", key, left[key])
            self._blame("without a result", key, archived[key] - results[key])
            more = results[key] - archived[key]
            kind = "with two results" if archived[key] else "results without a source"
            self._blame(kind, key, more - gone[key])
            extra += max(0, min(more, gone[key]))
            self._blame("good pictures in failed", key, failed[key] if good.get(key) else 0)
            self._blame("broken pictures in archive", key, 0 if good.get(key) else archived[key])
        return extra

    def _sources(self, folder: str, ending: str) -> Counter[Key]:
        """The files of an archive or failed folder; in the latter each with its reason."""
        found: Counter[Key] = Counter()
        for path in _files(self._root / f"{folder}{ending}"):
            if not path.name.endswith(".error.json"):
                found[_key(folder, path)] += 1
                if ending == "-failed":
                    reason = path.with_name(f"{path.name}.error.json")
                    told = reason.exists() and json.loads(reason.read_text())
                    if not told or not told["why"] or not told["remedy"]:
                        self._blame("failed without a reason", path)
            elif not path.with_name(path.name.removesuffix(".error.json")).exists():
                self._blame("reasons without a file", path)
        return found

    def _results(self, folder: str) -> Counter[Key]:
        """The sources of an outbox's whole results, by their records."""
        found: Counter[Key] = Counter()
        files = set(_files(self._root / f"{folder}-out"))
        for path in files:
            if path.suffix != ".json":
                if path.with_name(f"{path.name}.json") not in files:
                    self._blame("results that are not whole", f"{path}: no record")
                continue
            record = json.loads(path.read_text())
            picture = path.with_suffix("")
            if picture not in files or not _is_whole(picture, record["output"]):
                self._blame("results that are not whole", path)
                continue
            self._copied += record["copied_from"] is not None
            found[folder, record["source"]["sha256"], record["source"]["mtime_ns"]] += 1
        return found

    def _left(self, folder: str) -> Counter[Key]:
        for name in BYSTANDERS:
            path = self._root / folder / name
            if not path.exists() or path.read_text() != name:
                self._blame("bystanders touched", path)
        return Counter(_key(folder, path) for path in self._inbox(folder))

    def _inbox(self, folder: str) -> Iterator[Path]:
        inbox = self._root / folder
        bystanders = {inbox / name for name in BYSTANDERS}
        return (path for path in _files(inbox) if path not in bystanders)

    def _temporary(self, folder: str) -> None:
        bystanders = {self._root / folder / name for name in BYSTANDERS}
        for ending in ("", "-out", "-archive", "-failed"):
            for path in _files(self._root / f"{folder}{ending}"):
                hidden = path.name.startswith(".") or path.suffix == ".part"
                if hidden and path not in bystanders:
                    self._blame("temporary files", path)

    def _blame(self, kind: str, what: object, count: int = 1) -> None:
        if count > 0:
            self._wrong[kind] += count
            self._examples.append(f"{kind}: {what}")


def _files(top: Path) -> Iterator[Path]:
    return (path for path in top.rglob("*") if path.is_file())


def _key(folder: str, path: Path) -> Key:
    return folder, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns


def _is_whole(picture: Path, output: dict[str, Any]) -> bool:
    """Whether a result has the bytes its record tells of, and decodes to the size told."""
    if hashlib.sha256(picture.read_bytes()).hexdigest() != output["sha256"]:
        return False
    with Image.open(picture) as image:
        image.load()
        return output["name"] == picture.name and image.size == (output["width"], output["height"])


# the report


@dataclass(frozen=True, slots=True)
class Trend:
    """A figure of the process that lived longest: medians over a minute, early and at the end."""

    early: float
    late: float
    most: float


@dataclass(frozen=True, slots=True)
class Report:
    """What the soak found. Memory and journal in bytes, times in s, shares of one core.

    ``trends`` are of the longest life, ``early`` from ``early_age`` on. ``reloads`` and ``refused``
    are good and bad configurations that the daemon's log tells of. ``lives`` have every sixth
    sample.
    """

    commit: str | None
    seconds: float
    seed: int
    account: Account
    daemon_says: dict[str, Any]
    kills: int
    stops: int
    reloads: int
    refused: int
    recovered: int
    unplanned_ends: list[str]
    logged_errors: dict[str, int]
    longest_life: float
    early_age: float
    trends: dict[str, Trend]
    daemon_share: float
    soak_share: float
    lives: list[Life]
    machine: dict[str, Any]

    @property
    def is_clean(self) -> bool:
        """Nothing was lost, doubled, half made or left over; no process ended by itself or grew."""
        wrong = any(self.account.wrong.values())
        return not wrong and not self.unplanned_ends and not self.grown

    @property
    def is_judged(self) -> bool:
        """Whether a process lived long enough for its growth to mean anything."""
        return self.longest_life >= 2 * YOUNG

    @property
    def grown(self) -> list[str]:
        """What grew after the young phase by more than it may."""
        return [
            f"{name} grew from {_figure(name, trend.early)} to {_figure(name, trend.late)}"
            for name, trend in self.trends.items()
            if self.is_judged and trend.late - trend.early > FLAT.get(name, float("inf"))
        ]

    def as_text(self) -> str:
        """Markdown: what happened, where everything is, and whether the daemon grew."""
        return "\n\n".join((self._head(), self._happened(), self._growth(), self._errors()))

    def _head(self) -> str:
        said = self.machine
        return (
            f"Commit {self.commit or 'unknown'}; {self.seconds / 60:.0f} minutes; "
            f"{said['processor']}, {said['cores']} cores, shared with other work. "
            f"The daemon used {self.daemon_share:.0%} of one core, the soak {self.soak_share:.0%}."
        )

    def _happened(self) -> str:
        it, ways = self.account, (self.account.deleted, self.account.replaced)
        rows = [
            ("files that arrived", str(it.arrived)),
            ("deleted, replaced before they were taken", f"{ways[0]}, {ways[1]}"),
            ("done: in archive, each with one whole result", str(it.archived)),
            ("of these copied from an earlier result", str(it.copied)),
            ("failed: broken files, each with its reason", str(it.failed)),
            ("results of files withdrawn while under way", str(it.made_though_withdrawn)),
            ("kill -9, SIGTERM, each with a restart", f"{self.kills}, {self.stops}"),
            ("reloads taken, configurations refused", f"{self.reloads}, {self.refused}"),
            ("deliveries that recovery brought to an end", str(self.recovered)),
            ("ends that nobody asked for", str(len(self.unplanned_ends))),
            *((kind, str(count)) for kind, count in it.wrong.items()),
        ]
        return table(("", "number"), rows)

    def _growth(self) -> str:
        early = f"after {self.early_age / 60:.0f} min"
        rows = [
            (name, *(_figure(name, v) for v in (trend.early, trend.late, trend.most)))
            for name, trend in self.trends.items()
        ]
        head = f"The process that lived longest, {self.longest_life / 60:.1f} min:"
        verdict = "; ".join(self.grown) or "Nothing grew by more than it may."
        if not self.is_judged:
            verdict = f"Too short to judge growth: {2 * YOUNG / 60:.0f} min at least."
        return f"{head}\n\n{table(('', early, 'at its end', 'most'), rows)}\n\n{verdict}"

    def _errors(self) -> str:
        lines = [f"- {count} x {text}" for text, count in self.logged_errors.items()]
        return "\n".join(["Logged as errors:", "", *(lines or ["- nothing"])])


def _figure(name: str, value: float) -> str:
    return f"{value / 1e6:.1f} MB" if name in {"resident", "anonymous", "journal"} else f"{value:g}"


def trends(life: Life, early_age: float) -> dict[str, Trend]:
    """Of every figure: median of six samples from ``early_age`` on, of the last six; the most."""
    samples = [sample for sample in life.samples if sample.age >= early_age]
    found = {}
    for name in ("resident", "anonymous", "descriptors", "threads", "journal"):
        values = [float(getattr(sample, name)) for sample in samples]
        if values:
            found[name] = Trend(median(values[:6]), median(values[-6:]), max(values))
    return found


def _commit(python: str) -> str | None:
    """The commit of the program that ``python`` runs, with -dirty where files differ from it."""
    find = "import fluxwatchd; print(fluxwatchd.__path__[0])"
    place = subprocess.run([python, "-c", find], capture_output=True, text=True, check=True)  # noqa: S603 # ourselves
    git = shutil.which("git")
    if git is None:
        return None
    words = [git, "-C", place.stdout.strip(), "describe", "--always", "--dirty", "--abbrev=12"]
    said = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603 # git
    return said.stdout.strip() or None


def measure(root: Path, python: str, jobs: int, minutes: float, seed: int) -> Report:
    """The whole soak in ``root``, a new folder."""
    commit, before = _commit(python), os.times()
    soak = Soak(root, python, jobs, minutes, seed)
    soak.run()
    after, daemon = os.times(), soak.daemon
    auditor = Auditor(root, soak.traffic)
    for _ in range(5):  # what was put off for some seconds is waited for
        daemon.drain()
        if not auditor.pending():
            break
        time.sleep(15)
    daemon.read_log()
    longest = max(daemon.lives, key=lambda life: life.ended - life.started)
    age = longest.ended - longest.started
    early = min(YOUNG, age / 5)
    used = sum(life.samples[-1].cpu for life in daemon.lives if life.samples)
    ends = Counter(life.how for life in daemon.lives)
    return Report(
        commit=commit,
        seconds=minutes * 60,
        seed=seed,
        account=auditor.account(),
        daemon_says=daemon.status()["counts"],
        kills=ends["SIGKILL"],
        stops=ends["SIGTERM"],
        reloads=daemon.events["configuration read again"],
        refused=daemon.events["the configuration is not used, the old one stays"],
        recovered=daemon.events["recovered"],
        unplanned_ends=[how for how in ends.elements() if how not in ("SIGKILL", "SIGTERM")],
        logged_errors=dict(daemon.errors),
        longest_life=age,
        early_age=early,
        trends=trends(longest, early),
        daemon_share=used / (minutes * 60),
        soak_share=(after.user + after.system - before.user - before.system) / (minutes * 60),
        lives=[replace(life, samples=life.samples[::6]) for life in daemon.lives],
        machine=machine(),
    )


@click.command()
@click.option("--minutes", type=click.FloatRange(min=1), default=60.0, show_default=True)
@click.option("--jobs", type=click.IntRange(min=1), default=10_000, show_default=True)
@click.option("--seed", type=int, default=6, show_default=True, help="Of what happens when.")
@click.option("--python", default=sys.executable, help="An interpreter that has fluxwatchd.")
@save_option
def command(minutes: float, jobs: int, seed: int, python: str, save: Path | None) -> None:
    """Let the daemon work under random traffic, kills and reloads, and account for every file."""
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    report = measure(root, python, jobs, minutes, seed)
    click.echo(report.as_text())
    if save:
        keep(report, save, command_line(click.get_current_context()))
    if not report.is_clean:
        reasons = [*report.unplanned_ends, *report.grown, *report.account.examples]
        click.echo("\n".join(reasons), err=True)
        raise click.ClickException(f"not clean; all files are kept in {root}")
    shutil.rmtree(root)


if __name__ == "__main__":
    run_as_script(command)
