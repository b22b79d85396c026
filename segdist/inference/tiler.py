"""The inference loop: runs the tiles of an image through a model, sums them row by row, and yields finished rows.

Memory holds one batch of tiles, the image rows under it, and the class sums of two tile rows. It grows with the image's
width, the tile side and the number of classes, never with the height.

The bits of the result depend only on image, model, grid, batch size and number of threads. Batches are fixed slices of
the image's list of tiles; sums are taken within each tile row first, then over tile rows from top to bottom. Work that
starts at a later tile row (another rank, a restart, a region of interest) computes the few rows above that overlap its
own again, and gets the same bits.

Letters: B batch, C channels, K classes, H W pixels of the image, P tile side, S stride.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from segdist.core.errors import UserError
from segdist.inference.grid import Piece, TileGrid
from segdist.model.compiling import explain_compiler_errors
from segdist.model.outputs import OutputError, main_logits
from segdist.model.precision import Precision
from segdist.model.recorded import Recorded
from segdist.model.unet import UNet
from segdist.ranks.out_of_memory import is_out_of_memory

ReadWindow = Callable[[int, int, int, int], np.ndarray]
"""(top, bottom, left, right) → pixels of the image, uint8 or uint16 (h, w, C); as `ImageFile.read`."""

NOT_A_NUMBER = 255
"""Label of pixels for which the model returned NaN; no class has it."""


class ModelError(UserError):
    """The model can't run as configured, so every image would fail."""


class TileFunction(Protocol):
    """What the tiler runs: a `TileModel`, or an `Ensemble` of several."""

    device: torch.device
    channels: int
    planes: int
    """Number of planes of `probabilities`: the classes, then anything else to average over tiles."""

    def normalized(self, rows: np.ndarray) -> torch.Tensor:
        """Stored pixels (h, W, C) as the input of `probabilities`, float32 (C, h, W) on the device."""

    def probabilities(self, tiles: torch.Tensor) -> torch.Tensor:
        """float32 (B, planes, P, P) for tiles (B, C, P, P); the caller may overwrite it."""


