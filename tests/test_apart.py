"""Tiles of one picture by several devices: the bytes of one, whatever becomes of a helper."""

from __future__ import annotations

import itertools
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import faulty
import pytest
import tiny
import torch
import torch.nn.functional as F
from test_resume import Kill, Killed, Stop, states

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import Ticket, apart, memory, open_engine
from fluxwatchd.engine.exact import repeatable
from fluxwatchd.engine.helpers import Helpers
from fluxwatchd.engine.resume import INTERVAL
from fluxwatchd.errors import EngineLost, Interrupted
from fluxwatchd.imageio import Picture

LONG = 60
CPU = EngineSettings(device="cpu")
PICTURE = Picture(tiny.photo(40, 56))
SMALL = Picture(tiny.photo(21, 27))
TICKET = Ticket("ab" * 32, "0123456789abcdef", 7)
FINAL = Profile(variant="nano", scale=2.0, tile_size=24, overlap=4, steps=3, fusion="final")


@pytest.fixture(autouse=True, scope="module")
def _exact():
    """Compute in float32, also on a CPU with matrix units for bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "dtype_for", lambda device: torch.float32)
        yield


@pytest.fixture(scope="module")
def pair(_exact):
    """Two engines: a picture's own, and one that helps where it has the model."""
    with open_engine(CPU, device="cpu") as own, open_engine(CPU, device="cpu") as other:
        other.warm(FINAL)
        yield own, other


@pytest.fixture(scope="module")
def alone(pair):
    """What one device makes of PICTURE."""
    made = {}

    def run(profile, picture=PICTURE):
        key = profile, id(picture)
        if key not in made:
            made[key] = pair[0].upscale(picture, profile, 7)
        return made[key]

    return run


def helped(other, runs=10**6, *, said=None, seen=None):
    """Has ``other`` do so many runs as soon as tiles are offered, in this very thread.

    ``said`` gets its answers, ``seen`` the shares.
    """

    @contextmanager
    def offer(share):
        taken = itertools.count()
        answer = other.help(share, leave=lambda: next(taken) >= runs)
        (said if said is not None else []).append(answer)
        (seen if seen is not None else []).append(share)
        try:
            yield
        finally:
            share.close()

    return offer


def same(done, whole):
    assert done.picture.pixels.tobytes() == whole.picture.pixels.tobytes()
    assert done.dino == whole.dino and done.tiles == whole.tiles
    return done.extra.get("devices")


# --- the same bytes -------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [1, 3, 100])
def test_whoever_does_the_tiles_the_bytes_are_the_same(pair, alone, runs):
    own, other = pair
    devices = same(own.upscale(PICTURE, FINAL, 7, offer=helped(other, runs)), alone(FINAL))
    tiles = len(alone(FINAL).tiles.windows)
    helps = min(runs, tiles - 1)  # the first is the owner's
    assert devices == [
        {"device": "cpu", "denoised": tiles - helps, "decoded": tiles - min(runs, tiles)},
        {"device": "cpu", "denoised": helps, "decoded": min(runs, tiles)},
    ]


