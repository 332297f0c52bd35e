"""A grid of the model's tokens is seen and removed; what is in a picture itself is not."""

import tracemalloc

import numpy as np
import pytest
import tiny
import torch
from house import House
from PIL import Image

from fluxwatchd.bench.stripes import grid
from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import flux, open_engine, resize, stripes
from fluxwatchd.engine.denoise import Batch, Predictor, frame
from fluxwatchd.engine.model import Model
from fluxwatchd.engine.tiles import plan
from fluxwatchd.engine.vae import Vae
from fluxwatchd.imageio import Picture
from fluxwatchd.job import Checkpoint, StripeRecord
from fluxwatchd.variants import VARIANTS

# --- the detector ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair():
    """A base, and a result that has grain and a soft change of colours over it."""
    base = tiny.photo(256, 384, seed=1)
    rng = np.random.default_rng(2)
    return (base + rng.normal(0, 4 / 255, base.shape) + 0.02).astype(np.float32), base


@pytest.mark.parametrize("period", [8, 16])
@pytest.mark.parametrize("level", [0.5, 1, 2, 4])
def test_the_amplitude_of_a_wave_is_found(pair, period, level):
    result, base = pair
    wave = grid(result.shape, period, "wave", level) / 255
    assert stripes.measure(result + wave, base, period) == pytest.approx(level, abs=0.15)
    assert stripes.measure(
        (result + wave).swapaxes(0, 1), base.swapaxes(0, 1), period
    ) == pytest.approx(level, abs=0.15)


@pytest.mark.parametrize("period", [8, 16])
def test_lines_of_one_pixel_are_found(pair, period):
    result, base = pair
    lines = grid(result.shape, period, "lines", 4) / 255
    assert stripes.measure(result + lines, base, period) > 2 * stripes.LIMIT


@pytest.mark.parametrize("period", [8, 16])
def test_no_grid_is_found_where_there_is_none(pair, period):
    result, base = pair
    assert stripes.measure(result, base, period) < stripes.LIMIT / 2
    assert stripes.measure(base, base, period) == 0


def test_a_wave_of_another_period_is_no_grid(pair):
    result, base = pair
    wave = grid(result.shape, 11, "wave", 4) / 255
    assert stripes.measure(result + wave, base, 16) < stripes.LIMIT / 2


def test_a_pattern_of_the_picture_is_no_grid_though_the_result_is_crisper(pair):
    result, base = pair
    bars = grid(result.shape, 16, "lines", 30) / 255
    soft = np.apply_along_axis(np.convolve, 1, bars, np.ones(3) / 3, mode="same")
    assert stripes.measure(result + soft * 1.4, base + soft, 16) < stripes.LIMIT


def test_grain_on_half_a_picture_does_not_hide_a_grid_on_the_other(pair):
    result, base = pair
    rough = result + grid(result.shape, 16, "wave", 1) / 255
    rough[128:] += np.random.default_rng(3).normal(0, 0.3, rough[128:].shape)
    assert stripes.measure(rough, base, 16) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("shape", [(1, 1), (127, 127), (16, 300), (255, 140)])
def test_a_picture_that_is_too_small_gives_no_number(shape):
    flat = np.zeros((*shape, 3), np.float32)
    assert stripes.measure(flat, flat, 16) is None


def test_a_strip_is_measured_along_its_long_side():
    flat = np.full((10, 1000, 3), 0.5, np.float32)
    wave = flat + grid(flat.shape, 16, "wave", 2) / 255
    assert stripes.measure(wave, flat, 16) == pytest.approx(2, abs=0.1)


def test_a_large_picture_takes_little_memory():
    # 36 megapixels, as a view of one row
    flat = np.broadcast_to(np.float32(0.5), (6000, 6000, 3))
    row = flat[:1] + grid((1, 6000), 16, "wave", 1)[:1] / 255
    wave = np.broadcast_to(row.astype(np.float32), flat.shape)
    tracemalloc.start()
    assert stripes.measure(wave, flat, 16) == pytest.approx(1, abs=0.05)
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()


def test_of_two_runs_the_one_with_the_weaker_grid_is_kept():
    first = StripeRecord(16, 1.5)
    assert stripes.better(first, 0.25) == StripeRecord(16, 0.25, first=1.5, shifted=True)
    assert stripes.better(first, 2.0) == StripeRecord(16, 1.5, first=1.5, shifted=False)


@pytest.mark.parametrize(("amplitude", "shows"), [(None, False), (0.1, False), (0.9, True)])
def test_a_grid_shows_from_the_limit_on(amplitude, shows):
    assert stripes.shows(StripeRecord(16, amplitude)) is shows


# --- tokens shifted -------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [(0, 0), (1, 1), (0, 1)])
def test_a_frame_holds_whole_tokens_and_the_tile_in_its_place(phase):
    tiles = torch.randn(2, 3, 8, 12)
    framed = frame(tiles, phase, 2)
    top, left = phase
    assert framed.shape == (2, 3, 8 + 2 * top, 12 + 2 * left)
    assert torch.equal(framed[..., top : top + 8, left : left + 12], tiles)


