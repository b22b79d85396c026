"""Cut random patches from labeled images. H W: image, C channels, K classes, P patch side, n patches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shards.build.config import PatchesConfig
from shards.images.image_file import bands
from shards.manifest import IGNORE
from shards.pixels import Pixels

CHUNK = 256
"""Maximum number of patches in memory at once."""

Labels = NDArray[np.uint8]


class LabeledImage(Protocol):
    """An image with its mask, both readable by window."""

    height: int
    width: int
    digest: str
    """Digest of its pixels, to find copies; empty if copies are impossible."""
    content: str
    """Digest of its pixels and labels, to detect changes; likewise."""

    def read_image(self, top: int, bottom: int, left: int, right: int) -> Pixels:
        """Pixels (h, w, C)."""
        ...

    def read_mask(self, top: int, bottom: int, left: int, right: int) -> Labels:
        """Labels (h, w)."""
        ...


@dataclass(frozen=True)
class Patches:
    """Some patches of one image."""

    images: Pixels
    """(n, C, P, P)."""
    masks: Labels
    """(n, P, P)."""
    corners: NDArray[np.int64]
    """(n, 2): y and x of the upper left pixel in the image."""


def cut_patches(image: LabeledImage, settings: PatchesConfig, random: np.random.Generator) -> Iterator[Patches]:
    """The random patches of one image, at most CHUNK at a time, without background-only patches if so configured."""
    size = settings.size
    corners = draw_corners(image, settings, random)
    for first in range(0, len(corners), CHUNK):
        chunk = corners[first : first + CHUNK]
        # From top to bottom, so that a striped file is decoded only once.
        chunk = chunk[np.lexsort((chunk[:, 1], chunk[:, 0]))]
        masks = np.stack([_window(image.read_mask, image, y, x, size) for y, x in chunk])
        if settings.drop_background:
            kept = ((masks != 0) & (masks != IGNORE)).any(axis=(1, 2))
            chunk, masks = chunk[kept], masks[kept]
        if len(chunk):
            windows = [_window(image.read_image, image, y, x, size) for y, x in chunk]
            yield Patches(np.moveaxis(np.stack(windows), -1, 1), masks, chunk)


def draw_corners(image: LabeledImage, settings: PatchesConfig, random: np.random.Generator) -> NDArray[np.int64]:
    """Upper left corners (n, 2), y and x; a fraction `balance` of the patches is centered on pixels of the image's
    classes."""
    free = np.array([max(image.height - settings.size, 0), max(image.width - settings.size, 0)])
    corners = random.integers(0, free + 1, size=(settings.per_image, 2))
    if not settings.balance:
        return corners
    chosen = np.flatnonzero(random.random(settings.per_image) < settings.balance)
    if chosen.size:
        pixels = draw_class_pixels(image, len(chosen), random)
        inside = random.integers(0, settings.size, size=pixels.shape)  # position of the pixel in the patch
        corners[chosen] = np.clip(pixels - inside, 0, free)
    return corners


def draw_class_pixels(image: LabeledImage, count: int, random: np.random.Generator) -> NDArray[np.int64]:
    """`count` pixels (y, x), shape (count, 2): draws a class of the image uniformly, then one of its pixels.

    Works in bands of rows, so that a large image needs memory only for its counts per row.
    """
    per_row = count_rows(image)
    present = np.flatnonzero(per_row[:, :IGNORE].sum(axis=0))
    if not present.size:  # all ignored
        return np.stack([random.integers(0, image.height, count), random.integers(0, image.width, count)], axis=1)
    pixels = np.empty((count, 2), np.int64)
    for number, label in enumerate(random.choice(present, count)):
        ends = np.cumsum(per_row[:, label])
        place = int(random.integers(0, ends[-1]))
        y = int(np.searchsorted(ends, place, side="right"))
        row = image.read_mask(y, y + 1, 0, image.width)[0]
        pixels[number] = y, np.flatnonzero(row == label)[place - (ends[y] - per_row[y, label])]
    return pixels


def count_rows(image: LabeledImage) -> NDArray[np.int32]:
    """Pixels per row and label, shape (H, 256)."""
    counts = np.empty((image.height, 256), np.int32)
    for top, bottom in bands(image.height, image.width):
        labels = image.read_mask(top, bottom, 0, image.width).astype(np.int64)
        labels += 256 * np.arange(bottom - top)[:, None]
        counts[top:bottom] = np.bincount(labels.ravel(), minlength=256 * (bottom - top)).reshape(-1, 256)
    return counts


def _window(read: Callable[[int, int, int, int], Pixels], image: LabeledImage, y: int, x: int, size: int) -> Pixels:
    """A size x size window; smaller images are padded by reflection on the right and at the bottom."""
    bottom, right = min(y + size, image.height), min(x + size, image.width)
    window = read(int(y), int(bottom), int(x), int(right))
    missing = [(0, size - window.shape[0]), (0, size - window.shape[1])]
    if missing == [(0, 0), (0, 0)]:
        return window
    return np.pad(window, missing + [(0, 0)] * (window.ndim - 2), mode="reflect")
