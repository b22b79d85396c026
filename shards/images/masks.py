"""Masks of the user's data: pixel values or colors → class labels. H W: height and width in pixels.

Classes are given as text, label 0 first: `background` (the label itself is the value), `myelin=127,128` (values),
`axon=192-255` (a range of values), `cell=1-` (all from 1) or `road=#804080` (colors of RGB masks). The same reader
is used by make-shards and for the evaluation of predictions.

Values are those in the file, not as a viewer shows them: palettes give their indices, inverted gray is not inverted
back, and one to seven bits are not scaled. Any integer type is fine, and so are floats with whole numbers.
"""

import copy
import io
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segdist.core.errors import UserError
from segdist.core.json_values import JsonObject
from segdist.core.parsing import from_dict
from shards.images.class_values import pack_color, parse_classes, unpack_colors
from shards.images.config import MasksConfig
from shards.images.image_file import ImageFile, Values, bands
from shards.images.opening import open_image, split_address
from shards.manifest import IGNORE, ClassInfo
from shards.pixels import Pixels

Labels = NDArray[np.uint8]

_UNKNOWN = 254
"""Temporary label of values in no class, during the lookup."""


class MaskReader:
    """Reads mask files as labels, according to a `MasksConfig`."""

    def __init__(self, config: MasksConfig) -> None:
        """Raises UserError if the config is invalid; the message names the setting."""
        self.config = config
        table = parse_classes(config.classes, config.ignore, config.colors)
        self.by_color, self.classes, self._labeled = table.by_color, table.classes, table.labeled

    def in_order_of(self, class_names: Sequence[str]) -> "MaskReader":
        """A reader for the same masks with labels numbered as in `class_names`, a permutation of its own names."""
        reader = copy.copy(self)
        places = [class_names.index(info.name) for info in self.classes]
        reader.classes = tuple(info for _, info in sorted(zip(places, self.classes, strict=True)))
        reader._labeled = tuple(
            (label if label == IGNORE else places[label], values) for label, values in self._labeled
        )
        reader.__dict__.pop("_table", None)
        return reader

    def open(self, address: str | Path, *, upright: bool = True) -> "MaskFile":
        """Open a mask (address as for `open_image`), to read it whole or by window.

        Raises:
            UserError: it can't be read, or its content is entirely in the alpha channel.
        """
        return MaskFile(self, address, upright)

    def read(self, path: str | Path) -> Labels:
        """The whole mask as labels (H, W), with IGNORE for ignored pixels.

        Raises:
            UserError: values in no class (with their counts), or a file that can't be read.
        """
        with self.open(path) as mask:
            labels, unknown = mask.read_counted(0, mask.height)
        if unknown:
            raise UserError(unknown_message({str(path): unknown}, self.config))
        return labels

    def labels(self, values: Pixels, *, one_bit: bool = False) -> tuple[Labels, Counter[str]]:
        """Labels (H, W) of pixel values (H, W, 1 or 3), and the count of each value outside the classes.

        With `unknown` "ignore" or "nearest" there are no such values. `one_bit`: the file holds bits, and the user may
        know its 1 as 255.
        """
        if self.by_color:
            return self._labels_of_colors(values)
        flat = values[..., 0]
        if one_bit and self._one_is_255:
            flat = flat * np.uint8(255)
        if flat.dtype in (np.uint8, np.uint16):
            labels = self._table[flat]
        else:
            found, place = np.unique(flat, return_inverse=True)
            labels = self._labels_of_values(found)[place].reshape(flat.shape)
        unknown: Counter[str] = Counter()
        if self.config.unknown == "refuse" and (outside := labels == _UNKNOWN).any():
            found, counts = np.unique(flat[outside], return_counts=True)
            unknown.update(
                {
                    f"{value:g}" if flat.dtype.kind == "f" else str(value): int(count)
                    for value, count in zip(found, counts, strict=True)
                }
            )
        return labels, unknown

    @cached_property
    def _table(self) -> Labels:
        """Label of each 16-bit value."""
        return self._labels_of_values(np.arange(65536))

    @cached_property
    def _one_is_255(self) -> bool:
        """True if the classes say 255 where a one-bit file has 1."""
        zero, one, white = self._known_labels(np.array([0, 1, 255]))
        return bool(white != _UNKNOWN and one in (_UNKNOWN, zero))

    def _labels_of_values(self, values: Pixels) -> Labels:
        """Labels of values of any type, with unknown values treated as configured."""
        labels = self._known_labels(values)
        outside = labels == _UNKNOWN
        if self.config.unknown == "ignore":
            labels[outside] = IGNORE
        elif self.config.unknown == "nearest" and outside.any():
            ranges = sorted((low, high, label) for label, entry in self._labeled for low, high in entry.ranges)
            lows, highs, of_range = (np.array(column) for column in zip(*ranges, strict=True))
            strays = values[outside].astype(np.float64)[:, None]
            distance = np.maximum(np.maximum(lows - strays, strays - highs), 0)
            nearest = np.where(np.isnan(strays[:, 0]), IGNORE, of_range[distance.argmin(axis=1)])
            labels[outside] = nearest
        return labels

    def _known_labels(self, values: Pixels) -> Labels:
        labels = np.full(values.shape, _UNKNOWN, np.uint8)
        whole = values == np.floor(values) if values.dtype.kind == "f" else np.ones(values.shape, bool)
        for label, entry in self._labeled:
            for low, high in entry.ranges:
                labels[(values >= low) & (values <= high) & whole] = label
        return labels

    def _labels_of_colors(self, values: Pixels) -> tuple[Labels, Counter[str]]:
        if values.shape[2] == 1:
            values = np.repeat(values, 3, axis=2)
        if values.dtype == np.uint16:
            values = values >> 8  # colors are given in 8 bits
        elif values.dtype != np.uint8:
            # Gray values of another type; those that aren't colors are in no class.
            fits = (values >= 0) & (values <= 255) & (values == np.floor(values))
            values = np.where(fits, values, 0).astype(np.int32)
            values[..., 0] += np.where(fits.all(axis=2), 0, 1 << 8)
        packed = (values[..., 0].astype(np.int32) << 16) | (values[..., 1].astype(np.int32) << 8) | values[..., 2]
        # One lookup per distinct color, not per pixel: a mask has few colors.
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
    """An open mask; a context manager. Whether it is read by window or decoded whole depends on the format."""

    def __init__(self, reader: MaskReader, address: str | Path, upright: bool) -> None:
        self.reader, self.path = reader, split_address(address)[0]
        values: Values = "colors" if reader.by_color else "stored"
        self.file = open_image(address, values, upright=upright)
        try:
            self.height, self.width, self.windowed = self.file.height, self.file.width, self.file.windowed
            if self.file.channels not in (1, 3):
                raise UserError(
                    f"{self.path}: {self.file.channels} channels; a mask has one (values) or three (colors)"
                )
            if self.file.alpha:
                with open_image(
                    address, values, upright=upright, channels=self.file.channels + self.file.alpha
                ) as with_alpha:
                    _refuse_content_in_alpha(with_alpha, self.file.channels)
        except BaseException:
            self.file.close()
            raise

    def read_counted(
        self, top: int, bottom: int, left: int = 0, right: int | None = None
    ) -> tuple[Labels, Counter[str]]:
        """Labels of a window, and the values outside the classes with their counts.

        Raises:
            UserError: a damaged file, or colors if the classes are given by value.
        """
        values = self.file.read(top, bottom, left, right)
        if values.shape[2] == 3 and not self.reader.by_color:
            self._refuse_colors(values)
        return self.reader.labels(values, one_bit=self.file.one_bit)

    def read(self, top: int, bottom: int, left: int = 0, right: int | None = None) -> Labels:
        """Labels of a window whose values were already checked."""
        return self.read_counted(top, bottom, left, right)[0]

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _refuse_colors(self, values: Pixels) -> None:
        """Refuse colored masks. An RGB file is fine for values if it is gray throughout; one channel is then enough."""
        if (values[..., :1] != values).any():
            colors = (values >> 8 if values.dtype == np.uint16 else values).astype(np.int64)
            packed = np.unique(colors[..., 0] << 16 | colors[..., 1] << 8 | colors[..., 2])
            shown = ", ".join(f"#{color:06x}" for color in packed[:8]) + (", …" if len(packed) > 8 else "")
            raise UserError(
                f"{self.path}: the mask is colored ({shown}), but --masks.classes gives values; "
                "give colors instead, for example `background=#000000 cell=#ff0000`"
            )


