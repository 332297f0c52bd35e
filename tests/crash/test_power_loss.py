"""The power fails at any moment: no source is lost, no half a result has a name, no word is broken.

The real daemon runs under strace; durable.py replays what it did on a pessimist's disk, and after
each step every way in which a power loss may leave that disk is held against the promises.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from durable import (
    Disk,
    Event,
    Link,
    Make,
    MakeFolder,
    Node,
    Remove,
    Rename,
    Say,
    Step,
    Sync,
    Truncate,
    Write,
    events,
    in_order,
    record,
)
from house import House

from fluxwatchd.crashpoints import VARIABLE
from fluxwatchd.journal import FILE_NAME

needs_strace = pytest.mark.machine
"""Debian's strace, which .ci/run installs, and the right to trace."""

LOSSES = 8
"""Power losses from which the daemon is started again, for each way to retire a source."""

# the promises


@dataclass(frozen=True, slots=True)
class Source:
    """A file that was dropped, and what has to be durable before it leaves: names and contents."""

    path: Path
    content: bytes
    due: Mapping[Path, bytes]
    is_picture: bool


@dataclass(frozen=True, slots=True)
class Scene:
    """The folders of one run, what was dropped there, and whether sources are deleted."""

    inbox: Path
    outbox: Path
    kept_in: tuple[Path, ...]
    state: Path
    sources: tuple[Source, ...]
    deletes: bool = False


State = Mapping[str, tuple[str, Path | None]]
"""What a journal says: source -> (state, where its result lies)."""


