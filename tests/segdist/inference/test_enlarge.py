"""Probabilities of a downscaled image, enlarged to full size: correct values, and the same bits from any start."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from segdist.inference.enlarge import Means, Scale, image_rows
from segdist.inference.grid import TileGrid, blending_window, make_grid
from segdist.inference.tiler import Region, TileModel
from shards.images.reduce import reduced_pixels

Read = Callable[[int, int, int, int], np.ndarray]


class PerPixel(nn.Module):
    """Logits that depend only on the pixel, so tiles and overlap change nothing."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images, -images, images * images], dim=1)


def model(module: nn.Module | None = None) -> TileModel:
    return TileModel(module or PerPixel(), 3, (120.0,), (60.0,))


def convolution() -> nn.Module:
    torch.manual_seed(2)
    return nn.Conv2d(1, 3, 5, padding=2).eval()


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (height, width, 1)).astype(np.uint8)


def reading(image: np.ndarray) -> Read:
    return lambda top, bottom, left, right: image[top:bottom, left:right]


def segmented(
    image: np.ndarray,
    factor: int,
    *,
    module: nn.Module | None = None,
    tile_rows: range | None = None,
    region: Region | None = None,
    overlap: float = 0.5,
) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """Probabilities (K, H, W), NaN for missing rows, and (tile row, top, bottom) of each piece delivered."""
    scale = Scale(factor, *image.shape[:2])
    grid = grid_of(scale, overlap)
    window, tiles = blending_window("hann", 16), model(module)
    region = region or Region(0, scale.height, 0, scale.width)
    means = Means(grid, window, torch.device("cpu"), scale)
    result = np.full((3, *image.shape[:2]), np.nan, np.float32)
    came = []
    read = scale.reading(reading(image))
    for rows in image_rows(tiles, read, grid, window, scale, tile_rows or range(grid.rows.count), region):
        result[:, rows.top : rows.bottom, region.left : region.right] = means.mean(rows).numpy()
        came.append((rows.tile_row, rows.top, rows.bottom))
    return result, came


def grid_of(scale: Scale, overlap: float = 0.5) -> TileGrid:
    return make_grid(*scale.reduced_shape, 16, overlap, 4)


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("shape", [(101, 83), (64, 128), (5, 7), (1, 1)])
def test_probabilities_are_interpolated_between_centers_of_downscaled_pixels(
    shape: tuple[int, int], factor: int
) -> None:
    image = picture(*shape)
    found, _ = segmented(image, factor)
    small = torch.from_numpy(reduced_pixels(image, factor).astype(np.float32)).permute(2, 0, 1)[None]
    small = PerPixel()((small - 120) / 60).softmax(dim=1)
    expected = functional.interpolate(small, scale_factor=factor, mode="bilinear", align_corners=False)[0]
    assert found == pytest.approx(expected[:, : shape[0], : shape[1]].numpy(), abs=1e-5)


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("overlap", [0.5, 0.25, 0.75])
def test_ranges_of_tile_rows_give_the_bits_of_the_whole(factor: int, overlap: float) -> None:
    image = picture(331, 147)
    whole, came = segmented(image, factor, module=convolution(), overlap=overlap)
    assert came[0][1] == 0
    assert all(one[2] == other[1] for one, other in pairwise(came))
    count = grid_of(Scale(factor, 331, 147), overlap).rows.count
    for cut in range(1, count):
        parts = [
            segmented(image, factor, module=convolution(), tile_rows=rows, overlap=overlap)
            for rows in (range(cut), range(cut, count))
        ]
        assert parts[0][1] + parts[1][1] == came
        top = parts[1][1][0][1]
        assert np.array_equal(parts[0][0][:, :top], whole[:, :top])
        assert np.array_equal(parts[1][0][:, top:], whole[:, top:])


@pytest.mark.parametrize("factor", [2, 4])
def test_a_region_has_the_bits_of_the_whole(factor: int) -> None:
    image = picture(211, 173)
    whole, _ = segmented(image, factor, module=convolution())
    for top, bottom, left, right in ((0, 211, 0, 173), (1, 2, 3, 4), (57, 131, 20, 173), (209, 211, 0, 1)):
        region = Region(top, bottom, left, right)
        found, came = segmented(image, factor, module=convolution(), region=region)
        assert np.array_equal(found[:, top:bottom, left:right], whole[:, top:bottom, left:right])
        scale = Scale(factor, 211, 173)
        assert [row for row, _, _ in came] == list(scale.finishing(grid_of(scale).rows, top, bottom))
        assert (came[0][1], came[-1][2]) == (top, bottom)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_tile_rows_partition_the_rows_of_the_full_image(factor: int) -> None:
    for height in (1, 3, 17, 64, 331):
        scale = Scale(factor, height, 50)
        axis = grid_of(scale).rows
        rows = [scale.rows(axis, row) for row in range(axis.count)]
        assert [row for first, end in rows for row in range(first, end)] == list(range(height))
        for y in range(height):
            (row,) = scale.finishing(axis, y, y + 1)
            assert rows[row][0] <= y < rows[row][1]
