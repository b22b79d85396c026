"""Intervals for the share of an image that a class covers, from the errors of earlier predictions.

Split-conformal prediction (Vovk, Gammerman and Shafer 2005, "Algorithmic Learning in a Random World"; Lei et al. 2018,
"Distribution-Free Predictive Inference for Regression"): if N images and a new one are exchangeable,
every ranking of their errors is equally likely. So the k-th smallest of N errors, k = ceil(level (N + 1)), bounds that
of a new image with probability at least `level`, whatever the distribution.

Letters: N images, K classes.
"""

import math
from dataclasses import dataclass

import numpy as np

LEVEL = 0.9
FEWEST_IMAGES = 20
"""With fewer there are no intervals: a single image would change them too much."""
OFFSET = 0.01
"""Keeps the scale above 0 if a class is predicted nowhere or everywhere: a model may miss a rare class."""


@dataclass(frozen=True)
class ShareIntervals:
    """How far the true share of each class may be from the predicted one, in units of `scale`."""

    level: float
    images: int
    """Number of images they were computed from."""
    widths: tuple[float, ...]
    """Per class."""

    def possible(self, classes: int) -> bool:
        """Whether these are valid intervals for `classes` classes."""
        numbers = (self.level, *self.widths)
        sound = all(math.isfinite(number) and number >= 0 for number in numbers)
        return sound and self.level < 1 and self.images >= FEWEST_IMAGES and len(self.widths) == classes

    def bounds(self, label: int, share: float) -> tuple[float, float]:
        """The interval around the predicted `share` of class `label`; shares and bounds are from 0 to 1."""
        reach = self.widths[label] * scale(share)
        return max(share - reach, 0.0), min(share + reach, 1.0)


def scale(share: float) -> float:
    """Scale of a predicted share's error: sqrt(p (1 - p) + `OFFSET`), about the standard deviation of one pixel."""
    return math.sqrt(share * (1 - share) + OFFSET)


def bounding_rank(images: int) -> int:
    """The rank (from 1) among the errors of `images` images that bounds a new one with probability `LEVEL`."""
    return math.ceil(LEVEL * (images + 1) - 1e-9)


def fit_share_intervals(predicted: np.ndarray, true: np.ndarray) -> ShareIntervals | None:
    """Intervals that contain a new image's true share with probability at least `LEVEL`, for each class separately.

    Args:
        predicted: shares of the classes in masks predicted by models that weren't trained on the images, (N, K).
        true: the true shares, (N, K).

    Returns:
        None with fewer than `FEWEST_IMAGES` images.
    """
    images = len(predicted)
    if images < FEWEST_IMAGES:
        return None
    scales = np.array([[scale(share) for share in row] for row in predicted.tolist()])
    errors = np.sort(np.abs(true - predicted) / scales, axis=0)
    return ShareIntervals(LEVEL, images, tuple(errors[bounding_rank(images) - 1].tolist()))
