"""Segments of TIFF files in compressions that tifffile leaves to `imagecodecs`: LZW and JPEG, decoded one by one.

Pillow's libtiff decodes them, but only whole files; so each segment (a strip or a tile) is wrapped as a TIFF file of
one strip in memory. LZW is decoded as plain bytes, whatever the pixels are; JPEG as gray or RGB of 8 bit.
"""

import io
import struct
from typing import Any

import numpy as np
import tifffile

from segdist.core.errors import UserError

LZW, JPEG = 5, 7
"""Compression tags."""

_SHORT, _LONG, _UNDEFINED = 3, 4, 7  # types of tag values
_PACKING = {_SHORT: "H", _LONG: "I", _UNDEFINED: "B"}


def decodable(page: Any) -> bool:
    """Whether `decode_segment` can decode the segments of this tifffile page."""
    samples = page.samplesperpixel if page.planarconfig != 2 else 1
    if page.compression == LZW:
        return page.predictor in (1, 2) and page.bitspersample in (1, 8, 16)
    colors = (tifffile.PHOTOMETRIC.RGB, tifffile.PHOTOMETRIC.YCBCR)
    return page.compression == JPEG and page.bitspersample == 8 and (samples == 1 or page.photometric in colors)


def decode_segment(page: Any, content: bytes, rows: int, columns: int) -> np.ndarray:
    """The pixels of one segment of rows x columns pixels, as stored.

    Returns:
        (rows, columns, samples) array of uint8 or uint16, or of bool for 1-bit pixels.

    Raises:
        OSError, ValueError: damaged content.
    """
    samples = page.samplesperpixel if page.planarconfig != 2 else 1
    if page.compression == JPEG:
        tags = {258: (_SHORT, (8,) * samples), 262: (_SHORT, (page.photometric if samples > 1 else 1,))}
        if page.jpegtables is not None:
            tags[347] = _UNDEFINED, tuple(page.jpegtables)
        if samples > 1 and page.photometric == tifffile.PHOTOMETRIC.YCBCR:
            tags[530] = _SHORT, tuple(page.subsampling or (2, 2))
        return _decode(content, JPEG, rows, columns, samples, tags).reshape(rows, columns, samples)
    bits = columns * samples * page.bitspersample
    tags = {258: (_SHORT, (8,)), 262: (_SHORT, (1,)), 266: (_SHORT, (page.fillorder,))}
    plain = _decode(content, LZW, rows, -(-bits // 8), 1, tags)
    if page.bitspersample == 1:
        return np.unpackbits(plain, axis=1)[:, : columns * samples].astype(bool).reshape(rows, columns, samples)
    stored = np.dtype(page.dtype).newbyteorder(page.parent.byteorder)
    pixels = plain.view(stored).astype(page.dtype, copy=False).reshape(rows, columns, samples)
    if page.predictor == 2:  # differences to the pixel on the left
        pixels = np.cumsum(pixels, axis=1, dtype=pixels.dtype)
    return pixels


def _decode(
    content: bytes,
    compression: int,
    rows: int,
    columns: int,
    samples: int,
    tags: dict[int, tuple[int, tuple[int, ...]]],
) -> np.ndarray:
    from PIL import Image

    tags = {
        **tags,
        256: (_LONG, (columns,)),
        257: (_LONG, (rows,)),
        259: (_SHORT, (compression,)),
        277: (_SHORT, (samples,)),
        278: (_LONG, (rows,)),
        279: (_LONG, (len(content),)),
    }
    with Image.open(io.BytesIO(_one_strip_file(content, tags)), formats=["TIFF"]) as image:
        array = np.asarray(image)
    if array.shape[:2] != (rows, columns):
        raise UserError(f"damaged: a segment of {array.shape[:2]} pixels instead of {(rows, columns)}")
    return array


def _one_strip_file(content: bytes, tags: dict[int, tuple[int, tuple[int, ...]]]) -> bytes:
    """A little-endian TIFF file: header, directory, values that don't fit it, `content`."""
    tags = {**tags, 273: (_LONG, (0,))}  # where the strip stands: filled in below
    values_at = 8 + 2 + 12 * len(tags) + 4
    values = {tag: struct.pack(f"<{len(entry)}{_PACKING[kind]}", *entry) for tag, (kind, entry) in tags.items()}
    strip_at = values_at + sum(len(value) for value in values.values() if len(value) > 4)
    values[273] = struct.pack("<I", strip_at)
    directory, rest = struct.pack("<H", len(tags)), b""
    for tag in sorted(tags):
        kind, entry = tags[tag]
        directory += struct.pack("<HHI", tag, kind, len(entry))
        if len(values[tag]) > 4:
            directory += struct.pack("<I", values_at + len(rest))
            rest += values[tag]
        else:
            directory += values[tag].ljust(4, b"\0")
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0) + rest + content
