"""TIFF files by window: strips, tiles, BigTIFF; never the whole image in memory where the file allows it.

tifffile finds the segments (strips or tiles) and decodes them, with imagecodecs where they are compressed; which
segments a window needs, and what is kept between two windows, is decided here.
Shape letters: H W pixels, C channels.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from segdist.core.errors import UserError
from shards.images.image_file import ImageFile, unsupported_values

ALPHA = (1, 2)
"""ExtraSamples values for associated and unassociated alpha."""


class TiffImage(ImageFile):
    """One page of a TIFF file. Reading from the top down decodes every segment once."""

    def __init__(self, path: Path, page: int) -> None:
        self.path = path
        self._tiff = tifffile.TiffFile(path)
        try:
            self._open_page(page)
        except BaseException:
            self._tiff.close()
            raise

    def _open_page(self, page: int) -> None:
        pages = self._tiff.pages
        if not 0 <= page < len(pages):
            raise UserError(f"{self.path}: page {page} asked for, but the file has pages 0 to {len(pages) - 1}")
        self._page: Any = pages[page]
        _, depth, self.height, self.width, _ = self._page.shaped
        if depth != 1:
            raise UserError(f"{self.path}: a volume of {depth} layers in one page; save the layers as pages or files")
        self._stored = self._page.dtype
        self._bits = self._page.bitspersample
        if self._bits == 1:
            self.dtype = np.dtype(np.uint8)
        elif self._stored in (np.dtype(np.uint8), np.dtype(np.uint16)) and self._bits in (8, 16):
            self.dtype = np.dtype(self._stored)
        else:
            raise UserError(unsupported_values(self.path, f"{self._bits}-bit values of type {self._stored}"))
        self._samples = self._page.samplesperpixel
        self._colors: np.ndarray | None = None
        self._choose_channels()
        # An uncompressed strip of any height can be read in parts; every other segment is decoded as one piece.
        self._direct = (
            self._page.compression == 1
            and not self._page.is_tiled
            and self._page.planarconfig != 2
            and self._bits in (8, 16)
            and self._page.predictor == 1
            and self._page.fillorder == 1
        )
        self._segment_rows = self._page.tilelength if self._page.is_tiled else min(self._page.rowsperstrip, self.height)
        self.windowed = self._direct or self._segment_rows < self.height
        self._kept: dict[int, np.ndarray] = {}
        self._check_codec()
        self._check_size()

    def _choose_channels(self) -> None:
        photometric = self._page.photometric
        if photometric == tifffile.PHOTOMETRIC.PALETTE:
            colormap = np.asarray(self._page.colormap)  # (3, entries), 16 bit
            self._colors = (colormap >> 8).astype(np.uint8).T
            self.dtype = np.dtype(np.uint8)
            gray = (self._colors == self._colors[:, :1]).all()
            self.channels = 1 if gray else 3
            return
        if photometric == tifffile.PHOTOMETRIC.SEPARATED:
            raise UserError(f"{self.path}: a CMYK image; save it as gray or RGB")
        alpha = [index for index, kind in enumerate(self._page.extrasamples) if kind in ALPHA]
        # Extra samples are the last ones; only a single last alpha channel is dropped.
        self.channels = self._samples - (1 if alpha and self._samples > 1 else 0)

    def _check_codec(self) -> None:
        page = self._page
        try:
            # Looking a codec up tells whether it is there.
            tifffile.TIFF.DECOMPRESSORS[page.compression]
            tifffile.TIFF.UNPREDICTORS[page.predictor]
        except KeyError as error:
            problem = str(error).strip("\"'")
            raise UserError(f"{self.path}: {problem}; save the file uncompressed or with deflate") from None

    def close(self) -> None:
        self._kept.clear()
        self._tiff.close()

    def _check_size(self) -> None:
        """A file cut short is found before its first pixel is used."""
        size = os.path.getsize(self.path)
        end = max(
            (offset + count for offset, count in zip(self._page.dataoffsets, self._page.databytecounts, strict=True)),
            default=0,
        )
        if end > size:
            raise UserError(f"{self.path}: damaged: pixels reach to byte {end}, but the file ends at {size}")

    def _window(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        stored = self._direct_rows(top, bottom) if self._direct else self._from_segments(top, bottom, left, right)
        if self._direct:
            stored = stored[:, left:right]
        if self._colors is not None:
            return self._colors[stored[..., 0]][..., : self.channels]
        if self._bits == 1:
            stored = stored.astype(np.uint8) * np.uint8(255)
        if self._page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            stored = np.iinfo(self.dtype).max - stored
        return stored[..., : self.channels]

    def _direct_rows(self, top: int, bottom: int) -> np.ndarray:
        """Whole rows straight from the file, strip by strip."""
        stored = np.dtype(self._stored).newbyteorder(self._tiff.byteorder)
        row_bytes = self.width * self._samples * stored.itemsize
        pixels = np.empty((bottom - top, self.width, self._samples), stored)
        flat = pixels.reshape(-1).view(np.uint8)
        handle = self._tiff.filehandle
        row = top
        while row < bottom:
            strip, inside = divmod(row, self._segment_rows)
            rows = min(self._segment_rows - inside, bottom - row)
            handle.seek(self._page.dataoffsets[strip] + inside * row_bytes)
            start = (row - top) * row_bytes
            wanted = flat[start : start + rows * row_bytes]
            if handle.readinto(wanted.data) != wanted.size:
                raise UserError(f"{self.path}: damaged: cut short in row {row}")
            row += rows
        return pixels.astype(self.dtype, copy=False)

    def _from_segments(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Decode the segments that the window touches; those of the last window are kept for the next."""
        shape = (bottom - top, right - left, self._samples)
        pixels = np.empty(shape, bool if self._bits == 1 else self.dtype)
        kept, self._kept = self._kept, {}
        for index in self._segments_in(top, bottom, left, right):
            segment = kept[index] if index in kept else self._decode(index)
            self._kept[index] = segment
            plane, y, x = self._place(index)
            height = min(segment.shape[0], self.height - y)
            width = min(segment.shape[1], self.width - x)
            y0, y1 = max(top, y), min(bottom, y + height)
            x0, x1 = max(left, x), min(right, x + width)
            samples = slice(plane, plane + segment.shape[2])
            pixels[y0 - top : y1 - top, x0 - left : x1 - left, samples] = segment[y0 - y : y1 - y, x0 - x : x1 - x]
        return pixels

    def _segments_in(self, top: int, bottom: int, left: int, right: int) -> list[int]:
        across, down, planes = self._grid()
        tile_width = self._page.tilewidth if self._page.is_tiled else self.width
        rows = range(top // self._segment_rows, -(-bottom // self._segment_rows))
        columns = range(left // tile_width, -(-right // tile_width))
        return [(plane * down + row) * across + column for plane in range(planes) for row in rows for column in columns]

    def _grid(self) -> tuple[int, int, int]:
        """Segments across and down, and planes (more than one where channels are stored one after another)."""
        across = -(-self.width // self._page.tilewidth) if self._page.is_tiled else 1
        down = -(-self.height // self._segment_rows)
        return across, down, self._samples if self._page.planarconfig == 2 else 1

    def _place(self, index: int) -> tuple[int, int, int]:
        across, down, _ = self._grid()
        plane, rest = divmod(index, across * down)
        row, column = divmod(rest, across)
        return plane, row * self._segment_rows, column * (self._page.tilewidth if self._page.is_tiled else 0)

    def _decode(self, index: int) -> np.ndarray:
        """One segment as (h, w, samples)."""
        handle = self._tiff.filehandle
        count = self._page.databytecounts[index]
        if count == 0:  # an empty segment of a sparse file
            columns = self._page.tilewidth if self._page.is_tiled else self.width
            samples = 1 if self._page.planarconfig == 2 else self._samples
            return np.zeros((self._segment_rows, columns, samples), self.dtype)
        handle.seek(self._page.dataoffsets[index])
        content = handle.read(count)
        # The tables stand once for all segments of a JPEG file.
        segment, _, _ = self._page.decode(content, index, jpegtables=self._page.jpegtables)
        if segment is None:
            raise UserError(f"{self.path}: damaged: segment {index} can't be decoded")
        return np.asarray(segment[0])
