"""Guidance: the loss falls, nothing goes through the transformer, nothing happens unasked."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from diffusers import AutoencoderTiny

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import (
    guidance,
    loading,
    open_engine,
    pipeline,
    resize,
    schedule,
    sight,
    silent,
)
from fluxwatchd.engine.guidance import HIGHEST, LOWEST, SmallDecoder, Terms, make_guide
from fluxwatchd.engine.vae import Vae, encode_picture
from fluxwatchd.errors import ConfigError, Interrupted
from fluxwatchd.imageio import Picture

SETTINGS = EngineSettings(device="cpu")


@pytest.fixture(scope="module")
def profile():
    """Three steps of nano-img2img from .6, in four tiles of a picture of 21x27."""
    keys = {"tile_size": 16, "overlap": 4, "dino_mode": "guide", "dino_strength": 1.0}
    return Profile(variant="nano-img2img", scale=3.0, steps=3, strength=0.6, **keys).resolved()


@pytest.fixture(scope="module")
def picture():
    return Picture(tiny.photo(21, 27))


@pytest.fixture(scope="module")
def model(profile):
    return loading.load(profile, SETTINGS, "cpu", None, silent)


@pytest.fixture(scope="module")
def seen(model, profile, picture):
    """Plan and sight of the picture."""
    plan = pipeline.make_plan(model, picture, profile, 1, can_guide=True)
    look = sight.look(model, picture.pixels, plan.grid, plan.output, cache=None, beat=silent)
    return plan, look


@pytest.fixture(scope="module")
def guide(model, seen, picture):
    return make_guide(model, *seen, picture.pixels)


@pytest.fixture
def tiles(model, seen):
    """Velocity and noisy latents of every tile: (B, C, h, w)."""
    random = torch.Generator().manual_seed(0)
    rows, columns = (n * model.packing for n in seen[0].grid.shape)
    shape = (len(seen[0].grid.tiles), model.vae.channels, rows, columns)
    return torch.randn(shape, generator=random), torch.randn(shape, generator=random)


def upscale(model, picture, profile, batch=2, beat=silent, **more):
    with_guide = {"make_guide": make_guide} | more
    return pipeline.upscale(
        model, picture, profile, 1, batch=lambda: batch, beat=beat, **with_guide
    )


# --- the gradient ---------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [Terms(dino=0.0), Terms(pixel=0.0)], ids=["pixel", "dino"])
def test_each_loss_falls_along_its_step_in_every_tile(guide, tiles, terms):
    own = replace(guide, terms=terms, strength=0.1)
    sigma = 0.5
    velocity, latents = tiles
    for i in range(len(guide.views)):
        clean = latents[i] - sigma * velocity[i]
        (before,) = own.pulls(i, clean[None])
        (after,) = own.pulls(i, (clean + own.step(i, clean, sigma))[None])
        assert after.loss < before.loss


def test_a_step_is_no_longer_than_its_fraction_of_sigma(guide, tiles):
    for terms in (Terms(dino=0.0, pixel=0.01), Terms(dino=0.01, pixel=0.0)):
        step = replace(guide, terms=terms, strength=0.5).step(0, tiles[0][0], 0.4)
        assert float(step.square().mean().sqrt()) == pytest.approx(0.5 * 0.01 * 0.4, rel=1e-4)


def test_a_tile_that_fits_hardly_moves(model, guide, seen, picture):
    """A long step would throw it away; Polyak's limit knows that nothing is left to gain."""
    base = resize.pad(resize.base(picture, seen[0].output[::-1])[0], model.unit)
    latent = encode_picture(model.vae, base, silent)
    rows, columns = seen[0].grid.tiles[0].cut(model.packing)
    clean = latent[:, rows, columns]
    far = replace(guide, terms=Terms(dino=0.0, pixel=100.0))
    (before,) = far.pulls(0, clean[None])
    (after,) = far.pulls(0, (clean + far.step(0, clean, 0.5))[None])
    assert after.loss < before.loss * 1.5
    assert float(far.step(0, clean, 0.5).square().mean().sqrt()) < 1.0


