"""Stitching tiles: correct values, and the same bits for any division of the work."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from segdist import Predictor, predict
from segdist.core.errors import UserError
from segdist.inference.grid import TileGrid, blending_window, make_grid
from segdist.inference.tiler import NOT_A_NUMBER, Region, TileModel, Weights, finished_rows, labels_of
from segdist.model.precision import Precision
from segdist.model.prepared import prepared
from segdist.model.unet import UNet

TILE = 16
overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.6, 0.75])
blendings = st.sampled_from(["mean", "hann", "gaussian"])
borders = st.sampled_from(["corner", "full"])
sides = st.integers(1, 3 * TILE + 5)
# At 16, this model's results differ from those of smaller batches in the last bits.
batches = st.sampled_from([16, 3, 7])


class Identity(nn.Module):
    """The probability of class 0 is the pixel's value, between 0 and 1."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        return torch.cat([tiles.log(), (1 - tiles).log()], dim=1)


class Constant(nn.Module):
    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        logits = torch.tensor([0.3, -1.7, 0.9, 0.0]).view(1, 4, 1, 1)
        return logits.expand(len(tiles), 4, *tiles.shape[-2:])


class Position(nn.Module):
    """The probability of class 0 encodes the row and column inside the tile."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        side = tiles.shape[-1]
        place = (torch.arange(side).view(-1, 1) * side + torch.arange(side) + 1.0) / (side * side + 1)
        return torch.stack([place.log(), (1 - place).log()]).expand(len(tiles), 2, side, side)


def image_of(height: int, width: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 255, (height, width, channels), dtype=np.uint8)


def tile_model(module: nn.Module, num_classes: int, **options: Any) -> TileModel:
    return TileModel(module.eval(), num_classes, (0.0,), (255.0,), **options)


def stitched(
    model: TileModel,
    image: np.ndarray,
    grid: TileGrid,
    blending: Any = "mean",
    tile_rows: range | None = None,
    region: Region | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities and labels, concatenated from the rows delivered."""
    window = blending_window(blending, grid.rows.tile)
    weights = Weights(grid, window, model.device)
    read = lambda top, bottom, left, right: image[top:bottom, left:right]  # noqa: E731
    found = [
        (weights.mean(rows), labels_of(rows.sums))
        for rows in finished_rows(model, read, grid, window, tile_rows, region)
    ]
    return torch.cat([means for means, _ in found], dim=1), torch.cat([labels for _, labels in found])


@given(sides, sides, overlaps, blendings, borders, st.integers(1, 7))
@settings(deadline=None, max_examples=80)
def test_identity_model_returns_the_image(
    height: int, width: int, overlap: float, blending: Any, border: Any, batch: int
) -> None:
    image = image_of(height, width)
    means, _ = stitched(
        tile_model(Identity(), 2), image, make_grid(height, width, TILE, overlap, batch, border), blending
    )
    assert torch.allclose(means[0], torch.from_numpy(image[..., 0]) / 255, atol=2e-6)


@given(sides, sides, borders, st.integers(1, 7))
@settings(deadline=None, max_examples=40)
def test_constant_model_returns_the_constant_exactly(height: int, width: int, border: Any, batch: int) -> None:
    image = image_of(height, width)
    means, labels = stitched(tile_model(Constant(), 4), image, make_grid(height, width, TILE, 0.5, batch, border))
    expected = torch.softmax(Constant()(torch.zeros(1, 1, 1, 1)), dim=1)[0]
    assert means.shape == (4, height, width)
    assert torch.equal(means, expected.expand_as(means))
    assert (labels == 2).all()


@given(sides, sides, overlaps, blendings, borders)
@settings(deadline=None, max_examples=60)
def test_each_pixel_is_the_weighted_mean_as_documented(
    height: int, width: int, overlap: float, blending: Any, border: Any
) -> None:
    grid = make_grid(height, width, TILE, overlap, 5, border)
    means, _ = stitched(tile_model(Position(), 2), image_of(height, width), grid, blending)
    tile = Position()(torch.zeros(1, 1, TILE, TILE))[0, 0].exp().double()
    window = torch.from_numpy(np.outer(*[blending_window(blending, TILE)] * 2))
    total, weight = torch.zeros(2, grid.rows.extent, grid.columns.extent, dtype=torch.float64)
    for row in range(grid.rows.count):
        for column in range(grid.columns.count):
            top, left = row * grid.rows.stride, column * grid.columns.stride
            total[top : top + TILE, left : left + TILE] += tile * window
            weight[top : top + TILE, left : left + TILE] += window
    top, left = -grid.rows.origin, -grid.columns.origin
    expected = (total / weight)[top : top + height, left : left + width]
    assert torch.allclose(means[0].double(), expected, atol=1e-6)