class Journals:
    """Reads every journal that a power loss may leave, with SQLite itself."""

    def __init__(self, state: Path, scratch: Path) -> None:
        self.path = state / FILE_NAME
        self.scratch = scratch
        self.read: dict[tuple[bytes | None, ...], State] = {}

    def may_be(self, disk: Disk) -> Iterator[State]:
        """What may be read afterwards; nothing where the file itself is lost."""
        names = [self.path, *(Path(f"{self.path}{end}") for end in ("-wal", "-journal"))]
        if not disk.is_there(self.path.parent):
            yield {}
        for contents in set(itertools.product(*(_contents(disk, name) for name in names))):
            key = tuple(hashlib.sha256(c).digest() if c is not None else c for c in contents)
            if key not in self.read:
                self.read[key] = self.says(contents)
            yield self.read[key]

    def says(self, contents: Sequence[bytes | None]) -> State:
        """What a journal says whose files have these contents."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            path = Path(folder) / self.path.name
            for end, content in zip(("", "-wal", "-journal"), contents, strict=True):
                if content is not None:
                    Path(f"{path}{end}").write_bytes(content)
            if contents[0] is None:
                return {}
            with contextlib.closing(sqlite3.connect(path)) as journal:
                assert journal.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                if not journal.execute("SELECT 1 FROM sqlite_master WHERE name='jobs'").fetchone():
                    return {}
                rows = journal.execute("SELECT relative, state, output FROM jobs ORDER BY number")
                return {r.decode(): (s, Path(o.decode()) if o else None) for r, s, o in rows}


def _contents(disk: Disk, path: Path) -> set[bytes | None]:
    """Each content that a file may have: as it was synced, as it was written, or no file."""
    found: set[bytes | None] = set()
    for node in disk.may_be(path):
        found |= {None} if node is None else {bytes(node.synced), bytes(node.now)}
    return found


def broken(scene: Scene, disk: Disk, journals: Journals) -> set[str]:
    """The promises that a power loss would break now, in words."""
    says = list(journals.may_be(disk))
    return {
        *(text for source in scene.sources for text in _of_source(source, scene, disk, says)),
        *_half_written(scene, disk),
        *_unexplained(scene, disk),
        *_told_too_early(scene, disk, says),
    }


def _of_source(source: Source, scene: Scene, disk: Disk, says: Iterable[State]) -> Iterator[str]:
    """A source lies in one of its folders, and leaves its inbox last of all."""
    name = source.path.name
    is_due = all(disk.keeps(path, content) for path, content in source.due.items())
    homes = (scene.inbox, *scene.kept_in)
    places = [
        path
        for path, history in disk.names.items()
        if any(path.is_relative_to(home) for home in homes)
        and any(change.node and _holds(change.node, source) for change in history)
    ]
    for loss in disk.losses(places):
        is_held = any(
            node and _holds(node, source) and _is_reached(disk, path) for path, node in loss.items()
        )
        if not is_held and not (scene.deletes and source.is_picture and is_due):
            yield f"{name} is lost"
            break
    if not all(node and _holds(node, source) for node in disk.may_be(source.path)):
        if not is_due:
            yield f"{name} may have left before {_names(source.due)} are there for good"
        wanted = "done" if source.is_picture else "failed"
        if any(_state(said, source, scene)[0] != wanted for said in says):
            yield f"{name} may have left before the journal says {wanted} for good"


def _half_written(scene: Scene, disk: Disk) -> Iterator[str]:
    """No name that people may see stands for data that may be lost."""
    for path in disk.names:
        is_final = not any(part.startswith(".") for part in path.parts)
        if is_final and any(path.is_relative_to(top) for top in (scene.outbox, *scene.kept_in)):
            for node in disk.may_be(path):
                if node and node.synced != node.now:
                    yield f"{path.name} may be half written"


def _unexplained(scene: Scene, disk: Disk) -> Iterator[str]:
    """No result has a name while its record may be lost: it would be made once more."""
    for source in scene.sources:
        if source.is_picture:
            picture, its_record = source.due
            if any(disk.may_be(picture)) and not disk.is_there(its_record):
                yield f"{picture.name} may be there without its record"


def _told_too_early(scene: Scene, disk: Disk, says: Iterable[State]) -> Iterator[str]:
    """The journal never says done of what may yet be lost."""
    for said in says:
        for source in scene.sources:
            state, output = _state(said, source, scene)
            if state == "done":
                assert output in source.due, f"{output} is no result of {source.path}"
                if not all(disk.keeps(*pair) for pair in source.due.items()):
                    yield f"the journal may say done before {_names(source.due)} are there for good"


def _state(said: State, source: Source, scene: Scene) -> tuple[str, Path | None]:
    return said.get(str(source.path.relative_to(scene.inbox)), ("", None))


def _holds(node: Node, source: Source) -> bool:
    return not node.is_folder and node.synced == node.now == source.content


def _is_reached(disk: Disk, path: Path) -> bool:
    return path.parent not in disk.names or disk.is_there(path.parent)


def _names(paths: Iterable[Path]) -> str:
    return " and ".join(sorted(path.name for path in paths))


# the model itself, and that it catches what it is there for

TOP = Path("/h")
IN, OUT, ARCHIVE = TOP / "in", TOP / "out", TOP / "archive"
PHOTO, MOVED = IN / "p.jpg", ARCHIVE / "p.jpg"
PART, RESULT, RECORD_PART, RECORD = OUT / ".p", OUT / "p.png", OUT / ".r", OUT / "p.png.json"
JOURNAL = TOP / "state" / FILE_NAME


def written(tmp_path: Path, state: str) -> bytes:
    """A journal that says ``state`` of the photo."""
    path = tmp_path / f"{state}.sqlite"
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as journal:
        journal.execute("CREATE TABLE jobs (number, relative BLOB, state, output BLOB)")
        journal.execute("INSERT INTO jobs VALUES (1, ?, ?, ?)", (b"p.jpg", state, bytes(RESULT)))
        journal.commit()
    return path.read_bytes()


def job(tmp_path: Path) -> dict[str, list[Step]]:
    """A whole job in the order that delivery promises, by the name of each part."""
    return {
        "picture": [Make(PART), Write(PART, b"PNG"), Sync(PART)],
        "record": [Make(RECORD_PART), Write(RECORD_PART, b"{}"), Sync(RECORD_PART)],
        "record named": [Link(RECORD_PART, RECORD)],
        "record named for good": [Sync(OUT)],
        "commit": [Link(PART, RESULT)],
        "commit synced": [Sync(OUT)],
        "parts": [Remove(PART), Remove(RECORD_PART)],
        "journal": [Write(JOURNAL, written(tmp_path, "done"), 0)],
        "journal synced": [Sync(JOURNAL)],
        "moved": [Rename(PHOTO, MOVED)],
        "moved synced": [Sync(ARCHIVE), Sync(IN)],
    }


def replayed(
    tmp_path: Path, steps: Iterable[Step], *, deletes: bool = False, torn_renames: bool = False
) -> set[str]:
    """Every promise that a hand-made trace breaks at any moment."""
    due = {RESULT: b"PNG", RECORD: b"{}"}
    source = Source(PHOTO, b"JPEG", due, is_picture=True)
    scene = Scene(IN, OUT, (ARCHIVE,), JOURNAL.parent, (source,), deletes=deletes)
    disk = Disk(
        [TOP, IN, OUT, ARCHIVE, JOURNAL.parent],
        {PHOTO: b"JPEG", JOURNAL: written(tmp_path, "running")},
        torn_renames=torn_renames,
    )
    return set(replay(scene, disk, in_order(*steps), tmp_path))


def replay(scene: Scene, disk: Disk, trace: Iterable[Event], scratch: Path) -> Iterator[str]:
    """The promises broken after each step of a trace."""
    journals = Journals(scene.state, scratch)
    yield from broken(scene, disk, journals)
    for event in trace:
        disk.do(event)
        if not isinstance(event.step, Say):
            yield from (
                f"{text} (after {event.step!s:.200})" for text in broken(scene, disk, journals)
            )


def test_the_promised_order_breaks_nothing(tmp_path: Path) -> None:
    steps = job(tmp_path)
    assert replayed(tmp_path, flat(steps)) == set()


EARLY = "p.jpg may have left before p.png and p.png.json are there for good"
UNTOLD = "p.jpg may have left before the journal says done for good"
TOLD = "the journal may say done before p.png and p.png.json are there for good"
HALF = "p.png may be half written"
ALONE = "p.png may be there without its record"
LOST = "p.jpg is lost"


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("record named for good", {ALONE}),
        ("commit synced", {EARLY, TOLD}),
        ("journal", {UNTOLD}),
        ("journal synced", {UNTOLD}),
    ],
)
def test_a_missing_step_is_caught(tmp_path: Path, part: str, expected: set[str]) -> None:
    steps = job(tmp_path)
    del steps[part]
    assert texts(replayed(tmp_path, flat(steps))) == expected


@pytest.mark.parametrize(
    ("part", "before", "expected"),
    [
        ("commit", "picture", {HALF}),
        ("journal", "commit synced", {TOLD}),
        ("moved", "commit synced", {EARLY, UNTOLD}),
        ("moved", "journal synced", {UNTOLD}),
    ],
)
def test_a_step_too_early_is_caught(
    tmp_path: Path, part: str, before: str, expected: set[str]
) -> None:
    steps = job(tmp_path)
    if part == "commit":  # named before its data is synced
        steps["picture"], synced = steps["picture"][:2], steps["picture"][2:]
        steps["commit"] += synced
    else:
        moved = steps.pop(part)
        steps = {key: moved + own if key == before else own for key, own in steps.items()}
    assert texts(replayed(tmp_path, flat(steps))) == expected


def test_a_picture_never_synced_is_caught(tmp_path: Path) -> None:
    steps = job(tmp_path)
    steps["picture"].remove(Sync(PART))
    assert texts(replayed(tmp_path, flat(steps))) == {HALF, EARLY, TOLD}


def test_a_folder_whose_own_name_is_not_synced_is_caught(tmp_path: Path) -> None:
    steps = job(tmp_path)
    steps["moved"] = [MakeFolder(ARCHIVE / "new"), Rename(PHOTO, ARCHIVE / "new" / "p.jpg")]
    steps["moved synced"] = [Sync(ARCHIVE / "new"), Sync(IN)]
    assert texts(replayed(tmp_path, flat(steps))) == {LOST}
    steps["moved"].insert(1, Sync(ARCHIVE))
    assert replayed(tmp_path, flat(steps)) == set()


def test_a_source_deleted_before_its_result_is_there_is_caught(tmp_path: Path) -> None:
    steps = job(tmp_path)
    steps["moved"], steps["moved synced"] = [Remove(PHOTO)], [Sync(IN)]
    assert replayed(tmp_path, flat(steps), deletes=True) == set()
    assert texts(replayed(tmp_path, flat(steps), deletes=False)) == {LOST}
    del steps["commit synced"]
    assert texts(replayed(tmp_path, flat(steps), deletes=True)) == {LOST, EARLY, TOLD}


COPY = ARCHIVE / ".p"
COPIED: tuple[Step, ...] = (
    *(Make(COPY), Write(COPY, b"JPEG"), Sync(COPY), Link(COPY, MOVED), Sync(ARCHIVE)),
    *(Remove(PHOTO), Sync(IN), Remove(COPY)),
)


@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (None, set()),
        (Sync(COPY), {LOST, "p.jpg may be half written"}),
        (Sync(ARCHIVE), {LOST}),
    ],
)
def test_a_copy_is_there_before_its_original_goes(
    tmp_path: Path, missing: Step | None, expected: set[str]
) -> None:
    steps = job(tmp_path)
    steps["moved"] = [step for step in COPIED if step != missing]
    steps["moved synced"] = []
    assert texts(replayed(tmp_path, flat(steps))) == expected


def test_a_rename_is_taken_for_one_change_and_nothing_else_is(tmp_path: Path) -> None:
    whole = flat(job(tmp_path))
    assert texts(replayed(tmp_path, whole, torn_renames=True)) == {LOST}
    in_two = [Link(PHOTO, MOVED), Remove(PHOTO)]
    steps = job(tmp_path)
    steps["moved"] = list(in_two)
    assert texts(replayed(tmp_path, flat(steps))) == {LOST}


def test_a_sync_counts_only_for_what_had_returned_before_it_began() -> None:
    disk = Disk([TOP])
    late = TOP / "late"
    for event in (
        Event(Make(late), began=1, ended=2),
        Event(Write(late, b"one", 0), began=3, ended=4),
        Event(Write(late, b"two", 3), began=6, ended=8),
        Event(Sync(late), began=7, ended=9),
    ):
        disk.do(event)
    node = disk.node(late)
    assert node is not None and (node.synced, node.now) == (b"one", b"onetwo")
    assert disk.may_be(late) == [None, node]
    disk.do(Event(Sync(TOP), began=10, ended=11))
    assert disk.is_there(late) and not disk.keeps(late, b"onetwo")


@needs_strace
def test_a_trace_says_what_was_done(tmp_path: Path) -> None:
    top = tmp_path / "top"
    top.mkdir()
    program = f"""