def test_the_velocity_gives_the_moved_latent(guide, tiles):
    velocity, latents = tiles
    sigma, indices = 0.4, [0, 2]
    bent = guide(velocity[indices], latents[indices], sigma, indices)
    for n, i in enumerate(indices):
        clean = latents[i] - sigma * velocity[i]
        wanted = clean + guide.step(i, clean, sigma)
        assert torch.allclose(latents[i] - sigma * bent[n], wanted, atol=1e-5)


def test_padding_is_not_compared(model, guide, seen, picture):
    """The last tile reaches beyond the picture; what it holds there changes no loss."""
    view = guide.views[-1]
    assert max(view.whole[2] - 21, view.whole[3] - 27) > 0
    assert (view.box[2], view.box[3]) == pytest.approx((21, 27))
    latent = torch.randn(1, model.vae.channels, *(n // model.vae.factor for n in view.output))
    pixels = model.vae.decode(latent)
    shown = guide._render(len(guide.views) - 1, latent)
    assert shown.shape[-2:] == view.size
    kept = [round(part * n) for part, n in zip(view.shown, pixels.shape[-2:], strict=True)]
    assert view.size == tuple(round(n / 3) for n in kept)


# --- when it does nothing -------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, HIGHEST + 0.01, LOWEST - 0.01, 0.01])
def test_outside_its_noise_levels_the_velocity_is_the_same_object(guide, tiles, sigma):
    velocity, latents = tiles
    assert guide(velocity, latents, sigma, range(len(velocity))) is velocity


@pytest.mark.parametrize("sigma", [HIGHEST, LOWEST, schedule.sigmas(0.6, 4, 0.0)[3]])
def test_the_bounds_belong_to_it_however_they_round(guide, tiles, sigma):
    velocity, latents = tiles
    assert not torch.equal(guide(velocity[:1], latents[:1], sigma, [0]), velocity[:1])


def test_strength_0_is_no_guidance_to_the_byte(model, picture, profile, guide, tiles):
    off = profile.model_copy(update={"dino_mode": "off"})
    zero = profile.model_copy(update={"dino_strength": 0.0})
    plain = upscale(model, picture, off, make_guide=None)
    none = upscale(model, picture, zero)
    assert plain.picture.pixels.tobytes() == none.picture.pixels.tobytes()
    assert none.dino.mode == "off" and none.dino.reason == "dino_strength is 0"
    velocity, latents = tiles
    assert replace(guide, strength=0.0)(velocity, latents, 0.5, range(len(velocity))) is velocity


# --- in the pipeline ------------------------------------------------------------------------


class NoWayBack(torch.autograd.Function):
    """Raises if a gradient comes through."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise AssertionError("a gradient went through the transformer")


class Sealed(torch.nn.Module):
    """A transformer that no gradient may pass; its weights would take one."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.config = inner.config

    def forward(self, **given):
        with torch.inference_mode(False), torch.enable_grad():
            opened = given | {"hidden_states": given["hidden_states"].clone().requires_grad_()}
            (out,) = self.inner(**opened)
            return (NoWayBack.apply(out),)


def test_no_gradient_goes_through_the_transformer(model, picture, profile, guide, tiles):
    sealed = replace(model, transformer=Sealed(model.transformer))
    with torch.no_grad():
        done = upscale(sealed, picture, profile)
    assert done.dino.mode == "guide"
    # velocities that do remember where they came from lead nowhere either
    velocity, latents = tiles
    remembering = NoWayBack.apply(velocity.clone().requires_grad_())
    bent = guide(remembering, latents, 0.5, range(len(velocity)))
    assert not torch.equal(bent, velocity)


def test_guided_pictures_repeat_to_the_byte(model, picture, profile):
    one, two = (upscale(model, picture, profile).picture.pixels for _ in range(2))
    assert one.tobytes() == two.tobytes()


def test_the_tile_batch_does_not_show(picture, profile, monkeypatch):
    """In float32: what bfloat16 rounds otherwise in another batch, a gradient makes larger."""
    monkeypatch.setattr(guidance.memory, "dtype_for", lambda device: torch.float32)
    exact = loading.load(profile, SETTINGS, "cpu", None, silent)
    assert exact.dtype == torch.float32
    one, many = (upscale(exact, picture, profile, batch=b).picture.pixels for b in (1, 4))
    assert np.abs(one - many).max() < 1e-3


@pytest.mark.parametrize("window", [guidance.WINDOW, 48])
def test_guided_pictures_come_nearer_to_the_source(model, picture, profile, window, monkeypatch):
    """Decoded at once or in windows, inside the pipeline's inference mode."""
    monkeypatch.setattr(guidance, "WINDOW", window)
    whole = profile.model_copy(update={"tile_size": "auto", "overlap": "auto"})
    off = upscale(model, picture, whole.model_copy(update={"dino_mode": "off"}))
    on = upscale(model, picture, whole)
    far, near = (resize.lanczos(done.picture.pixels, (27, 21)) for done in (off, on))
    assert np.square(near - picture.pixels).mean() < np.square(far - picture.pixels).mean()


def test_final_fusion_is_guided_too(model, picture, profile):
    final = profile.model_copy(update={"fusion": "final"})
    off = final.model_copy(update={"dino_mode": "off"})
    assert not np.array_equal(
        upscale(model, picture, final).picture.pixels, upscale(model, picture, off).picture.pixels
    )


def test_a_beat_lies_before_every_tile_and_can_end_the_job(model, picture, profile):
    beats = []

    def beat(stage, done, total):
        beats.append((stage, done, total))

    def make(*given):
        return make_guide(*given, beat=beat)

    done = upscale(model, picture, profile, batch=100, make_guide=make)
    tiles = len(done.tiles.windows)
    assert beats[: tiles + 1] == [("guide", i, tiles) for i in range(tiles + 1)]

    def stop(stage, done, total):
        if done == 1:
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        upscale(model, picture, profile, make_guide=lambda *given: make_guide(*given, beat=stop))


def test_the_engine_guides(picture, profile):
    with open_engine(SETTINGS) as engine:
        done = engine.upscale(picture, profile, 1)
        off = engine.upscale(picture, profile.model_copy(update={"dino_mode": "off"}), 1)
    assert (done.dino.mode, done.dino.strength, done.dino.adapter) == ("guide", 1.0, None)
    assert not np.array_equal(done.picture.pixels, off.picture.pixels)


# --- decoders -------------------------------------------------------------------------------


def big_vae():
    return Vae.of(tiny.vae())


def tiny_vae(channels=16, seed=5):
    """AutoencoderTiny of FLUX.1's latents, as TAEF1 is."""
    torch.manual_seed(seed)
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1),
        latent_channels=channels, scaling_factor=1.0, shift_factor=0.0,
    ).eval()  # fmt: skip


