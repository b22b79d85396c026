"""Masks of a user's own data: pixel values or colors → class labels. H W: height and width in pixels.

Classes are given as text, label 0 first: `background` (the label itself is the value), `myelin=127,128` (values),
`axon=192-255` (a range of values) or `road=#804080` (colors of RGB masks). The same reader serves make-shards and
the evaluation of predictions.
"""

import io
from collections import Counter
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from segdist.core.errors import UserError
from segdist.core.parsing import from_dict
from shards.images.class_values import pack_color, parse_classes, unpack_colors
from shards.images.config import MasksConfig
from shards.images.image_file import ImageFile
from shards.images.opening import TIFF_SUFFIXES, open_image, split_address
from shards.manifest import IGNORE, ClassInfo

Labels = NDArray[np.uint8]

_UNKNOWN = 254
"""Label of values that are in no class, while they are being looked up."""


class MaskReader:
    """Reads mask files as labels, by one `MasksConfig`."""

    def __init__(self, config: MasksConfig) -> None:
        """Raises UserError where the config makes no sense; the message names the setting."""
        self.config = config
        table = parse_classes(config.classes, config.ignore, config.colors)
        self.by_color, self.classes, self._labeled = table.by_color, table.classes, table.labeled

    def open(self, address: str | Path) -> "MaskFile":
        """The mask (as for `open_image`), to be read whole or by window. Raises UserError when it can't be read."""
        return MaskFile(self, address)

    def read(self, path: str | Path) -> Labels:
        """The whole mask as labels (H, W), with IGNORE where pixels count nowhere.

        Raises:
            UserError: values in no class (with their counts), or a file that can't be read.
        """
        with self.open(path) as mask:
            labels, unknown = mask.read_counted(0, mask.height)
        if unknown:
            raise UserError(unknown_message({str(path): unknown}, self.config))
        return labels

    def labels(self, values: NDArray[Any]) -> tuple[Labels, Counter[str]]:
        """Labels (H, W) of pixel values (H, W, 1 or 3), and how often each value outside the classes occurs.

        With `unknown` "ignore" or "nearest" there are none of these.
        """
        if self.by_color:
            return self._labels_of_colors(values)
        table = self._table
        flat = values[..., 0]
        if flat.size and flat.max() >= len(table):
            flat = np.minimum(flat, len(table) - 1)
        labels = table[flat]
        unknown: Counter[str] = Counter()
        if self.config.unknown == "refuse" and (outside := labels == _UNKNOWN).any():
            found, counts = np.unique(values[..., 0][outside], return_counts=True)
            unknown.update({str(value): int(count) for value, count in zip(found, counts, strict=True)})
        return labels, unknown

    @cached_property
    def _table(self) -> Labels:
        """Label of each 16-bit value."""
        table = np.full(65536, _UNKNOWN, np.uint8)
        for label, entry in self._labeled:
            for low, high in entry.ranges:
                table[low : high + 1] = label
        if self.config.unknown == "ignore":
            table[table == _UNKNOWN] = IGNORE
        elif self.config.unknown == "nearest":
            known = np.flatnonzero(table != _UNKNOWN)
            values = np.arange(len(table))
            above = np.minimum(np.searchsorted(known, values), len(known) - 1)
            below = np.maximum(above - 1, 0)
            nearer_below = np.abs(values - known[below]) <= np.abs(known[above] - values)
            table = table[known[np.where(nearer_below, below, above)]]
        return table

    def _labels_of_colors(self, values: NDArray[Any]) -> tuple[Labels, Counter[str]]:
        if values.shape[2] == 1:
            values = np.repeat(values, 3, axis=2)
        if values.dtype == np.uint16:
            values = values >> 8  # colors are said in 8 bit
        packed = (values[..., 0].astype(np.int32) << 16) | (values[..., 1].astype(np.int32) << 8) | values[..., 2]
        # One look-up per color that occurs, not per pixel: a mask has few.
        found, place, counts = np.unique(packed, return_inverse=True, return_counts=True)
        known = np.array([pack_color(color) for _, entry in self._labeled for color in entry.colors])
        labels = np.array([label for label, entry in self._labeled for _ in entry.colors], np.uint8)
        order = np.argsort(known)
        known, labels = known[order], labels[order]
        at = np.minimum(np.searchsorted(known, found), len(known) - 1)
        result = np.where(known[at] == found, labels[at], _UNKNOWN).astype(np.uint8)
        outside = np.flatnonzero(result == _UNKNOWN)
        unknown: Counter[str] = Counter()
        if self.config.unknown == "ignore":
            result[outside] = IGNORE
        elif self.config.unknown == "nearest":
            distance = np.abs(unpack_colors(found[outside])[:, None] - unpack_colors(known)[None]).sum(axis=2)
            result[outside] = labels[distance.argmin(axis=1)] if outside.size else 0
        else:
            unknown.update({f"#{int(found[i]):06x}": int(counts[i]) for i in outside})
        return result[place].reshape(packed.shape), unknown


