"""The inference loop: tiles of an image through a network, summed up row by row, finished rows handed on.

What is alive at any time is one batch of tiles, the image rows under it, and two rows of tiles of class sums: memory
grows with the image's width, the tile and the classes, never with the height.

The bits of the result depend on nothing but image, network, grid and batch size. Batches are fixed slices of the
image's list of tiles; sums are taken inside each tile row first, then over the tile rows from the top down. Whoever
starts at a later tile row (another rank, a restart, a region of interest) computes the few rows above that reach into
its own once more, and gets the same bits.

Letters: B batch, C channels, K classes, H W pixels of the image, P tile side, S stride.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from segdist.precision import Precision
from segdist.tiling import Axis, Piece, TileGrid
from shards.errors import UserError

ReadRows = Callable[[int, int], np.ndarray]
"""(top, bottom) → rows of the image, uint8 or uint16 (h, W, C)."""

NOT_A_NUMBER = 255
"""Label of pixels for which the network returned NaN; no class has it."""


class TileNetwork:
    """A network as the tiler sees it: normalised tiles in, class probabilities out.

    Args:
        model: float32 (B, C, H, W) → logits (B, K, H, W), in eval mode on `device`.
        classes: K.
        mean, std: per channel, in stored units; the network sees (x - mean) / std.
        stride_multiple: tile sides that the network takes; others are padded by reflection and cropped again.
        precision: autocast of the network; the softmax is always taken in float32.
        flips: average the probabilities over the four flips of each tile.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device | str = "cpu",
        *,
        stride_multiple: int = 1,
        precision: Precision | None = None,
        flips: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.device = torch.device(device)
        self.channels_last = channels_last
        self.model = model.to(memory_format=torch.channels_last) if channels_last else model
        self.classes = classes
        self.channels = len(mean)
        self.mean = torch.tensor(mean, dtype=torch.float32, device=self.device).view(-1, 1, 1)
        # As in training: a constant channel has no spread to divide by.
        self.scale = 1 / torch.tensor(std, dtype=torch.float32, device=self.device).clamp(min=1e-6).view(-1, 1, 1)
        self.stride_multiple = stride_multiple
        self.precision = precision or Precision("fp32", "the default")
        self.flips: list[list[int]] = [[], [3], [2], [2, 3]] if flips else [[]]

    def normalised(self, rows: np.ndarray) -> torch.Tensor:
        """Stored pixels (h, W, C) as the network sees them, float32 (C, h, W) on the device."""
        pixels = torch.from_numpy(rows)
        if self.device.type == "cuda":
            # Bytes travel, floats are made on the device; pinned memory lets the copy run beside the network.
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        return pixels.permute(2, 0, 1).float().sub_(self.mean).mul_(self.scale)

    def probabilities(self, tiles: torch.Tensor) -> torch.Tensor:
        """Class probabilities float32 (B, K, P, P) of normalised tiles (B, C, P, P); the caller may overwrite them."""
        total: torch.Tensor | None = None
        for dims in self.flips:
            part = torch.softmax(self._logits(tiles.flip(dims) if dims else tiles).float(), dim=1)
            part = part.flip(dims) if dims else part
            total = part if total is None else total.add_(part)
        assert total is not None
        return total.mul_(1 / len(self.flips)) if len(self.flips) > 1 else total

    def _logits(self, tiles: torch.Tensor) -> torch.Tensor:
        side = tiles.shape[-1]
        padding = -side % self.stride_multiple
        if padding:
            # Reflection needs a side longer than the padding; a tiny tile is padded by its border pixels.
            mode = "reflect" if padding < side else "replicate"
            tiles = functional.pad(tiles, (0, padding, 0, padding), mode=mode)
        if self.channels_last:
            tiles = tiles.contiguous(memory_format=torch.channels_last)
        with self.precision.autocast(self.device):
            logits: torch.Tensor = self.model(tiles)
        if logits.shape != (len(tiles), self.classes, *tiles.shape[-2:]):
            raise UserError(
                f"the network returned logits of shape {tuple(logits.shape)} for tiles of {tuple(tiles.shape)}; "
                f"it must return one map for each of the {self.classes} classes, of the tiles' size"
            )
        return logits[..., :side, :side] if padding else logits


