"""The upscale: constant pictures, determinism, strength 0, the loop beside diffusers, faults."""

import subprocess
import sys

import numpy as np
import pytest
import tiny
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxImg2ImgPipeline
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import flux, open_engine, plain, schedule, silent
from fluxwatchd.engine.denoise import Batch, Predictor, denoise
from fluxwatchd.engine.model import Model
from fluxwatchd.engine.tiles import plan
from fluxwatchd.engine.vae import Vae, decode_picture, encode_picture
from fluxwatchd.errors import ConfigError, EngineLost, Interrupted, JobFailed, OutOfMemory
from fluxwatchd.imageio import Picture
from fluxwatchd.job import Checkpoint
from fluxwatchd.variants import VARIANTS

NANO = Profile(variant="nano", scale=2.0, tile_size=24, overlap=4)
"""Small tiles, so that a small picture has several."""


@pytest.fixture(scope="module")
def engine():
    with open_engine(EngineSettings(device="cpu")) as opened:
        yield opened


@pytest.fixture(scope="module")
def picture():
    return Picture(tiny.photo(40, 56))


# --- lanczos and strength 0 -----------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    height=st.integers(1, 120),
    width=st.integers(1, 120),
    scale=st.floats(1.0, 8.0),
    value=st.floats(0.0, 1.0, width=32),
)
def test_a_constant_picture_stays_constant_through_lanczos(height, width, scale, value):
    grey = Picture(np.full((height, width, 1), value, np.float32))
    with open_engine() as opened:
        done = opened.upscale(grey, Profile(variant="lanczos", scale=scale), 0).picture
    assert np.abs(done.pixels - value).max() < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (1, 1100), (700, 1), (2, 3), (333, 500), (700, 1100)])
def test_a_constant_picture_of_any_size_stays_constant(size):
    colours = np.broadcast_to(np.float32([0.2, 0.5, 0.9]), (*size, 3)).copy()
    alpha = np.full(size, 0.25, np.float32)
    with open_engine() as opened:
        done = opened.upscale(Picture(colours, alpha), Profile(variant="lanczos"), 0).picture
    assert done.pixels.shape == (size[0] * 2, size[1] * 2, 3)
    assert np.abs(done.pixels - colours[0, 0]).max() < 1e-6
    assert np.abs(done.alpha - 0.25).max() < 1e-6


def test_strength_0_is_lanczos_to_the_byte(engine, picture):
    clear = Picture(picture.pixels, tiny.photo(40, 56, 1)[..., 0])
    plain = engine.upscale(clear, Profile(variant="lanczos", scale=3.0), 1)
    nano = engine.upscale(clear, Profile(variant="nano", scale=3.0, strength=0.0), 1)
    assert nano.picture.pixels.tobytes() == plain.picture.pixels.tobytes()
    assert nano.picture.alpha.tobytes() == plain.picture.alpha.tobytes()
    assert nano.sigmas == () and nano.tiles is None
    assert "strength is 0" in nano.dino.reason


