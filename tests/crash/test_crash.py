"""kill -9 before and after every step: nothing is lost, doubled or half-written.

Houses differ in how a source retires. In each, pictures arrive while the daemon is killed at one
point after another, the next start recovering from the last kill and being killed in its turn; at
the end one clean run must bring everything to exactly one place.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from house import House, photo
from PIL import Image

from fluxwatchd.crashpoints import NAMES

ONLY_WHEN_DELETING = ("retire.before-delete", "retire.deleted")
ONLY_ACROSS_DEVICES = (
    "move.before-copy",
    "move.copied",
    "move.copy-synced",
    "move.compared",
    "move.linked",
    "move.hidden",
    "move.source-removed",
    "move.source-synced",
)
ONLY_WHEN_GIVEN_BACK = ("journal.before-give-back", "journal.given-back")
PASSES = 4
"""Kills at each point: at its first pass, its second, ..."""
HOUSES = 7
"""Houses that come under fire in this module."""


@dataclass
class Street:
    """A house under fire, and what ever arrived in it: content hash -> is it a picture."""

    house: House
    mode: str
    arrived: dict[str, bool] = field(default_factory=dict)
    kills: int = 0
    missed: list[str] = field(default_factory=list)

    def arrive(self, pictures: int) -> None:
        """Some pictures and one file that is none."""
        for _ in range(pictures):
            number = len(self.arrived)
            path = self.house.drop(f"p{number:04}.png", seed=number)
            self.arrived[_hash(path)] = True
        number = len(self.arrived)
        bad = self.house.root / "bad.png"
        photo(seed=number).save(bad)
        bad.write_bytes(bad.read_bytes()[:-200])  # may still be arriving: it is given back first
        self.arrived[_hash(bad)] = False
        bad.rename(self.house.inbox / f"bad{number:04}.png")

    def kill_at(self, point: str, nth: int) -> None:
        """One start that ends at ``point``."""
        self.house.start("--until-idle", FLUXWATCHD_CRASHPOINT=f"{point}:{nth}")
        code = self.house.wait()
        assert code in (0, 1, -signal.SIGKILL), (
            f"{point}:{nth}: {code}\n{self.house.said()[-3000:]}"
        )
        if code == -signal.SIGKILL:
            self.kills += 1
        else:
            self.missed.append(f"{point}:{nth}")
        self.no_source_is_lost()

    def no_source_is_lost(self) -> None:
        """Every content that arrived lies somewhere, or its result does (on_success = delete)."""
        held = self.held()
        done = self.results()
        for content, is_picture in self.arrived.items():
            kept = len(held.get(content, []))
            assert kept >= 1 or (self.mode == "delete" and is_picture and content in done), (
                f"lost: {content}\n{self.house.said()[-3000:]}"
            )

    def held(self) -> dict[str, list[Path]]:
        """Where every content lies: inbox, archive, failed; not under temporary names."""
        found: dict[str, list[Path]] = {}
        for top in (self.house.inbox, self.house.archive, self.house.failed):
            for path in top.rglob("*.png"):
                if not path.name.startswith("."):
                    found.setdefault(_hash(path), []).append(path)
        return found

    def results(self) -> dict[str, list[Path]]:
        """Whole results by the content of their source; checks each against its sidecar."""
        found: dict[str, list[Path]] = {}
        for path in self.house.outbox.rglob("*.png"):
            if path.name.startswith("."):
                continue
            record = json.loads(path.with_name(f"{path.name}.json").read_text())
            assert record["output"]["sha256"] == _hash(path)
            with Image.open(path) as image:
                image.load()
            found.setdefault(record["source"]["sha256"], []).append(path)
        return found

    def settle(self) -> None:
        """A clean run, and then the whole account."""
        assert self.house.run(patience=200) in (0, 1), self.house.said()
        held, results = self.held(), self.results()
        for content, is_picture in self.arrived.items():
            places = held.get(content, [])
            if is_picture:
                assert len(results.get(content, [])) == 1, f"{content}: {results.get(content)}"
            else:
                assert content not in results
            if is_picture and self.mode == "delete":
                assert places == []
                continue
            assert len(places) == 1, f"{content}: {places}"
            home = self.home_of(is_picture)
            assert places[0].is_relative_to(home), f"{places[0]} is not in {home}"
            if not is_picture:
                assert places[0].with_name(f"{places[0].name}.error.json").is_file()
        assert set(results) <= set(self.arrived)
        self.nothing_temporary_is_left()

    def home_of(self, is_picture: bool) -> Path:
        """Where a source ends."""
        if not is_picture:
            return self.house.failed
        return self.house.inbox if self.mode == "keep" else self.house.archive

    def nothing_temporary_is_left(self) -> None:
        """No dot files anywhere; no record without its file, no file without its record."""
        for top in (self.house.inbox, self.house.outbox, self.house.archive, self.house.failed):
            assert not [p for p in top.rglob("*") if p.name.startswith(".") and p.is_file()]
        names = {path.name for path in self.house.outbox.rglob("*") if path.is_file()}
        pictures = {name for name in names if name.endswith(".png")}
        assert names == pictures | {f"{name}.json" for name in pictures}


@pytest.fixture(scope="module")
def harness() -> list[Street]:
    """The houses whose account is settled, test by test."""
    return []


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A folder on another filesystem than the temporary files."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield path
    shutil.rmtree(path)


def street(
    tmp_path: Path, mode: str, archive: Path | None = None, *, settle_timeout: float = 0.2
) -> Street:
    """A house that retires its sources in one of four ways."""
    house = House(
        tmp_path / mode, daemon=f"settle_seconds = 0.05\nsettle_timeout = {settle_timeout}"
    )
    on_success = mode if mode in ("keep", "delete") else "archive"
    folder = f'on_success = "{on_success}"\nmax_attempts = 100\n'
    if archive is not None:
        assert archive.stat().st_dev != tmp_path.stat().st_dev, "needs a second filesystem"
        house.archive = archive / "archive"
        folder += f'archive = "{house.archive}"\n'
    house.configure('variant = "lanczos"', folder=folder)
    return Street(house, mode)


def fire(place: Street, points: list[str], passes: int, *, fresh: int = 1) -> None:
    """Kill at every point, then settle the account; ``fresh`` pictures come before each kill."""
    try:
        for point in points:
            for nth in range(1, passes + 1):
                place.arrive(passes + 1 if nth == 1 else fresh)
                place.kill_at(point, nth)
        place.settle()
    finally:
        place.house.kill()


@pytest.mark.timeout(900)
def test_killed_at_every_point_of_a_job(tmp_path: Path, harness: list[Street]) -> None:
    special = (*ONLY_WHEN_DELETING, *ONLY_ACROSS_DEVICES, *ONLY_WHEN_GIVEN_BACK)
    points = [n for n in NAMES if n not in special and not n.startswith("recover.")]
    halves = points[::2], points[1::2]
    places = []
    for number in range(2):  # two houses side by side: most of the time is waiting
        (tmp_path / str(number)).mkdir()
        places.append(street(tmp_path / str(number), "archive"))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fire, places, halves, [PASSES] * 2))
    for place, half in zip(places, halves, strict=True):
        harness.append(place)
        first = [point for point in half if f"{point}:1" in place.missed]
        assert first == [], f"never reached: {first}"


@pytest.mark.timeout(300)
def test_killed_while_a_picture_is_given_back(tmp_path: Path, harness: list[Street]) -> None:
    """A file that may still be arriving: time enough to see it once before it fails."""
    place = street(tmp_path, "archive", settle_timeout=4)
    fire(place, list(ONLY_WHEN_GIVEN_BACK), 2)
    harness.append(place)
    first = [point for point in ONLY_WHEN_GIVEN_BACK if f"{point}:1" in place.missed]
    assert first == [], f"never reached: {first}"


@pytest.mark.timeout(300)
def test_killed_while_a_source_is_deleted(tmp_path: Path, harness: list[Street]) -> None:
    place = street(tmp_path, "delete")
    fire(
        place,
        [*ONLY_WHEN_DELETING, "move.hidden", "journal.before-retired", "commit.picture-linked"],
        3,
        fresh=4,
    )
    harness.append(place)
    assert place.missed == []


@pytest.mark.timeout(300)
def test_killed_while_a_source_is_kept(tmp_path: Path, harness: list[Street]) -> None:
    place = street(tmp_path, "keep")
    points = ["commit.picture-linked", "journal.before-finish", "journal.before-retired"]
    fire(place, points, 3, fresh=4)
    harness.append(place)
    assert place.missed == []


@pytest.mark.timeout(300)
def test_killed_while_a_source_is_archived_on_another_filesystem(
    tmp_path: Path, elsewhere: Path, harness: list[Street]
) -> None:
    place = street(tmp_path, "across", elsewhere)
    fire(place, list(ONLY_ACROSS_DEVICES), 2, fresh=3)
    harness.append(place)
    assert place.missed == []


@pytest.mark.timeout(300)
def test_killed_in_recovery_itself(tmp_path: Path, harness: list[Street]) -> None:
    place = street(tmp_path, "archive")
    try:
        for first in ("commit.record-linked", "commit.picture-linked", "journal.finished"):
            for second in (name for name in NAMES if name.startswith("recover.")):
                place.arrive(2)
                place.kill_at(first, 1)
                place.kill_at(second, 1)
        place.settle()
    finally:
        place.house.kill()
    harness.append(place)
    assert place.kills >= 20


def test_two_hundred_kills_in_all(
    harness: list[Street],
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    """The summary of the tests above."""
    if len(harness) < HOUSES:
        pytest.skip("needs the other tests of this module, and none of them failed")
    kills, files = sum(p.kills for p in harness), sum(len(p.arrived) for p in harness)
    record_property("kills", kills)
    record_property("files under fire", files)
    with capsys.disabled():
        print(
            f"\ncrash harness: {kills} kills, {files} files, nothing lost, doubled or half-written"
        )
    assert kills >= 200


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