GUIDED = {
    "variant": "nano-img2img", "scale": 3.0, "steps": 2, "strength": 0.6, "tile_size": 16,
    "overlap": 4, "fusion": "final", "dino_strength": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("mode", ["tokens", "both"])
def test_helpers_see_by_the_same_dino(pair, alone, mode):
    own, other = pair
    profile = Profile(**GUIDED, dino_mode=mode)
    other.warm(profile)
    done = own.upscale(SMALL, profile, 7, offer=helped(other, 2))
    assert same(done, alone(profile, SMALL))[1]["denoised"] == 2


def test_runs_again_of_striped_and_drifting_pictures_are_helped_with_too(pair, alone, tmp_path):
    own, other = pair
    model, (encoder, _) = tiny.striped(tmp_path / "model", 60.0), tiny.dino(tmp_path)
    profile = Profile(
        variant="nano-img2img", scale=2.0, strength=0.6, steps=2, tile_size=40, overlap=8,
        model=str(model), dino_encoder=str(encoder), max_drift=0.0, fusion="final",
    )  # fmt: skip
    picture, seen = Picture(tiny.photo(64, 72)), []
    other.warm(profile)
    done = own.upscale(picture, profile, 7, offer=helped(other, 2, seen=seen))
    whole = alone(profile, picture)
    assert whole.stripes.shifted and whole.extra["rerun"]
    assert same(done, whole)[1] == {"device": "cpu", "denoised": 6, "decoded": 6}
    assert len(seen) == 6  # denoised and decoded: at first, with tokens elsewhere, and after drift


@pytest.mark.parametrize("variant", ["schnell", "dev"])
def test_a_prompts_states_are_the_owners(pair, alone, tmp_path, variant):
    own, other = pair
    model = tiny.diffusers_folder(tmp_path, guidance=variant == "dev")
    profile = Profile(
        variant=variant, model=str(model), scale=2.0, steps=2, strength=0.6, tile_size=32,
        overlap=8, dino_mode="off", fusion="final",
    )  # fmt: skip
    other.warm(profile)
    done = own.upscale(PICTURE, profile, 7, offer=helped(other, 2))
    assert same(done, alone(profile))[1]["denoised"] == 2


def test_threads_of_several_devices_work_off_one_picture(pair, alone):
    own, other = pair[0], open_engine(CPU, device="cpu")
    with Helpers([other], FINAL) as helpers:
        helps = threading.Event()

        def beat(stage, done, total):
            """The owner is slow, so that others come to help."""
            if stage == "denoise" and done and not helps.wait(LONG):
                raise AssertionError("nobody helped")

        apart_lend, lent = apart.lend, []

        def lend(model, share, **more):
            apart_lend(model, share, **more)
            lent.append(more["who"])
            helps.set()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(apart, "lend", lend)
            done = own.upscale(PICTURE, FINAL, 7, beat, offer=helpers.offer("a.png"))
        devices = same(done, alone(FINAL))
        assert sum(one["denoised"] for one in devices) == len(done.tiles.windows)
        assert sum(one["decoded"] for one in devices) == len(done.tiles.windows)
        assert devices[1]["denoised"] and lent
        helpers.check()
    assert not other.resident()


# --- who does not help ----------------------------------------------------------------------


def never(share):
    raise AssertionError("offered")


def test_small_pictures_and_fused_steps_stay_on_one_device(pair):
    own, _ = pair
    own.upscale(Picture(tiny.photo(8, 24)), FINAL, 7, offer=never)
    fused = FINAL.model_copy(update={"fusion": "step", "max_drift": 0.0})
    assert own.upscale(PICTURE, fused, 7, offer=never).extra["rerun"]


def test_another_model_is_of_no_use(pair, alone):
    own, _ = pair
    said = []
    with open_engine(CPU) as empty:
        same(own.upscale(PICTURE, FINAL, 7, offer=helped(empty, said=said)), alone(FINAL))
        empty.warm(FINAL)
        key, model = next(iter(empty._models.items()))
        made = replace(model.checkpoint, files={**model.checkpoint.files, "vae": "sha256:0"})
        empty._models[key] = replace(model, checkpoint=made)
        done = own.upscale(PICTURE, FINAL, 7, offer=helped(empty, said=said))
    assert same(done, alone(FINAL)) is None
    assert said == [False] * 4


def test_a_model_whose_plan_changes_under_way_is_helped_no_more(pair, monkeypatch):
    own, other = pair
    own.warm(FINAL)
    model = next(iter(own._models.values()))
    seen = []

    def beat(stage, done, total):
        if stage == "denoise" and done:
            monkeypatch.setattr(model.holding, "plan", "fp8")

    offer = helped(other, 1, seen=seen)
    own.upscale(PICTURE, FINAL, 7, beat, offer=offer)
    assert seen[0].take() is None
    assert not other.help(seen[1])  # the decoding that followed was of another plan


def _decode_alone(decode):
    """Decoding that is not shared."""

    def work(self, *given):
        self._offer = None
        return decode(self, *given)

    return work


# --- helpers that fail ----------------------------------------------------------------------


def fails_as(error, nth):
    """The helper's ``nth`` evaluation raises ``error``; the owner's never do."""

    def patch(monkeypatch):
        lend, euler = apart.lend, apart.euler
        at_work, count = [], itertools.count(1)

        def lends(*given, **more):
            at_work.append(1)
            try:
                lend(*given, **more)
            finally:
                at_work.clear()

        def steps(*given):
            if at_work and next(count) >= nth:
                raise error
            return euler(*given)

        monkeypatch.setattr(apart, "lend", lends)
        monkeypatch.setattr(apart, "euler", steps)

    return patch


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize(("nth", "helps"), [(2, 0), (5, 1)])  # in its first tile, in its second
def test_the_owner_does_the_tiles_of_a_helper_that_fails(pair, alone, error, nth, helps):
    own, other = pair
    said = []
    with pytest.MonkeyPatch.context() as patch:
        fails_as(error("a helper's"), nth)(patch)
        patch.setattr(apart.Apart, "decode", _decode_alone(apart.Apart.decode))
        done = own.upscale(PICTURE, FINAL, 7, offer=helped(other, said=said))
    devices = same(done, alone(FINAL))
    assert said == [False]
    assert (devices[1]["denoised"] if devices else 0) == helps


@pytest.mark.parametrize("stage", ["denoise", "decode", "guide"])
def test_memory_that_is_short_on_a_helper_changes_no_byte(pair, alone, stage):
    own, other = pair
    profile = Profile(**GUIDED, dino_mode="guide")
    other.warm(profile)
    at_work, said = [], []

    def short():
        if at_work:
            raise torch.OutOfMemoryError("out of memory")

    @contextmanager
    def offer(share):
        at_work.append(1)
        said.append(other.help(share))
        at_work.clear()
        yield
        share.close()

    whole, mend = alone(profile, SMALL), faulty.break_at(stage, short)
    try:
        done = own.upscale(SMALL, profile, 7, offer=offer)
    finally:
        mend()
    same(done, whole)
    assert said == [False, stage != "decode"]  # guidance decodes too


def test_a_broken_device_is_told_of_and_the_picture_is_done(pair, alone, monkeypatch):
    own, other = pair
    fails_as(torch.AcceleratorError("CUDA error: illegal access"), 5)(monkeypatch)
    lost = []

    @contextmanager
    def offer(share):
        with pytest.raises(EngineLost) as caught:
            other.help(share)
        lost.append(caught.value.device_gone)
        yield
        share.close()

    def once(share):  # decoding is shared too
        return nullcontext() if lost else offer(share)

    same(own.upscale(PICTURE, FINAL, 7, offer=once), alone(FINAL))
    assert lost == [True]


def test_helpers_tell_of_a_broken_device_once_the_picture_is_done(pair, alone, monkeypatch):
    whole = alone(FINAL)
    fails_as(torch.AcceleratorError("CUDA error: illegal access"), 1)(monkeypatch)
    with Helpers([open_engine(CPU)], FINAL) as helpers:

        def beat(stage, done, total):
            if stage == "denoise" and done:
                helpers._threads[0].join(LONG)

        same(pair[0].upscale(PICTURE, FINAL, 7, beat, offer=helpers.offer("a.png")), whole)
        with pytest.raises(EngineLost):
            helpers.check()


def test_a_helper_that_hangs_is_not_waited_for(pair, alone):
    own, other = pair
    hangs, over, left = threading.Event(), threading.Event(), []

    def stuck(stage, done, total):
        """As a driver that never comes back, until the picture is done."""
        hangs.set()
        assert over.wait(LONG)

    @contextmanager
    def offer(share):
        thread = threading.Thread(target=lambda: left.append(other.help(share, stuck)))
        thread.start()
        assert hangs.wait(LONG)
        try:
            yield
        finally:
            share.close()
            over.set()
            thread.join(LONG)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart.Apart, "decode", _decode_alone(apart.Apart.decode))
        assert same(own.upscale(PICTURE, FINAL, 7, offer=offer), alone(FINAL)) is None
    assert left == [True]  # it left what it had, unharmed