def test_lanczos_imports_no_torch():
    program = (
        "import sys, numpy as np\n"
        "from fluxwatchd.config import Profile\n"
        "from fluxwatchd.engine import open_engine\n"
        "from fluxwatchd.imageio import Picture\n"
        "with open_engine() as engine:\n"
        "    engine.warm(Profile(variant='lanczos'))\n"
        "    engine.upscale(Picture(np.zeros((8, 8, 3), np.float32)),"
        " Profile(strength=0.0), 1)\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_hidden_colours_do_not_bleed(engine):
    pixels = np.zeros((16, 16, 3), np.float32)
    pixels[:, :8] = (0.0, 1.0, 0.0)
    pixels[:, 8:] = (1.0, 0.0, 1.0)  # hidden under alpha 0
    alpha = np.zeros((16, 16), np.float32)
    alpha[:, :8] = 1.0
    done = engine.upscale(Picture(pixels, alpha), Profile(variant="lanczos", scale=4.0), 0).picture
    shown = done.pixels[done.alpha > 1 / 255]
    assert np.abs(shown - np.float32([0.0, 1.0, 0.0])).max() < 1e-3


# --- nano -----------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(engine, picture):
    one, two, other = (engine.upscale(picture, NANO, seed).picture for seed in (7, 7, 8))
    assert one.pixels.tobytes() == two.pixels.tobytes()
    assert np.abs(one.pixels - other.pixels).max() > 1e-3


def test_the_tile_batch_changes_nothing_on_a_cpu(picture):
    results = []
    for batch in (1, 3):
        with open_engine(EngineSettings(device="cpu", tile_batch=batch)) as opened:
            done = opened.upscale(picture, NANO, 7)
        assert done.tiles.batch == batch
        results.append(done.picture.pixels)
    assert results[0].tobytes() == results[1].tobytes()


def test_sigmas_start_at_strength_and_count_steps(engine, picture):
    profile = NANO.model_copy(update={"steps": 3, "strength": 0.6})
    done = engine.upscale(picture, profile, 7)
    assert done.sigmas == pytest.approx((0.6, 0.4, 0.2))
    assert done.sigmas[0] == 0.6


def test_the_record_tells_what_ran(engine, picture):
    done = engine.upscale(picture, NANO, 7)
    assert done.picture.pixels.shape == (80, 112, 3)
    assert done.tiles.fusion == "step"
    assert done.tiles.overlap >= 8
    bottom = max(w.top + w.height for w in done.tiles.windows)
    right = max(w.left + w.width for w in done.tiles.windows)
    assert (bottom, right) == (80, 112)
    assert {"base", "encode", "denoise", "decode", "color", "finish"} <= set(done.seconds)
    assert done.peak_bytes > 0
    assert set(done.checkpoint.files) >= {"transformer", "vae"}
    assert all(v.startswith("sha256:") for v in done.checkpoint.files.values())
    assert engine.resident()[0].startswith("nano")


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (9, 2)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_any_size_and_kind_come_out_likewise(engine, size, channels):
    small = Picture(tiny.photo(*size, channels), depth=16, mode="I;16" if channels == 1 else "RGB")
    done = engine.upscale(small, NANO, 7).picture
    assert done.pixels.shape == (2 * size[0], 2 * size[1], channels)
    assert (done.depth, done.mode) == (16, small.mode)
    assert done.pixels.min() >= 0 and done.pixels.max() <= 1


def test_a_16_bit_gradient_keeps_its_steps(engine):
    ramp = np.linspace(0.4, 0.45, 64, dtype=np.float32)
    smooth = Picture(np.repeat(np.tile(ramp, (16, 1))[..., None], 3, 2), depth=16)
    done = engine.upscale(smooth, NANO, 7).picture
    # 8-bit values would be 14 in this range
    assert len(np.unique((done.pixels[8] * 65535).round())) > 100


@pytest.mark.parametrize("colour", [(255, 255, 255), (240, 240, 240), (200, 60, 30)])
@pytest.mark.parametrize(("size", "scale"), [((64, 96), 4.0), ((21, 40), 2.5), ((1, 9), 4.0)])
def test_a_constant_picture_has_no_frame_after_nano(engine, colour, size, scale):
    colour = np.float32(colour)
    plain = Picture(np.broadcast_to(colour / 255, (*size, 3)).copy())
    done = engine.upscale(plain, Profile(variant="nano", scale=scale, dino_mode="off"), 1).picture
    assert np.abs(done.pixels * 255 - colour).max() < 2


def test_the_border_of_a_constant_picture_is_no_worse_than_its_inside_by_img2img(engine):
    grey = Picture(np.full((64, 96, 3), 240 / 255, np.float32))
    profile = Profile(variant="nano-img2img", scale=2.0, color_fix="off", dino_mode="off")
    off = np.abs(engine.upscale(grey, profile, 1).picture.pixels - 240 / 255) * 255
    ring = np.concatenate(
        [off[:2].ravel(), off[-2:].ravel(), off[:, :2].ravel(), off[:, -2:].ravel()]
    )
    assert ring.mean() < 1.5 * off[8:-8, 8:-8].mean() + 0.5


def test_windows_are_places_in_the_picture_and_cover_it(engine, picture):
    done = engine.upscale(picture, NANO, 7)
    covered = np.zeros((80, 112), bool)
    for window in done.tiles.windows:
        assert window.top >= 0 and window.left >= 0
        bottom, right = window.top + window.height, window.left + window.width
        assert bottom <= 80 and right <= 112
        covered[window.top : bottom, window.left : right] = True
    assert covered.all()


def test_only_a_back_projection_that_took_place_is_recorded(engine, picture):
    larger = engine.upscale(picture, NANO, 7)
    without = engine.upscale(picture, NANO.model_copy(update={"color_fix": "off"}), 7)
    assert larger.extra["back_projection"] == {"rounds": 2, "amount": 1.0}
    assert "back_projection" not in without.extra


@pytest.mark.parametrize(
    ("variant", "size", "runs"),
    [
        ("nano", {"scale": 1.0}, False),
        ("nano", {"target_long_side": 40}, False),
        ("nano", {"target_long_side": 57}, True),
        ("nano-img2img", {"scale": 1.0}, True),
        ("nano-img2img", {"target_megapixels": 0.001}, False),
    ],
)
def test_no_model_runs_where_there_is_nothing_for_it_to_add(engine, picture, variant, size, runs):
    done = engine.upscale(picture, Profile(variant=variant, dino_mode="off", **size), 7)
    plain = engine.upscale(picture, Profile(variant="lanczos", **size), 7).picture
    assert (done.tiles is not None) == runs
    assert np.array_equal(done.picture.pixels, plain.pixels) != runs
    if not runs:
        assert f"plain resize, {variant} did not run: the result is" in done.notes[0]
        assert done.dino.reason.startswith("no model ran: the result is")


def test_finished_tiles_can_be_fused_instead(engine, picture):
    step = engine.upscale(picture, NANO, 7)
    final = engine.upscale(picture, NANO.model_copy(update={"fusion": "final"}), 7)
    assert final.tiles.fusion == "final"
    assert len(step.tiles.windows) > 1
    difference = np.abs(step.picture.pixels - final.picture.pixels)
    assert 0 < difference.mean() < 0.02


def test_one_tile_is_the_same_under_either_fusion(engine):
    small = Picture(tiny.photo(7, 8))
    step = engine.upscale(small, NANO, 7)
    final = engine.upscale(small, NANO.model_copy(update={"fusion": "final"}), 7)
    assert len(step.tiles.windows) == 1
    assert np.abs(step.picture.pixels - final.picture.pixels).max() < 1e-3


@pytest.mark.parametrize("how", ["wavelet", "lab"])
def test_the_colour_lock_brings_the_result_nearer_to_the_base(engine, picture, how):
    def cast(color_fix):
        profile = NANO.model_copy(update={"variant": "nano-img2img", "strength": 0.8, "steps": 2,
                                          "color_fix": color_fix})  # fmt: skip
        done = engine.upscale(picture, profile, 7).picture.pixels
        means = done.reshape(10, 8, 14, 8, 3).mean((1, 3))
        wanted = base.reshape(10, 8, 14, 8, 3).mean((1, 3))
        return np.abs(means - wanted).mean()

    base = engine.upscale(picture, Profile(variant="lanczos"), 0).picture.pixels
    assert cast(how) < 0.8 * cast("off")


@pytest.mark.parametrize("size", [{"scale": 2.0}, {"target_long_side": 3000}])
def test_an_overlap_that_fits_its_scale_is_warmed_with_it(engine, size):
    checkpoint = engine.warm(NANO.model_copy(update={"tile_size": 40, "overlap": 36, **size}))
    assert checkpoint.plan == "resident"


def test_settings_without_effect_are_named(engine, picture):
    profile = NANO.model_copy(update={"prompt": "a house", "guidance_scale": 3.0})
    notes = engine.upscale(picture, profile, 7).notes
    assert [note.split()[0] for note in notes] == ["prompt", "guidance_scale"]


# --- windows of the autoencoder -------------------------------------------------------------


def test_windows_of_the_autoencoder_leave_no_seam(engine, picture):
    engine.warm(NANO)
    vae = engine._models[next(iter(engine._models))].vae
    pixels = tiny.photo(480, 512)
    with torch.inference_mode():
        cells = encode_picture(vae, pixels, silent)
        whole = vae.encode(torch.from_numpy(pixels.transpose(2, 0, 1)[None]))[0]
        assert vae.window < 120  # so that there are several
        assert (cells - whole).square().mean().sqrt() < 0.01 * whole.std()
        back = decode_picture(vae, whole, silent)
        wanted = vae.decode(whole[None])[0].permute(1, 2, 0).numpy()
    assert np.sqrt(np.mean((back - wanted) ** 2)) < 1 / 255


def test_no_line_shows_where_windows_of_the_autoencoder_meet_in_a_white_sky(engine, picture):
    engine.warm(NANO)
    vae = engine._models[next(iter(engine._models))].vae
    sky = 0.9 - 0.01 * tiny.photo(480, 512)
    with torch.inference_mode():
        whole = vae.encode(torch.from_numpy(sky.transpose(2, 0, 1)[None]))[0]
        apart = decode_picture(vae, whole, silent)
        apart -= vae.decode(whole[None])[0].permute(1, 2, 0).numpy()
    for axis in (0, 1):
        assert np.abs(apart.mean((axis, 2))).max() < 0.3 / 255  # 1.6 with a linear ramp


# --- the loop beside diffusers --------------------------------------------------------------


@pytest.mark.parametrize("guidance", [None, 3.5])
def test_the_loop_agrees_with_diffusers(guidance):
    torch.manual_seed(5)
    transformer, vae = tiny.flux(guidance=guidance is not None), tiny.vae()
    states, pooled = torch.randn(1, 24, tiny.WIDTH), torch.randn(1, tiny.POOLED)
    latent = torch.randn(16, 12, 16)
    sigmas = schedule.sigmas(1.0, 4, 1.15)

    theirs = FluxImg2ImgPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False),
        vae=vae, text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        transformer=transformer,
    )  # fmt: skip
    theirs.set_progress_bar_config(disable=True)
    wanted = theirs(
        prompt_embeds=states, pooled_prompt_embeds=pooled, image=torch.zeros(1, 3, 96, 128),
        height=96, width=128, latents=flux.pack(latent[None]), sigmas=list(sigmas[:-1]),
        num_inference_steps=4, strength=1.0, guidance_scale=guidance or 0.0, output_type="latent",
    ).images  # fmt: skip

    variant = VARIANTS["dev" if guidance else "schnell"]
    model = Model(
        variant=variant, transformer=transformer, vae=Vae.of(vae), device=torch.device("cpu"),
        text=lambda prompt: flux.Text(states, pooled), dtype=torch.float32,
        checkpoint=Checkpoint(variant.name, "tiny"),
    )  # fmt: skip
    predict = Predictor(model, model.text(""), plan(6, 8, 64, 8), Batch(1), guidance_scale=guidance)
    with torch.inference_mode():
        ours = denoise(latent, sigmas, predict, silent)
    assert (flux.pack(ours[None]) - wanted).abs().max() < 1e-5
    assert (ours - latent).abs().max() > 0.1