def test_a_large_autoencoder_decodes_shrunk_latents(model):
    large = replace(model, vae=big_vae())
    latents = torch.randn(1, 16, 12, 10)
    assert SmallDecoder.of(large, 4.0).decode(latents).shape == (1, 3, 48, 40)
    assert SmallDecoder.of(large, 1.5).decode(latents).shape == (1, 3, 96, 80)
    assert SmallDecoder.of(replace(large, tiny=model.vae), 4.0).vae is model.vae
    assert SmallDecoder.of(model, 4.0).vae is model.vae


def test_windows_have_the_gradient_of_the_whole(monkeypatch):
    """TAESD's kind of decoder sees a few cells: windows that overlap by 8 meet in it."""
    vae = Vae.of(tiny_vae())
    latents = torch.randn(1, 16, 40, 24, generator=torch.Generator().manual_seed(1))

    def run(window):
        monkeypatch.setattr(guidance, "WINDOW", window)
        leaf = latents.clone().requires_grad_()
        pixels = SmallDecoder(vae, vae).decode(leaf)
        (gradient,) = torch.autograd.grad(pixels.square().sum(), leaf)
        return pixels.detach(), gradient

    (whole, wanted), (pieces, found) = run(512), run(160)
    assert torch.allclose(whole, pieces, atol=0.02)
    assert torch.nn.functional.cosine_similarity(wanted.ravel(), found.ravel(), dim=0) > 0.99