import os
os.chdir({str(top)!r})
os.mkdir({str(top / "sub")!r})
folder = os.open("sub", os.O_RDONLY)
with open("sub/one", "wb", buffering=0) as file:
    file.write(b"abcdef"); file.seek(1); file.write(b"X"); os.fsync(file.fileno())
    file.truncate(4)
os.link("one", "two", src_dir_fd=folder, dst_dir_fd=folder)
os.rename({str(top / "sub" / "one")!r}, {str(top / "a name, (odd)")!r})
os.fsync(folder)
try:
    os.unlink("sub/none", dir_fd=folder)
except FileNotFoundError:
    os.write(1, b"gone")
"""
    assert record([sys.executable, "-I", "-c", program], tmp_path / "trace", tmp_path / "log") == 0
    trace = events(tmp_path / "trace", [top])
    sub, one = top / "sub", top / "sub" / "one"
    assert [event.step for event in trace] == [
        *(MakeFolder(sub), Make(one), Truncate(one, 0)),
        *(Write(one, b"abcdef", 0), Write(one, b"X", 1), Sync(one), Truncate(one, 4)),
        *(Link(one, sub / "two"), Rename(one, top / "a name, (odd)"), Sync(sub), Say("gone")),
    ]
    disk = Disk([top])
    for event in trace:
        disk.do(event)
    assert_same(disk, [top])


# the daemon

BROKEN = "broken.png"
PICTURES = ("good.png", *(f"some/where/deep{number}.png" for number in range(4)), BROKEN)


@dataclass
class Street:
    """A house, its pictures, and all that lies below its roots before the daemon starts."""

    house: House
    mode: str
    roots: list[Path]
    before: dict[Path, bytes] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)

    def arrive(self, *names: str) -> None:
        """Drop some pictures, cut short what is called broken, and note all below the roots."""
        for number, name in enumerate(names):
            path = self.house.drop(name, seed=number)
            if name == BROKEN:
                path.write_bytes(path.read_bytes()[:-200])
        for root in self.roots:
            found = [root, *root.rglob("*")]
            self.folders += [path for path in found if path.is_dir()]
            self.before |= {path: path.read_bytes() for path in found if path.is_file()}

    def run(self, trace: Path, kill_at: str = "") -> list[Event]:
        """Let the daemon do its work, watched, to the end or to a point of crashpoints.py."""
        command = [sys.executable, "-m", "fluxwatchd", "run", "--until-idle", "--config"]
        environment = ("-E", f"{VARIABLE}={kill_at}") if kill_at else ()
        code = record([*command, str(self.house.config)], trace, self.house.log, *environment)
        assert code in ((-signal.SIGKILL,) if kill_at else (0, 1)), self.house.said()
        return events(trace, self.roots)

    def scene(self) -> Scene:
        """What was to come of every source, as it came."""
        house = self.house
        sources = [
            Source(path, content, self._due(path, content), path.name != BROKEN)
            for path, content in self.before.items()
            if path.is_relative_to(house.inbox)
        ]
        kept_in = (house.archive, house.failed)
        state = house.state
        return Scene(
            house.inbox, house.outbox, kept_in, state, tuple(sources), self.mode == "delete"
        )

    def rebuild(
        self, left: Iterable[tuple[Path, Node, bytes | None]], times: Mapping[Path, int]
    ) -> None:
        """Make the folders again as a power loss left them."""
        for root in self.roots:
            shutil.rmtree(root)
        made: dict[Node, Path] = {}
        when = {self.before[path]: time for path, time in times.items()}
        for path, node, content in left:
            if content is None:
                path.mkdir()
            elif node in made:
                path.hardlink_to(made[node])
            else:
                path.write_bytes(content)
                made[node] = path
            if content in when:
                os.utime(path, ns=(when[content], when[content]))

    def settled(self, scene: Scene) -> None:
        """Every source is where it belongs, once, with one whole result; nothing else is left."""
        results = [path for path in self._files(scene.outbox) if path.suffix == ".json"]
        records = {path: json.loads(path.read_text()) for path in results}
        for path, found in records.items():
            assert found["output"]["sha256"] == _hash(path.with_suffix("").read_bytes())
        held = [path for home in (scene.inbox, *scene.kept_in) for path in self._files(home)]
        for source in scene.sources:
            sha256 = _hash(source.content)
            made = [r for r in records.values() if r["source"]["sha256"] == sha256]
            assert len(made) == source.is_picture, f"{source.path.name}: {len(made)} results"
            places = [path for path in held if path.read_bytes() == source.content]
            home = self._home(source)
            assert len(places) == (home is not None), f"{source.path.name}: {places}"
            assert home is None or places[0].is_relative_to(home), places
            if not source.is_picture:
                assert places[0].with_name(f"{places[0].name}.error.json").is_file()
        left = [*self._files(scene.outbox), *held]
        assert not [path for path in left if path.name.startswith(".")]
        assert len(self._files(scene.outbox)) == 2 * len(records)

    def _home(self, source: Source) -> Path | None:
        """Where a source ends; None where it is deleted."""
        if not source.is_picture:
            return self.house.failed
        ends = {"keep": self.house.inbox, "delete": None}
        return ends.get(self.mode, self.house.archive)

    def _files(self, top: Path) -> list[Path]:
        """The files below a folder, but for those of a trial of the folder itself."""
        return [
            path
            for path in top.rglob("*")
            if path.is_file() and not path.parent.name.startswith(".fluxwatchd-")
        ]

    def _due(self, path: Path, content: bytes) -> dict[Path, bytes]:
        """The result and its record, or the record of its failure."""
        relative = path.relative_to(self.house.inbox)
        if path.name == BROKEN:
            found = [self.house.failed / f"{relative}.error.json"]
        else:
            found = [self.house.outbox / relative, self.house.outbox / f"{relative}.json"]
        assert json.loads(found[-1].read_text())["source"]["sha256"] == _hash(content)
        return {path: path.read_bytes() for path in found}


def street(tmp_path: Path, mode: str, archive: Path | None = None) -> Street:
    """A house that retires its sources in one of four ways."""
    house = House(tmp_path / mode, daemon="settle_seconds = 0.05\nsettle_timeout = 0.2")
    house.log = tmp_path / "log.jsonl"
    folder = f'on_success = "{mode if mode in ("keep", "delete") else "archive"}"\n'
    roots = [house.root]
    if archive is not None:
        assert archive.stat().st_dev != tmp_path.stat().st_dev, "needs a second filesystem"
        house.archive = archive / "archive"
        folder += f'archive = "{house.archive}"\n'
        roots.append(archive)
    house.configure('variant = "lanczos"', folder=folder)
    return Street(house, mode, roots)


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another filesystem than the temporary files."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


@needs_strace
@pytest.mark.parametrize("mode", ["archive", "delete", "keep", "across"])
def test_the_power_fails_while_the_daemon_works(
    tmp_path: Path, elsewhere: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = street(tmp_path, mode, elsewhere if mode == "across" else None)
    place.arrive(*PICTURES)
    trace = place.run(tmp_path / "trace")
    disk = Disk(place.folders, place.before)
    assert list(replay(place.scene(), disk, trace, elsewhere)) == []
    assert_same(disk, place.roots)
    with capsys.disabled():
        print(f"\npower loss, sources {mode}: after each of {len(trace)} steps, nothing broken")


@needs_strace
@pytest.mark.parametrize("mode", ["archive", "delete", "keep", "across"])
def test_what_a_power_loss_leaves_is_brought_to_its_end(
    tmp_path: Path, elsewhere: Path, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = street(tmp_path, mode, elsewhere if mode == "across" else None)
    place.arrive(*PICTURES)
    times = {path: path.stat().st_mtime_ns for path in place.before}
    trace = place.run(tmp_path / "trace")
    scene = place.scene()
    dice = random.Random(mode)
    disk = Disk(place.folders, place.before)
    begun = next(i for i, event in enumerate(trace) if _is_part(event.step))
    ends = set(dice.sample(range(begun, len(trace)), LOSSES))
    for number, event in enumerate(trace):
        disk.do(event)
        if number in ends:
            left = disk.lose(dice)
            with explained(trace[: number + 1], left, scene, place.house, elsewhere):
                place.rebuild(left, times)
                assert place.house.run() in (0, 1)
                place.settled(scene)
    with capsys.disabled():
        print(
            f"\npower loss, sources {mode}: {LOSSES} starts from what was left, all accounted for"
        )


@needs_strace
@pytest.mark.parametrize("mode", ["delete", "across"])
def test_a_source_left_under_both_names_of_its_removal_has_one_result(
    tmp_path: Path, elsewhere: Path, mode: str
) -> None:
    """A rename may leave both names; the same photo dropped once more is a picture of its own."""
    place = street(tmp_path, mode, elsewhere if mode == "across" else None)
    place.arrive(name := "some/where/deep.png")
    photo = place.house.inbox / name
    times = {photo: photo.stat().st_mtime_ns}
    trace = place.run(tmp_path / "trace")
    scene = place.scene()
    disk = Disk(place.folders, place.before)
    hidden = next(
        number
        for number, event in enumerate(trace)
        if isinstance(event.step, Rename) and event.step.old == photo
    )
    done = trace[: hidden + 1]
    for event in done:
        disk.do(event)
    names = {photo, done[-1].step.new}
    dice = random.Random(mode)
    losses = (disk.lose(dice) for _ in itertools.count())
    left = next(loss for loss in losses if names <= {path for path, _, _ in loss})

    with explained(done, left, scene, place.house, elsewhere):
        place.rebuild(left, times)
        assert place.house.run() == 0
        place.settled(scene)

    place.house.drop(name)
    assert place.house.run() == 0
    again = place.house.record("some/where/deep.2.png")
    assert again["copied_from"]["path"] == str(place.house.outbox / name)
    assert not photo.exists()


@contextlib.contextmanager
def explained(
    done: Sequence[Event],
    left: Iterable[tuple[Path, Node, bytes | None]],
    scene: Scene,
    house: House,
    scratch: Path,
) -> Iterator[None]:
    """Say with what fails at which step the power went, what it left, and what the daemon said."""
    files = {path: content for path, _, content in left if content is not None}
    journal = [
        files.get(Path(f"{scene.state / FILE_NAME}{end}")) for end in ("", "-wal", "-journal")
    ]
    said = len(house.said())
    try:
        yield
    except AssertionError as error:
        told = [
            *("the power went after:", *(f"{event.step!s:.200}" for event in done[-5:])),
            *("it left:", *map(str, files)),
            *("its journal:", str(Journals(scene.state, scratch).says(journal))),
            *("the daemon, started from that:", house.said()[said:]),
        ]
        error.add_note("\n".join(told))
        raise


KILLS = [
    ("archive", "commit.record-linked"),
    ("archive", "commit.record-name-synced"),
    ("archive", "commit.picture-linked"),
    ("archive", "commit.folder-synced"),
    ("keep", "commit.picture-linked"),
    ("archive", "journal.finished"),
    ("archive", "move.renamed"),
    ("delete", "retire.deleted"),
    ("across", "move.copied"),
    ("across", "move.linked"),
    ("across", "move.source-removed"),
    ("broken", "journal.failed"),
    ("broken", "fail.record-linked"),
    ("broken", "fail.source-moved"),
]


@needs_strace
@pytest.mark.parametrize(("mode", "point"), KILLS)
def test_the_power_fails_after_a_kill(
    tmp_path: Path, elsewhere: Path, mode: str, point: str
) -> None:
    place = street(tmp_path, mode, elsewhere if mode == "across" else None)
    place.arrive(BROKEN if mode == "broken" else "good.png")
    killed = place.run(tmp_path / "first", kill_at=point)
    first = Disk(place.folders, place.before)
    for event in killed:
        first.do(event)
    assert_same(first, place.roots)
    again = place.run(tmp_path / "second")
    disk = Disk(place.folders, place.before)
    assert sorted(replay(place.scene(), disk, later(killed, again), elsewhere)) == []
    assert_same(disk, place.roots)


def later(first: Sequence[Event], second: Sequence[Event]) -> list[Event]:
    """Two traces, one after the other."""
    end = max(event.ended for event in first) + 1
    return [*first, *(replace(e, began=e.began + end, ended=e.ended + end) for e in second)]


@needs_strace
def test_two_jobs_in_a_new_folder_both_wait_until_its_name_is_synced(tmp_path: Path) -> None:
    top = tmp_path / "outbox"
    top.mkdir()
    program = f"""