# --- DINO -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    encoder, adapter = tiny.dino(tmp_path_factory.mktemp("dino"))
    return {"dino_encoder": str(encoder), "dino_adapter": str(adapter)}


def test_tokens_change_the_result_and_are_recorded(engine, picture, eyes):
    off = engine.upscale(picture, NANO.model_copy(update={**eyes, "dino_mode": "off"}), 7)
    on = engine.upscale(picture, NANO.model_copy(update={**eyes, "dino_strength": 1.0}), 7)
    zero = engine.upscale(picture, NANO.model_copy(update={**eyes, "dino_strength": 0.0}), 7)
    assert (on.dino.mode, on.dino.strength) == ("tokens", 1.0)
    assert "sha256:" in on.dino.encoder and "sha256:" in on.dino.adapter
    assert np.abs(on.picture.pixels - off.picture.pixels).max() > 1e-3
    assert zero.picture.pixels.tobytes() == off.picture.pixels.tobytes()
    assert (zero.dino.mode, zero.dino.reason) == ("off", "dino_strength is 0")
    for done in (on, off, zero):
        assert 0 <= done.dino.drift <= 2
        assert all(0 <= window.drift <= 2 for window in done.tiles.windows)


def test_nano_measures_drift_unasked_and_takes_tokens_when_a_strength_is_set(engine, picture):
    unasked = engine.upscale(picture, NANO, 7)
    assert (unasked.dino.mode, unasked.dino.reason) == ("off", "dino_strength is 0")
    assert 0 <= unasked.dino.drift <= 2
    assert all(0 <= window.drift <= 2 for window in unasked.tiles.windows)
    asked = engine.upscale(picture, NANO.model_copy(update={"dino_strength": 0.5}), 7)
    assert (asked.dino.mode, asked.dino.strength) == ("tokens", 0.5)
    assert asked.dino.encoder == unasked.dino.encoder


