"""A killed job goes on where it was, to the same bytes; a state that does not fit is not used."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from house import House, photo, until
from PIL import Image
from safetensors import safe_open
from structlog.testing import capture_logs

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import Engine, Ticket, open_engine, resume, silent
from fluxwatchd.engine.resume import INTERVAL, Keeper, Place, Store
from fluxwatchd.errors import ConfigError, Interrupted
from fluxwatchd.imageio import Picture
from fluxwatchd.job import Upscaled
from fluxwatchd.journal import Journal

NANO = Profile(variant="nano", scale=2.0, tile_size=24, overlap=4, steps=3)
"""Small tiles and three steps, so that a small picture takes many batches."""
PICTURE = Picture(tiny.photo(40, 56))
TICKET = Ticket("ab" * 32, "0123456789abcdef", 7)


class Stop:
    """A Beat that asks for a stop at the ``nth`` beat of ``stage``; it counts the beats.

    With ``after`` it begins to count when that stage was met.
    """

    def __init__(self, stage: str, nth: int, after: str = "") -> None:
        self.stage, self.nth, self.met, self.after = stage, nth, 0, after

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage == self.after:
            self.after = ""
        if stage == self.stage and not self.after:
            self.met += 1
            if self.met == self.nth:
                raise Interrupted("a stop was asked for")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with open_engine(EngineSettings(device="cpu"), state_dir=tmp_path) as opened:
        yield opened


@pytest.fixture(scope="module")
def unbroken() -> Callable[[Profile], Upscaled]:
    """What a run in one go makes of PICTURE."""
    made: dict[Profile, Upscaled] = {}
    opened = open_engine(EngineSettings(device="cpu"))

    def run(profile: Profile) -> Upscaled:
        if profile not in made:
            made[profile] = opened.upscale(PICTURE, profile, 7)
        return made[profile]

    return run


def states(folder: Path) -> list[Path]:
    return sorted((folder / "resume").glob("*.safetensors"))


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="numpy") as file:
        return file.metadata()


def place(path: Path) -> Place:
    return Place(**json.loads(header(path)["place"]))


def stopped(engine: Engine, stage: str, nth: int, profile: Profile = NANO) -> None:
    with pytest.raises(Interrupted):
        engine.upscale(PICTURE, profile, 7, Stop(stage, nth), ticket=TICKET)


# --- the same bytes -------------------------------------------------------------------------


@pytest.mark.parametrize("fusion", ["step", "final"])
@pytest.mark.parametrize("nth", [2, 7, 8, 11, 18])
def test_it_goes_on_between_any_two_batches_to_the_same_bytes(
    engine: Engine, tmp_path: Path, unbroken: Callable[[Profile], Upscaled], fusion: str, nth: int
) -> None:
    profile = NANO.model_copy(update={"fusion": fusion})
    stopped(engine, "denoise", nth, profile)
    assert len(states(tmp_path)) == 1
    again = Stop("denoise", 0)
    done = engine.upscale(PICTURE, profile, 7, again, ticket=TICKET)
    whole = unbroken(profile)
    assert done.picture.pixels.tobytes() == whole.picture.pixels.tobytes()
    assert whole.tiles is not None
    evaluations = len(whole.tiles.windows) * 3
    assert done.extra["resumed"]["tiles_evaluated_since"] == evaluations - (nth - 1)
    assert again.met == evaluations - (nth - 1) + 1  # a beat a batch, and one at the end
    assert "resumed" not in whole.extra


def test_a_stop_while_decoding_denoises_nothing_again(
    engine: Engine, unbroken: Callable[[Profile], Upscaled]
) -> None:
    stopped(engine, "decode", 1)
    done = engine.upscale(PICTURE, NANO, 7, ticket=TICKET)
    assert done.extra["resumed"]["stage"] == "decode"
    assert done.extra["resumed"]["tiles_evaluated_since"] == 0
    assert done.picture.pixels.tobytes() == unbroken(NANO).picture.pixels.tobytes()


def test_two_stops_and_a_rerun_of_drifting_tiles_change_nothing(
    engine: Engine, unbroken: Callable[[Profile], Upscaled]
) -> None:
    profile = NANO.model_copy(update={"max_drift": 0.0})
    stopped(engine, "denoise", 3, profile)
    stopped(engine, "denoise", 5, profile)
    stopped(engine, "drift", 1, profile)
    done = engine.upscale(PICTURE, profile, 7, ticket=TICKET)
    assert done.picture.pixels.tobytes() == unbroken(profile).picture.pixels.tobytes()
    assert done.extra["rerun"]


STRIPED = Profile(variant="nano-img2img", scale=2.0, strength=0.6, steps=2, tile_size=40, overlap=8)


@pytest.fixture(scope="module")
def striped(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    """A job whose model leaves stripes, so that it is denoised twice, and then drifts."""
    root = tmp_path_factory.mktemp("striped")
    model, (encoder, _) = tiny.striped(root / "model", 60.0), tiny.dino(root)
    keys = {"model": str(model), "dino_encoder": str(encoder), "max_drift": 0.0}
    return STRIPED.model_copy(update=keys)


class Killed(BaseException):
    """Ends a job as SIGKILL does: nobody writes a state because of it."""


class Kill(Stop):
    """A Beat that kills."""

    def __call__(self, stage: str, done: int, total: int) -> None:
        try:
            super().__call__(stage, done, total)
        except Interrupted as stop:
            raise Killed from stop


@pytest.mark.slow
@pytest.mark.parametrize(("how", "fusion"), [(Stop, "step"), (Kill, "final")])
def test_the_second_run_of_a_striped_picture_and_of_drifting_tiles_goes_on_too(
    tmp_path: Path, striped: Profile, fusion: str, how: type[Stop], monkeypatch: pytest.MonkeyPatch
) -> None:
    if how is Kill:
        monkeypatch.setenv(INTERVAL, "0")  # a state a batch, not one in 30 s
    engine = open_engine(EngineSettings(device="cpu"), state_dir=tmp_path)
    profile, picture = striped.model_copy(update={"fusion": fusion}), Picture(tiny.photo(64, 72))
    whole = engine.upscale(picture, profile, 7)
    assert whole.stripes is not None and whole.stripes.shifted and whole.tiles is not None
    tiles = len(whole.tiles.windows)
    assert whole.extra["rerun"] == list(range(tiles)) and tiles > 3
    for after, run in (("decode", "shifted"), ("decode", "shifted"), ("drift", "drift")):
        with pytest.raises((Interrupted, Killed)):
            engine.upscale(picture, profile, 7, how("denoise", 4, after), ticket=TICKET)
        kept = {path.stem.partition("-")[2] for path in states(tmp_path)}
        assert kept == {"", "shifted", run}
    last = Stop("denoise", 0)
    done = engine.upscale(picture, profile, 7, last, ticket=TICKET)
    assert done.extra["resumed"]["run"] == "drift"
    assert done.extra["resumed"]["tiles_evaluated_since"] == last.met - 1 < 2 * tiles - 1
    assert done.stripes == whole.stripes
    assert done.picture.pixels.tobytes() == whole.picture.pixels.tobytes()
    Store(tmp_path).forget(TICKET)
    assert not states(tmp_path)


def test_both_passes_of_a_large_scale_are_gone_on_with(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INTERVAL, "0")
    profile = Profile(variant="nano", scale=5.0, tile_size=16, overlap=2)
    small = Picture(tiny.photo(20, 28))
    whole = engine.upscale(small, profile, 7)
    tiles = [one["tiles"] for one in whole.extra["passes"]]
    with pytest.raises(Interrupted):  # in the second pass
        engine.upscale(small, profile, 7, Stop("denoise", 2 * tiles[0] + 1 + 4), ticket=TICKET)
    assert [place(path).stage for path in states(tmp_path)] == ["decode", "denoise"]
    done = engine.upscale(small, profile, 7, ticket=TICKET)
    assert done.picture.pixels.tobytes() == whole.picture.pixels.tobytes()
    first, second = done.extra["passes"]
    assert first["resumed"]["tiles_evaluated_since"] == 0
    assert second["resumed"]["tiles_evaluated_since"] == 2 * tiles[1] - 3
    Store(tmp_path).forget(TICKET)
    assert not states(tmp_path)


# --- what does not fit ----------------------------------------------------------------------


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-64])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _flip, _empty])
def test_a_damaged_state_is_not_used_and_said(
    engine: Engine,
    tmp_path: Path,
    unbroken: Callable[[Profile], Upscaled],
    damage: Callable[[Path], None],
) -> None:
    stopped(engine, "denoise", 9)
    damage(states(tmp_path)[0])
    with capture_logs() as logs:
        done = engine.upscale(PICTURE, NANO, 7, ticket=TICKET)
    assert [line for line in logs if "a state was not used" in line["event"]]
    assert "resumed" not in done.extra
    assert done.picture.pixels.tobytes() == unbroken(NANO).picture.pixels.tobytes()


@pytest.mark.parametrize(
    ("ticket", "profile"),
    [
        (replace(TICKET, content="cd" * 32), NANO),
        (replace(TICKET, seed=8), NANO),
        (replace(TICKET, fingerprint="0" * 16), NANO),
        (TICKET, NANO.model_copy(update={"steps": 2})),
        (TICKET, NANO.model_copy(update={"tile_size": 20})),
        (TICKET, NANO.model_copy(update={"scale": 2.1})),
    ],
)
def test_other_work_starts_at_its_start(engine: Engine, ticket: Ticket, profile: Profile) -> None:
    stopped(engine, "denoise", 9)
    done = engine.upscale(PICTURE, profile, ticket.seed, ticket=ticket)
    assert "resumed" not in done.extra


def test_a_state_of_another_release_is_not_used(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(engine, "denoise", 9)
    monkeypatch.setattr("fluxwatchd.engine.pipeline.__version__", "99")
    with capture_logs() as logs:
        done = engine.upscale(PICTURE, NANO, 7, ticket=TICKET)
    assert "resumed" not in done.extra
    assert any("another fluxwatchd" in line.get("why", "") for line in logs)


def test_a_text_of_another_length_starts_over(tmp_path: Path) -> None:
    profile = Profile(
        variant="schnell", model=str(tiny.diffusers_folder(tmp_path / "schnell")), scale=2.0,
        steps=2, strength=0.6, tile_size=32, overlap=8, dino_mode="off",
    )  # fmt: skip
    settings = EngineSettings(device="cpu", text_tokens="parity")
    with open_engine(settings, state_dir=tmp_path) as engine:
        stopped(engine, "denoise", 3, profile)
    settings = EngineSettings(device="cpu", text_tokens="short")
    with open_engine(settings, state_dir=tmp_path) as engine, capture_logs() as logs:
        done = engine.upscale(PICTURE, profile, 7, ticket=TICKET)
    assert "resumed" not in done.extra
    assert any("another text" in line.get("why", "") for line in logs)


def test_the_header_names_all_that_the_numbers_depend_on(engine: Engine, tmp_path: Path) -> None:
    stopped(engine, "denoise", 9)
    words = header(states(tmp_path)[0])
    assert words["content"] == TICKET.content and words["fingerprint"] == TICKET.fingerprint
    assert words["seed"] == "7"
    checkpoint, plan = json.loads(words["checkpoint"]), json.loads(words["plan"])
    assert set(checkpoint["files"]) >= {"transformer", "vae"}
    assert plan["sigmas"] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert plan["grid"]["rows"]["starts"]
    assert words["torch"] == torch.__version__


# --- when it is written ---------------------------------------------------------------------


def keeper(store: Store, clock: Callable[[], float]) -> Keeper:
    kept = Keeper(store, TICKET, silent, clock=clock)
    kept.open({"plan": {}})
    return kept


def test_a_state_is_written_every_30_seconds_of_work(tmp_path: Path) -> None:
    now = [0.0]
    kept = keeper(Store(tmp_path), lambda: now[0])
    written = []
    for second in range(100):
        now[0] = float(second)
        kept.note(Place("denoise", 0, second), {"velocity": torch.full((2, 3), float(second))})
        kept.beat("denoise", second, 100)
        if states(tmp_path) and (at := place(states(tmp_path)[0]).done) not in written:
            written.append(at)
    assert written == [30, 60, 90]
    assert kept.told() == {"states": {"written": 3, "seconds": 0.0}}


def test_a_slow_disk_takes_at_most_a_fiftieth_of_the_time(tmp_path: Path) -> None:
    now = [0.0]

    class Slow(Store):
        def save(self, *given: object) -> None:  # takes 2 s
            super().save(*given)  # type: ignore[arg-type]
            now[0] += 2.0

    kept = keeper(Slow(tmp_path), lambda: now[0])
    while now[0] < 1000:
        kept.note(Place("denoise", 0, int(now[0])), {"velocity": torch.zeros(2)})
        kept.beat("denoise", 0, 1)
        now[0] += 1.0
    told = kept.told()["states"]
    assert isinstance(told, dict)
    assert told["written"] >= 9 and told["seconds"] <= 0.021 * now[0]


def test_a_state_that_takes_too_long_is_not_written_at_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "SLOW_DISK", 1.0)  # a byte a second
    kept = Keeper(Store(tmp_path), TICKET, Stop("denoise", 1), clock=lambda: 0.0)
    kept.open({})
    kept.note(Place("denoise"), {"velocity": torch.zeros(2)})
    with pytest.raises(Interrupted):
        kept.beat("denoise", 0, 1)
    assert not states(tmp_path)


def test_a_disk_that_takes_no_state_stops_no_picture(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INTERVAL, "0")
    (tmp_path / "resume").write_text("a file where the folder should be")
    with capture_logs() as logs:
        done = engine.upscale(PICTURE, NANO, 7, ticket=TICKET)
    told = [line for line in logs if "the state cannot be written" in line["event"]]
    assert len(told) == 1 and told[0]["why"]
    assert "states" not in done.extra


def test_a_full_disk_leaves_the_state_before_and_no_part(tmp_path: Path) -> None:
    """RLIMIT_FSIZE says no in the midst of a write, as a full disk does."""
    program = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from fluxwatchd.engine import Ticket, silent\n"
        "from fluxwatchd.engine.resume import Keeper, Place, Store\n"
        "kept = Keeper(Store(Path(sys.argv[1])), Ticket('a', 'b', 1), silent)\n"
        "kept.open({})\n"
        "def write(done, size):\n"
        "    kept.note(Place('denoise', 0, done), {'velocity': torch.zeros(size)})\n"
        "    kept.beat('denoise', 0, 1)\n"
        "write(1, 100)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "write(2, 1_000_000)\n"
        "write(3, 100)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, INTERVAL: "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert (run.stdout + run.stderr).count("the state cannot be written") == 1
    assert [path.suffix for path in (tmp_path / "resume").iterdir()] == [".safetensors"]
    assert place(states(tmp_path)[0]).done == 1


def test_the_folder_is_bounded_in_age_number_and_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    small = {"velocity": np.zeros(2500, np.float32)}

    def save(number: int) -> Path:
        path = store.path(replace(TICKET, seed=number))
        store.save(path, {}, Place("denoise"), small)
        os.utime(path, (time.time() - 1000 + number,) * 2)
        return path

    for number in range(resume.MOST_STATES + 3):
        save(number)
    assert len(states(tmp_path)) == resume.MOST_STATES
    assert not store.path(replace(TICKET, seed=2)).exists()
    monkeypatch.setattr(resume, "MOST_BYTES", resume.HEADER + 60_000)
    last = save(100)
    assert sum(path.stat().st_size for path in states(tmp_path)) <= 60_000 + resume.HEADER
    assert last.exists()
    part = store.folder / "left-by-a-crash.part"
    part.touch()
    for path in (last, part):
        os.utime(path, (time.time() - resume.OLDEST - 1,) * 2)
    store.prune()
    assert not last.exists() and not part.exists()


# --- the daemon and the command line --------------------------------------------------------

LONG = 'variant = "nano"\nscale = 2.0\ntile_size = 24\noverlap = 4\nsteps = 5'
"""Many tiles, and steps enough to be killed among them."""
SIZE = (100, 76)


def reached(state: Path, share: float) -> bool:
    """Whether a state on the disk says that this share of the steps is done."""
    for path in states(state):
        at = place(path)
        if at.stage == "decode" or at.step >= share * 5:
            return True
    return False


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The result of a daemon that nobody kills."""
    house = House(tmp_path_factory.mktemp("unbroken"), LONG)
    house.drop("photo.png", size=SIZE)
    assert house.run() == 0, house.said()
    assert "resumed" not in house.record("photo.png")["extra"]
    return pixels(house)


