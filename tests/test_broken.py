"""Broken files through the real daemon: each refused with a reason or delivered whole."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

import broken
import house
import jsonschema
import numpy as np
import pictures
import pytest

from fluxwatchd import imageio, sidecar

CASES = int(os.environ.get("FLUXWATCHD_FUZZ_CASES", "2000"))
"""Files in all, the bombs among them; each goes through the library and through the daemon."""

SEED = int(os.environ.get("FLUXWATCHD_FUZZ_SEED", "0"))
LONGEST = 10.0
"""s; what one file may take."""

MEMORY = 300 << 20
"""bytes; how much the process may grow over what it needs for a whole file."""

LIBRARY = """
import io, json, pathlib, resource, sys, time
import numpy
from fluxwatchd import imageio
from fluxwatchd.errors import JobFailed

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

def tried(path):
    data, begun = path.read_bytes(), time.perf_counter()
    try:
        picture = imageio.read(data, animated="first", name=path.name)
        assert numpy.isfinite(picture.pixels).all()
        notes = imageio.write(picture, io.BytesIO(), strip_gps=True, provenance={"job": "1"})
        told = "; ".join(notes)
    except JobFailed as error:
        told = f"refused: {error}"
    return told, time.perf_counter() - begun

folder = pathlib.Path(sys.argv[1])
for path in sorted((folder / "whole").iterdir()):
    tried(path)
before = peak()
for path in sorted((folder / "broken").iterdir()):
    told, seconds = tried(path)
    print(json.dumps([path.name, told, seconds, peak() - before]), flush=True)
"""


def laid_out(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """CASES broken files, the bombs first."""
    bombs = broken.hostile()
    found = {**bombs, **dict(broken.mutated(CASES - len(bombs), SEED))}
    assert len(found) == CASES
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_broken_file_takes_the_process_memory_or_time(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    laid_out(tmp_path / "broken", files)
    laid_out(tmp_path / "whole", dict(broken.whole()))
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY, str(tmp_path)], capture_output=True, check=False
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    last = results[-1][0] if results else "none"
    assert done.returncode == 0, f"it died behind {last}: {done.stderr.decode()[-2000:]}"
    assert {name for name, *_ in results} == files.keys()
    for name, told, seconds, grown in results:
        assert seconds < LONGEST, name
        assert grown < MEMORY, name
        if name.startswith("claims"):
            assert told.startswith(f"refused: {name}: "), told
    print(f"slowest {max(seconds for _, _, seconds, _ in results):.2f} s")
    print(f"grown by {max(grown for *_, grown in results) >> 20} MB")


class Peak:
    """The most memory that a process had, bytes, read while it runs."""

    def __init__(self, process: int) -> None:
        self._status, self.most = Path(f"/proc/{process}/status"), 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.1):
            try:
                lines = self._status.read_text().splitlines()
            except OSError:
                return
            peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
            self.most = max([self.most, *(peak * 1024 for peak in peaks)])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_broken_files_are_set_aside_with_a_reason_or_delivered_whole(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    place = house.House(
        tmp_path,
        'variant = "lanczos"\nscale = 1\nanimated = "first"\nstrip_gps = true',
        daemon="settle_seconds = 0.2\nsettle_timeout = 0.5",
    )
    for name, data in files.items():
        (place.inbox / name).write_bytes(data)
    began = time.monotonic()
    place.start("--until-idle")
    assert place.process is not None
    with Peak(place.process.pid) as peak:
        assert place.wait(3000) == 1, place.said()[-4000:]
    print(f"{len(files)} files in {time.monotonic() - began:.0f} s, peak {peak.most >> 20} MB")
    records = [sidecar.read(path) for path in place.outbox.glob("*.json")]
    delivered = {record["source"]["name"]: record for record in records}
    print(f"{len(delivered)} delivered, {len(files) - len(delivered)} refused")
    assert place.places()["inbox"] == []
    for name in files:
        if name in delivered:
            assert_delivered(place, delivered[name])
        else:
            assert_refused(place, name)
    assert 0 < len(delivered) < len(files)
    assert len(delivered) + len(list(place.failed.glob("*.error.json"))) == CASES
    cut = [name for name in delivered if broken.before(name)]
    print(f"{len(cut)} delivered were cut, and are whole")
    assert cut
    assert peak.most < 1 << 30


ERROR = jsonschema.Draft202012Validator(sidecar.schema("error"))
SIDECAR = jsonschema.Draft202012Validator(sidecar.schema("sidecar"))


def assert_refused(place: house.House, name: str) -> None:
    record = sidecar.read(place.failed / f"{name}.error.json")
    ERROR.validate(record)
    assert record["class"] == "InputRejected", record
    assert record["why"], record
    assert record["remedy"], record
    assert (place.failed / name).exists()


def assert_delivered(place: house.House, record: dict[str, Any]) -> None:
    SIDECAR.validate(record)
    picture = imageio.read(place.outbox / record["output"]["name"])
    assert (picture.width, picture.height) == (record["source_width"], record["source_height"])
    assert (place.archive / record["source"]["name"]).exists()
    name = broken.before(record["source"]["name"])
    if name and name not in UNNOTICED:
        wanted = expected(name)
        np.testing.assert_array_equal(picture.pixels, wanted.pixels, name)
        assert (picture.alpha is None) == (wanted.alpha is None)
        if picture.alpha is not None and wanted.alpha is not None:
            np.testing.assert_array_equal(picture.alpha, wanted.alpha, name)


UNNOTICED = frozenset({"plain.ppm", "plain.pgm"})
"""Decimal numbers: nobody can tell that the last lost a digit (docs/pictures.md)."""


@cache
def expected(name: str) -> imageio.Picture:
    """What the whole file gives at scale 1, as PNG."""
    whole = imageio.read(dict(broken.whole())[name], animated="first")
    out = io.BytesIO()
    imageio.write(whole, out, strip_gps=True)
    return imageio.read(out.getvalue())


def test_a_file_longer_than_its_picture_is_never_read_whole(tmp_path: Path) -> None:
    place = house.House(
        tmp_path,
        'variant = "lanczos"\nscale = 1',
        daemon="settle_seconds = 0.2\nsettle_timeout = 0.5",
    )
    small = pictures.corpus()["rgb.png"].data
    for name, head in {"zeros.png": b"", "tail.png": small, "no.tif": b"II*\0"}.items():
        with (place.inbox / name).open("wb") as file:
            file.write(head)
            file.truncate(30 << 30)
    place.start("--until-idle")
    assert place.process is not None
    with Peak(place.process.pid) as peak:
        assert place.wait() == 1
    assert peak.most < 500 << 20
    for name in ("zeros.png", "tail.png", "no.tif"):
        assert_refused(place, name)
    why = sidecar.read(place.failed / "tail.png.error.json")["why"]
    assert "32212254720 bytes for 37 x 23 px: more than a picture" in why
