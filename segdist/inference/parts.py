"""What is written for an image: layers of pixels, first as raw part files that grow row by row, then as whole files.

A layer is one plane of pixels (the class mask, the probability of one class, …). While an image is at work, every
contiguous stretch of tile rows has a part: one raw file per layer and a small JSON file that says how many tile rows of
it are safe on the disk. The parts are the state from which a killed job goes on. When the parts of an image are
complete, the files that the person asked for are written from them, whole or not at all.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segdist.core.files import whole_file, write_json
from segdist.inference.palette_png import write_palette_png
from shards.images.zarr_image import import_zarr
from shards.manifest import ClassInfo

SAFE_INTERVAL = 5.0
"""Seconds between two moments at which the rows of a part are forced to the disk and counted as done."""

ROWS_AT_ONCE = 512
"""Rows that are held in memory while a file is written; also the side of TIFF tiles and Zarr chunks."""


class Rows(Protocol):
    """A layer that can be read from the top down."""

    shape: tuple[int, int]
    dtype: np.dtype

    def read(self, top: int, bottom: int) -> np.ndarray:
        """Rows `top` to `bottom`, (h, W)."""
        ...


@dataclass(frozen=True)
class Part:
    """A part that was found on the disk: tile rows `tile_rows` are done, which are image rows `top` to `bottom`."""

    tile_rows: range
    top: int
    bottom: int


class PartWriter:
    """Appends rows to the raw files of one part.

    Args:
        folder: of the image's parts.
        first: first tile row of the part; its name.
        layers: dtype of each layer.
    """

    def __init__(self, folder: Path, first: int, layers: Mapping[str, np.dtype]) -> None:
        self.folder, self.first = folder, first
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: (folder / raw_name(first, name)).open("wb") for name in layers}
        self._top = self._bottom = -1
        self._done = first
        self._safe = time.monotonic()

    def append(self, tile_row: int, top: int, bottom: int, rows: Mapping[str, np.ndarray]) -> None:
        """Add image rows `top` to `bottom`, which tile row `tile_row` finished."""
        if self._top < 0:
            self._top = top
        for name, file in self._files.items():
            file.write(np.ascontiguousarray(rows[name]).data)
        self._bottom, self._done = bottom, tile_row + 1
        if time.monotonic() - self._safe > SAFE_INTERVAL:
            self.make_safe()

    def make_safe(self) -> None:
        """Force what was appended to the disk, then note that it is there."""
        for file in self._files.values():
            file.flush()
            os.fdatasync(file.fileno())
        write_json(
            self.folder / f"{self.first:08}.json",
            {"tile_rows": [self.first, self._done], "rows": [self._top, self._bottom]},
        )
        self._safe = time.monotonic()

    def close(self, *, complete: bool) -> None:
        """Close the files; with `complete` after making all rows safe."""
        if complete and self._top >= 0:
            self.make_safe()
        for file in self._files.values():
            file.close()


def raw_name(first: int, layer: str) -> str:
    """File name of a part's layer."""
    return f"{first:08}.{layer}.raw"


def find_parts(folder: Path) -> list[Part]:
    """The parts in a folder, from the top down."""
    parts = []
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text())
        parts.append(Part(range(*content["tile_rows"]), *content["rows"]))
    return parts


class PartRows:
    """A layer of an image whose parts are complete, read through maps of the raw files.

    Mapped pages belong to the system's file cache: reading a layer of any height takes no memory of the process.
    """

    def __init__(self, folder: Path, parts: Sequence[Part], layer: str, dtype: np.dtype, width: int) -> None:
        self.dtype = dtype
        self._first = parts[0].top
        self.shape = (parts[-1].bottom - self._first, width)
        self._parts = [
            (
                part,
                np.memmap(
                    folder / raw_name(part.tile_rows.start, layer), dtype, "r", shape=(part.bottom - part.top, width)
                ),
            )
            for part in parts
        ]

    def read(self, top: int, bottom: int) -> np.ndarray:
        top, bottom = top + self._first, bottom + self._first
        found = [
            rows[max(top, part.top) - part.top : min(bottom, part.bottom) - part.top]
            for part, rows in self._parts
            if part.top < bottom and top < part.bottom
        ]
        return found[0] if len(found) == 1 else np.concatenate(found)


