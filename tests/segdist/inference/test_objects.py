"""Objects measured in one pass match scikit-image."""

import numpy as np
import pytest
from skimage import measure as skimage_measure

from segdist.inference.objects import Objects, measure
from segdist.inference.parts import MemoryRows


def measured(mask: np.ndarray, image: np.ndarray, band_pixels: int) -> Objects:
    split = np.arange(256) > 0
    return measure(MemoryRows(mask), lambda top, bottom: image[top:bottom], split, band_pixels)


def blobs(seed: int, height: int, width: int, grain: int) -> np.ndarray:
    """Three classes in blobs of `grain` pixels; with grain 1, noise."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 3, (height // grain + 1, width // grain + 1), np.uint8)
    return np.kron(coarse, np.ones((grain, grain), np.uint8))[:height, :width]


def spiral() -> np.ndarray:
    """One object whose arms span many bands and meet only at the end."""
    mask = np.zeros((41, 41), np.uint8)
    for ring in range(0, 20, 2):
        mask[ring, ring : 41 - ring] = mask[40 - ring, ring : 41 - ring] = 1
        mask[ring : 41 - ring, ring] = mask[ring : 41 - ring, 40 - ring] = 1
        mask[ring + 1, ring] = 0
        mask[ring + 2, ring + 1] = 1
    return mask


MASKS = {
    "noise": blobs(0, 37, 53, 1),
    "patches": blobs(1, 64, 47, 5),
    "spiral": spiral(),
    "one row": blobs(2, 1, 50, 3),
    "one column": blobs(3, 50, 1, 1),
    "full": np.ones((9, 7), np.uint8),
    "empty": np.zeros((9, 7), np.uint8),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("rows", [1, 2, 7, 1000])
@pytest.mark.parametrize("channels", [1, 3])
def test_measurements_match_regionprops_for_any_band_height(mask: np.ndarray, rows: int, channels: int) -> None:
    image = np.random.default_rng(4).integers(0, 65536, (*mask.shape, channels), np.uint16)
    found = measured(mask, image, rows * mask.shape[1])
    labeled = skimage_measure.label(mask, background=0)
    expected = skimage_measure.regionprops(labeled, image)
    expected.sort(key=lambda region: tuple(region.coords[0]))
    assert len(found) == len(expected)
    for number, region in enumerate(expected):
        assert found.label[number] == mask[tuple(region.coords[0])]
        assert found.area[number] == region.area
        assert (*found.low[number], *found.high[number]) == region.bbox
        assert found.centroid[number] == pytest.approx(region.centroid)
        central = region.moments_central
        assert found.moments[number] == pytest.approx([central[2, 0], central[0, 2], central[1, 1]], abs=1e-6)
        # This is the root of a difference, so its error is the root of the moments' error.
        assert found.axes[number] == pytest.approx([region.axis_major_length, region.axis_minor_length], abs=1e-5)
        if abs(central[2, 0] - central[0, 2]) > 1e-6:
            apart = abs(found.orientation[number] - region.orientation)
            assert min(apart, np.pi - apart) == pytest.approx(0, abs=1e-7)
        assert found.perimeter[number] == pytest.approx(region.perimeter)
        values = image[tuple(region.coords.T)]
        assert (found.intensity_sum[number] == values.sum(axis=0, dtype=np.int64)).all()
        assert (found.intensity_min[number] == values.min(axis=0)).all()
        assert (found.intensity_max[number] == values.max(axis=0)).all()