# --- stops and restarts ---------------------------------------------------------------------


def test_a_stop_of_the_picture_sends_helpers_home(pair):
    own, other = pair
    began, answers = threading.Event(), []

    def slow(stage, done, total):
        began.set()

    @contextmanager
    def offer(share):
        gone = threading.Event()

        def help_on():
            def beat(stage, done, total):
                began.set()
                gone.wait(LONG)

            answers.append(other.help(share, beat))

        thread = threading.Thread(target=help_on)
        thread.start()
        assert began.wait(LONG)
        try:
            yield
        finally:
            share.close()
            gone.set()
            thread.join(LONG)
            answers.append(share.finished)

    with pytest.raises(Interrupted):
        own.upscale(PICTURE, FINAL, 7, Stop("denoise", 5), offer=offer)
    assert answers == [True, 1]  # the owner's first tile


def test_a_stopped_helper_gives_its_tiles_back(pair, alone):
    own, other = pair

    @contextmanager
    def offer(share):
        with pytest.raises(Interrupted):
            other.help(share, Stop("denoise", 5))
        yield
        share.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart.Apart, "decode", _decode_alone(apart.Apart.decode))
        devices = same(own.upscale(PICTURE, FINAL, 7, offer=offer), alone(FINAL))
    assert devices[1]["denoised"] == 1