def _refuse_content_in_alpha(image: ImageFile, channels: int) -> None:
    """Refuse masks whose labels are in the transparency. `image` must be opened with its alpha channel."""
    lowest = highest = None
    for top, bottom in bands(image.height, image.width):
        pixels = image.read(top, bottom).reshape(-1, image.channels)
        lowest = pixels.min(axis=0) if lowest is None else np.minimum(lowest, pixels.min(axis=0))
        highest = pixels.max(axis=0) if highest is None else np.maximum(highest, pixels.max(axis=0))
        if (lowest != highest)[:channels].any():
            return
    if lowest is not None and highest is not None and (lowest != highest).any():
        raise UserError(
            f"{image.path}: all pixels have the same value ({', '.join(map(str, lowest[:channels].tolist()))}), and "
            f"only their transparency (alpha) differs, from {lowest[channels:].min()} to {highest[channels:].max()}: "
            "the labels are in the alpha channel; save that channel as a gray mask"
        )


def mask_reader_from_recipe(recipe: JsonObject) -> MaskReader:
    """The reader for the masks that a shard set was built from; for a synthetic set, for its own palette masks."""
    return MaskReader(from_dict(MasksConfig, recipe["masks"], "recipe in the manifest"))


def unknown_message(found: dict[str, Counter[str]], config: MasksConfig) -> str:
    """The message about values outside the classes, per file, with the ways out."""
    lines = [f"  {path}: {_counted(counts)}" for path, counts in list(found.items())[:10]]
    if len(found) > 1:
        lines.insert(0, f"  total of {len(found)} files: {_counted(sum(found.values(), Counter()))}")
    if len(found) > 10:
        lines.append(f"  … and {len(found) - 10} more files")
    ways = [
        "list them in --masks.classes (`name=127,128`, `name=120-140`, `name=1-` for all from 1) or --masks.ignore",
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


def _counted(counts: Counter[str]) -> str:
    shown = ", ".join(f"{value} ({count} px)" for value, count in counts.most_common(8))
    return shown + (f" and {len(counts) - 8} more values" if len(counts) > 8 else "")


def encode_mask(labels: Labels, classes: tuple[ClassInfo, ...]) -> bytes:
    """A palette PNG of labels (H, W) in the classes' colors."""
    image = Image.fromarray(labels, "L")
    image.putpalette([part for info in classes for part in info.color])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