@given(st.integers(20, 60), st.integers(20, 60))
@settings(deadline=None, max_examples=15)
def test_shifting_the_image_by_one_stride_shifts_the_result(height: int, width: int) -> None:
    torch.manual_seed(0)
    model = tile_model(nn.Conv2d(1, 3, 3, padding=1), 3)
    stride = TILE // 2
    image = image_of(height + stride, width + stride)
    whole, _ = stitched(model, image, make_grid(height + stride, width + stride, TILE, 0.5, 1))
    moved, _ = stitched(model, image[stride:, stride:], make_grid(height, width, TILE, 0.5, 1))
    # Ignore the corner, where the shifted image has fewer tiles.
    assert torch.equal(whole[:, 2 * stride :, 2 * stride :], moved[:, stride:, stride:])


def tile_unet(*, prepare: bool, width: int, depth: int) -> TileModel:
    torch.manual_seed(1)
    model: nn.Module = UNet(1, 3, width=width, depth=depth).eval()
    if prepare:
        model = prepared(model, torch.device("cpu"), Precision("fp32", "for the test"))
    return TileModel(model, 3, (120.0,), (40.0,), stride_multiple=2**depth)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "prepared"])
def unet(request: pytest.FixtureRequest) -> TileModel:
    return tile_unet(prepare=request.param, width=4, depth=2)


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_any_range_of_tile_rows_gives_the_bits_of_the_whole(unet: TileModel, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 70))
    overlap, border = data.draw(overlaps), data.draw(borders)
    blending, batch = data.draw(blendings), data.draw(batches)
    image = image_of(height, width)
    grid = make_grid(height, width, TILE, overlap, batch, border)
    means, labels = stitched(unet, image, grid, blending)
    finishing = grid.rows.finishing(0, height)
    cut = data.draw(st.integers(finishing.start, finishing.stop))
    for rows in (range(finishing.start, cut), range(cut, finishing.stop)):
        if rows:
            top, bottom = grid.rows.finished(rows.start)[0], grid.rows.finished(rows.stop - 1)[1]
            part, part_labels = stitched(unet, image, grid, blending, rows)
            assert torch.equal(part, means[:, top:bottom])
            assert torch.equal(part_labels, labels[top:bottom])


