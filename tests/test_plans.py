"""The memory plans' arithmetic, at FLUX.1's full size, on cards of 8 to 80 GB."""

import numpy as np
import pytest
import tiny
import torch
from diffusers import FluxTransformer2DModel

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import memory, open_engine, plans
from fluxwatchd.errors import ConfigError
from fluxwatchd.imageio import Picture

GB = 10**9
CONTEXT = 0.7 * GB
"""What a CUDA context and a desktop leave of a card is so much less."""


@pytest.fixture(scope="module")
def flux():
    """FLUX.1 dev as it is, without memory for it."""
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    return plans.count({name: tuple(t.shape) for name, t in model.state_dict().items()})


@pytest.fixture(scope="module")
def load(flux):
    """In bfloat16, with its autoencoder and dinov2-base, on one tile of 1024 px."""
    return plans.Load(flux, size=2, beside=round(0.51 * GB), width=3072, tokens=4096 + 512)


def test_full_size_is_counted_from_the_shapes(flux):
    assert flux.total == pytest.approx(11.9e9, rel=0.01)
    assert 0.99 < flux.blocks / flux.total < 1
    assert 0.999 < flux.linear / flux.blocks < 1
    assert flux.largest == pytest.approx(339.8e6, rel=0.01)
    assert flux.layer == 3072 * 18432


def test_both_namings_count_the_same():
    import checkpoints

    state = tiny.flux().state_dict()
    one, other = (
        plans.count({name: tuple(t.shape) for name, t in named.items()})
        for named in (state, checkpoints.to_bfl(state))
    )
    assert (one.total, one.blocks, one.linear, one.largest) == (
        other.total, other.blocks, other.linear, other.largest,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("card", "host", "plan"),
    [
        (80, 64, "resident"),
        (48, 64, "resident"),
        (24, 64, "fp8"),
        (16, 64, "fp8"),
        (12, 64, "stream-fp8"),
        (12, 20, "stream-fp8"),
        (8, 64, "stream-fp8"),
        (8, 16, "stream-fp8"),
        (3.5, 64, "sequential"),
    ],
)
def test_the_fastest_plan_that_fits_is_chosen(load, card, host, plan):
    room = plans.Room(round(card * 1.07 * GB - CONTEXT), host * GB)  # GiB, less the context
    choice = plans.choose(load, room)
    assert choice.plan == plan
    assert plan in choice.why and "are free" in choice.why


def test_each_plan_takes_less_of_the_device_but_streaming_wide(load):
    every = plans.needs(load)
    order = [
        every[plan].device for plan in ("resident", "fp8", "stream", "stream-fp8", "sequential")
    ]
    assert order == sorted(order, reverse=True)
    assert every["stream"].host == pytest.approx(2 * every["stream-fp8"].host, rel=0.03)
    assert every["fp8"].device < 0.6 * every["resident"].device


def test_larger_batches_and_tiles_are_counted(load):
    import dataclasses

    four = dataclasses.replace(load, batch=4)
    assert four.work == 4 * load.work
    room = plans.Room(round(16.4 * GB), 64 * GB)
    assert plans.choose(load, room).plan == "fp8"
    assert plans.choose(four, room).plan == "stream-fp8"


@pytest.mark.parametrize(
    ("room", "words"),
    [
        (plans.Room(GB, 64 * GB), "1.0 GB are free"),
        (plans.Room(8 * GB, 4 * GB), "4.0 GB of the host's"),
        (plans.Room(10 * GB, 10 * GB, same=True), "resident takes"),
    ],
)
def test_what_fits_nowhere_is_refused_with_the_figures(load, room, words):
    with pytest.raises(ConfigError, match="does not fit") as raised:
        plans.choose(load, room)
    assert words in str(raised.value) and "memory" in raised.value.hint


def test_on_a_cpu_the_hosts_memory_is_the_devices(load):
    import dataclasses

    wide = dataclasses.replace(load, size=4)
    assert plans.choose(wide, plans.Room(64 * GB, 64 * GB, same=True)).plan == "resident"
    assert plans.choose(wide, plans.Room(24 * GB, 24 * GB, same=True)).plan == "fp8"


def test_a_plan_that_is_set_is_taken_as_it_is(load):
    for plan in plans.PLANS:
        assert plans.choose(load, plans.Room(0, 0), plan).plan == plan


def test_nano_in_float8_is_hardly_another_picture_and_streamed_the_same():
    picture, results = Picture(tiny.photo(64, 64)), {}
    for plan in plans.PLANS:
        with open_engine(EngineSettings(device="cpu", memory=plan)) as engine:
            results[plan] = engine.upscale(picture, Profile(variant="nano"), 1).picture.pixels
    error = np.mean((results["fp8"] - results["resident"]) ** 2)
    assert 0 < error < 10**-5.5  # 55 dB from it
    assert (results["stream-fp8"] == results["fp8"]).all()
    for plan in ("stream", "sequential"):
        assert (results[plan] == results["resident"]).all()


def test_nano_is_content_with_little(monkeypatch):
    monkeypatch.setattr(memory, "room", lambda device: plans.Room(GB, GB, same=True))
    with open_engine(EngineSettings(device="cpu")) as engine:
        assert engine.warm(Profile(variant="nano")).plan == "resident"


def test_too_little_memory_is_refused_at_start(tmp_path, monkeypatch):
    folder = tiny.diffusers_folder(tmp_path)
    monkeypatch.setattr(memory, "room", lambda device: plans.Room(10**6, 10**6, same=True))
    profile = Profile(variant="schnell", model=str(folder), dino_mode="off")
    with (
        open_engine(EngineSettings(device="cpu")) as engine,
        pytest.raises(ConfigError, match="does not fit"),
    ):
        engine.warm(profile)
    with open_engine(EngineSettings(device="cpu", memory="fp8")) as engine:
        done = engine.upscale(Picture(tiny.photo(8, 8)), profile, 1)
        assert done.checkpoint.plan == "fp8"
        assert any("memory plan fp8" in note for note in done.notes)
        assert engine.resident() == (f"schnell {folder} (fp8)",)