@dataclass(frozen=True)
class FinishedRows:
    """Rows `top` to `bottom` of the image, to which no tile will add any more."""

    top: int
    bottom: int
    tile_row: int
    sums: torch.Tensor
    """Weighted sums of the class probabilities, float32 (K, bottom - top, columns); valid until the next rows come."""


def finished_rows(
    network: TileNetwork,
    read_rows: ReadRows,
    grid: TileGrid,
    window: np.ndarray,
    tile_rows: range | None = None,
    columns: tuple[int, int] | None = None,
) -> Iterator[FinishedRows]:
    """Yield the sums of the image rows that the tile rows `tile_rows` finish, from the top down.

    Args:
        read_rows: gives rows of the image.
        window: weights along one side of a tile (P,), see `blending_window`.
        tile_rows: which tile rows' finished image rows are wanted; default all.
        columns: first and end pixel column that are wanted; default all.
    """
    wanted = tile_rows if tile_rows is not None else range(grid.rows.count)
    left, right = columns or (0, grid.columns.size)
    across = grid.columns.touching(left, right)
    # Tile rows above the first wanted one that reach into it.
    needed = range(max(wanted.start - grid.rows.depth + 1, 0), wanted.stop)
    with torch.inference_mode():
        image = _ImageRows(network, read_rows, grid, needed.start)
        sums = _RowSums(network, grid, window)
        tiles = torch.zeros(grid.batch, network.channels, grid.rows.tile, grid.rows.tile, device=network.device)
        row = needed.start
        for pieces in grid.batches(needed, across):
            for piece in pieces:
                image.copy_tiles(piece, tiles[piece.slot : piece.slot + piece.tiles])
            # Always the whole buffer: slots that nobody needs (another rank's, beyond the last) hold older tiles.
            probabilities = network.probabilities(tiles)
            for piece in pieces:
                while row < piece.row:
                    yield from _finish(sums, grid, row, wanted, left, right)
                    row += 1
                sums.add(piece, probabilities[piece.slot : piece.slot + piece.tiles])
        yield from _finish(sums, grid, row, wanted, left, right)


def _finish(
    sums: "_RowSums", grid: TileGrid, row: int, wanted: range, left: int, right: int
) -> Iterator[FinishedRows]:
    total = sums.finish()
    top, bottom = grid.rows.finished(row)
    if row >= wanted.start and top < bottom:
        above = top - grid.rows.start(row)
        before = left - grid.columns.origin
        yield FinishedRows(
            top, bottom, row, total[:, above : above + bottom - top, before : before + right - left]
        )


