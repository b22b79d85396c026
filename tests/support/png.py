"""PNG files that Pillow can't write."""

import struct
import zlib

import numpy as np


def png_of_16_bit(array: np.ndarray) -> bytes:
    """A PNG of uint16 (H, W, C) whose rows cycle through all five filters."""
    height, width, channels = array.shape
    kind, size = {2: 4, 3: 2, 4: 6}[channels], 2 * channels
    above, rows = [0] * (width * size), b""
    for number, row in enumerate(array.astype(">u2")):
        plain = list(row.tobytes())
        left, corner = [0] * size + plain[:-size], [0] * size + above[:-size]
        filters = {
            0: lambda a, b, c: 0,
            1: lambda a, b, c: a,
            2: lambda a, b, c: b,
            3: lambda a, b, c: (a + b) // 2,
            4: lambda a, b, c: min((a, b, c), key=lambda value: abs(a + b - c - value)),
        }
        guess = filters[number % 5]
        rows += bytes([number % 5])
        rows += bytes((x - guess(a, b, c)) % 256 for x, a, b, c in zip(plain, left, above, corner, strict=True))
        above = plain

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)