@pytest.mark.parametrize("cut", [2, 3])
def test_a_range_of_tile_rows_of_the_default_model_gives_the_bits_of_the_whole(
    default_unet: TileModel, cut: int
) -> None:
    image = image_of(301, 207)
    grid = make_grid(301, 207, 96, 0.5, 16)  # 6 x 4 tiles: the second batch is padded
    means, _ = stitched(default_unet, image, grid)
    upper, lower = (stitched(default_unet, image, grid, "mean", rows)[0] for rows in (range(cut), range(cut, 6)))
    assert torch.equal(torch.cat([upper, lower], dim=1), means)


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_a_region_has_the_bits_of_the_whole(unet: TileModel, data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 70))
    image = image_of(height, width)
    grid = make_grid(height, width, TILE, data.draw(overlaps), data.draw(batches), data.draw(borders))
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    blending = data.draw(blendings)
    whole, _ = stitched(unet, image, grid, blending)
    part, _ = stitched(unet, image, grid, blending, region=Region(top, bottom, left, right))
    assert torch.equal(part, whole[:, top:bottom, left:right])


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "prepared"])
def default_unet(request: pytest.FixtureRequest) -> TileModel:
    """The default model and tile side, since torch's kernels depend on the shapes."""
    return tile_unet(prepare=request.param, width=16, depth=4)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_has_the_same_bits_for_any_range_batch_and_number_of_threads(
    default_unet: TileModel, threads: int
) -> None:
    image = image_of(150, 100)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for batch in range(1, 17):
            grid = make_grid(150, 100, 96, 0.5, batch)  # 3 x 2 tiles
            whole, _ = stitched(default_unet, image, grid)
            upper, lower = (stitched(default_unet, image, grid, "mean", rows)[0] for rows in (range(1), range(1, 3)))
            assert torch.equal(torch.cat([upper, lower], dim=1), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("prepare", [False, True], ids=["plain", "prepared"])
@pytest.mark.parametrize(("width", "depth", "tile"), [(4, 2, 32), (16, 4, 96)])
def test_threads_do_not_change_the_bits(width: int, depth: int, tile: int, prepare: bool) -> None:
    model = tile_unet(prepare=prepare, width=width, depth=depth)
    image = image_of(131, 203)
    grid = make_grid(131, 203, tile, 0.5, 16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            results.append(stitched(model, image, grid)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_the_image_is_read_once_and_in_order_except_for_the_reflected_end(unet: TileModel) -> None:
    image = image_of(100, 40)
    reads: list[tuple[int, int]] = []

    def read(top: int, bottom: int, left: int, right: int) -> np.ndarray:
        reads.append((top, bottom))
        return image[top:bottom, left:right]

    list(finished_rows(unet, read, make_grid(100, 40, TILE, 0.5, 4), blending_window("mean", TILE)))
    assert reads[0] == (0, TILE)
    assert all(following[0] == before[1] for before, following in pairwise(reads[:-1]))


def test_flips_average_four_views() -> None:
    torch.manual_seed(2)
    conv = nn.Conv2d(1, 2, 3, padding=1)
    tiles = torch.rand(3, 1, TILE, TILE)
    views = [torch.softmax(conv(tiles.flip(dims)), 1).flip(dims) for dims in ([], [3], [2], [2, 3])]
    expected = sum(views) / 4
    with torch.inference_mode():
        assert torch.allclose(tile_model(conv, 2, flips=True).probabilities(tiles), expected, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("tile", [1, 3, 17, 30])
def test_tiles_of_unsupported_size_are_padded(unet: TileModel, tile: int) -> None:
    means, _ = stitched(unet, image_of(50, 41), make_grid(50, 41, tile, 0.0 if tile == 1 else 0.5, 4))
    assert means.shape == (3, 50, 41)
    assert torch.allclose(means.sum(0), torch.ones(50, 41), atol=1e-5)


def test_nan_pixels_are_marked() -> None:
    sums = torch.rand(3, 2, 2)
    sums[1, 0, 1] = float("nan")
    labels = labels_of(sums)
    assert labels[0, 1] == NOT_A_NUMBER
    assert (labels == NOT_A_NUMBER).sum() == 1


@given(st.integers(1, 6), st.integers(0, 99))
@settings(deadline=None, max_examples=20)
def test_labels_match_argmax(classes: int, seed: int) -> None:
    sums = torch.randint(0, 4, (classes, 9, 11), generator=torch.Generator().manual_seed(seed)).float()
    assert torch.equal(labels_of(sums).long(), torch.from_numpy(sums.numpy().argmax(axis=0)))


def test_a_model_with_the_wrong_number_of_classes_is_named() -> None:
    with pytest.raises(UserError, match="2 channels for 3 classes"):
        stitched(tile_model(Identity(), 3), image_of(20, 20), make_grid(20, 20, TILE, 0.5, 2))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("no"), RuntimeError("input has more than INT_MAX elements")])
def test_out_of_memory_names_the_batch_size_and_the_fix(error: Exception) -> None:
    class TooLarge(torch.nn.Module):
        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            raise error

    with pytest.raises(UserError, match=r"out of memory with \d+ tiles .* smaller --batch-size or --tile"):
        stitched(tile_model(TooLarge(), 2), image_of(20, 20), make_grid(20, 20, TILE, 0.5, 2))


def test_predict_accepts_arrays_and_custom_models() -> None:
    image = image_of(33, 21)
    options: dict[str, Any] = {"num_classes": 2, "tile": TILE, "mean": (0.0,), "std": (255.0,), "device": "cpu"}
    result = predict(Identity(), image[..., 0], **options)
    assert result.shape == (2, 33, 21)
    assert np.allclose(result[0], image[..., 0] / 255, atol=1e-6)
    assert (Predictor(Identity(), **options).labels(image) == (image[..., 0] < 127.5)).all()


def test_labels_are_written_into_the_given_array(tmp_path: Path) -> None:
    image = image_of(33, 21)
    predictor = Predictor(
        Identity(), num_classes=2, tile=TILE, mean=(0.0,), std=(255.0,), device="cpu", precision="fp32", overlap=0.5
    )
    out = np.memmap(tmp_path / "mask", np.uint8, "w+", shape=(33, 21))
    assert predictor.labels(image, out=out) is out
    assert (out == predictor.labels(image)).all()
    for wrong in (np.zeros((33, 20), np.uint8), np.zeros((33, 21), np.int64)):
        with pytest.raises(UserError, match=r"uint8 \(33, 21\)"):
            predictor.labels(image, out=wrong)


def test_predict_refuses_unusable_input() -> None:
    with pytest.raises(UserError, match="num_classes, tile"):
        predict(Identity(), image_of(4, 4))
    with pytest.raises(UserError, match="float64"):
        predict(Identity(), np.zeros((4, 4)), num_classes=2, tile=8, mean=(0.0,), std=(1.0,))


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu_up_to_rounding() -> None:
    torch.manual_seed(4)
    image = image_of(301, 207)
    options: dict[str, Any] = {"num_classes": 3, "tile": 64, "mean": (120.0,), "std": (40.0,), "precision": "fp32"}
    model = UNet(1, 3, width=8)
    found = {device: predict(model, image, device=device, **options) for device in ("cpu", "cuda")}
    assert np.abs(found["cpu"] - found["cuda"]).max() < 1e-3
