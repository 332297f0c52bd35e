"""Output sizes at their edges, and scales above 4 in two passes that end where one would."""

import numpy as np
import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from fluxwatchd.config import EngineSettings, Profile
from fluxwatchd.engine import open_engine
from fluxwatchd.engine.passes import split
from fluxwatchd.imageio import Picture
from fluxwatchd.variants import LARGEST_PASS, VARIANTS

NANO = VARIANTS["nano"]


@pytest.fixture(scope="module")
def engine():
    with open_engine(EngineSettings(device="cpu")) as opened:
        yield opened


def blank(width: int, height: int) -> Picture:
    return Picture(np.broadcast_to(np.float32(0.5), (height, width, 3)))


SIZES = st.one_of(
    st.floats(1.0, 8.0).map(lambda value: {"scale": value}),
    st.integers(1, 20_000).map(lambda value: {"target_long_side": value}),
    st.floats(0.001, 100.0).map(lambda value: {"target_megapixels": value}),
)


@given(width=st.integers(1, 5000), height=st.integers(1, 5000), size=SIZES)
def test_two_passes_end_at_the_size_of_one(width, height, size):
    picture, profile = blank(width, height), Profile(variant="nano", **size).resolved()
    wanted = profile.output_size(width, height)
    at = (width, height)
    made = split(profile, picture, NANO)
    for one in made:
        at = one.profile.output_size(*at)
    assert at == wanted
    assert (len(made) == 2) == (max(wanted) > LARGEST_PASS * max(width, height))
    if len(made) == 2:
        assert made[0].profile.output_size(width, height) == (width * 4, height * 4)


def test_tiles_keep_their_size_in_the_second_pass():
    profile = Profile(variant="nano", scale=8.0, tile_size=64, overlap=8).resolved()
    first, second = split(profile, blank(100, 80), NANO)
    assert (first.profile.tile_size, first.profile.overlap) == (64, 8)
    assert (second.profile.tile_size, second.profile.overlap) == (256, 32)


@pytest.mark.parametrize("name", ["nano-img2img", "schnell", "dev"])
def test_models_that_were_not_measured_take_one_pass(name):
    profile = Profile(variant=name, scale=8.0).resolved()
    assert len(split(profile, blank(10, 10), VARIANTS[name])) == 1


def test_weights_of_ones_own_take_one_pass():
    profile = Profile(variant="nano", model="own/weights", scale=8.0).resolved()
    assert len(split(profile, blank(10, 10), NANO)) == 1


def test_a_large_scale_says_its_two_passes(engine):
    picture = Picture(tiny.photo(12, 18), tiny.photo(12, 18, 1)[..., 0])
    beats: list[str] = []
    profile = Profile(variant="nano", scale=6.0)
    done = engine.upscale(picture, profile, 1, lambda stage, *_: beats.append(stage))
    assert done.picture.pixels.shape == (72, 108, 3) and done.picture.alpha.shape == (72, 108)
    sizes = [(one["width"], one["height"]) for one in done.extra["passes"]]
    assert sizes == [(72, 48), (108, 72)]
    assert any("two passes" in note for note in done.notes)
    assert beats.count("base") == 2
    one = engine.upscale(picture, profile.model_copy(update={"scale": 4.0}), 1)
    assert "passes" not in one.extra


# --- edges ----------------------------------------------------------------------------------

EDGES = [(1, 1), (1, 5000), (5000, 1), (7, 5)]


@pytest.mark.parametrize("size", EDGES)
@pytest.mark.parametrize(
    "target",
    [{"scale": 1.0}, {"scale": 7.77}, {"target_long_side": 1}, {"target_megapixels": 0.01}],
    ids=str,
)
def test_every_edge_has_the_size_that_was_asked_for(engine, size, target):
    profile = Profile(variant="lanczos", **target)
    done = engine.upscale(blank(*size), profile, 1).picture
    assert (done.width, done.height) == profile.output_size(*size)
    assert min(done.width, done.height) >= 1
    assert np.abs(done.pixels - 0.5).max() < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1)])
def test_nano_at_scale_1_keeps_the_size_and_stays_near(engine, size):
    done = engine.upscale(blank(*size), Profile(variant="nano", scale=1.0), 1).picture
    assert (done.width, done.height) == size
    assert np.abs(done.pixels - 0.5).max() < 0.05


@pytest.mark.parametrize(
    ("width", "height", "target", "expected"),
    [
        (3, 2, {"target_long_side": 1000}, (1000, 667)),
        (2, 3, {"target_long_side": 1000}, (667, 1000)),
        (5000, 1, {"target_long_side": 100}, (100, 1)),
        (1, 5000, {"target_megapixels": 1.0}, (14, 70711)),
        (1000, 500, {"target_megapixels": 2.0}, (2000, 1000)),
        (3, 3, {"scale": 1.5}, (4, 4)),  # 4.5 goes to the even number, as Python rounds
        (5, 5, {"scale": 1.1}, (6, 6)),  # 5.5 likewise
        (1, 1, {"scale": 8.0}, (8, 8)),
    ],
)
def test_sizes_are_rounded_to_the_nearest(width, height, target, expected):
    assert Profile(variant="lanczos", **target).output_size(width, height) == expected


@pytest.mark.parametrize("variant", ["lanczos", "nano"])
def test_a_target_below_the_source_shrinks_it_and_says_so(engine, variant):
    profile = Profile(variant=variant, target_long_side=40)
    done = engine.upscale(Picture(tiny.photo(50, 80)), profile, 1)
    assert (done.picture.width, done.picture.height) == (40, 25)
    (note,) = [note for note in done.notes if "target_long_side" in note]
    assert "80 x 50 px became 40 x 25" in note and "shrunk" in note


def test_a_target_far_above_the_source_says_so(engine):
    profile = Profile(variant="lanczos", target_long_side=100)
    done = engine.upscale(blank(10, 10), profile, 1)
    assert any("10.0 times" in note for note in done.notes)
    calm = engine.upscale(blank(50, 50), profile, 1)
    assert not calm.notes