class _ImageRows:
    """The normalised rows of the image under the tile rows at work, reflected beyond its borders."""

    def __init__(self, network: TileNetwork, read_rows: ReadRows, grid: TileGrid, first_row: int) -> None:
        self.network, self.read_rows, self.grid = network, read_rows, grid
        # A batch may reach over several rows of tiles; their pixels are needed together.
        together = min(2 + (grid.batch - 2) // grid.columns.count if grid.batch > 1 else 1, grid.rows.count)
        capacity = grid.rows.tile + (together - 1) * grid.rows.stride
        self.pixels = torch.empty(network.channels, capacity, grid.columns.extent, device=network.device)
        self.together = together
        self.top = self.end = grid.rows.start(first_row)
        """Image rows `top` to `end` stand at the front of `pixels`."""

    def copy_tiles(self, piece: Piece, tiles: torch.Tensor) -> None:
        """Fill `tiles` (n, C, P, P) with the piece's pixels."""
        rows, columns = self.grid.rows, self.grid.columns
        top = rows.start(piece.row)
        if top + rows.tile > self.end:
            self._advance(piece.row)
        channel, line, _ = self.pixels.stride()
        source = self.pixels.as_strided(
            tiles.shape,
            (columns.stride, channel, line, 1),
            (top - self.top) * line + piece.left * columns.stride,
        )
        tiles.copy_(source)

    def _advance(self, row: int) -> None:
        """Drop the rows above what is needed from the batch on whose last tile row is `row`, and read up to its end."""
        rows = self.grid.rows
        end = rows.start(row) + rows.tile
        top = max(self.top, rows.start(max(row - self.together + 1, 0)))
        kept = self.end - top
        if kept > 0 and top > self.top:
            # Front to back; source and target overlap, so in steps that don't.
            step = top - self.top
            for start in range(0, kept, step):
                rows_here = min(step, kept - start)
                self.pixels[:, start : start + rows_here] = self.pixels[:, start + step : start + step + rows_here]
        kept = max(kept, 0)
        self.top = top
        first = top + kept
        self._read(first, end, self.pixels[:, first - top : end - top])
        self.end = end

    def _read(self, first: int, end: int, target: torch.Tensor) -> None:
        rows, columns = self.grid.rows, self.grid.columns
        sources = rows.reflected(first, end)
        lowest, highest = int(sources.min()), int(sources.max()) + 1
        stored = self.read_rows(lowest, highest)
        if highest - lowest != end - first or (np.diff(sources) != 1).any():
            stored = stored[sources - lowest]
        before = -columns.origin
        target[:, :, before : before + columns.size] = self.network.normalised(stored)
        for outside in (range(0, before), range(before + columns.size, columns.extent)):
            if outside:
                inside = columns.reflected(outside.start - before, outside.stop - before) + before
                target[:, :, outside.start : outside.stop] = target[:, :, torch.from_numpy(inside).to(target.device)]


class _RowSums:
    """Sums of weighted probabilities: those of the current tile row, and what the rows above reach down with."""

    def __init__(self, network: TileNetwork, grid: TileGrid, window: np.ndarray) -> None:
        self.grid = grid
        shape = (network.classes, grid.rows.tile, grid.columns.extent)
        self.current = torch.zeros(shape, device=network.device)
        self.above = torch.zeros(shape, device=network.device)
        self.window: torch.Tensor | None = None
        if not (window == 1).all():
            self.window = torch.from_numpy(np.outer(window, window).astype(np.float32)).to(network.device)

    def add(self, piece: Piece, probabilities: torch.Tensor) -> None:
        """Add the tiles of a piece, (n, K, P, P), to the current tile row."""
        if self.window is not None:
            probabilities.mul_(self.window)
        columns: Axis = self.grid.columns
        classes, line, _ = self.current.stride()
        # Tiles that lie `depth` apart don't overlap: they are added in one go. Which go a tile is in depends on its
        # column alone, so each pixel's sum has a fixed order.
        for phase in range(columns.depth):
            first = piece.left + (phase - piece.left) % columns.depth
            if first >= piece.right:
                continue
            part = probabilities[first - piece.left :: columns.depth]
            target = self.current.as_strided(
                part.shape, (columns.depth * columns.stride, classes, line, 1), first * columns.stride
            )
            target.add_(part)

    def finish(self) -> torch.Tensor:
        """The current row with all that the rows above add; starts the next row.

        Returns:
            (K, P, columns of the grid); the upper S rows are finished. Valid until the next `finish`.
        """
        reach = self.grid.rows.tile - self.grid.rows.stride
        if reach:
            self.current[:, :reach].add_(self.above[:, self.grid.rows.stride :])
        self.current, self.above = self.above, self.current
        self.current.zero_()
        return self.above


def mean_probabilities(rows: FinishedRows, grid: TileGrid, window: np.ndarray, left: int = 0) -> torch.Tensor:
    """Class probabilities of finished rows: the sums divided by the sums of the weights, a new float32 tensor."""
    down = grid.rows.weights(window)[rows.top : rows.bottom].astype(np.float32)
    across = grid.columns.weights(window)[left : left + rows.sums.shape[2]].astype(np.float32)
    weights = torch.from_numpy(down).unsqueeze(1) * torch.from_numpy(across)
    return rows.sums / weights.to(rows.sums.device)


def labels_of(sums: torch.Tensor) -> torch.Tensor:
    """The class with the largest sum, uint8 (h, w); the lowest class where several are equal, NOT_A_NUMBER for NaN."""
    # Comparing plane by plane is several times faster than argmax over the leading dimension.
    best = sums[0].clone()
    labels = torch.zeros(best.shape, dtype=torch.uint8, device=sums.device)
    for label in range(1, len(sums)):
        labels.masked_fill_(sums[label] > best, label)
        torch.maximum(best, sums[label], out=best)  # NaN stays NaN
    return labels.masked_fill_(best != best, NOT_A_NUMBER)