class MaskFile:
    """An open mask; a context manager. TIFF files are read by window, everything else is decoded once."""

    def __init__(self, reader: MaskReader, address: str | Path) -> None:
        path, page = split_address(address)
        self.reader, self.path = reader, path
        self._values: NDArray[Any] | None = None
        self._file: ImageFile | None = None
        # `open_image` looks palettes up; where indices are the labels, Pillow hands them out.
        if path.suffix.lower() in TIFF_SUFFIXES and (reader.by_color or not _has_palette(path, page)):
            self._file = open_image(address)
            self.height, self.width, channels = self._file.height, self._file.width, self._file.channels
            if not self._file.windowed:
                self._values = self._file.read(0, self.height)
        else:
            self._values = _decode(path, page, as_colors=reader.by_color)
            self.height, self.width, channels = self._values.shape
        self.windowed = self._values is None
        if channels not in (1, 3):
            raise UserError(f"{path}: a mask has one channel (values) or three (colors), this one has {channels}")
        if channels == 3 and not reader.by_color:
            self._refuse_colors()

    def read_counted(
        self, top: int, bottom: int, left: int = 0, right: int | None = None
    ) -> tuple[Labels, Counter[str]]:
        """Labels of a window, and the values outside the classes with their counts."""
        return self.reader.labels(self._window(top, bottom, left, right))

    def read(self, top: int, bottom: int, left: int = 0, right: int | None = None) -> Labels:
        """Labels of a window whose values have been checked."""
        return self.read_counted(top, bottom, left, right)[0]

    def close(self) -> None:
        if self._file is not None:
            self._file.__exit__(None, None, None)

    def __enter__(self) -> Self:
        if self._file is not None:
            self._file.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _window(self, top: int, bottom: int, left: int, right: int | None) -> NDArray[Any]:
        if self._values is not None:
            return self._values[top:bottom, left:right]
        assert self._file is not None
        return self._file.read(top, bottom, left, right)

    def _refuse_colors(self) -> None:
        """An RGB file is fine for values when it is gray all over; then one channel says it all."""
        sample = self._window(0, min(self.height, 512), 0, None)
        if (sample[..., :1] != sample).any():
            found = {
                f"#{pack_color(tuple(color)):06x}" for color in np.unique(sample.reshape(-1, 3), axis=0)[:8].tolist()
            }
            raise UserError(
                f"{self.path}: the mask is colored ({', '.join(sorted(found))}, …) and --masks.classes gives values; "
                "give colors instead, for example `background=#000000 cell=#ff0000`"
            )


def mask_reader_from_recipe(recipe: dict[str, Any]) -> MaskReader:
    """The reader of the masks that a shard set was built from; for a synthetic set, of its own palette masks."""
    return MaskReader(from_dict(MasksConfig, recipe["masks"], "recipe in the manifest"))


def unknown_message(found: dict[str, Counter[str]], config: MasksConfig) -> str:
    """What to tell about values outside the classes, per file, and the ways out."""
    lines = []
    for path, counts in list(found.items())[:10]:
        shown = ", ".join(f"{value} ({count} px)" for value, count in counts.most_common(8))
        lines.append(f"  {path}: {shown}" + (f" and {len(counts) - 8} more values" if len(counts) > 8 else ""))
    if len(found) > 10:
        lines.append(f"  … and {len(found) - 10} more files")
    ways = [
        "list them in --masks.classes (`name=127,128` or `name=120-140`) or --masks.ignore",
        "--masks.unknown ignore",
    ]
    if any(len(counts) > 8 for counts in found.values()):
        ways.append("--masks.unknown nearest (many values: the masks were interpolated or saved as JPEG)")
    classes = " ".join(config.classes)
    return (
        f"values in the masks that belong to no class ({classes}):\n"
        + "\n".join(lines)
        + "\nways out: "
        + "; ".join(ways)
    )


def encode_mask(labels: Labels, classes: tuple[ClassInfo, ...]) -> bytes:
    """A palette PNG of labels (H, W) in the classes' colors."""
    image = Image.fromarray(labels, "L")
    image.putpalette([part for info in classes for part in info.color])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def mask_size(address: Path) -> tuple[int, int]:
    """(height, width) of a mask, from its header. Raises UserError when it can't be read."""
    path, page = split_address(address)
    if page or not _has_palette(path, page):
        with open_image(address) as image:
            return image.height, image.width
    with Image.open(path) as image:
        return image.height, image.width


def _has_palette(path: Path, page: int) -> bool:
    try:
        with Image.open(path) as image:
            image.seek(page)
            return image.mode == "P"
    except (OSError, EOFError, ValueError, SyntaxError):
        return False  # whoever opens it next says what is wrong


def _decode(path: Path, page: int, as_colors: bool) -> NDArray[Any]:
    """Pixel values (H, W, 1 or 3) of an image file; a palette image gives its indices, or its colors on demand."""
    try:
        with Image.open(path) as file:
            if file.format == "PNG" and file.mode in ("RGB", "RGBA"):
                with open_image(path) as opened:  # 16-bit values in several channels, too
                    return opened.read(0, opened.height)

            file.seek(page)
            # Upright, as the image is read.
            image = ImageOps.exif_transpose(file)
            if image.mode == "1":
                image = image.convert("L")
            elif image.mode == "P" and as_colors:
                image = image.convert("RGB")
            array = np.asarray(image)
    except (OSError, EOFError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: can't be read as a mask ({error}); replace or remove it") from None
    if array.ndim == 2:
        return array[:, :, None]
    # Transparency says nothing about labels.
    return array[:, :, :1] if array.shape[2] == 2 else array[:, :, :3]
