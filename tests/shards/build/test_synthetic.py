"""Synthetic images."""

import numpy as np
import pytest

from shards.build.synthetic import BACKGROUND, ELLIPSE, LINE, draw


def test_the_same_seed_and_number_give_the_same_image() -> None:
    for one, other in zip(draw(1, "train", 7, 90, 70), draw(1, "train", 7, 90, 70), strict=True):
        assert np.array_equal(one, other)


def test_other_seeds_numbers_and_splits_give_other_images() -> None:
    images = [draw(seed, part, number, 90, 70)[0] for seed, part, number in [
        (0, "train", 0), (1, "train", 0), (0, "train", 1), (0, "test", 0),
    ]]  # fmt: skip
    assert all(not np.array_equal(images[0], other) for other in images[1:])


def test_the_background_is_bright_noise_and_the_objects_are_flat_and_dark() -> None:
    means = []
    for number in range(40):
        image, mask = draw(0, "train", number, 400, 200)
        background = image[:, :, 0][mask == BACKGROUND] / 255
        assert 0.6 - 0.002 <= background.min() <= background.max() <= 1
        assert background.std() > 0.05
        assert image[:, :, 0][mask != BACKGROUND].max() <= round(0.7 * 255)
        means.append(background.mean())
    assert 0.70 < min(means) < 0.76
    assert 0.84 < max(means) < 0.90


def test_all_classes_occur_and_lines_are_drawn_over_ellipses() -> None:
    shares = np.zeros(3)
    for number in range(40):
        _, mask = draw(3, "train", number, 400, 200)
        shares += np.bincount(mask.ravel(), minlength=3) / mask.size / 40
    assert shares[BACKGROUND] > 0.7
    assert shares[LINE] > 0.005
    assert shares[ELLIPSE] > 0.03


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 300), (300, 5), (97, 33)])
def test_any_size_can_be_drawn(height: int, width: int) -> None:
    image, mask = draw(0, "test", 0, height, width)
    assert image.shape == (height, width, 1)
    assert mask.shape == (height, width)