import os, threading
from pathlib import Path
from fluxwatchd import trees
top = Path({str(top)!r})
first = threading.Thread(target=trees.open_folder, args=(top, "sub"), kwargs=dict(make=True))
first.start()
while not (top / "sub").exists():
    pass
trees.open_folder(top, "sub", make=True)
os.write(1, b"open")
first.join()
"""
    slow = ("-e", "inject=fsync:delay_enter=300000")
    command = [sys.executable, "-c", program]
    assert record(command, tmp_path / "trace", tmp_path / "log", *slow) == 0
    disk = Disk([top])
    for event in events(tmp_path / "trace", [top]):
        disk.do(event)
        if isinstance(event.step, Say):
            assert event.step.text == "open" and disk.is_there(top / "sub")
            return
    raise AssertionError("it said nothing")


@needs_strace
def test_what_the_journal_has_acknowledged_outlives_its_checkpoints(
    tmp_path: Path, elsewhere: Path
) -> None:
    state = tmp_path / "state"
    program = f"""
import os
from pathlib import Path
from fluxwatchd.config import Folder
from fluxwatchd.job import Taken
from fluxwatchd.crashpoints import VARIABLE
from fluxwatchd.journal import Journal
folder = Folder(inbox=Path("/in"), outbox=Path("/out"))
with Journal.open(Path({str(state)!r})) as journal:
    for number in range(40):
        job = Taken(f"{{number:016x}}", folder, Path(str(number)), size=1, mtime_ns=1)
        journal.begin(job)
        journal.finish(job.id, Path("/out/result"), "")
        os.write(1, b"done")
        journal.set_live({{"status": "x" * 200_000}})
