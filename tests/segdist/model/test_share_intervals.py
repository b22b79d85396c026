"""Share intervals: which error bounds them, how often they contain the truth, how many images they need."""

import math

import numpy as np
import pytest

from segdist.model.share_intervals import FEWEST_IMAGES, ShareIntervals, fit_share_intervals, scale


def drawn(images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true shares of a large and a rare class, (N, 2), with skewed errors."""
    rng = np.random.default_rng(seed)
    true = rng.beta([4, 1], [4, 60], (images, 2))
    true[::4, 1] = 0
    noise = rng.standard_t(3, (images, 2)) * 0.05 + 0.02
    return np.clip(true + noise * np.sqrt(true * (1 - true)), 0, 1), true


@pytest.mark.parametrize(("images", "rank"), [(20, 19), (29, 27), (100, 91)])
def test_the_bound_is_the_error_of_the_rank_given_by_theory(images: int, rank: int) -> None:
    errors = np.arange(1, images + 1) / 1000
    signs = np.where(np.arange(images) % 2, 1, -1)
    true = np.random.default_rng(1).permutation(0.5 + signs * errors)
    fitted = fit_share_intervals(np.full((images, 1), 0.5), true[:, None])
    assert fitted is not None
    assert fitted.images == images
    assert fitted.bounds(0, 0.5) == pytest.approx((0.5 - rank / 1000, 0.5 + rank / 1000))


@pytest.mark.parametrize("images", [FEWEST_IMAGES, 53])
def test_new_images_are_inside_nine_times_out_of_ten(images: int) -> None:
    predicted, true = drawn(2 * images)
    rng = np.random.default_rng(2)
    inside = np.zeros(2)
    for _ in range(1000):
        order = rng.permutation(2 * images)
        known, new = order[:images], order[images:]
        fitted = fit_share_intervals(predicted[known], true[known])
        assert fitted is not None
        for label in range(2):
            bounds = np.array([fitted.bounds(label, share) for share in predicted[new, label]])
            inside[label] += ((bounds[:, 0] <= true[new, label]) & (true[new, label] <= bounds[:, 1])).mean()
    share = inside / 1000
    # The exact probability is ceil(0.9 (N + 1)) / (N + 1).
    assert share == pytest.approx(math.ceil(0.9 * (images + 1)) / (images + 1), abs=0.01)


def test_too_few_images_give_none() -> None:
    predicted, true = drawn(FEWEST_IMAGES)
    assert fit_share_intervals(predicted, true) is not None
    assert fit_share_intervals(predicted[1:], true[1:]) is None


def test_bounds_stay_between_0_and_1_and_are_narrower_for_a_rare_class() -> None:
    intervals = ShareIntervals(0.9, 20, (0.5,))
    assert intervals.bounds(0, 0.0) == (0.0, pytest.approx(0.5 * scale(0)))
    assert intervals.bounds(0, 1.0) == (pytest.approx(1 - 0.5 * scale(1)), 1.0)
    assert np.ptp(intervals.bounds(0, 0.01)) < np.ptp(intervals.bounds(0, 0.5))