def pixels(house: House) -> bytes:
    with Image.open(house.outbox / "photo.png") as image:
        return image.tobytes()


def denoised(state: Path) -> float:
    """The share of the denoising that the daemon says is done."""
    with suppress(ConfigError), Journal.open(state, read_only=True) as journal:
        for job in journal.snapshot().live.get("running", ()):
            if job["file"].endswith("photo.png") and job["stage"] == "denoise":  # not a warm-up
                return float(job["done"] / job["total"])
    return 0.0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_daemon_killed_at_80_percent_goes_on_from_there(
    tmp_path: Path, expected: bytes, number: signal.Signals
) -> None:
    house = House(tmp_path, LONG)
    house.drop("photo.png", size=SIZE)
    if number == signal.SIGKILL:
        house.start(**{INTERVAL: "0"})  # a state a batch, not one in 30 s
        until(lambda: reached(house.state, 0.8), "four steps of five")
    else:  # at a stop a state is written anyway
        house.start()
        until(lambda: denoised(house.state) >= 0.7, "most of the steps")
        assert not states(house.state)
    house.signal(number)
    house.wait()
    assert not house.delivered("photo.png") and (house.inbox / "photo.png").exists()
    at = place(states(house.state)[0])
    assert house.run() == 0, house.said()
    record = house.record("photo.png")
    assert pixels(house) == expected
    told = record["extra"]["resumed"]
    assert (told["stage"], told["step"], told["done"]) == (at.stage, at.step, at.done)
    tiles = record["tiles"]["count"]
    left = 5 * tiles - (at.step * tiles + at.done)
    assert told["tiles_evaluated_since"] == left <= 1.5 * tiles
    assert len(house.events("resumed")) == 1
    assert not states(house.state), "the state of a job that is done is removed"


