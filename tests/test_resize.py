"""Resizing in strips gives the bytes of one call; a large result needs little beside itself."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fluxwatchd.engine import resize
from fluxwatchd.imageio import Picture

HOW = Image.Resampling.LANCZOS


def in_one_call(plane: np.ndarray, size: tuple[int, int], how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(np.ascontiguousarray(plane)).resize(size, how))


@settings(deadline=None, max_examples=80)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    to=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    how=st.sampled_from([HOW, Image.Resampling.BICUBIC, Image.Resampling.BOX]),
    strip=st.sampled_from([1, 100, 3000, 1 << 22]),
)
def test_strips_give_the_bytes_of_one_call(height, width, to, how, strip):
    plane = tiny.photo(height, width)[..., 0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resize, "STRIP_VALUES", strip)
        made = resize.resize(plane, to, how)
    whole = in_one_call(plane, to, how)
    np.testing.assert_allclose(made, whole, atol=2e-6)
    if height - to[1] <= 2 * (width - to[0]) or to[1] >= height:
        assert made.tobytes() == whole.tobytes()


def test_a_picture_with_alpha_is_the_same_in_strips(monkeypatch):
    from fluxwatchd.imageio import Picture

    alpha = np.clip(tiny.photo(70, 50, 3)[..., 0] * 2 - 0.7, 0, 1)
    picture = Picture(tiny.photo(70, 50), alpha)
    whole = resize.base(picture, (170, 333))
    monkeypatch.setattr(resize, "STRIP_VALUES", 2000)
    parts = resize.base(picture, (170, 333))
    assert [one.tobytes() for one in whole] == [one.tobytes() for one in parts]


def test_no_ring_is_drawn_around_a_hard_edge_of_alpha():
    alpha = np.zeros((24, 24), np.float32)
    alpha[8:16, 8:16] = 1
    picture = Picture(np.full((24, 24, 3), 0.5, np.float32), alpha)
    _, large = resize.base(picture, (96, 96))
    assert large is not None
    inside, outside = large[40:56, 40:56], np.concatenate([large[:24], large[72:]])
    assert inside.min() == 1
    assert outside.max() == 0
