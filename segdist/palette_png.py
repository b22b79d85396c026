"""A palette PNG written band by band: a mask of any height without holding it.

The usual libraries take a whole picture. What they add, a choice of filters, doesn't help class numbers: the format's
own recommendation for palette images is no filter.
"""

import struct
import zlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PALETTE_TYPE = 3


def write_palette_png(
    file: BinaryIO, shape: tuple[int, int], bands: Iterable[np.ndarray], colors: Iterable[tuple[int, int, int]]
) -> None:
    """Write an 8-bit palette PNG (ISO/IEC 15948).

    Args:
        shape: height and width of the picture.
        bands: its rows from the top down, uint8 (h, W) each.
        colors: red, green, blue of the values 0, 1, 2 …; at most 256.
    """
    height, width = shape
    file.write(SIGNATURE)
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 8, PALETTE_TYPE, 0, 0, 0))
    _chunk(file, b"PLTE", bytes(part for color in colors for part in color))
    deflate = zlib.compressobj()
    for band in bands:
        lines = np.zeros((len(band), width + 1), np.uint8)  # each line begins with its filter: 0, none
        lines[:, 1:] = band
        _chunk(file, b"IDAT", deflate.compress(lines.data))
    _chunk(file, b"IDAT", deflate.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    if not content and kind == b"IDAT":
        return  # the compressor kept it all for later
    file.write(struct.pack(">I", len(content)) + kind + content)
    file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