class TileModel:
    """A model as the tiler sees it: normalized tiles in, class probabilities out.

    Args:
        model: float32 (B, C, H, W) → logits (B, K, H, W), in eval mode on `device`.
        num_classes: K.
        mean, std: per channel, in stored units; the model sees (x - mean) / std.
        stride_multiple: tile sides must be multiples of this; others are padded by reflection and cropped again.
        precision: autocast of the model; the softmax is always taken in float32.
        flips: average the probabilities over the flips of each tile.
        upside_down: use all four views; else only the tile and its left-right flip.
        temperature: logits are divided by it before the softmax.
        channels_last: keep weights and tiles in NHWC order, in which convolutions are faster; changes the memory
            layout of the weights of `model` in place, not their values.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        device: torch.device | str = "cpu",
        *,
        stride_multiple: int = 1,
        precision: Precision | None = None,
        flips: bool = False,
        upside_down: bool = True,
        temperature: float = 1.0,
        channels_last: bool = True,
    ) -> None:
        self.device = torch.device(device)
        self.channels_last = channels_last
        self.model = model.to(memory_format=torch.channels_last) if channels_last else model  # type: ignore[call-overload]
        self.num_classes = self.planes = num_classes
        self.channels = len(mean)
        self.mean = torch.tensor(mean, dtype=torch.float32, device=self.device).view(-1, 1, 1)
        # As in training: the deviation of a constant channel is 0.
        self.scale = 1 / torch.tensor(std, dtype=torch.float32, device=self.device).clamp(min=1e-6).view(-1, 1, 1)
        self.stride_multiple = stride_multiple
        self.temperature = temperature
        self.precision = precision or Precision("fp32", "the default")
        views: list[list[int]] = [[], [3], [2], [2, 3]]
        self.flips = views[: (4 if upside_down else 2) if flips else 1]
        # Other models may synchronize with the GPU, which can't be recorded.
        on_gpu = self.device.type == "cuda" and isinstance(model, UNet)
        self._recorded: Recorded[torch.Tensor] | None = Recorded("the model") if on_gpu else None

    def normalized(self, rows: np.ndarray) -> torch.Tensor:
        """Stored pixels (h, W, C) as the model sees them, float32 (C, h, W) on the device."""
        return self.pixels(rows).sub_(self.mean).mul_(self.scale)

    def pixels(self, rows: np.ndarray) -> torch.Tensor:
        """Stored pixels (h, W, C) as they are, float32 (C, h, W) on the device."""
        # torch needs contiguous, writable memory; rows that are a view of a decoded file are copied.
        pixels = torch.from_numpy(np.require(rows, requirements=["C", "W"]))
        if self.device.type == "cuda":
            # Bytes are copied, and become floats on the GPU; pinned memory lets the copy overlap with computation.
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        return pixels.permute(2, 0, 1).float()

    def probabilities(self, tiles: torch.Tensor) -> torch.Tensor:
        """Class probabilities of normalized tiles.

        Args:
            tiles: float32 (B, C, P, P), on the device.

        Returns:
            float32 (B, K, P, P), valid until the next call; the caller may overwrite them.
        """
        if self._recorded is None:
            return self._probabilities(tiles)
        return self._recorded(self._probabilities, tiles)

    def _probabilities(self, tiles: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor | None = None
        for dims in self.flips:
            logits = self._logits(tiles.flip(dims) if dims else tiles).float()
            part = torch.softmax(logits if self.temperature == 1 else logits / self.temperature, dim=1)
            part = part.flip(dims) if dims else part
            total = part if total is None else total.add_(part)
        assert total is not None
        return total.mul_(1 / len(self.flips)) if len(self.flips) > 1 else total

    def _logits(self, tiles: torch.Tensor) -> torch.Tensor:
        side = tiles.shape[-1]
        padding = -side % self.stride_multiple
        if padding:
            # Reflection needs a side longer than the padding; tiny tiles repeat their border pixels instead.
            mode = "reflect" if padding < side else "replicate"
            tiles = functional.pad(tiles, (0, padding, 0, padding), mode=mode)
        if self.channels_last:
            tiles = tiles.contiguous(memory_format=torch.channels_last)
        try:
            with explain_compiler_errors(ModelError), self.precision.autocast(self.device):
                outputs = self.model(tiles)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise ModelError(
                f"out of memory with {len(tiles)} tiles of {side} x {side} pixels; use a smaller --batch-size or --tile"
            ) from None
        try:
            logits = main_logits(outputs, self.num_classes, (tiles.shape[-2], tiles.shape[-1]))
        except OutputError as error:
            raise ModelError(str(error)) from None
        return logits[..., :side, :side] if padding else logits


@dataclass(frozen=True)
class FinishedRows:
    """Rows `top` to `bottom` of the image, to which no further tile contributes."""

    tile_row: int
    """The tile row that finished them."""
    top: int
    bottom: int
    left: int
    """First pixel column of `sums`."""
    sums: torch.Tensor
    """Weighted sums of the class probabilities, float32 (K, bottom - top, columns); valid until the next rows."""


@dataclass(frozen=True)
class Region:
    """Pixel rows `top` to `bottom` and columns `left` to `right` of an image, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int


