"""Reads a finished folder of predictions: stored probabilities and true masks, block by block.

Any folder that `segdist infer` has written works, if its images have masks and `--output.probabilities` was set.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from segdist.core.errors import UserError
from segdist.core.formats import unstamped
from segdist.core.parsing import from_dict
from segdist.core.paths import PROBABILITIES, STATE
from segdist.inference.finished_log import FinishedLog, read_json
from segdist.inference.layers import MASK, dequantized
from segdist.inference.result_folder import SETTINGS, SETTINGS_VERSION
from segdist.inference.result_identity import BY_FOLD, TEMPERATURES, TRUTH
from shards.images.config import MasksConfig
from shards.images.masks import MaskFile, MaskReader, unknown_message

BLOCK_VALUES = 2**21
"""Probabilities per block; a block has at least one row."""


@dataclass(frozen=True)
class FinishedImage:
    """An image with a true mask."""

    name: str
    path: str
    mask: str
    upright: bool
    probabilities: Path
    prediction: Path
    """The predicted mask."""
    top: int
    left: int
    """Corner of the results in the image; 0 without `--roi`."""
    confusion: list[list[int]]
    """Confusion matrix, (K, K), with the truth in rows; ignored pixels are not counted."""


@dataclass(frozen=True)
class Block:
    """Rows of an image: truth uint8 (h, W), probabilities float32 (K, h, W)."""

    top: int
    truth: np.ndarray
    probabilities: np.ndarray


class FinishedResult:
    """A folder of predictions with probabilities and true masks.

    Raises:
        UserError: it isn't a folder of predictions, is unfinished, or lacks masks or probabilities.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        settings_file = folder / STATE / SETTINGS
        if not settings_file.is_file():
            raise UserError(
                f"{folder}: not a folder of predictions (no {STATE}/{SETTINGS}); give one that segdist infer wrote"
            )
        self.settings = unstamped(read_json(settings_file), SETTINGS_VERSION, str(settings_file))
        truth = self.settings.get(TRUTH)
        if not truth:
            raise UserError(
                f"{folder}: doesn't say how to read the true masks; run segdist infer again with --data SET or "
                "--masks.folder DIR (and another --out, if an earlier version made this one)"
            )
        self.class_names: list[str] = truth["classes"]
        config = from_dict(MasksConfig, truth["masks"], str(settings_file))
        self.reader = MaskReader(config).in_order_of(self.class_names)
        self.classes = self.reader.classes

    @property
    def temperature(self) -> float:
        """The temperature of the stored probabilities.

        Raises:
            UserError: they come from an ensemble, or from models with different temperatures.
        """
        temperatures = self.settings.get(TEMPERATURES, [1.0])
        if self.settings.get(BY_FOLD):
            if len(set(temperatures)) > 1:
                raise UserError(
                    f"{self.folder}: the models had different temperatures; run segdist infer --out-of-fold again "
                    "with --no-calibrated and another --out"
                )
        elif len(temperatures) > 1:
            raise UserError(
                f"{self.folder}: these are the predictions of an ensemble, but a temperature belongs to one model; "
                "give predictions of a single model"
            )
        return float(temperatures[0])

    @cached_property
    def images(self) -> list[FinishedImage]:
        """The images with true masks, by name.

        Raises:
            UserError: there are none, or their probabilities weren't stored as NumPy arrays.
        """
        found = []
        for name, record in sorted(FinishedLog(self.folder / STATE).read().items()):
            source, files = record["source"], record["files"]
            if not source.get("mask"):
                continue
            if not files.get(PROBABILITIES, "").endswith(".npy"):
                raise UserError(
                    f"{self.folder}: no probabilities in NumPy arrays; run segdist infer with "
                    "--output.probabilities float16 and another --out"
                )
            top, left = (self.settings.get("roi") or (0, 0))[:2]
            found.append(
                FinishedImage(
                    name,
                    source["image"],
                    source["mask"],
                    source.get("upright", True),
                    self.folder / files[PROBABILITIES],
                    self.folder / files[MASK],
                    top,
                    left,
                    record["scores"]["confusion_matrix"],
                )
            )
        if not found:
            raise UserError(f"{self.folder}: none of its images has a true mask")
        return found

    @contextmanager
    def opened(self, image: FinishedImage) -> Iterator["OpenedResult"]:
        """Open an image to read it by rows.

        Raises:
            UserError: a file is missing or damaged, or the mask is too small.
        """
        stored = self._stored(image)
        _, height, width = stored.shape
        with self.reader.open(image.mask, upright=image.upright) as mask:
            if image.top + height > mask.height or image.left + width > mask.width:
                raise UserError(
                    f"{image.mask}: the mask has {mask.height} x {mask.width} pixels, too few for {image.path}"
                )
            yield OpenedResult(image, stored, mask)

    def blocks(self, image: FinishedImage) -> Iterator[Block]:
        """The image in blocks of about `BLOCK_VALUES` probabilities, from top to bottom.

        Raises:
            UserError: see `opened` and `OpenedResult.read`.
        """
        with self.opened(image) as opened:
            for top, bottom in opened.bands():
                yield opened.read(top, bottom)

    def smallest(self) -> float:
        """The probability that a stored 0 is taken for: half the smallest one that the type can hold."""
        kind = np.load(self.images[0].probabilities, mmap_mode="r").dtype
        return float(np.finfo(kind).smallest_subnormal if kind.kind == "f" else 1 / np.iinfo(kind).max) / 2

    def _stored(self, image: FinishedImage) -> np.ndarray:
        try:
            stored: np.ndarray = np.load(image.probabilities, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{image.probabilities}: can't be read ({error}); run segdist infer again") from None
        if stored.ndim != 3 or len(stored) != len(self.class_names):
            raise UserError(
                f"{image.probabilities}: shape {stored.shape}, not a map for each of {len(self.class_names)} classes"
            )
        return stored


class OpenedResult:
    """Stored probabilities and true mask of one image."""

    def __init__(self, image: FinishedImage, stored: np.ndarray, mask: MaskFile) -> None:
        self.image, self._stored, self._mask = image, stored, mask
        self.num_classes = len(stored)
        self.shape: tuple[int, int] = stored.shape[1:]
        self.band_pixels = max(1, BLOCK_VALUES // self.num_classes)

    def bands(self) -> Iterator[tuple[int, int]]:
        """First and end row of each band of about `band_pixels`."""
        height, width = self.shape
        step = max(1, self.band_pixels // width)
        for top in range(0, height, step):
            yield top, min(top + step, height)

    def read(self, top: int, bottom: int) -> Block:
        """Rows `top` to `bottom` of the result.

        Raises:
            UserError: the mask is damaged, or has values without a class.
        """
        image, width = self.image, self.shape[1]
        rows = image.top + top, image.top + bottom
        truth, unknown = self._mask.read_counted(*rows, image.left, image.left + width)
        if unknown:
            raise UserError(unknown_message({image.mask: unknown}, self._mask.reader.config))
        return Block(top, truth, dequantized(self._stored[:, top:bottom]))