def test_tiles_that_drift_are_run_again_from_half_the_strength(engine, picture, eyes):
    img2img = {**eyes, "variant": "nano-img2img", "strength": 0.9, "steps": 2, "max_drift": 0.0}
    for fusion in ("step", "final"):
        profile = NANO.model_copy(update={**img2img, "fusion": fusion})
        again = engine.upscale(picture, profile, 7)
        once = engine.upscale(picture, profile.model_copy(update={"max_drift": None}), 7)
        assert list(again.extra["rerun"]) == list(range(len(again.tiles.windows)))
        assert again.dino.drift < once.dino.drift
        assert any("max_drift" in note for note in again.notes)


def test_tokens_without_an_adapter_are_refused(engine, picture, eyes):
    given = {"dino_mode": "tokens", "dino_encoder": eyes["dino_encoder"]}
    with pytest.raises(ConfigError, match="adapter"):
        engine.warm(NANO.model_copy(update=given))


def test_an_adapter_for_another_model_is_refused(engine, picture, tmp_path):
    encoder, adapter = tiny.dino(tmp_path, model="schnell")
    profile = NANO.model_copy(update={"dino_encoder": str(encoder), "dino_adapter": str(adapter)})
    with pytest.raises(ConfigError, match="made for model schnell"):
        engine.warm(profile)