def finished_rows(
    model: TileFunction,
    read: ReadWindow,
    grid: TileGrid,
    window: np.ndarray,
    tile_rows: range | None = None,
    region: Region | None = None,
) -> Iterator[FinishedRows]:
    """Yield the sums of image rows as tile rows finish them, from the top down.

    Args:
        read: reads windows of the image.
        window: weights along one side of a tile (P,), see `blending_window`.
        tile_rows: only the image rows that these tile rows finish; default all.
        region: only these pixels; default all.
    """
    region = region or Region(0, grid.rows.size, 0, grid.columns.size)
    wanted = grid.rows.finishing(region.top, region.bottom)
    if tile_rows is not None:
        wanted = range(max(wanted.start, tile_rows.start), min(wanted.stop, tile_rows.stop))
    if not wanted:
        return
    # Also the tile rows above the first wanted one that overlap it.
    needed = range(max(wanted.start - grid.rows.depth + 1, 0), wanted.stop)
    across = grid.columns.touching(region.left, region.right)
    with torch.inference_mode():
        image = _ImageRows(model, read, grid, needed.start, across)
        sums = _RowSums(model, grid, window, across)
        tiles = torch.zeros(grid.batch, model.channels, grid.rows.tile, grid.rows.tile, device=model.device)
        row = needed.start
        for pieces in grid.batches(needed, across):
            for piece in pieces:
                image.copy_tiles(piece, tiles[piece.slot : piece.slot + piece.tiles])
            # Always the whole buffer; unneeded slots (another rank's, or past the last tile) hold older tiles.
            probabilities = model.probabilities(tiles)
            for piece in pieces:
                for finished in range(row, piece.row):
                    yield from sums.finish(finished, wanted, region)
                row = piece.row
                sums.add(piece, probabilities[piece.slot : piece.slot + piece.tiles])
        yield from sums.finish(row, wanted, region)


class _ImageRows:
    """The normalized image rows under the current tile rows, reflected beyond the image's borders."""

    def __init__(self, model: TileFunction, read: ReadWindow, grid: TileGrid, first_row: int, across: range) -> None:
        self.model, self.read, self.grid, self.across = model, read, grid, across
        # A batch may span several tile rows, whose pixels are needed together.
        together = 2 + (grid.batch - 2) // grid.columns.count if grid.batch > 1 else 1
        self.together = min(together, grid.rows.count)
        capacity = grid.rows.tile + (self.together - 1) * grid.rows.stride
        extent = (len(across) - 1) * grid.columns.stride + grid.columns.tile
        self.pixels = torch.empty(model.channels, capacity, extent, device=model.device)
        self.top = self.end = grid.rows.start(first_row)
        """Image rows `top` to `end` are at the front of `pixels`."""

    def copy_tiles(self, piece: Piece, tiles: torch.Tensor) -> None:
        """Fill `tiles` (n, C, P, P) with the piece's pixels."""
        rows, stride = self.grid.rows, self.grid.columns.stride
        top = rows.start(piece.row)
        if top + rows.tile > self.end:
            self._advance(piece.row)
        channel, line, _ = self.pixels.stride()
        offset = (top - self.top) * line + (piece.left - self.across.start) * stride
        tiles.copy_(self.pixels.as_strided(tiles.shape, (stride, channel, line, 1), offset))

    def _advance(self, row: int) -> None:
        """Drop rows that no batch needs together with tile row `row`, and read to the end of that row."""
        rows = self.grid.rows
        top = max(self.top, rows.start(max(row - self.together + 1, 0)))
        kept = max(self.end - top, 0)
        step = top - self.top
        if step:
            # Move to the front, in steps that don't overlap.
            for start in range(0, kept, step):
                end = min(start + step, kept)
                self.pixels[:, start:end] = self.pixels[:, start + step : end + step]
        first, self.top, self.end = top + kept, top, rows.start(row) + rows.tile
        self.pixels[:, kept : self.end - top] = self.model.normalized(self._reflected(first, self.end))

    def _reflected(self, first: int, end: int) -> np.ndarray:
        """Stored pixels of rows `first` to `end` under the tiles, (h, extent, C); reflected outside the image."""
        columns = self.grid.columns
        down = self.grid.rows.reflected(first, end)
        left = columns.start(self.across.start)
        along = columns.reflected(left, left + self.pixels.shape[2])
        top, bottom = int(down.min()), int(down.max()) + 1
        low, high = int(along.min()), int(along.max()) + 1
        stored = self.read(top, bottom, low, high)
        if (np.diff(down) != 1).any():
            stored = stored[down - top]
        before, inside = max(-left, 0), slice(max(left, 0) - low, columns.size - low)
        if before or len(along) > before + stored[:, inside].shape[1]:
            after = along[before + stored[:, inside].shape[1] :] - low
            stored = np.concatenate([stored[:, along[:before] - low], stored[:, inside], stored[:, after]], axis=1)
        return stored


