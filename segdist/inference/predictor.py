"""Segments one image in memory, for notebooks and programs: `segdist.predict(model, image)`.

Uses the same tiler as `segdist infer`, so the bits are the same. Letters: C channels, K classes, H W pixels.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from segdist.core.errors import UserError
from segdist.inference.enlarge import Means, Scale, image_rows
from segdist.inference.ensemble import Ensemble, load_tile_model
from segdist.inference.grid import Blending, Borders, TileGrid, blending_window, make_grid
from segdist.inference.tiler import FinishedRows, Region, TileModel, labels_of
from segdist.model.card import inference_settings, read_card, resolve_ensemble
from segdist.model.precision import Choice, choose_precision
from shards.images.opening import match_channels, open_image

BATCH = 16


class Predictor:
    """A model that is loaded once and segments any number of images.

    Args:
        model: run folder or model file; several of them, or a folder with the runs fold-1, fold-2 …, form an ensemble
            whose probabilities are averaged. Or your own model, float32 (B, C, H, W) → logits (B, K, H, W), which
            requires `num_classes`, `tile`, and `mean` and `std` (per channel, in the images' units).
        tile, overlap, flips: tile side, fraction of a tile shared with its neighbor, and whether to average over flips;
            default: from the model card.
        calibrated: divide logits by the temperature in the model's card before the softmax.
        device: "auto", "cpu" or "cuda".
        channels_last: run the model in NHWC order, which is faster; the last bits differ from NCHW.
        trust_factory: module or modules whose model factories a model file may name, in addition to segdist's own and
            those that this user has trained with. Factories are imported and called (docs/security.md).
    """

    def __init__(
        self,
        model: str | Path | Sequence[str | Path] | nn.Module,
        *,
        tile: int = 0,
        overlap: float | None = None,
        blending: Blending = "mean",
        borders: Borders = "corner",
        flips: bool | None = None,
        calibrated: bool = True,
        batch_size: int = BATCH,
        device: str = "auto",
        precision: Choice = "auto",
        channels_last: bool = True,
        num_classes: int = 0,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
        stride_multiple: int = 0,
        trust_factory: str | tuple[str, ...] = (),
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        run_in = choose_precision(precision, torch.device(device))
        self.model: TileModel | Ensemble
        if isinstance(model, nn.Module):
            if not (num_classes and mean and len(mean) == len(std) and tile):
                raise UserError("your own model needs num_classes, tile, and mean and std per channel")
            self.model = TileModel(
                model.to(device).eval(),
                num_classes,
                mean,
                std,
                device,
                stride_multiple=stride_multiple or int(getattr(model, "stride_multiple", 1)),
                precision=run_in,
                flips=bool(flips),
                channels_last=channels_last,
            )
            self.factor = 1
        else:
            names = [model] if isinstance(model, str | Path) else model
            if not names:
                raise UserError("no model: give a run folder, a model file, or several of them")
            files = resolve_ensemble([Path(name) for name in names])
            wishes = inference_settings(files)
            tile = tile or wishes["tile"]
            overlap = wishes["overlap"] if overlap is None else overlap
            self.model = load_tile_model(
                files,
                torch.device(device),
                run_in,
                flips=wishes["flips"] if flips is None else flips,
                channels_last=channels_last,
                calibrated=calibrated,
                trusted=(trust_factory,) if isinstance(trust_factory, str) else trust_factory,
            )
            self.factor = read_card(files[0]).scale
        self.tile, self.borders, self.batch_size = tile, borders, batch_size
        self.overlap = 0.5 if overlap is None else overlap
        self.window = blending_window(blending, tile)

    def probabilities(self, image: np.ndarray | str | Path) -> np.ndarray:
        """Class probabilities, float32 (K, H, W), of an image (H, W) or (H, W, C), or of an image file."""
        pixels = self._pixels(image)
        scale, grid = self._grid(pixels)
        means = Means(grid, self.window, self.model.device, scale)
        result = np.empty((self.model.num_classes, *pixels.shape[:2]), np.float32)
        for rows in self._rows(pixels, scale, grid):
            result[:, rows.top : rows.bottom] = means.mean(rows).cpu().numpy()
        return result

    def labels(self, image: np.ndarray | str | Path, out: np.ndarray | None = None) -> np.ndarray:
        """The most probable class of each pixel, uint8 (H, W).

        Args:
            image: as for `probabilities`.
            out: array to write to, uint8 (H, W); a `numpy.memmap` for masks that don't fit in memory.
        """
        pixels = self._pixels(image)
        if out is None:
            out = np.empty(pixels.shape[:2], np.uint8)
        elif out.dtype != np.uint8 or out.shape != pixels.shape[:2]:
            raise UserError(
                f"out is {out.dtype} {out.shape}, but the labels of this image are uint8 {pixels.shape[:2]}"
            )
        for rows in self._rows(pixels, *self._grid(pixels)):
            out[rows.top : rows.bottom] = labels_of(rows.sums).cpu().numpy()
        return out

    def _pixels(self, image: np.ndarray | str | Path) -> np.ndarray:
        """The image as uint8 or uint16 (H, W, C) with the model's channels."""
        if not isinstance(image, np.ndarray):
            with open_image(image, channels=self.model.channels) as opened:
                return match_channels(opened.read(0, opened.height), self.model.channels, opened.path)
        if image.dtype not in (np.uint8, np.uint16) or image.ndim not in (2, 3) or 0 in image.shape:
            raise UserError(f"an image of {image.dtype} {image.shape}: give uint8 or uint16, (H, W) or (H, W, C)")
        return match_channels(image[..., None] if image.ndim == 2 else image, self.model.channels, "the image")

    def _grid(self, pixels: np.ndarray) -> tuple[Scale, TileGrid]:
        scale = Scale(self.factor, *pixels.shape[:2])
        return scale, make_grid(*scale.reduced_shape, self.tile, self.overlap, self.batch_size, self.borders)

    def _rows(self, pixels: np.ndarray, scale: Scale, grid: TileGrid) -> Iterator[FinishedRows]:
        def read(top: int, bottom: int, left: int, right: int) -> np.ndarray:
            return pixels[top:bottom, left:right]

        region, tile_rows = Region(0, scale.height, 0, scale.width), range(grid.rows.count)
        return image_rows(self.model, scale.reading(read), grid, self.window, scale, tile_rows, region)


def predict(
    model: str | Path | Sequence[str | Path] | nn.Module, image: np.ndarray | str | Path, **options: object
) -> np.ndarray:
    """Class probabilities of an image.

    Args:
        model: run folder, model file, several of them, or your own model; see `Predictor`, also for the options.
        image: uint8 or uint16 (H, W) or (H, W, C), or the path of an image file.

    Returns:
        float32 (K, H, W), summing to 1 over the classes.

    Raises:
        UserError: the model or the image can't be used, or they don't match.
    """
    return Predictor(model, **options).probabilities(image)  # type: ignore[arg-type]