class MemoryRows:
    """A layer of a small image that was computed in one go."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        self.shape = (array.shape[0], array.shape[1])
        self.dtype = array.dtype

    def read(self, top: int, bottom: int) -> np.ndarray:
        return self.array[top:bottom]


def blocks(rows: Rows, size: int = ROWS_AT_ONCE) -> Iterator[np.ndarray]:
    """The layer in blocks of rows, from the top down."""
    for top in range(0, rows.shape[0], size):
        yield rows.read(top, min(top + size, rows.shape[0]))


def write_mask_png(path: Path, mask: Rows, classes: Sequence[ClassInfo]) -> None:
    """A palette PNG in the classes' colors, written band by band."""
    with whole_file(path) as file:
        write_palette_png(file, mask.shape, blocks(mask), (info.color for info in classes))


def write_gray_png(path: Path, layer: Rows) -> None:
    """An 8-bit gray PNG."""
    from PIL import Image

    with whole_file(path) as file:
        Image.fromarray(np.concatenate(list(blocks(layer)))).save(file, "PNG")


def write_tiff(path: Path, layers: Sequence[Rows], classes: Sequence[ClassInfo] | None = None) -> None:
    """A tiled, deflate-compressed TIFF, one page per layer; with `classes` a palette image in their colors."""
    import tifffile

    height, width = layers[0].shape
    options: dict[str, Any] = {"photometric": "minisblack"}
    if classes is not None:
        colormap = np.zeros((3, 256), np.uint16)
        colormap[:, : len(classes)] = np.array([info.color for info in classes], np.uint16).T * 257
        options = {"photometric": "palette", "colormap": colormap}
    size = sum(layer.dtype.itemsize * height * width for layer in layers)
    with whole_file(path) as file, tifffile.TiffWriter(file, bigtiff=size > 2**31) as tiff:
        for layer in layers:
            tiff.write(
                _tiles(layer),
                shape=(height, width),
                dtype=layer.dtype,
                tile=(ROWS_AT_ONCE, ROWS_AT_ONCE),
                compression="zlib",
                metadata=None,
                **options,
            )


def _tiles(layer: Rows) -> Iterator[np.ndarray]:
    for block in blocks(layer):
        for left in range(0, layer.shape[1], ROWS_AT_ONCE):
            tile = np.zeros((ROWS_AT_ONCE, ROWS_AT_ONCE), layer.dtype)
            part = block[:, left : left + ROWS_AT_ONCE]
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def write_npy(path: Path, layers: Sequence[Rows]) -> None:
    """One array (layer, height, width)."""
    with whole_file(path) as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(layers[0].dtype),
            "fortran_order": False,
            "shape": (len(layers), *layers[0].shape),
        }
        np.lib.format.write_array_header_1_0(file, header)
        for layer in layers:
            for block in blocks(layer):
                file.write(np.ascontiguousarray(block).data)


def write_zarr(path: Path, layers: Sequence[Rows], attributes: dict[str, Any], *, stacked: bool) -> None:
    """A Zarr array (height, width), or (layer, height, width) if `stacked`; the folder appears when it is whole."""
    zarr = import_zarr()
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.parent.mkdir(parents=True, exist_ok=True)
    height, width = layers[0].shape
    lead = (len(layers),) if stacked else ()
    array = zarr.create_array(
        str(temporary),
        shape=(*lead, height, width),
        chunks=(*(1 for _ in lead), min(ROWS_AT_ONCE, height), min(ROWS_AT_ONCE, width)),
        dtype=layers[0].dtype,
    )
    array.attrs.update(attributes)
    for index, layer in enumerate(layers):
        for number, block in enumerate(blocks(layer)):
            top = number * ROWS_AT_ONCE
            where = (slice(top, top + len(block)), slice(None))
            array[(index, *where) if stacked else where] = block
    shutil.rmtree(path, ignore_errors=True)
    temporary.replace(path)
