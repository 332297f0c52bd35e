"""Back-projection brings a result nearer to its source and leaves alone what agrees."""

import numpy as np
from PIL import Image

from fluxwatchd.engine.backprojection import project_back
from fluxwatchd.engine.resize import resize


def shrunk(pixels, size):
    how = Image.Resampling.BICUBIC
    return np.stack([resize(pixels[..., c], size, how) for c in range(3)], -1)


def test_each_round_shrinks_to_something_nearer_the_source():
    rng = np.random.default_rng(0)
    source = rng.random((16, 24, 3), dtype=np.float32) * 0.5 + 0.25
    result = np.full((64, 96, 3), 0.5, np.float32)
    far = [np.abs(shrunk(result, (24, 16)) - source).mean()]
    for _ in range(3):
        project_back(result, source)
        far.append(np.abs(shrunk(result, (24, 16)) - source).mean())
    assert far == sorted(far, reverse=True)
    assert far[3] < far[0] / 3


def test_a_result_that_agrees_stays():
    result = np.full((40, 40, 3), 0.25, np.float32)
    before = result.copy()
    project_back(result, np.full((10, 10, 3), 0.25, np.float32))
    assert np.allclose(result, before, atol=1e-6)


def test_a_result_no_larger_than_its_source_stays():
    result = np.zeros((10, 10, 3), np.float32)
    assert not project_back(result, np.ones((10, 10, 3), np.float32)).any()
