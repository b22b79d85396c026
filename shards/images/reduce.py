"""Downscale images and masks to half or a quarter of their size. H W: full size, h w: reduced, S the factor.

Used both for cutting patches and for inference, so that a model sees the same pixels in both. If S doesn't divide a
side, the last pixels are repeated.
"""

import numpy as np
from numpy.typing import NDArray

from shards.manifest import IGNORE
from shards.pixels import Pixels


def reduced_side(side: int, scale: int) -> int:
    """Length of a reduced side in pixels."""
    return -(-side // scale)


def reduced_pixels(pixels: Pixels, scale: int) -> Pixels:
    """Area means (h, w, C) of pixels (H, W, C), rounded to their own dtype."""
    if scale == 1:
        return pixels
    blocks = _blocks(pixels, scale)
    sums = blocks.sum(axis=(1, 3), dtype=np.uint32)
    count = scale * scale
    return np.asarray(((sums + count // 2) // count).astype(pixels.dtype))


def reduced_labels(labels: NDArray[np.uint8], scale: int, corner: tuple[int, int] = (0, 0)) -> NDArray[np.uint8]:
    """The most frequent label of each block, (h, w) of (H, W); IGNORE only if all pixels are ignored.

    Ties go to the label at a position in the block that varies from block to block, so that no class grows at the
    expense of another.

    Args:
        corner: position of the labels in the reduced image (y, x), so that windows give the same result as the whole.
    """
    if scale == 1:
        return labels
    blocks = _blocks(labels, scale).swapaxes(1, 2)
    height, width = blocks.shape[:2]
    blocks = blocks.reshape(height, width, scale * scale)
    place = (3 * (np.arange(height)[:, None] + corner[0]) + np.arange(width) + corner[1]) % (scale * scale)
    favored = np.take_along_axis(blocks, place[..., None], axis=2)[..., 0]
    best = np.full((height, width), IGNORE, np.uint8)
    most = np.zeros((height, width), np.int16)
    for label in np.unique(labels):
        if label != IGNORE:
            votes = 2 * (blocks == label).sum(axis=2, dtype=np.int16)
            votes += (favored == label) & (votes > 0)
            best[votes > most] = label
            np.maximum(most, votes, out=most)
    return best


def enlarged(plane: NDArray[np.float32], scale: int, height: int, width: int) -> NDArray[np.float32]:
    """A plane (h, w) upscaled to (H, W), linearly between pixel centers, as in inference."""
    for axis, side in ((0, height), (1, width)):
        below, above, share = neighbors(0, side, scale, plane.shape[axis])
        weight = share[:, None] if axis == 0 else share
        plane = np.take(plane, below, axis) * (1 - weight) + np.take(plane, above, axis) * weight
    return plane


def neighbors(
    first: int, end: int, scale: int, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each full-size pixel from `first` to `end`: the reduced pixels before and after it, and the weight of the
    second.

    `size`: length of the reduced side.
    """
    position = np.clip((np.arange(first, end) + 0.5) / scale - 0.5, 0, size - 1)
    below = np.floor(position).astype(np.int64)
    return below, np.minimum(below + 1, size - 1), (position - below).astype(np.float32)


def _blocks(array: Pixels, scale: int) -> Pixels:
    """(h, S, w, S, …) of (H, W, …)."""
    height, width = array.shape[:2]
    missing = [(0, -height % scale), (0, -width % scale), *[(0, 0)] * (array.ndim - 2)]
    if any(after for _, after in missing):
        array = np.pad(array, missing, mode="edge")
    height, width = array.shape[:2]
    return array.reshape(height // scale, scale, width // scale, scale, *array.shape[2:])
