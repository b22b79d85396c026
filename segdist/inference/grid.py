"""The positions of an image's tiles, their weights, and their batches.

The grid depends only on the full image: it starts at the image's corner, and reflection completes it at the right and
at the bottom. Ranks, regions of interest and restarts choose tiles from it but never move it. Along each axis, tiles
start at `origin + i * stride`; the two axes are independent, so weights are products of one factor per axis.

Letters: H W pixels, P tile side, S stride (P - overlap), B tiles in a batch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from segdist.core.errors import UserError

Blending = Literal["mean", "hann", "gaussian"]
Borders = Literal["corner", "full"]

GAUSSIAN_SIGMA = 1 / 8
"""Standard deviation of the Gaussian window as a fraction of the tile side, as in MONAI and nnU-Net."""


@dataclass(frozen=True)
class Axis:
    """The tiles along one axis of an image of `size` pixels."""

    size: int
    tile: int
    stride: int
    borders: Borders = "corner"

    @cached_property
    def depth(self) -> int:
        """Largest number of tiles that cover one pixel."""
        return -(-self.tile // self.stride)

    @cached_property
    def origin(self) -> int:
        """Where the first tile starts: 0, or outside the image so that all pixels are covered equally often."""
        return 0 if self.borders == "corner" else -(self.depth - 1) * self.stride

    @cached_property
    def count(self) -> int:
        """Number of tiles."""
        if self.borders == "corner":
            return -(-max(self.size - self.tile, 0) // self.stride) + 1
        return (self.size - 1 - self.origin) // self.stride + 1

    @cached_property
    def extent(self) -> int:
        """Pixels from the start of the first tile to the end of the last."""
        return (self.count - 1) * self.stride + self.tile

    def start(self, index: int) -> int:
        """First pixel of tile `index`, in image coordinates (may be negative)."""
        return self.origin + index * self.stride

    def finished(self, index: int) -> tuple[int, int]:
        """Pixels (first, end) of the image that get their last contribution from tile `index`."""
        first = max(self.start(index), 0)
        end = self.size if index == self.count - 1 else self.start(index + 1)
        return min(first, self.size), min(max(end, first), self.size)

    def finishing(self, first: int, end: int) -> range:
        """The tiles that finish any of the pixels `first` to `end` (excluded)."""
        last = self.count - 1
        lowest, highest = (first - self.origin) // self.stride, (end - 1 - self.origin) // self.stride
        return range(min(lowest, last), min(highest, last) + 1)

    def touching(self, first: int, end: int) -> range:
        """The tiles that cover any of the pixels `first` to `end` (excluded)."""
        lowest = (first - self.origin - self.tile) // self.stride + 1
        highest = (end - 1 - self.origin) // self.stride
        return range(max(lowest, 0), min(highest, self.count - 1) + 1)

    def weights(self, window: np.ndarray) -> np.ndarray:
        """Sum of the windows at each pixel of the image, float64 (size,); for a window of ones, the number of tiles."""
        sums = np.zeros(self.extent)
        for index in range(self.count):
            sums[index * self.stride : index * self.stride + self.tile] += window
        return sums[-self.origin : -self.origin + self.size]

    def reflected(self, first: int, end: int) -> np.ndarray:
        """Pixel index inside the image for each of `first` to `end`, reflected at the borders as often as needed.

        The border pixel itself isn't repeated (numpy's mode "reflect").
        """
        positions = np.arange(first, end)
        if self.size == 1:
            return np.zeros_like(positions)
        period = 2 * (self.size - 1)
        positions = positions % period
        return np.minimum(positions, period - positions)


@dataclass(frozen=True)
class TileGrid:
    """All tiles of one image, numbered row by row.

    Batch `b` holds the tiles `b * batch` to `(b + 1) * batch`; the last may be short. The number of tiles in a batch
    can change the last bit of a result, so all ranks use the same batches.
    """

    rows: Axis
    columns: Axis
    batch: int

    @property
    def tiles(self) -> int:
        """Number of tiles of the image."""
        return self.rows.count * self.columns.count

    def pieces(self, batch: int, tile_rows: range, tile_columns: range) -> list["Piece"]:
        """The tiles of a batch in the given rows and columns of tiles, split at the ends of tile rows."""
        across = self.columns.count
        first, end = batch * self.batch, min((batch + 1) * self.batch, self.tiles)
        found = []
        for row in range(max(first // across, tile_rows.start), min((end - 1) // across, tile_rows.stop - 1) + 1):
            left = max(first - row * across, tile_columns.start)
            right = min(end - row * across, tile_columns.stop)
            if left < right:
                found.append(Piece(row, left, right, row * across + left - first))
        return found

    def batches(self, tile_rows: range, tile_columns: range) -> Iterator[list["Piece"]]:
        """The batches needed for the given rows and columns of tiles, in order, each as its pieces."""
        across = self.columns.count
        first = (tile_rows.start * across + tile_columns.start) // self.batch
        last = ((tile_rows.stop - 1) * across + tile_columns.stop - 1) // self.batch
        for batch in range(first, last + 1):
            if pieces := self.pieces(batch, tile_rows, tile_columns):
                yield pieces


@dataclass(frozen=True)
class Piece:
    """Neighboring tiles `left` to `right` (excluded) of tile row `row`, at `slot` of their batch."""

    row: int
    left: int
    right: int
    slot: int

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return self.right - self.left


def make_grid(height: int, width: int, tile: int, overlap: float, batch: int, borders: Borders = "corner") -> TileGrid:
    """The grid of an image of `height` x `width` pixels.

    Args:
        tile: P.
        overlap: fraction of a tile shared with its neighbor, in [0, 1).
        batch: B.
        borders: "corner": start at the image's corner; "full": start outside, to cover all pixels equally often.
    """
    stride = stride_of(tile, overlap)
    return TileGrid(Axis(height, tile, stride, borders), Axis(width, tile, stride, borders), batch)


def stride_of(tile: int, overlap: float) -> int:
    """Pixels from one tile to the next.

    Raises:
        UserError: the overlap is not in [0, 1), or the stride would be 0.
    """
    if not 0 <= overlap < 1:
        raise UserError(f"--overlap {overlap}: give the fraction of a tile shared with its neighbor, from 0 to below 1")
    stride = tile - round(tile * overlap)
    if stride < 1:
        raise UserError(f"--overlap {overlap} with --tile {tile}: the stride would be 0; choose a smaller overlap")
    return stride


def blending_window(blending: Blending, tile: int) -> np.ndarray:
    """Weights along one side of a tile, float64 (P,), all positive; a tile's weights are their outer product.

    mean: 1. hann: sin²(π (i + ½) / P), which sums to 1 at 50 % overlap. gaussian: σ = P / 8.
    """
    centers = np.arange(tile) + 0.5
    if blending == "mean":
        return np.ones(tile)
    if blending == "hann":
        return np.asarray(np.sin(math.pi * centers / tile) ** 2)
    return np.asarray(np.exp(-0.5 * ((centers - tile / 2) / (GAUSSIAN_SIGMA * tile)) ** 2))
