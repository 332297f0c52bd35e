"""The daemon and `upscale` on two devices: the tiles of one large picture go to both."""

import json
import sqlite3
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import pytest
import several
from house import House, photo, until
from PIL import Image, ImageChops

from fluxwatchd import imageio
from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.daemon.pulse import Pulse
from fluxwatchd.engine import open_engine
from fluxwatchd.engine.resume import INTERVAL

PROFILE = """
variant = "nano"
scale = 2.0
steps = 3
tile_size = 24
overlap = 4
fusion = "final"
seed = 7
"""
TWO = [sys.executable, str(Path(several.__file__))]
LARGE = (160, 120)


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path / "house", PROFILE)
    yield made
    made.kill()


@pytest.fixture(scope="module")
def wanted(tmp_path_factory):
    """The large picture by one device."""
    root = tmp_path_factory.mktemp("one")
    photo(LARGE).save(root / "in.png")
    profile = Profile(**tomllib.loads(PROFILE))
    with open_engine(EngineSettings(device="cpu")) as engine:
        done = engine.upscale(imageio.read(root / "in.png"), profile, 7)
    assert "devices" not in done.extra
    imageio.write(done.picture, root / "out.png")
    return Image.open(root / "out.png")


def running(house):
    """(file, stage) of every device at work, as ``status`` is told."""
    try:
        with sqlite3.connect(f"file:{house.state}/journal.sqlite?mode=ro", uri=True) as database:
            told = dict(database.execute("SELECT * FROM live").fetchall())
    except sqlite3.Error:
        return []
    if json.loads(told.get("pid", "0")) != house.process.pid:  # an earlier process told it
        return []
    at_work = json.loads(told.get("running", "[]"))
    return [(Path(one["file"]).name, one["stage"]) for one in at_work if "file" in one]


def both(house):
    return running(house) == [("large.png", "denoise")] * 2


def same(picture, other):
    return ImageChops.difference(picture, other).getbbox() is None


def test_both_devices_do_a_large_picture_until_another_waits(house, wanted):
    house.start(prefix=TWO).ready()
    house.drop("large.png", size=LARGE)
    until(lambda: both(house), "two devices at one picture")
    for number in (1, 2):
        house.drop(f"small{number}.png", seed=number)
    until(lambda: house.closed("small1.png") and house.closed("small2.png"), "the small ones")
    assert not house.closed("large.png")
    until(lambda: house.closed("large.png"), "the large one")
    assert house.stop() == 0, house.said()
    assert same(Image.open(house.outbox / "large.png"), wanted)
    record = house.record("large.png")
    first, second = record["extra"]["devices"]
    count = record["tiles"]["count"]
    assert first["denoised"] + second["denoised"] == count and second["denoised"] > 0
    assert first["decoded"] + second["decoded"] == count
    assert (first["device"], second["device"]) == ("cpu", "cpu")
    assert "devices" not in house.record("small1.png")["extra"]  # too few tiles


def test_stops_and_kills_while_two_devices_are_at_it_cost_no_byte(house, wanted):
    house.drop("large.png", size=LARGE)
    house.start(prefix=TWO, **{INTERVAL: "0"})
    until(lambda: both(house) and [*house.state.glob("resume/*.safetensors")], "a state")
    house.kill()
    house.start(prefix=TWO)
    until(lambda: both(house), "two devices at one picture")
    assert house.stop() == 0, house.said()
    assert house.places()["inbox"] == ["large.png"]
    house.start("--until-idle", prefix=TWO)
    assert house.wait() == 0, house.said()
    assert same(Image.open(house.outbox / "large.png"), wanted)
    extra = house.record("large.png")["extra"]
    left = house.record("large.png")["tiles"]["count"] - extra["resumed"]["done"]
    assert sum(one["denoised"] for one in extra["devices"]) == left


def test_a_helper_whose_device_breaks_ends_the_process_and_blames_no_picture(house):
    armed = house.root / "armed"
    house.drop("large.png", size=LARGE)
    armed.touch()
    house.start(prefix=[*TWO, "--breaks", str(armed)])
    assert house.wait() == 75, house.said()
    assert house.places() == {"inbox": ["large.png"], "outbox": [], "archive": [], "failed": []}


def test_upscale_has_the_other_device_help(tmp_path, wanted):
    photo(LARGE).save(tmp_path / "large.png")
    config = tmp_path / "config.toml"
    config.write_text(f'[[folder]]\ninbox = "i"\noutbox = "o"\n[defaults]{PROFILE}')
    command = [*TWO, "fluxwatchd", "upscale", "large.png", "--output", "out"]
    command += ["--config", str(config), "--set", f"daemon.state_dir={tmp_path / 'state'}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert same(Image.open(tmp_path / "out" / "large.png"), wanted)
    record = json.loads((tmp_path / "out" / "large.png.json").read_text())
    assert record["extra"]["devices"][1]["denoised"] > 0


def test_a_helper_is_seen_by_status_and_not_by_the_pictures_bar():
    told = []

    class Bar:
        def __call__(self, *beat):
            told.append(beat)

        def end(self, name):
            told.append(name)

    pulse = Pulse(threading.Event(), listener=Bar())
    pulse.begin("/in/large.png", told=False)
    pulse("denoise", 3, 4)
    assert pulse.progress is not None and pulse.progress.done == 3 and not told
    pulse.end()
    pulse.begin("/in/own.png")
    pulse("denoise", 1, 4)
    pulse.end()
    assert told == [("/in/own.png", "denoise", 1, 4), "/in/own.png"]
