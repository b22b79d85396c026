"""Cutting patches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.build.config import PatchesConfig
from shards.build.patches import cut_patches, draw_class_pixels, draw_corners
from shards.build.sources import ArrayImage
from shards.manifest import IGNORE


def labeled(height: int, width: int) -> ArrayImage:
    """An image whose pixel values encode their positions, with some labels."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([y % 251, x % 241], axis=-1).astype(np.uint8)
    return ArrayImage(image, ((y + 2 * x) % 3).astype(np.uint8))


@settings(deadline=None, max_examples=40)
@given(height=st.integers(1, 60), width=st.integers(1, 60), count=st.integers(1, 30), seed=st.integers(0, 100))
def test_a_patch_is_the_window_at_its_corner_completed_by_reflection(
    height: int, width: int, count: int, seed: int
) -> None:
    image = labeled(height, width)
    settings_ = PatchesConfig(size=16, per_image=count, drop_background=False)
    padding = ((0, max(16 - height, 0)), (0, max(16 - width, 0)))
    pixels = np.pad(image.image, (*padding, (0, 0)), mode="reflect")
    labels = np.pad(image.mask, padding, mode="reflect")
    found = 0
    for patches in cut_patches(image, settings_, np.random.default_rng(seed)):
        for patch, mask, (y, x) in zip(patches.images, patches.masks, patches.corners, strict=True):
            assert np.array_equal(patch, np.moveaxis(pixels[y : y + 16, x : x + 16], -1, 0))
            assert np.array_equal(mask, labels[y : y + 16, x : x + 16])
            found += 1
    assert found == count


def test_positions_reach_every_corner_of_the_image() -> None:
    corners = draw_corners(labeled(20, 18), PatchesConfig(size=16, per_image=500), np.random.default_rng(0))
    assert corners.min(axis=0).tolist() == [0, 0]
    assert corners.max(axis=0).tolist() == [4, 2]


def test_patches_of_background_alone_are_dropped_on_request() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[:, 20] = 1
    mask[:8, :8] = IGNORE  # ignored pixels alone don't make a patch worth keeping
    image = ArrayImage(np.zeros((40, 40, 1), np.uint8), mask)

    def kept(drop: bool) -> list[np.ndarray]:
        chosen = PatchesConfig(size=8, per_image=200, drop_background=drop)
        return [mask for patches in cut_patches(image, chosen, np.random.default_rng(0)) for mask in patches.masks]

    assert len(kept(False)) == 200
    assert 0 < len(kept(True)) < 100
    assert all((mask == 1).any() for mask in kept(True))


def test_many_patches_come_in_chunks_without_losing_any() -> None:
    chosen = PatchesConfig(size=8, per_image=700, drop_background=False)
    chunks = [len(patches.images) for patches in cut_patches(labeled(50, 50), chosen, np.random.default_rng(0))]
    assert sum(chunks) == 700
    assert max(chunks) <= 256


def test_balanced_positions_find_a_rare_class() -> None:
    mask = np.zeros((300, 300), np.uint8)
    mask[290:293, 5:8] = 1  # 9 of 90,000 pixels
    image = ArrayImage(np.zeros((300, 300, 1), np.uint8), mask)

    def share_with_class(balance: float) -> float:
        chosen = PatchesConfig(size=32, per_image=400, drop_background=False, balance=balance)
        cut = [(m == 1).any() for p in cut_patches(image, chosen, np.random.default_rng(1)) for m in p.masks]
        return float(np.mean(cut))

    assert share_with_class(0) < 0.02
    assert 0.4 < share_with_class(1.0) < 0.6  # one of two classes, drawn equally often
    assert 0.2 < share_with_class(0.5) < 0.3


def test_class_pixels_are_drawn_evenly_over_a_class() -> None:
    mask = np.full((40, 30), IGNORE, np.uint8)
    mask[3, 4] = mask[3, 20] = mask[39, 29] = 2
    pixels = draw_class_pixels(ArrayImage(np.zeros((40, 30, 1), np.uint8), mask), 3000, np.random.default_rng(0))
    places, counts = np.unique(pixels, axis=0, return_counts=True)
    assert places.tolist() == [[3, 4], [3, 20], [39, 29]]
    assert counts.min() > 900


@pytest.mark.parametrize("value", [0, IGNORE])
def test_an_image_of_one_label_can_be_balanced(value: int) -> None:
    image = ArrayImage(np.zeros((20, 20, 1), np.uint8), np.full((20, 20), value, np.uint8))
    assert len(draw_corners(image, PatchesConfig(size=8, per_image=20, balance=1.0), np.random.default_rng(0))) == 20
