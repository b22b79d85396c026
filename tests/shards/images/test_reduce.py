"""Downscaling images and masks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.images.reduce import reduced_labels, reduced_pixels, reduced_side
from shards.manifest import IGNORE


def test_pixels_become_rounded_area_means() -> None:
    pixels = np.array([[[0], [1], [10]], [[2], [4], [20]]], np.uint8)
    assert reduced_pixels(pixels, 2)[..., 0].tolist() == [[2, 15]]  # 7/4; the missing column repeats the last


@pytest.mark.parametrize(("dtype", "largest"), [(np.uint8, 255), (np.uint16, 65535)])
def test_means_do_not_overflow(dtype: type, largest: int) -> None:
    assert (reduced_pixels(np.full((9, 7, 3), largest, dtype), 4) == largest).all()
    assert reduced_pixels(np.zeros((9, 7, 3), dtype), 4).shape == (3, 2, 3)


def test_the_most_frequent_label_wins() -> None:
    labels = np.array([[3, 3], [3, 1]], np.uint8)
    assert reduced_labels(labels, 2).tolist() == [[3]]


def test_ignored_pixels_do_not_count_unless_all_are_ignored() -> None:
    labels = np.array([[IGNORE, IGNORE, IGNORE, IGNORE], [IGNORE, 2, IGNORE, IGNORE]], np.uint8)
    assert reduced_labels(labels, 2).tolist() == [[2, IGNORE]]


@pytest.mark.parametrize("scale", [2, 4])
def test_ties_do_not_favor_any_class(scale: int) -> None:
    stripes = np.tile(np.repeat(np.array([0, 1], np.uint8), scale // 2), (64, 64 // scale))
    assert np.count_nonzero(reduced_labels(stripes, scale)) == reduced_labels(stripes, scale).size // 2


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2, 4]))
def test_windows_at_multiples_of_the_factor_are_downscaled_like_the_whole(height: int, width: int, scale: int) -> None:
    random = np.random.default_rng(height * 100 + width)
    pixels = random.integers(0, 256, (height, width, 1)).astype(np.uint8)
    labels = random.integers(0, 3, (height, width)).astype(np.uint8)
    whole = reduced_pixels(pixels, scale)
    assert whole.shape[:2] == reduced_labels(labels, scale).shape
    assert whole.shape[:2] == (reduced_side(height, scale), reduced_side(width, scale))
    start = (height // scale // 2) * scale
    assert np.array_equal(whole[start // scale :], reduced_pixels(pixels[start:], scale))
    rows = reduced_labels(labels[start:], scale, (start // scale, 0))
    assert np.array_equal(reduced_labels(labels, scale)[start // scale :], rows)
