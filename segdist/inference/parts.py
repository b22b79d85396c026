"""Layers of an image in progress: raw part files that grow row by row, or arrays in memory.

A layer is one plane of pixels (the class mask, the probability of one class, …). While an image is in progress, each
contiguous stretch of tile rows has a part: one raw file per layer, and a small JSON file that says how many of its tile
rows are safely on disk. A killed job resumes from the parts. Once the parts of an image are complete, the requested
files are written from them atomically.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from segdist.core.files import write_json
from segdist.core.formats import stamped, unstamped

PART_VERSION = 1

SAFE_INTERVAL = 5.0
"""Seconds between syncs of a part to disk, after which its rows count as done."""

ROWS_AT_ONCE = 512
"""Rows held in memory while writing a file; also the side of TIFF tiles and Zarr chunks."""


class Rows(Protocol):
    """A layer that can be read from the top down."""

    shape: tuple[int, int]
    dtype: np.dtype

    def read(self, top: int, bottom: int) -> np.ndarray:
        """Rows `top` to `bottom`, (h, W)."""
        ...


@dataclass(frozen=True)
class Part:
    """A part found on disk: tile rows `tile_rows`, and with them image rows `top` to `bottom`, are done."""

    tile_rows: range
    top: int
    bottom: int


class PartWriter:
    """Appends rows to the raw files of one part.

    Args:
        folder: holds the image's parts.
        first: first tile row of the part, which names its files.
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
        """Sync the appended rows to disk, then record that they are there."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
        safe = {"tile_rows": [self.first, self._done], "rows": [self._top, self._bottom]}
        write_json(self.folder / f"{self.first:08}.json", stamped(safe, PART_VERSION))
        self._safe = time.monotonic()

    def close(self, *, complete: bool) -> None:
        """Close the files; if `complete`, first make all rows safe."""
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
        content = unstamped(json.loads(file.read_text()), PART_VERSION, str(file))
        parts.append(Part(range(*content["tile_rows"]), *content["rows"]))
    return parts


class PartRows:
    """A layer of an image whose parts are complete, read from the memory-mapped raw files.

    Mapped pages belong to the system's file cache, so a layer of any height takes no memory of the process.
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
    """A layer of a small image, held in memory."""

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