class _RowSums:
    """Sums of weighted probabilities: of the current tile row, and of the rows above, which overlap it."""

    def __init__(self, model: TileFunction, grid: TileGrid, window: np.ndarray, across: range) -> None:
        self.grid, self.across = grid, across
        extent = (len(across) - 1) * grid.columns.stride + grid.columns.tile
        self.current = torch.zeros(model.planes, grid.rows.tile, extent, device=model.device)
        self.above = torch.zeros_like(self.current)
        self.window: torch.Tensor | None = None
        if not (window == 1).all():
            self.window = torch.from_numpy(np.outer(window, window).astype(np.float32)).to(model.device)

    def add(self, piece: Piece, probabilities: torch.Tensor) -> None:
        """Add the tiles of a piece, (n, K, P, P), to the current tile row."""
        if self.window is not None:
            probabilities.mul_(self.window)
        depth, stride = self.grid.columns.depth, self.grid.columns.stride
        plane, line, _ = self.current.stride()
        # Tiles that are `depth` apart don't overlap, so they are added together, as a group. A tile's group depends
        # only on its column, so each pixel is summed in a fixed order.
        for group in range(depth):
            skipped = (group - piece.left) % depth
            part = probabilities[skipped::depth]
            offset = (piece.left + skipped - self.across.start) * stride
            if len(part):
                self.current.as_strided(part.shape, (depth * stride, plane, line, 1), offset).add_(part)

    def finish(self, row: int, wanted: range, region: Region) -> Iterator[FinishedRows]:
        """Add the overlap of the rows above to tile row `row`, yield the rows it finishes, and start the next one."""
        rows, columns = self.grid.rows, self.grid.columns
        if rows.tile > rows.stride:
            self.current[:, : rows.tile - rows.stride].add_(self.above[:, rows.stride :])
        first, end = rows.finished(row)
        top, bottom = max(first, region.top), min(end, region.bottom)
        if row in wanted and top < bottom:
            below, right_of = rows.start(row), columns.start(self.across.start)
            sums = self.current[:, top - below : bottom - below, region.left - right_of : region.right - right_of]
            yield FinishedRows(row, top, bottom, region.left, sums)
        self.current, self.above = self.above, self.current
        self.current.zero_()


class Weights:
    """Sums of the windows at each pixel, by which sums of probabilities become means."""

    def __init__(self, grid: TileGrid, window: np.ndarray, device: torch.device) -> None:
        self.down = torch.from_numpy(grid.rows.weights(window).astype(np.float32)).to(device)
        self.across = torch.from_numpy(grid.columns.weights(window).astype(np.float32)).to(device)

    def mean(self, rows: FinishedRows) -> torch.Tensor:
        """Class probabilities of finished rows, a new float32 tensor (K, h, columns)."""
        across = self.across[rows.left : rows.left + rows.sums.shape[2]]
        return rows.sums / (self.down[rows.top : rows.bottom, None] * across)


def labels_of(sums: torch.Tensor) -> torch.Tensor:
    """The class with the largest sum, uint8 (h, w); the lowest class in a tie, NOT_A_NUMBER for NaN."""
    # Comparing plane by plane is several times faster than argmax over the leading dimension.
    best = sums[0].clone()
    labels = torch.zeros(best.shape, dtype=torch.uint8, device=sums.device)
    for label in range(1, len(sums)):
        labels.masked_fill_(sums[label] > best, label)
        torch.maximum(best, sums[label], out=best)  # NaN stays NaN
    return labels.masked_fill_(best != best, NOT_A_NUMBER)