def test_shrunk_latents_are_compared_with_a_source_that_went_the_same_way(
    model, seen, guide, picture
):
    """The enlarged source itself is where nothing pulls."""
    shrunk = replace(guide, small=SmallDecoder(model.vae, model.vae, shrink=2))
    view = shrunk.views[0]
    base = guidance.resample(
        shrunk.source, view.output, box=view.whole, kernel=guidance.LANCZOS
    ).clamp(0, 1)
    latent = shrunk.small.encode(base)
    for own in shrunk.pulls(0, latent):
        assert float(own.loss) == pytest.approx(0.0, abs=1e-5)
    for before, after in zip(
        shrunk.pulls(0, latent * 0.5),
        shrunk.pulls(0, latent * 0.5 + shrunk.step(0, latent[0] * 0.5, 0.3)),
        strict=True,
    ):
        assert after.loss < before.loss


def flux_model(model):
    """A model with FLUX.1's kind of autoencoder and an encoder, no adapter."""
    return replace(model, vae=big_vae(), projector=None)


def test_a_tiny_autoencoder_of_the_settings_is_used_and_recorded(model, profile, tmp_path):
    tiny_vae().save_pretrained(tmp_path / "taef1")
    settings = EngineSettings(device="cpu", tiny_vae=str(tmp_path / "taef1"))
    found = guidance.with_decoder(flux_model(model), profile, settings)
    assert SmallDecoder.of(found, 4.0).shrink == 1
    assert SmallDecoder.of(found, 4.0).vae is found.tiny
    assert found.checkpoint.files["tiny_vae"].startswith("sha256:")
    off = profile.model_copy(update={"dino_mode": "off"})
    assert guidance.with_decoder(flux_model(model), off, settings).tiny is None
    assert guidance.with_decoder(model, profile, settings) is model, "nano's own is tiny"


def test_a_tiny_autoencoder_that_does_not_fit_is_refused(model, profile, tmp_path):
    tiny_vae(channels=4).save_pretrained(tmp_path / "taesd")
    for name, said in (("taesd", "no AutoencoderTiny for"), ("nothing", "cannot be read|exist")):
        settings = EngineSettings(device="cpu", tiny_vae=str(tmp_path / name))
        with pytest.raises(ConfigError, match=said):
            guidance.with_decoder(flux_model(model), profile, settings)


def test_the_hubs_cache_gives_taef1_and_nothing_is_fetched(model, profile, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    guided = flux_model(model)
    assert guidance.with_decoder(guided, profile, SETTINGS).tiny is None
    place = tmp_path / "models--madebyollin--taef1"
    tiny_vae().save_pretrained(place / "snapshots" / "abc")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("abc")
    assert guidance.with_decoder(guided, profile, SETTINGS).tiny is not None


def test_guide_is_what_auto_comes_to_without_an_adapter(model, profile):
    automatic = profile.model_copy(update={"dino_mode": "auto"})
    bare = replace(model, projector=None)
    assert sight.resolve(automatic, bare, can_guide=True).name == "guide"
    assert guidance._guided(bare, automatic)
    assert not guidance._guided(replace(bare, encoder=None), automatic)