# --- warming up -----------------------------------------------------------------------------


def test_a_warm_model_is_warmed_once(picture):
    beats = []

    def beat(*args):
        beats.append(args)

    with open_engine(EngineSettings(device="cpu")) as opened:
        first = opened.warm(NANO, beat)
        assert beats
        beats.clear()
        assert opened.warm(NANO, beat) == first
        assert opened.warm(NANO.model_copy(update={"scale": 3.0, "steps": 4}), beat) == first
        assert beats == []
        opened.close()
        assert opened.warm(NANO, beat) == first
        assert beats


# --- stops and faults -----------------------------------------------------------------------


def test_a_beat_can_end_the_job_between_tile_batches(engine, picture):
    stages = []

    def stop(stage, done, total):
        stages.append((stage, done, total))
        if stage == "denoise" and done:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        engine.upscale(picture, NANO, 7, stop)
    assert stages[-1][0] == "denoise" and 0 < stages[-1][1] < stages[-1][2]


def test_progress_counts_to_the_end_of_every_stage(engine, picture):
    last = {}
    engine.upscale(picture, NANO, 7, lambda stage, done, total: last.update({stage: (done, total)}))
    for stage in ("encode", "denoise", "decode", "finish"):
        assert last[stage][0] == last[stage][1] > 0


@pytest.fixture
def broken(picture):
    """An engine whose transformer fails in a way that the test chooses."""
    with open_engine(EngineSettings(device="cpu", tile_batch=4)) as opened:
        opened.warm(NANO)
        model = opened._models[next(iter(opened._models))]
        handles = []

        def breaks(hook):
            handles.append(model.transformer.register_forward_hook(hook, with_kwargs=True))

        yield opened, breaks


