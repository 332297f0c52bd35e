"""Tiles cover the picture evenly, once, and their weights sum to 1 everywhere."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fluxwatchd.engine.tiles import STRETCH, Axis, plan, plan_axis


@st.composite
def axes(draw, longest=700):
    native = draw(st.integers(1, 80))
    overlap = draw(st.integers(0, native - 1))
    return plan_axis(draw(st.integers(1, longest)), native, overlap), native, overlap


@settings(deadline=None)
@given(axes())
def test_tiles_cover_the_axis_with_the_overlap_at_about_the_native_size(made):
    axis, native, overlap = made
    assert axis.starts[0] == 0
    assert axis.starts[-1] + axis.size == axis.length
    assert axis.size <= max(native, native * STRETCH)
    gaps = [after - before for before, after in itertools.pairwise(axis.starts)]
    assert all(0 < gap <= axis.size - overlap for gap in gaps)  # no tile twice, overlap kept
    assert not gaps or max(gaps) - min(gaps) <= 1  # even


@settings(deadline=None)
@given(axes())
def test_no_fewer_tiles_would_do(made):
    axis, native, overlap = made
    fewer = len(axis.starts) - 1
    longest = max(native, int(native * STRETCH))
    assert fewer == 0 or fewer * longest - (fewer - 1) * overlap < axis.length


@settings(deadline=None)
@given(axes(), st.integers(1, 4))
def test_weights_are_never_0_and_sum_to_1_at_every_sample(made, per):
    axis, _, _ = made
    total = np.zeros(axis.length * per)
    for start, weights in zip(axis.starts, axis.weights(per), strict=True):
        assert weights.min() > 0
        total[start * per : (start + axis.size) * per] += weights
    assert np.abs(total - 1).max() < 1e-6


def test_what_lies_along_a_tiles_border_hardly_counts():
    axis = plan_axis(100, 64, 16)
    _, second = axis.weights(4)
    shared = axis.overlap * 4
    assert second[: shared // 10].max() < 0.01
    assert second[shared // 2 - 1] == pytest.approx(0.5, abs=0.02)
    assert second[shared - shared // 10 : shared].min() > 0.99


@settings(deadline=None)
@given(axes(longest=200), axes(longest=200))
def test_a_grid_sums_to_1_in_every_cell_and_has_no_tile_twice(rows, columns):
    grid = plan(rows[0].length, columns[0].length, rows[1], min(rows[2], rows[1] - 1))
    total = np.zeros((rows[0].length, columns[0].length))
    for tile, weights in zip(grid.tiles, grid.weights(), strict=True):
        assert weights.shape == (tile.height, tile.width) == grid.shape
        assert weights.min() > 0
        total[tile.cut()] += weights
    assert np.abs(total - 1).max() < 1e-5
    places = [(tile.top, tile.left) for tile in grid.tiles]
    assert len(set(places)) == len(places)


def test_a_picture_of_twice_the_native_side_is_four_tiles_a_little_larger():
    # 2048 px, tokens of 16 px, native 1024, overlap 128
    grid = plan(128, 128, 64, 8)
    assert len(grid.tiles) == 4
    assert grid.shape == (68, 68)  # 1088 px
    assert grid.overlap == 8


def test_one_tile_takes_what_is_a_little_longer_than_native():
    assert plan_axis(73, 64, 8) == Axis(73, 73, (0,))
    assert len(plan_axis(74, 64, 8).starts) == 2


@pytest.mark.parametrize(("length", "native", "overlap"), [(10, 4, 4), (0, 4, 1), (10, 4, -1)])
def test_what_cannot_cover_is_refused(length, native, overlap):
    with pytest.raises(ValueError, match="no tiles"):
        plan_axis(length, native, overlap)
