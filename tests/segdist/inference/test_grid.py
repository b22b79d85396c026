"""Tile placement: properties that hold for every image size, tile, overlap and border rule."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdist.core.errors import UserError
from segdist.inference.grid import Axis, blending_window, make_grid, stride_of

sizes = st.integers(1, 120)
borders = st.sampled_from(["corner", "full"])


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    tile = draw(st.integers(1, 40))
    return Axis(draw(sizes), tile, draw(st.integers(1, tile)), draw(borders))


@given(axes())
@settings(deadline=None)
def test_every_pixel_is_covered_and_every_tile_touches_the_image(axis: Axis) -> None:
    assert axis.weights(np.ones(axis.tile)).min() >= 1
    for index in range(axis.count):
        assert axis.start(index) < axis.size
        assert axis.start(index) + axis.tile > 0


@given(axes())
@settings(deadline=None)
def test_corner_grid_starts_at_the_corner_and_has_no_spare_tile(axis: Axis) -> None:
    corner = Axis(axis.size, axis.tile, axis.stride)
    assert corner.start(0) == 0
    if corner.count > 1:
        assert corner.start(corner.count - 2) + corner.tile < corner.size


@given(sizes, st.integers(1, 10), st.integers(1, 4))
@settings(deadline=None)
def test_full_borders_give_each_pixel_equal_weight(size: int, stride: int, times: int) -> None:
    weights = Axis(size, stride * times, stride, "full").weights(np.ones(stride * times))
    assert (weights == times).all()


@given(axes())
@settings(deadline=None)
def test_each_pixel_is_finished_by_the_last_tile_that_covers_it(axis: Axis) -> None:
    finished_by = np.full(axis.size, -1)
    for index in range(axis.count):
        first, end = axis.finished(index)
        assert (finished_by[first:end] == -1).all()
        finished_by[first:end] = index
    for pixel in range(axis.size):
        assert finished_by[pixel] == axis.touching(pixel, pixel + 1)[-1]
        assert axis.finishing(pixel, pixel + 1) == range(finished_by[pixel], finished_by[pixel] + 1)


@given(axes(), st.data())
@settings(deadline=None)
def test_touching_lists_the_tiles_that_cover_a_pixel(axis: Axis, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, axis.size - 1))
    end = data.draw(st.integers(first + 1, axis.size))
    touching = [
        index for index in range(axis.count) if axis.start(index) < end and axis.start(index) + axis.tile > first
    ]
    assert list(axis.touching(first, end)) == touching


@given(st.integers(1, 30), st.integers(0, 100))
@settings(deadline=None)
def test_reflection_matches_numpy(size: int, outside: int) -> None:
    axis = Axis(size, 8, 4)
    expected = np.pad(np.arange(size), outside, mode="reflect" if size > 1 else "edge")
    assert (axis.reflected(-outside, size + outside) == expected).all()


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 9), st.data())
@settings(deadline=None)
def test_batches_of_a_part_are_slices_of_the_full_list(
    height: int, width: int, batch: int, data: st.DataObject
) -> None:
    grid = make_grid(height, width, 8, data.draw(st.sampled_from([0.0, 0.5, 0.75])), batch)
    first = data.draw(st.integers(0, grid.rows.count - 1))
    rows = range(first, data.draw(st.integers(first + 1, grid.rows.count)))
    left = data.draw(st.integers(0, grid.columns.count - 1))
    columns = range(left, data.draw(st.integers(left + 1, grid.columns.count)))
    seen = []
    for pieces in grid.batches(rows, columns):
        for piece in pieces:
            for offset in range(piece.tiles):
                number = piece.row * grid.columns.count + piece.left + offset
                assert number % batch == piece.slot + offset  # its position in the whole image's batches
                seen.append((piece.row, piece.left + offset))
    assert seen == [(row, column) for row in rows for column in columns]


def test_hann_windows_sum_to_one_at_half_overlap() -> None:
    weights = Axis(200, 96, 48, "full").weights(blending_window("hann", 96))
    assert np.allclose(weights, 1)


def test_windows_are_positive_and_symmetric() -> None:
    for blending in ("mean", "hann", "gaussian"):
        for tile in (1, 2, 7, 96):
            window = blending_window(blending, tile)
            assert window.shape == (tile,)
            assert (window > 0).all()
            assert np.allclose(window, window[::-1])


def test_overlaps_without_a_positive_stride_are_refused() -> None:
    assert stride_of(96, 0.5) == 48
    assert stride_of(96, 0.75) == 24
    with pytest.raises(UserError, match="--overlap 1"):
        stride_of(96, 1.0)
    with pytest.raises(UserError, match="the stride would be 0"):
        stride_of(4, 0.9)
