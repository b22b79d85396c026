"""Intervals of the share that a class has of an image, from how far predicted shares were off before.

Split-conformal prediction (Vovk, Gammerman and Shafer 2005, "Algorithmic Learning in a Random World"; Lei et al. 2018,
"Distribution-Free Predictive Inference for Regression"): of N images and a new one, all drawn alike, the errors rank in
any order with the same chance. So the k-th smallest of N errors, k = ceil(level (N + 1)), bounds that of a new image
with a chance of at least `level`, whatever the distribution.

N images, K classes.
"""

import math
from dataclasses import dataclass

import numpy as np

LEVEL = 0.9
FEWEST_IMAGES = 20
"""With fewer there is no interval: one image more or less would change it too much."""
OFFSET = 0.01
"""Keeps the scale of errors from 0 where a class is predicted nowhere, or everywhere: a model may miss a rare class."""


@dataclass(frozen=True)
class ShareIntervals:
    """How far the true share of each class may be from the predicted one, in units of `scale`."""

    level: float
    images: int
    """Number of images they were computed from."""
    widths: tuple[float, ...]
    """Per class."""

    def possible(self, classes: int) -> bool:
        """Whether these can be the intervals of `classes` classes."""
        numbers = (self.level, *self.widths)
        sound = all(math.isfinite(number) and number >= 0 for number in numbers)
        return sound and self.level < 1 and self.images >= FEWEST_IMAGES and len(self.widths) == classes

    def bounds(self, label: int, share: float) -> tuple[float, float]:
        """The interval around the predicted `share` of class `label`; shares and bounds are from 0 to 1."""
        reach = self.widths[label] * scale(share)
        return max(share - reach, 0.0), min(share + reach, 1.0)


def scale(share: float) -> float:
    """The unit of a predicted share's error: sqrt(p (1 - p) + `OFFSET`), about the deviation of a pixel's class."""
    return math.sqrt(share * (1 - share) + OFFSET)


def bounding_rank(images: int) -> int:
    """Which of the sorted errors of so many images, from 1, bounds that of a new one with a chance of `LEVEL`."""
    return math.ceil(LEVEL * (images + 1) - 1e-9)


def fit_share_intervals(predicted: np.ndarray, true: np.ndarray) -> ShareIntervals | None:
    """The intervals that a new image's true shares are in with a chance of at least `LEVEL`, for each class by itself.

    Args:
        predicted: shares of the classes in masks predicted by models that weren't trained on the images, (N, K).
        true: the true shares, likewise.

    Returns:
        None for fewer than `FEWEST_IMAGES` images.
    """
    images = len(predicted)
    if images < FEWEST_IMAGES:
        return None
    scales = np.array([[scale(share) for share in row] for row in predicted.tolist()])
    errors = np.sort(np.abs(true - predicted) / scales, axis=0)
    return ShareIntervals(LEVEL, images, tuple(errors[bounding_rank(images) - 1].tolist()))
