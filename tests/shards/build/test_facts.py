"""Facts from masks: runs, object sizes, the cost of downscaling, whether images are upright."""

import numpy as np
import pytest

from shards.build.facts import class_facts, has_an_up, kept_iou, runs
from shards.manifest import IGNORE


def disk(radius: int, side: int = 200) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - side // 2
    return (y**2 + x**2 <= radius**2).astype(np.uint8)


def lines(width: int, side: int = 200, gap: int = 40) -> np.ndarray:
    return np.tile((np.arange(side) % gap < width).astype(np.uint8), (side, 1))


def test_each_pixel_gets_the_length_of_its_run() -> None:
    mask = np.array([[0, 0, 1], [1, 1, 1], [2, 0, 0]], np.uint8)
    assert runs(mask).tolist() == [[2, 2, 1], [3, 3, 3], [1, 2, 2]]


def test_lines_are_thin_and_long_and_disks_as_wide_as_long() -> None:
    line = class_facts([lines(6)], ["ground", "line"])[1]
    assert (line.width, line.length) == (6, 200)
    spot = class_facts([disk(30)], ["ground", "spot"])[1]
    assert 35 <= spot.width <= 61
    assert 45 <= spot.length <= 61


def test_shares_skip_ignored_pixels_and_absent_classes() -> None:
    mask = np.full((10, 10), IGNORE, np.uint8)
    mask[:4] = 0
    mask[4:5] = 2
    found = class_facts([mask], ["a", "b", "c"])
    assert [(one.name, one.share) for one in found] == [("a", 0.8), ("c", 0.2)]


def test_downscaling_costs_thin_lines_more_than_large_disks() -> None:
    assert kept_iou([disk(60)], 2, 2) > 0.97
    assert kept_iou([lines(3)], 2, 2) < kept_iou([lines(12)], 2, 2)
    assert kept_iou([lines(1)], 4, 2) < 0.6


def test_images_with_sky_above_are_upright() -> None:
    random = np.random.default_rng(0)
    streets = [np.zeros((100, 80), np.uint8) for _ in range(10)]
    for mask in streets:
        mask[random.integers(40, 60) :] = 1
    assert has_an_up(streets, 2)
    assert not has_an_up(streets[:5], 2), "too few to tell"


def test_images_of_cells_are_not_upright() -> None:
    random = np.random.default_rng(1)
    cells = [np.roll(disk(12, 100), tuple(random.integers(0, 100, 2)), (0, 1)) for _ in range(20)]
    assert not has_an_up(cells, 2)
    assert not has_an_up([], 2)


def test_a_rare_class_at_the_top_does_not_make_images_upright() -> None:
    masks = [np.zeros((100, 100), np.uint8) for _ in range(10)]
    for mask in masks:
        mask[:1, :50] = 1
    assert not has_an_up(masks, 2)


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (2048, 5)])
def test_any_shape_is_accepted(shape: tuple[int, int]) -> None:
    mask = np.zeros(shape, np.uint8)
    assert class_facts([mask], ["ground"])[0].share == 1
    assert kept_iou([mask], 4, 1) == 1
