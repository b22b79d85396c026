"""The chunks of a PNG file: its header, its checksums, and whether it can hold the pixels it claims."""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from segdist.core.errors import UserError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
"""Color types."""
_SAMPLES = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
_DEFLATE_RATIO = 1032
"""Maximum output bytes per byte of a deflate stream (zlib's technical details, "Maximum Compression Factor")."""
_BLOCK = 1 << 20


@dataclass(frozen=True)
class PngHeader:
    """The contents of IHDR, and where the metadata is."""

    bits: int
    color_type: int
    late_notes: bool
    """Text or EXIF follows the pixels, so Pillow finds it only by decoding everything."""


def read_png_header(path: Path) -> PngHeader | None:
    """The header, or None if the file is not a PNG.

    Raises:
        UserError: the file ends early, or is too small for the pixels that the header claims.
    """
    # Unbuffered, because only the head of each chunk is read; a buffer would read thousands of bytes more.
    with path.open("rb", buffering=0) as file:
        if file.read(8) != SIGNATURE:
            return None
        header, packed, late = b"", 0, False
        while True:
            kind, length = _next_chunk(path, file)
            if kind == b"IHDR" and length == 13:
                header = file.read(length)
                file.seek(4, 1)
            else:
                file.seek(length + 4, 1)
            packed += length if kind == b"IDAT" else 0
            late |= bool(packed) and kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt")
            if kind == b"IEND":
                break
    if len(header) != 13 or header[9] not in _SAMPLES:
        raise UserError(f"{path}: damaged: no PNG header")
    width, height, bits, color_type = struct.unpack(">IIBB", header[:10])
    wanted = height * (width * bits * _SAMPLES[color_type] // 8)
    if wanted > packed * _DEFLATE_RATIO:
        raise UserError(
            f"{path}: damaged: the header claims {height} x {width} pixels, more than {packed} bytes can hold"
        )
    return PngHeader(bits, color_type, late)


def check_png(path: Path) -> None:
    """Verify the checksum of every chunk, which Pillow doesn't do for pixels. Raises UserError if one is wrong."""
    with path.open("rb") as file:
        file.seek(8)
        kind = b""
        while kind != b"IEND":
            kind, left = _next_chunk(path, file)
            found = zlib.crc32(kind)
            while left:
                block = file.read(min(left, _BLOCK))
                if not block:
                    raise UserError(f"{path}: damaged: the file ends early")
                found = zlib.crc32(block, found)
                left -= len(block)
            if file.read(4) != struct.pack(">I", found):
                raise UserError(f"{path}: damaged: wrong checksum of a chunk {kind.decode('latin-1')}")


def _next_chunk(path: Path, file: BinaryIO | io.FileIO) -> tuple[bytes, int]:
    head = file.read(8)
    if len(head) < 8:
        raise UserError(f"{path}: damaged: the file ends early")
    return head[4:], int.from_bytes(head[:4], "big")
