"""Pictures take turns on a device: one is computed while another is resized or finished."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.daemon.pulse import Pulse
from fluxwatchd.daemon.station import Station, Trial
from fluxwatchd.engine import open_engine, silent
from fluxwatchd.engine.turns import Turns
from fluxwatchd.errors import ConfigError, Interrupted
from fluxwatchd.imageio import Picture

LONG = 30


def test_one_thread_has_the_device_and_the_next_one_has_it_after_it():
    turns, order = Turns(), []
    had, asked = threading.Event(), threading.Event()

    def first():
        with turns.mine(silent):
            had.set()
            assert asked.wait(LONG)
            with turns.mine(silent):  # whoever has it goes on having it
                order.append("first has it")
            order.append("first still has it")

    def second():
        assert had.wait(LONG)
        with turns.mine(lambda *_: asked.set()):
            order.append("second has it")

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(first), pool.submit(second)]:
            done.result(LONG)
    assert order == ["first has it", "first still has it", "second has it"]


def test_who_waits_can_be_stopped_and_leaves_nothing_behind():
    turns = Turns()

    def stopped(stage, done, total):
        raise Interrupted("a stop was asked for")

    def waits():
        with pytest.raises(Interrupted), turns.mine(stopped):
            raise AssertionError("it was never free")

    with turns.mine(silent), ThreadPoolExecutor(1) as pool:
        pool.submit(waits).result(LONG)
    with turns.mine(silent):
        pass


def test_pictures_that_take_turns_are_those_made_one_by_one(monkeypatch):
    rng = np.random.default_rng(0)
    pictures = [Picture(rng.random((12, 16, 3), np.float32)) for _ in range(4)]
    profile = Profile(variant="nano", scale=2.0, steps=1)
    with open_engine(EngineSettings(device="cpu")) as engine:
        apart = [engine.upscale(picture, profile, 1).picture.pixels for picture in pictures]
        # as on a GPU, which is had for no longer than it is needed
        monkeypatch.setattr(type(engine), "_whole", lambda self, beat: nullcontext())
        with ThreadPoolExecutor(2) as pool:
            made = list(pool.map(lambda p: engine.upscale(p, profile, 1).picture.pixels, pictures))
    for one, other in zip(apart, made, strict=True):
        assert np.array_equal(one, other)


def station(tmp_path, *profiles):
    return Station(EngineSettings(device="cpu"), "cpu", profiles, state_dir=tmp_path)


def pulse():
    return Pulse(threading.Event())


def test_the_workers_of_a_device_share_one_engine(tmp_path, monkeypatch):
    profile = Profile(variant="lanczos").resolved()
    shared, opened = station(tmp_path, profile), []
    renew = Station._renew
    monkeypatch.setattr(Station, "_renew", lambda self: opened.append(1) or renew(self))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: shared.open(pulse()), range(2)))
    assert found[0] == found[1] and len(opened) == 1
    one, _ = shared.warm(profile, pulse())
    other, _ = shared.warm(profile, pulse())
    assert one is other


def test_other_settings_are_tried_once_and_never_beside_a_picture(tmp_path):
    profile = Profile(variant="lanczos").resolved()
    shared = station(tmp_path, profile)
    shared.open(pulse())
    missing = Profile(variant="schnell", model=str(tmp_path / "none.safetensors"), dino_mode="off")
    trial = Trial(EngineSettings(device="cpu"), (missing.resolved(),))
    with ThreadPoolExecutor(2) as pool:
        with shared.working():
            answers = [pool.submit(shared.try_out, trial, pulse()) for _ in range(2)]
            assert not any(answer.done() for answer in answers)
        errors = [answer.result(LONG) for answer in answers]
    assert isinstance(errors[0], ConfigError) and errors[0] is errors[1]
    assert shared.warm(profile, pulse())[1].variant == "lanczos"


def test_the_last_worker_to_leave_closes_the_engine(tmp_path):
    shared = station(tmp_path, Profile(variant="lanczos").resolved())
    shared.open(pulse())
    shared.leave()
    assert shared._engine is not None and shared._engine.resident() == ()