def test_short_memory_halves_the_batch_and_the_job_is_done(broken, engine, picture):
    opened, breaks = broken

    failures = iter(["with four tiles", "with two"])

    def twice(module, args, kwargs, output):
        if why := next(failures, None):
            raise torch.OutOfMemoryError(f"out of memory {why}")

    breaks(twice)
    done = opened.upscale(picture, NANO, 7)
    assert done.tiles.batch == 1
    wanted = engine.upscale(picture, NANO, 7).picture.pixels
    assert np.abs(done.picture.pixels - wanted).max() < 1e-3


def test_short_memory_halves_the_windows_of_the_autoencoder(broken, engine, picture):
    opened, _ = broken
    vae = opened._models[next(iter(opened._models))].vae.module

    def larger_than_24_cells(module, given, output):
        if max(output.shape[-2:]) > 24:
            raise torch.OutOfMemoryError("out of memory")

    vae.decoder.layers[0].register_forward_hook(larger_than_24_cells)
    vae.encoder.register_forward_hook(larger_than_24_cells)
    done = opened.upscale(picture, NANO, 7)
    wanted = engine.upscale(picture, NANO, 7).picture.pixels
    assert np.abs(done.picture.pixels - wanted).mean() < 0.01


def test_the_least_used_model_leaves_when_memory_is_short(picture):
    with open_engine(EngineSettings(device="cpu", tile_batch=1)) as opened:
        opened.warm(NANO)
        opened.warm(NANO.model_copy(update={"variant": "nano-img2img"}))
        used, *others = opened._models
        assert [key[0] for key in (used, *others)] == ["nano-img2img", "nano"]
        failures = [torch.OutOfMemoryError("out of memory")]

        def once(*_):
            if failures:
                raise failures.pop()

        opened._models[used].transformer.register_forward_hook(once)
        done = opened.upscale(picture, NANO.model_copy(update={"variant": "nano-img2img"}), 7)
        assert done.picture.width == 112
        assert list(opened._models) == [used]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (torch.OutOfMemoryError("out of memory"), OutOfMemory),
        (MemoryError(), OutOfMemory),
        (RuntimeError("device-side assert"), EngineLost),
        (KeyError("weight"), EngineLost),
        (JobFailed("no"), JobFailed),
    ],
)
def test_what_fails_inside_is_classified(broken, picture, error, kind):
    opened, breaks = broken

    def fail(*_):
        raise error

    breaks(fail)
    with pytest.raises(kind) as raised:
        opened.upscale(picture, NANO, 7)
    assert type(raised.value) is kind
    assert raised.value is error or raised.value.__cause__ is error


def test_numbers_that_are_no_colours_fail_the_job(broken, picture):
    opened, breaks = broken
    breaks(lambda module, args, kwargs, output: (output[0] * float("nan"),))
    with pytest.raises(JobFailed, match="not finite"):
        opened.upscale(picture, NANO, 7)


def test_a_device_that_is_not_there_is_refused(picture):
    opened = open_engine(EngineSettings(device="cuda:99"))
    with pytest.raises(ConfigError, match="cuda:99"):
        opened.warm(Profile())


def test_an_overlap_as_large_as_the_tile_is_refused(engine, picture):
    with pytest.raises(ConfigError, match="overlap"):
        engine.upscale(picture, NANO.model_copy(update={"overlap": 24}), 7)


def test_colours_outside_srgb_survive_the_plain_resize():
    pixels = np.full((6, 6, 3), 0.5, np.float32)
    pixels[..., 0], pixels[..., 1] = 1.2, -0.3
    done = plain.upscale(Picture(pixels), Profile(variant="lanczos"), silent)
    assert np.allclose(done.picture.pixels[..., 0], 1.2, atol=1e-5)
    assert np.allclose(done.picture.pixels[..., 1], -0.3, atol=1e-5)
