"""Constant, gradient and noise pictures of awkward sizes: right size, true colours, no border."""

import numpy as np
import pytest
import tiny
import torch

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import color, open_engine, resample, resize
from fluxwatchd.imageio import Picture

RING, INSIDE = 4, 16
"""px: how wide the border is that is looked at, and how far from the edge the inside begins."""


def constant(height, width):
    return np.broadcast_to(np.float32([0.8, 0.5, 0.3]), (height, width, 3)).copy()


def gradient(height, width):
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    return np.stack([x, y, 1 - (x + y) / 2], -1).astype(np.float32) * 0.8 + 0.1


def noise(height, width):
    return np.random.default_rng(height).uniform(0.2, 0.8, (height, width, 3)).astype(np.float32)


KINDS = {"constant": constant, "gradient": gradient, "noise": noise}


@pytest.fixture(scope="module")
def engine():
    with open_engine(EngineSettings(device="cpu")) as opened:
        yield opened


def ring_and_inside(shape):
    """The border and the inside of a picture of this shape, as masks (H, W)."""
    ring, inside = np.ones(shape[:2], bool), np.zeros(shape[:2], bool)
    ring[RING:-RING, RING:-RING] = False
    inside[INSIDE:-INSIDE, INSIDE:-INSIDE] = True
    return ring, inside


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", ["nano", "lanczos"])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (7, 5)])
def test_a_picture_of_a_few_pixels_keeps_its_colours(engine, variant, kind, size):
    source = KINDS[kind](*size)
    done = engine.upscale(Picture(source), Profile(variant=variant, scale=4.0), 1).picture.pixels
    assert done.shape == (size[0] * 4, size[1] * 4, 3)
    if variant == "lanczos":
        assert np.abs(done - by_matrices(source, done.shape[:2])).max() * 255 < 0.01
        if kind == "constant":
            assert np.abs(done - source[0, 0]).max() * 255 < 0.01
        return
    back = done.reshape(size[0], 4, size[1], 4, 3).mean((1, 3))
    most = 30 if kind == "noise" else 6
    assert np.abs(back - source).max() * 255 < most


def by_matrices(source, size):
    """Lanczos by another way than Pillow's: products of matrices of its weights, clipped."""
    planes = torch.from_numpy(source).movedim(-1, 0)[None]
    made = resample.resample(planes, size, kernel=resample.LANCZOS, reflect=False)
    return made[0].movedim(0, -1).clamp(0, 1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "scale"), [((257, 1031), 1.5), ((61, 203), 4.0)])
def test_nano_leaves_no_border_on_pictures_of_awkward_sizes(engine, kind, size, scale):
    error = error_of_nano(engine, KINDS[kind](*size), scale)
    assert_no_border(error, *ring_and_inside(error.shape), kind)


@pytest.mark.slow
def test_nano_leaves_no_border_on_a_long_picture(engine):
    """4000 x 300 px: constant, gradient and noise side by side."""
    height, widths = 300, (1333, 1333, 1334)
    parts = [make(height, width) for make, width in zip(KINDS.values(), widths, strict=True)]
    error = error_of_nano(engine, np.concatenate(parts, axis=1), 1.1)
    ring, inside = ring_and_inside(error.shape)
    ends = [round(sum(widths[:number]) * 1.1) for number in range(4)]
    for kind, start, end in zip(KINDS, ends, ends[1:], strict=False):
        own = np.zeros(error.shape[:2], bool)
        # where two parts meet, sharper is not wrong
        own[:, start + INSIDE * (start > 0) : end - INSIDE * (end < ends[-1])] = True
        assert_no_border(error, ring & own, inside & own, kind)


def error_of_nano(engine, source, scale):
    """(H, W, 3): how far nano's result lies from Lanczos's."""
    profile = Profile(variant="nano", scale=scale, dino_mode="off")
    done = engine.upscale(Picture(source), profile, 1).picture.pixels
    wanted = tuple(round(side * scale) for side in source.shape[:2])
    assert done.shape == (*wanted, 3)
    return np.abs(done - np.clip(resize.lanczos(source, (wanted[1], wanted[0])), 0, 1))


def assert_no_border(error, ring, inside, kind):
    """Not further off, in levels, in the ring than inside, both masks (H, W)."""
    ring, inside = (error[mask].mean() * 255 for mask in (ring, inside))
    assert ring < 1.25 * inside + 0.25
    if kind != "noise":
        assert max(ring, inside) < 1.5


@pytest.mark.parametrize(("size", "scale"), [((257, 1031), 2.0), ((300, 4000), 1.25)])
def test_lanczos_leaves_no_border_on_pictures_of_awkward_sizes(engine, size, scale):
    profile = Profile(variant="lanczos", scale=scale)
    flat, slope, rough = (
        engine.upscale(Picture(make(*size)), profile, 1).picture.pixels for make in KINDS.values()
    )
    wanted = tuple(round(side * scale) for side in size)
    assert flat.shape == slope.shape == rough.shape == (*wanted, 3)
    assert np.abs(flat - constant(1, 1)).max() < 1e-6
    # a pixel's centre in the source; beyond the outermost centres the slope ends
    y, x = (
        np.clip((np.arange(n) + 0.5) / scale - 0.5, 0, side - 1) / (side - 1)
        for n, side in zip(wanted, size, strict=True)
    )
    y, x = np.meshgrid(y, x, indexing="ij")
    ideal = np.stack([x, y, 1 - (x + y) / 2], -1) * 0.8 + 0.1
    assert np.abs(slope - ideal).max() * 255 < 1
    spread = (rough - rough.mean()) ** 2
    ring, inside = ring_and_inside(rough.shape)
    assert 0.7 < spread[ring].mean() / spread[inside].mean() < 1.5
    explained = by_matrices(noise(*size), wanted)
    assert np.abs(rough - explained).max() * 255 < 0.01


# --- colours --------------------------------------------------------------------------------


def test_a_cast_is_measured_in_lab_units():
    base = tiny.photo(100, 140) * 0.5 + 0.25
    lab = color.to_lab(base)
    lab[..., 1] += 3.0
    lab[..., 2] += 4.0
    assert color.shift(color.from_lab(lab), base) == pytest.approx(5, abs=0.1)
    assert color.shift(base, base) == 0


def test_grain_is_no_cast():
    base = tiny.photo(256, 320) * 0.5 + 0.25
    grain = np.random.default_rng(0).normal(0, 4 / 255, (256, 320, 1)).astype(np.float32)
    assert color.shift(base + grain, base) < 0.2


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (300, 9)])
def test_a_picture_of_any_size_has_a_colour_shift(shape):
    base = constant(*shape)
    assert color.shift(base, base) == 0
    assert color.shift(base + 0.1, base) > 5


@pytest.mark.parametrize("variant", ["nano", "nano-img2img"])
def test_the_lock_is_on_by_default_and_off_is_off(engine, variant):
    picture = Picture(tiny.photo(40, 56))
    keys = {"variant": variant, "scale": 2.0, "strength": 0.6, "steps": 2, "dino_mode": "off"}
    on, off = (
        engine.upscale(picture, Profile(**keys, **more), 7) for more in ({}, {"color_fix": "off"})
    )
    assert Profile().color_fix == "wavelet"
    assert on.color_shift < off.color_shift / 2
    base = np.clip(resize.lanczos(picture.pixels, (112, 80)), 0, 1)
    assert color.shift(off.picture.pixels, base) == pytest.approx(off.color_shift, abs=0.02)