os.write(1, b"closed")
"""
    command = [sys.executable, "-c", program]
    assert record(command, tmp_path / "trace", tmp_path / "log") == 0
    trace = events(tmp_path / "trace", [tmp_path])
    log = f"{state / FILE_NAME}-wal"
    again = [e for e in trace if isinstance(e.step, Write) and str(e.step.path) == log]
    assert sum(event.step.offset == 0 for event in again) >= 2, "no checkpoint: nothing is shown"
    disk, journals, said = Disk([tmp_path]), Journals(state, elsewhere), 0
    for event in trace:
        disk.do(event)
        if isinstance(event.step, Say):
            said += 1
        if isinstance(event.step, Say | Sync):
            for left in journals.may_be(disk):
                lost = {str(n) for n in range(min(said, 40))} - set(left)
                assert not lost, f"lost after {event.step!s:.80}: {sorted(lost)}"
    assert said == 41


def assert_same(disk: Disk, roots: Iterable[Path]) -> None:
    """The model did what the kernel did: the same names, the same contents."""
    real = {path: path for root in roots for path in root.rglob("*")}
    known = {path for path, history in disk.names.items() if history[-1].node} - set(roots)
    assert known == {path for path in real if not path.name.endswith("-shm")}
    for path in known:
        node = disk.node(path)
        assert node is not None and node.is_folder == path.is_dir(), path
        assert node.is_folder or bytes(node.now) == path.read_bytes(), path


def flat(steps: Mapping[str, Sequence[Step]]) -> list[Step]:
    """The parts of a trace, one after another."""
    return [step for part in steps.values() for step in part]


def texts(problems: Iterable[str]) -> set[str]:
    """The problems alone, without the steps that brought them."""
    return {problem.partition(" (after")[0] for problem in problems}


def _is_part(step: Step) -> bool:
    return isinstance(step, Make) and step.path.suffix == ".part"


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
