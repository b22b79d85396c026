"""Read TIFF files by window: strips, tiles, BigTIFF; never the whole image in memory unless the file requires it.

tifffile finds the segments (strips or tiles) and decodes them, using imagecodecs if they are compressed. This module
decides which segments a window needs, and what to keep between windows.
Shape letters: H W pixels, C channels.
"""

import os
from pathlib import Path

import numpy as np
import tifffile
from tifffile import COMPRESSION, PHOTOMETRIC

from segdist.core.errors import UserError
from shards.images.image_file import ImageFile, Reading, check_memory, unsupported_values
from shards.images.tiff_pages import image_pages, is_copy, planes_of_only_page

_ALPHA = (1, 2)
"""ExtraSamples values for associated and unassociated alpha."""
_ORIENTATION = 274
_JPEG = (COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.JPEG_LOSSY)
"""Compressions whose decoders convert YCbCr to RGB."""
_GRAY = (PHOTOMETRIC.MINISWHITE, PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.MASK)
_RATIOS = {1: 1, 5: 4096, 8: 1032, 32946: 1032, 32773: 64}
"""Maximum output bytes per input byte, by compression: none, LZW, deflate, PackBits."""


class TiffImage(ImageFile):
    """One page of a TIFF file. Reading from top to bottom decodes every segment once."""

    def __init__(self, path: Path, page: int | None, reading: Reading) -> None:
        """`page` as in `shards.images.tiff_pages`; None: the first that is an image."""
        self.path, self._values = path, reading.values
        self._tiff = tifffile.TiffFile(path, _multifile=False)
        try:
            self._open_page(page)
            self._choose_values()
            self._choose_channels(reading)
            self._choose_segments()
            self._check_codec()
            self._check_size()
            tag = self._page.tags.valueof(_ORIENTATION, 1)
            self._turn(tag if isinstance(tag, int) and 1 <= tag <= 8 else 1, reading.upright)
        except BaseException:
            self._tiff.close()
            raise

    def _open_page(self, number: int | None) -> None:
        pages = self._tiff.pages
        if not len(pages):
            raise UserError(f"{self.path}: damaged: a TIFF file without a page")
        if number is None:
            # A camera's file may start with its thumbnail.
            number = image_pages(self._tiff)[0] if len(pages) > 1 and is_copy(pages[0]) else 0
        planes = planes_of_only_page(self._tiff) if len(pages) == 1 else len(pages)
        if not 0 <= number < planes:
            raise UserError(f"{self.path}: page {number} was requested, but the file has pages 0 to {planes - 1}")
        self._plane = number if len(pages) == 1 else 0
        self._page: tifffile.TiffPage = pages[0 if len(pages) == 1 else number].aspage()
        if self._page.ndim == 0 or not self._page.size:
            raise UserError(f"{self.path}: damaged: a page without pixels")
        _, depth, self._rows, self._columns, _ = self._page.shaped
        self.height, self.width = self._rows, self._columns
        if depth != 1:
            raise UserError(f"{self.path}: a volume of {depth} layers in one page; save the layers as pages or files")
        self._samples = self._page.samplesperpixel

    def _choose_values(self) -> None:
        """Choose the pixels' dtype and the factor that scales one to seven bits to eight."""
        bits, stored = self._page.bitspersample, self._page.dtype
        if stored is None or not isinstance(bits, int):
            raise UserError(f"{self.path}: samples of {bits} bits; save it with 8 or 16")
        self._stored: np.dtype[np.generic] = np.dtype(stored)
        self.one_bit, self._scale = bits == 1, 1
        if self._stored.kind == "b" or (self._stored.kind == "u" and bits <= 8):
            self.dtype = np.dtype(np.uint8)
            if self._values != "stored" and bits < 8:
                self._scale = 255 // (2**bits - 1)
        elif self._stored.kind == "u" and bits <= 16:
            self.dtype = np.dtype(np.uint16)
        elif self._values != "seen" and self._stored.kind in "uif":
            self.dtype = self._stored
        else:
            raise UserError(unsupported_values(self.path, f"{bits}-bit values of type {self._stored}", self._values))

    def _choose_channels(self, reading: Reading) -> None:
        """Choose which samples are channels, and how to interpret their colors."""
        page = self._page
        photometric = page.photometric if 262 in page.tags else None
        self._inverted = photometric == PHOTOMETRIC.MINISWHITE and self._values == "seen"
        self._colors: np.ndarray | None = None
        self._luminance = photometric == PHOTOMETRIC.YCBCR and page.compression not in _JPEG
        if photometric == PHOTOMETRIC.PALETTE:
            self._choose_palette()
            return
        if self._luminance:
            self._check_luminance()
        elif photometric not in (None, PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR, *_GRAY):
            name = getattr(photometric, "name", photometric)
            raise UserError(f"{self.path}: colors in {name}; save it as gray or RGB")
        extra = page.extrasamples[-self._samples :] if page.extrasamples else ()
        first = self._samples - len(extra)
        tagged = {first + place for place, kind in enumerate(extra) if kind in _ALPHA and first + place > 0}
        if reading.channels == self._samples:
            tagged = set()
        kept = [sample for sample in range(self._samples) if sample not in tagged]
        self.channels, self.alpha = len(kept), len(tagged)
        self._kept_samples: slice | list[int] = slice(len(kept)) if kept[-1] == len(kept) - 1 else kept

    def _choose_palette(self) -> None:
        self.channels, self._kept_samples, self._scale = 1, slice(1), 1
        if self._values == "stored":
            return
        colors = np.asarray(self._page.colormap)  # (3, entries), 16 bit
        if colors.ndim != 2 or len(colors) != 3 or colors.shape[1] < min(2**self._page.bitspersample, 65536):
            raise UserError(f"{self.path}: damaged: no color map of {2**self._page.bitspersample} entries")
        # Some writers store 8 bits, against the standard.
        self._colors = (colors >> (8 if colors.max() > 255 else 0)).astype(np.uint8).T
        self.dtype = np.dtype(np.uint8)
        self.channels = 1 if (self._colors == self._colors[:, :1]).all() else 3

    def _check_luminance(self) -> None:
        plain = self._stored == np.uint8 and self._samples == 3 and self._page.planarconfig == 1
        if not plain or tuple(self._page.subsampling or (2, 2)) != (1, 1) or 532 in self._page.tags:
            raise UserError(f"{self.path}: colors in YCbCr, subsampled or with an unusual range; save it as RGB")

    def _choose_segments(self) -> None:
        """Choose the unit of reading. An uncompressed strip of any height can be read in parts; any other segment is
        decoded whole."""
        page = self._page
        self._direct = (
            page.compression == 1
            and not page.is_tiled
            and page.planarconfig != 2
            and page.bitspersample == 8 * self._stored.itemsize
            and page.predictor == 1
            and page.fillorder == 1
        )
        if self._plane and not self._direct:
            raise UserError(f"{self.path}: damaged: one directory for many planes that aren't plain pixels")
        self._segment_rows: int = page.tilelength if page.is_tiled else min(page.rowsperstrip, self._rows)
        self._segment_columns: int = page.tilewidth if page.is_tiled else self._columns
        if self._segment_rows < 1 or self._segment_columns < 1:
            raise UserError(f"{self.path}: damaged: strips or tiles without pixels")
        self._across: int = -(-self._columns // self._segment_columns)
        self._down: int = -(-self._rows // self._segment_rows)
        self._planes = self._samples if page.planarconfig == 2 else 1
        self.windowed = self._direct or self._segment_rows < self._rows
        self._kept: dict[int, np.ndarray] = {}

    def _check_codec(self) -> None:
        page = self._page
        try:
            # Looking up a codec shows whether it is available.
            tifffile.TIFF.DECOMPRESSORS[page.compression]
            tifffile.TIFF.UNPREDICTORS[page.predictor]
        except KeyError as error:
            problem = str(error).strip("\"'")
            raise UserError(f"{self.path}: {problem}; save the file uncompressed or with deflate") from None

    def _check_size(self) -> None:
        """Refuse a truncated file, or one with a false size in its header, before its first pixel is used."""
        size = os.path.getsize(self.path)
        offsets, counts = self._page.dataoffsets, self._page.databytecounts
        segments = self._across * self._down * self._planes
        if not len(offsets) == len(counts) >= segments or not any(counts):
            raise UserError(
                f"{self.path}: damaged: {segments} strips or tiles are needed for {self._rows} x {self._columns} "
                f"pixels, but the file lists {min(len(offsets), len(counts))}"
            )
        end = max(offset + count for offset, count in zip(offsets, counts, strict=True))
        if self._plane:
            end += self._plane * self._plane_bytes
        if end > size:
            raise UserError(f"{self.path}: damaged: pixels reach to byte {end}, but the file ends at {size}")
        ratio = _RATIOS.get(self._page.compression)
        row = self._segment_columns * (self._samples // self._planes) * self._page.bitspersample // 8
        for index in range(segments if ratio else 0):
            rows = self._segment_rows if self._page.is_tiled else min(self._segment_rows, self._rows - self._row(index))
            if counts[index] and rows * row > counts[index] * ratio:
                raise UserError(
                    f"{self.path}: damaged: a strip or tile of {rows} rows needs {rows * row} bytes, but "
                    f"{counts[index]} hold no more than {counts[index] * ratio}"
                )
        if not self._direct:
            held = self._segment_rows * self._segment_columns * self._samples // self._planes * self.dtype.itemsize
            check_memory(self.path, 2 * held, "strips or tiles")

    @property
    def _plane_bytes(self) -> int:
        return int(self._page.size) * self._stored.itemsize

    def close(self) -> None:
        self._kept.clear()
        self._tiff.close()

    def _window(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        if self._direct:
            stored = self._direct_rows(top, bottom)[:, left:right]
        else:
            stored = self._from_segments(top, bottom, left, right)
        if self._colors is not None:
            return np.asarray(self._colors[stored[..., 0]][..., : self.channels])
        if self._luminance:
            return _rgb_of(stored)
        if self._scale > 1:
            stored = stored * np.uint8(self._scale)
        if self._inverted:
            stored = stored.copy()
            stored[..., 0] = self._white - stored[..., 0]
        return stored[..., self._kept_samples]

    @property
    def _white(self) -> int:
        bits = self._page.bitspersample
        return 255 if bits <= 8 else int(2**bits - 1)

    def _direct_rows(self, top: int, bottom: int) -> np.ndarray:
        """Whole rows straight from the file, strip by strip."""
        stored = self._stored.newbyteorder(self._tiff.byteorder)
        row_bytes = self._columns * self._samples * stored.itemsize
        pixels = np.empty((bottom - top, self._columns, self._samples), stored)
        flat = pixels.reshape(-1).view(np.uint8)
        handle = self._tiff.filehandle
        row = top
        while row < bottom:
            strip, inside = divmod(row, self._segment_rows)
            rows = min(self._segment_rows - inside, bottom - row)
            handle.seek(self._page.dataoffsets[strip] + self._plane * self._plane_bytes + inside * row_bytes)
            start = (row - top) * row_bytes
            wanted = flat[start : start + rows * row_bytes]
            if handle.readinto(wanted.data) != wanted.size:
                raise UserError(f"{self.path}: damaged: truncated in row {row}")
            row += rows
        return pixels.astype(self.dtype, copy=False)

    def _from_segments(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Decode the segments that the window touches; those of the previous window are kept for the next."""
        pixels = np.empty((bottom - top, right - left, self._samples), self.dtype)
        kept, self._kept = self._kept, {}
        for index in self._segments_in(top, bottom, left, right):
            segment = kept[index] if index in kept else self._decode(index)
            self._kept[index] = segment
            plane, y, x = index // (self._across * self._down), self._row(index), self._column(index)
            height, width = min(self._segment_rows, self._rows - y), min(self._segment_columns, self._columns - x)
            samples = self._samples // self._planes
            if (
                segment.ndim != 3
                or segment.shape[0] < height
                or segment.shape[1] < width
                or segment.shape[2] != samples
            ):
                raise UserError(f"{self.path}: damaged: segment {index} has {segment.shape} values")
            y0, y1 = max(top, y), min(bottom, y + height)
            x0, x1 = max(left, x), min(right, x + width)
            pixels[y0 - top : y1 - top, x0 - left : x1 - left, plane : plane + samples] = segment[
                y0 - y : y1 - y, x0 - x : x1 - x
            ]
        return pixels

    def _segments_in(self, top: int, bottom: int, left: int, right: int) -> list[int]:
        rows = range(top // self._segment_rows, -(-bottom // self._segment_rows))
        columns = range(left // self._segment_columns, -(-right // self._segment_columns))
        return [
            (plane * self._down + row) * self._across + column
            for plane in range(self._planes)
            for row in rows
            for column in columns
        ]

    def _row(self, index: int) -> int:
        return index % (self._across * self._down) // self._across * self._segment_rows

    def _column(self, index: int) -> int:
        return index % self._across * self._segment_columns

    def _decode(self, index: int) -> np.ndarray:
        """One segment as (h, w, samples)."""
        handle = self._tiff.filehandle
        count = self._page.databytecounts[index]
        if count == 0:  # an empty segment of a sparse file
            return np.zeros((self._segment_rows, self._segment_columns, self._samples // self._planes), self.dtype)
        handle.seek(self._page.dataoffsets[index])
        content = handle.read(count)
        # The tables are stored once for all segments of a JPEG file.
        segment, _, _ = self._page.decode(content, index, jpegtables=self._page.jpegtables)
        if segment is None:
            raise UserError(f"{self.path}: damaged: segment {index} can't be decoded")
        return np.asarray(segment[0])


def _rgb_of(luminance: np.ndarray) -> np.ndarray:
    """RGB from 8-bit YCbCr pixels (…, 3): ITU-R BT.601, full range (TIFF 6.0, section 21, the defaults)."""
    y, cb, cr = (luminance[..., channel].astype(np.float32) for channel in range(3))
    cb, cr = cb - 128, cr - 128
    rgb = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], axis=-1)
    return np.asarray(np.clip(np.rint(rgb), 0, 255).astype(np.uint8))