def test_what_is_bound_to_tokens_cancels_out_when_they_are_shifted():
    transformer = tiny.flux()
    states, pooled = torch.zeros(1, 8, tiny.WIDTH), torch.zeros(1, tiny.POOLED)
    with torch.no_grad():  # a model that draws the same stripes whatever it sees
        for weight in transformer.proj_out.parameters():
            weight.zero_()
        transformer.proj_out.bias.view(16, 2, 2)[:] = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    model = Model(
        variant=VARIANTS["schnell"], transformer=transformer, vae=Vae.of(tiny.vae()),
        device=torch.device("cpu"), text=lambda prompt: flux.Text(states, pooled),
        dtype=torch.float32, checkpoint=Checkpoint("schnell", "tiny"),
    )  # fmt: skip
    predict = Predictor(model, model.text(""), plan(6, 8, 64, 8), Batch(1))
    latents = torch.randn(1, 16, 12, 16)
    with torch.inference_mode():
        assert predict(latents, 0.5, [0]).abs().min() == 1
        assert predict.shifted()(latents, 0.5, [0]).abs().max() < 1e-6


# --- the engine -----------------------------------------------------------------------------

IMG2IMG = Profile(variant="nano-img2img", scale=2.0, strength=0.6, steps=2, dino_mode="off")


@pytest.fixture(scope="module")
def engine():
    with open_engine(EngineSettings(device="cpu")) as opened:
        yield opened


@pytest.fixture(scope="module")
def stripy(tmp_path_factory):
    """Two folders of one model: as it is, and one that leaves stripes."""
    root = tmp_path_factory.mktemp("stripy")
    return tiny.striped(root / "clean", 0.0), tiny.striped(root / "striped", 60.0)


def test_stripes_are_seen_and_gone_after_a_second_run(engine, stripy):
    picture = Picture(tiny.photo(80, 128))
    clean, striped = (
        engine.upscale(picture, IMG2IMG.model_copy(update={"model": str(model)}), 7)
        for model in stripy
    )
    assert clean.stripes.first is None and not clean.stripes.shifted
    assert clean.stripes.amplitude < stripes.LIMIT
    assert striped.stripes.period == 8
    assert striped.stripes.first > 2 * stripes.LIMIT
    assert striped.stripes.shifted
    assert striped.stripes.amplitude < stripes.LIMIT
    assert any("grid" in note and "second run kept" in note for note in striped.notes)
    assert not any("grid" in note for note in clean.notes)
    # the number is that of the picture
    size = (striped.picture.width, striped.picture.height)
    base = np.clip(resize.lanczos(picture.pixels, size), 0, 1)
    found = stripes.measure(striped.picture.pixels, base, 8)
    assert found == pytest.approx(striped.stripes.amplitude, abs=0.02)


def test_the_second_run_is_the_same_every_time_under_either_fusion(engine, stripy):
    profile = IMG2IMG.model_copy(update={"model": str(stripy[1]), "tile_size": 40, "overlap": 8})
    picture = Picture(tiny.photo(80, 96))
    for fusion in ("step", "final"):
        fused = profile.model_copy(update={"fusion": fusion})
        one, two = (engine.upscale(picture, fused, 7) for _ in range(2))
        assert len(one.tiles.windows) > 1
        assert one.stripes == two.stripes and one.stripes.shifted
        assert one.picture.pixels.tobytes() == two.picture.pixels.tobytes()


def test_a_picture_of_few_pixels_has_no_amplitude(engine):
    done = engine.upscale(Picture(tiny.photo(9, 7)), Profile(variant="nano"), 7)
    assert done.stripes == StripeRecord(8, None)


def test_without_a_model_nothing_is_claimed(engine):
    done = engine.upscale(Picture(tiny.photo(9, 7)), Profile(variant="lanczos"), 7)
    assert done.stripes is None and done.color_shift is None


def test_the_daemon_records_the_second_run(tmp_path, stripy):
    profile = (
        f'variant = "nano-img2img"\nmodel = "{stripy[1]}"\nscale = 2.0\nstrength = 0.6\n'
        'steps = 2\ndino_mode = "off"'
    )
    house = House(tmp_path, profile)
    pixels = (tiny.photo(80, 128) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(house.inbox / "a.png")
    assert house.run(240) == 0, house.said()
    record = house.record("a.png")
    assert record["stripes"]["first"] > 2 * stripes.LIMIT
    assert record["stripes"]["shifted"] is True
    assert record["stripes"]["amplitude"] < stripes.LIMIT
    assert any("grid" in note for note in record["notes"])
    with Image.open(house.outbox / "a.png") as made:
        result = np.asarray(made.convert("RGB"), np.float32) / 255
    base = resize.lanczos(pixels.astype(np.float32) / 255, (result.shape[1], result.shape[0]))
    assert stripes.measure(result, np.clip(base, 0, 1), 8) < stripes.LIMIT