def test_a_cancelled_job_leaves_no_state(tmp_path: Path) -> None:
    house = House(tmp_path, LONG)
    source = house.drop("photo.png", size=SIZE)
    house.start(**{INTERVAL: "0"})
    until(lambda: states(house.state), "a state")
    words = ["cancel", str(source), "--config", str(house.config)]
    subprocess.run([sys.executable, "-m", "fluxwatchd", *words], check=True, capture_output=True)
    until(lambda: house.closed("photo.png"), "the job to be set aside")
    assert house.stop() == 0
    assert not states(house.state)


def test_upscale_goes_on_where_it_was_stopped(tmp_path: Path, expected: bytes) -> None:
    photo(SIZE).save(tmp_path / "photo.png")
    house = House(tmp_path / "house", LONG)
    command = [sys.executable, "-m", "fluxwatchd", "upscale", str(tmp_path / "photo.png")]
    command += ["--output", str(house.outbox), "--config", str(house.config)]
    first = subprocess.Popen(command, env={**os.environ, INTERVAL: "0"}, stderr=subprocess.DEVNULL)
    until(lambda: reached(house.state, 0.6), "three steps of five")
    first.send_signal(signal.SIGINT)
    first.wait(60)
    assert not house.delivered("photo.png")
    subprocess.run(command, check=True, capture_output=True)
    assert pixels(house) == expected
    assert house.record("photo.png")["extra"]["resumed"]["step"] >= 3
    assert not states(house.state)


def test_a_random_seed_keeps_no_state(tmp_path: Path) -> None:
    house = House(tmp_path, f'{LONG}\nseed = "random"')
    house.drop("photo.png", size=(40, 30))
    assert house.run(**{INTERVAL: "0"}) == 0
    assert not (house.state / "resume").exists()
    shutil.rmtree(house.state)