@pytest.fixture
def kept(pair, tmp_path, monkeypatch):
    """The picture's own engine, which keeps a state a batch, and the one that helps."""
    monkeypatch.setenv(INTERVAL, "0")
    own, other = pair
    monkeypatch.setattr(own, "_state_dir", tmp_path)
    return own, other


@pytest.mark.parametrize(("nth", "runs"), [(3, 0), (3, 2), (4, 2), (4, 5), (8, 0), (8, 5), (11, 2)])
def test_a_killed_picture_goes_on_with_or_without_help(tmp_path, kept, alone, nth, runs):
    own, other = kept
    with pytest.raises(Killed):
        own.upscale(
            PICTURE, FINAL, 7, Kill("denoise", nth), ticket=TICKET, offer=helped(other, runs)
        )
    assert len(states(tmp_path)) == 1
    done = own.upscale(PICTURE, FINAL, 7, ticket=TICKET, offer=helped(other, 2))
    devices, resumed = same(done, alone(FINAL)), done.extra["resumed"]
    left = len(done.tiles.windows) - resumed["done"]
    assert resumed["tiles_evaluated_since"] == 3 * left - resumed["step"]
    assert sum(one["denoised"] for one in devices) == left


def test_what_is_kept_grows_over_tiles_that_helpers_did(kept):
    own, other = kept
    with pytest.raises(Killed):  # two steps into the owner's second tile
        own.upscale(PICTURE, FINAL, 7, Kill("denoise", 6), ticket=TICKET, offer=helped(other, 4))
    done = own.upscale(PICTURE, FINAL, 7, ticket=TICKET)
    assert done.extra["resumed"]["done"] == 5 and done.extra["resumed"]["step"] == 1


# --- algorithms -----------------------------------------------------------------------------


def test_repeatable_algorithms_are_one_threads_own():
    """What another device's thread computes meanwhile, and afterwards, is as it was."""
    torch.manual_seed(0)
    q = torch.randn(3, 1, 2, 64, 32, dtype=torch.bfloat16)
    usual, formula = F.scaled_dot_product_attention(*q), apart_math(q)
    assert not torch.equal(usual, formula)
    inside, leave, found = threading.Event(), threading.Event(), []

    def one():
        with repeatable():
            inside.set()
            assert leave.wait(LONG)
            found.append(F.scaled_dot_product_attention(*q))

    thread = threading.Thread(target=one)
    thread.start()
    assert inside.wait(LONG)
    found.append(F.scaled_dot_product_attention(*q))
    with repeatable():
        leave.set()
        thread.join(LONG)
        assert torch.backends.cudnn.deterministic
        found.append(F.scaled_dot_product_attention(*q))
    found.append(F.scaled_dot_product_attention(*q))
    assert not torch.backends.cudnn.deterministic
    assert [torch.equal(one, formula) for one in found] == [False, True, True, False]
    assert torch.equal(found[-1], usual)


def apart_math(q):
    return torch._scaled_dot_product_attention_math(*q)[0]
