"""Enlarges the probabilities of a reduced image to full size, row by row: memory doesn't grow with the height.

Each full pixel is interpolated linearly between the centers of two rows and two columns of the reduced image; outside
the outermost centers it takes their values. A rank that starts in the middle computes the row above its own again, so
it gets the same bits.

Letters: K classes, H W pixels of the full image, h w of the reduced one, S the factor.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from segdist.inference.grid import Axis, TileGrid
from segdist.inference.tiler import FinishedRows, ReadWindow, Region, TileFunction, Weights, finished_rows
from shards.images.reduce import neighbors, reduced_pixels, reduced_side


@dataclass(frozen=True)
class Scale:
    """A full image and its reduction by `factor`; with a factor of 1 they are the same."""

    factor: int
    height: int
    """Of the full image."""
    width: int

    @property
    def reduced_shape(self) -> tuple[int, int]:
        """(h, w)."""
        return reduced_side(self.height, self.factor), reduced_side(self.width, self.factor)

    def rows(self, axis: Axis, tile_row: int) -> tuple[int, int]:
        """Full rows (first, end) that a tile row of the reduced image finishes."""
        first, end = axis.finished(tile_row)
        return self._full_row(first), self._full_row(end)

    def finishing(self, axis: Axis, top: int, bottom: int) -> range:
        """The tile rows that finish any of the full rows `top` to `bottom` (excluded)."""
        half, last = self.factor // 2, axis.size - 1
        return axis.finishing(min((top + half) // self.factor, last), min((bottom - 1 + half) // self.factor, last) + 1)

    def columns(self, left: int, right: int) -> tuple[int, int]:
        """Reduced columns (first, end) that the full columns `left` to `right` (excluded) are interpolated from."""
        below, above, _ = neighbors(left, right, self.factor, self.reduced_shape[1])
        return int(below[0]), int(above[-1]) + 1

    def reading(self, read: ReadWindow) -> ReadWindow:
        """A reader of the reduced image, from a reader of the full one."""
        if self.factor == 1:
            return read

        def reduced(top: int, bottom: int, left: int, right: int) -> np.ndarray:
            factor = self.factor
            window = read(
                top * factor, min(bottom * factor, self.height), left * factor, min(right * factor, self.width)
            )
            return reduced_pixels(window, factor)

        return reduced

    def _full_row(self, row: int) -> int:
        """The first full row that needs reduced row `row` below it; past the last row, the full height."""
        if row >= self.reduced_shape[0]:
            return self.height
        return max(row * self.factor - self.factor // 2, 0)


def image_rows(
    model: TileFunction,
    read: ReadWindow,
    grid: TileGrid,
    window: np.ndarray,
    scale: Scale,
    tile_rows: range,
    region: Region,
) -> Iterator[FinishedRows]:
    """Like `finished_rows`, for the full image; `Means` turns the sums into probabilities.

    Args:
        read: reads windows of the reduced image (`Scale.reading`).
        grid: of the reduced image.
        tile_rows: yield only the full rows that these tile rows finish.
        region: of the full image.
    """
    if scale.factor == 1:
        yield from finished_rows(model, read, grid, window, tile_rows, region)
        return
    wanted = scale.finishing(grid.rows, region.top, region.bottom)
    wanted = range(max(wanted.start, tile_rows.start), min(wanted.stop, tile_rows.stop))
    if not wanted:
        return
    weights = Weights(grid, window, model.device)
    left, right = scale.columns(region.left, region.right)
    # One reduced row above the first is needed too; the tile row that finishes it is computed again.
    first = max(grid.rows.finished(wanted.start)[0] - 1, 0)
    end = grid.rows.finished(wanted.stop - 1)[1]
    needed = range(max(wanted.start - 1, 0), wanted.stop)
    above: torch.Tensor | None = None
    for rows in finished_rows(model, read, grid, window, needed, Region(first, end, left, right)):
        means = weights.mean(rows)
        top = rows.top
        if above is not None:
            means, top = torch.cat([above, means], dim=1), top - 1
        above = means[:, -1:].clone()
        if rows.tile_row in wanted:
            full_top, full_bottom = scale.rows(grid.rows, rows.tile_row)
            full_top, full_bottom = max(full_top, region.top), min(full_bottom, region.bottom)
            if full_top < full_bottom:
                enlarged = _interpolated(means, 1, full_top, full_bottom, scale.factor, grid.rows.size, top)
                enlarged = _interpolated(enlarged, 2, region.left, region.right, scale.factor, grid.columns.size, left)
                yield FinishedRows(rows.tile_row, full_top, full_bottom, region.left, enlarged)


class Means:
    """Turns finished rows into probabilities: divides sums by their weights; enlarged rows already are."""

    def __init__(self, grid: TileGrid, window: np.ndarray, device: torch.device, scale: Scale) -> None:
        self._weights = Weights(grid, window, device) if scale.factor == 1 else None

    def mean(self, rows: FinishedRows) -> torch.Tensor:
        """Class probabilities of finished rows, a new float32 tensor (K, rows, columns)."""
        return rows.sums.clone() if self._weights is None else self._weights.mean(rows)


def _interpolated(
    planes: torch.Tensor, axis: int, first: int, end: int, factor: int, size: int, start: int
) -> torch.Tensor:
    """Full pixels `first` to `end` along an axis of (K, ·, ·), whose first entry is reduced pixel `start`."""
    below, above, share = neighbors(first, end, factor, size)
    shape = [-1 if dim == axis else 1 for dim in range(3)]
    weight = torch.from_numpy(share).to(planes.device).view(shape)
    low, high = (
        planes.index_select(axis, torch.from_numpy(index - start).to(planes.device)) for index in (below, above)
    )
    # Two products and a sum: their bits don't depend on how many rows are interpolated together.
    return low.mul_(1 - weight).add_(high.mul_(weight))
