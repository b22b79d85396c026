"""Synthetic images with exact masks: dark lines and ellipses on bright noise. H W: height and width in pixels.

Each image is drawn from (seed, split, number) alone, so the same seed gives the same images in any number of
processes.
"""

import numpy as np
from numpy.typing import NDArray

from segdist.core.keyed import Purpose, generator
from shards.manifest import ClassInfo

CLASSES = (
    ClassInfo("background", (0, 0, 0)),
    ClassInfo("line", (230, 159, 0)),
    ClassInfo("ellipse", (86, 180, 233)),
)
BACKGROUND, LINE, ELLIPSE = range(3)

_PURPOSE = {"train": Purpose.TRAINING_IMAGES, "test": Purpose.TEST_IMAGES}


def draw(seed: int, part: str, number: int, height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (H, W, 1) and mask (H, W), both uint8, of image `number` of `part` ("train" or "test").

    Background: normal noise, mean from 0.7 to 0.9 per image, standard deviation 0.1, truncated to 0.6 … 1.
    On it 1 to 9 ellipses (first semi-axis 5 to 19, the other 0.5 to 2 times that, any angle), then as many lines
    (length 20 to the width, half-thickness 1 or 2, any angle), each with one intensity from 0 to 0.7. Centers are
    anywhere; shapes are clipped at the border.
    """
    random = generator(seed, _PURPOSE[part], number)
    image = _truncated_normal(random, random.uniform(0.7, 0.9), 0.1, 0.6, 1.0, height * width).reshape(height, width)
    mask = np.full((height, width), BACKGROUND, np.uint8)
    count = int(random.integers(1, 10))
    for _ in range(count):
        radius = random.uniform(5, 19)
        _paint(image, mask, random, ELLIPSE, radius, radius * random.uniform(0.5, 2))
    for _ in range(count):
        length = random.uniform(min(20, width), width)
        _paint(image, mask, random, LINE, length / 2, float(random.integers(1, 3)))
    return np.rint(image * 255).astype(np.uint8)[:, :, None], mask


def _truncated_normal(
    random: np.random.Generator, mean: float, deviation: float, low: float, high: float, count: int
) -> NDArray[np.float32]:
    values = random.standard_normal(count, np.float32) * np.float32(deviation) + np.float32(mean)
    outside = np.flatnonzero((values < low) | (values > high))
    while outside.size:
        redrawn = random.standard_normal(outside.size, np.float32) * np.float32(deviation) + np.float32(mean)
        values[outside] = redrawn
        outside = outside[(redrawn < low) | (redrawn > high)]
    return values


def _paint(
    image: NDArray[np.float32],
    mask: NDArray[np.uint8],
    random: np.random.Generator,
    label: int,
    along: float,
    across: float,
) -> None:
    """One ellipse with semi-axes `along` and `across`, or one line with these half-sides, at a random place."""
    height, width = mask.shape
    center_y, center_x = random.uniform(0, height), random.uniform(0, width)
    angle, intensity = random.uniform(0, np.pi), random.uniform(0, 0.7)
    reach = np.hypot(along, across)
    top, bottom = max(0, int(center_y - reach)), min(height, int(center_y + reach) + 2)
    left, right = max(0, int(center_x - reach)), min(width, int(center_x + reach) + 2)
    y = np.arange(top, bottom)[:, None] - center_y
    x = np.arange(left, right)[None, :] - center_x
    u = (x * np.cos(angle) + y * np.sin(angle)) / along
    v = (y * np.cos(angle) - x * np.sin(angle)) / across
    inside = u * u + v * v <= 1 if label == ELLIPSE else (np.abs(u) <= 1) & (np.abs(v) <= 1)
    image[top:bottom, left:right][inside] = intensity
    mask[top:bottom, left:right][inside] = label
