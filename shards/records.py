"""Samples as tar members: two per sample, `<key>.image.npy` and `<key>.mask.npy` (or `.png`).

Plain ustar headers with time 0 and owner 0: the same samples give the same bytes. In an npy shard all records
have the same size, so record i starts at i x stride and no search is needed. Keys are 12-digit numbers (5 digits for
the shard, 7 for the record), unique in a split. They are never source names, because webdataset cuts names at the first
dot.

B records, C channels, P patch side.
"""

import io
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shards.pixels import Pixels

BLOCK = 512
END = bytes(2 * BLOCK)
"""Two blocks of zeros end a tar."""

MAX_SHARDS = 10**5
MAX_RECORDS = 10**7

Bytes = NDArray[np.uint8]

_KEY_DIGITS = 12
_CHECKSUM = slice(148, 156)


def keys(shard: int, first: int, count: int) -> Bytes:
    """The ASCII digits of the keys of records `first` up to `first + count` of a shard, shape (count, 12)."""
    numbers = shard * MAX_RECORDS + np.arange(first, first + count, dtype=np.int64)
    powers = 10 ** np.arange(_KEY_DIGITS - 1, -1, -1, dtype=np.int64)
    return (numbers[:, None] // powers % 10 + ord("0")).astype(np.uint8)


def headers(key_digits: Bytes, suffix: str, sizes: NDArray[np.int64]) -> Bytes:
    """Tar headers, shape (B, 512), of the members `<key><suffix>` with `sizes` bytes of content each."""
    blocks = np.tile(np.frombuffer(_header_template(suffix), np.uint8), (len(key_digits), 1))
    blocks[:, :_KEY_DIGITS] = key_digits
    blocks[:, 124:135] = (sizes[:, None] // 8 ** np.arange(10, -1, -1, dtype=np.int64) % 8 + ord("0")).astype(np.uint8)
    # Checksum: the sum of the header's bytes with this field as spaces; six octal digits, a zero byte, a space.
    total = blocks.sum(axis=1, dtype=np.int64)
    blocks[:, 148:154] = (total[:, None] // 8 ** np.arange(5, -1, -1, dtype=np.int64) % 8 + ord("0")).astype(np.uint8)
    blocks[:, 154] = 0
    return blocks


def padded(size: int) -> int:
    """`size` rounded up to whole tar blocks."""
    return -(-size // BLOCK) * BLOCK


@dataclass(frozen=True)
class NpyLayout:
    """The positions of a record's parts in an npy shard."""

    patch: int
    channels: int
    dtype: str

    @cached_property
    def _image_header(self) -> bytes:
        return _npy_header((self.channels, self.patch, self.patch), self.dtype)

    @cached_property
    def _mask_header(self) -> bytes:
        return _npy_header((self.patch, self.patch), "uint8")

    @property
    def image_bytes(self) -> int:
        return self.channels * self.patch**2 * np.dtype(self.dtype).itemsize

    @property
    def mask_bytes(self) -> int:
        return self.patch**2

    @cached_property
    def image_offset(self) -> int:
        """First byte of the image's pixels in a record."""
        return BLOCK + len(self._image_header)

    @cached_property
    def _mask_member(self) -> int:
        return BLOCK + padded(len(self._image_header) + self.image_bytes)

    @cached_property
    def mask_offset(self) -> int:
        """First byte of the mask's pixels in a record."""
        return self._mask_member + BLOCK + len(self._mask_header)

    @cached_property
    def stride(self) -> int:
        """Bytes from one record to the next."""
        return self._mask_member + BLOCK + padded(len(self._mask_header) + self.mask_bytes)

    def images(self, rows: Bytes) -> Pixels:
        """The pixels of `rows` (B, stride) as a view (B, C, P, P) of the stored dtype."""
        flat = rows[:, self.image_offset : self.image_offset + self.image_bytes].view(np.dtype(self.dtype))
        return flat.reshape(len(rows), self.channels, self.patch, self.patch)

    def masks(self, rows: Bytes) -> Bytes:
        """The labels of `rows` as a view (B, P, P)."""
        flat = rows[:, self.mask_offset : self.mask_offset + self.mask_bytes]
        return flat.reshape(len(rows), self.patch, self.patch)

    def frame(self, key_digits: Bytes) -> Bytes:
        """Complete records (B, stride) except for the pixels, which are zero."""
        count = len(key_digits)
        rows = np.zeros((count, self.stride), np.uint8)
        for member, suffix, header, size in (
            (0, ".image.npy", self._image_header, self.image_bytes),
            (self._mask_member, ".mask.npy", self._mask_header, self.mask_bytes),
        ):
            sizes = np.full(count, len(header) + size, np.int64)
            rows[:, member : member + BLOCK] = headers(key_digits, suffix, sizes)
            rows[:, member + BLOCK : member + BLOCK + len(header)] = np.frombuffer(header, np.uint8)
        return rows

    def pack(self, shard: int, first: int, images: Pixels, masks: Bytes) -> Bytes:
        """The records of `images` (B, C, P, P) and `masks` (B, P, P), numbered from `first`; shape (B, stride)."""
        rows = self.frame(keys(shard, first, len(images)))
        self.images(rows)[:] = images
        self.masks(rows)[:] = masks
        return rows


def png_records(shard: int, first: int, images: Pixels, masks: Bytes) -> tuple[bytes, NDArray[np.int64]]:
    """PNG records of `images` (B, C, P, P) and `masks` (B, P, P).

    Returns the members' bytes, and per record (offset of the image in these bytes, its size, offset of the mask, its
    size), shape (B, 4). Masks are grayscale PNG files that hold the labels: with a palette, other readers might decode
    colors instead of labels.
    """
    digits = keys(shard, first, len(images))
    places = np.zeros((len(images), 4), np.int64)
    out = bytearray()
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        digits_of_one = digits[number : number + 1]
        for column, suffix, array in ((0, ".image.png", image), (2, ".mask.png", mask)):
            content = encode_png(array)
            out += headers(digits_of_one, suffix, np.array([len(content)])).tobytes()
            places[number, column : column + 2] = len(out), len(content)
            out += content + bytes(padded(len(content)) - len(content))
    return bytes(out), places


def encode_png(array: Pixels) -> bytes:
    """(H, W) or (C, H, W) with 1 or 3 channels of uint8, or 1 channel of uint16, as PNG."""
    from PIL import Image

    if array.ndim == 3:
        array = array[0] if array.shape[0] == 1 else np.moveaxis(array, 0, -1)
    buffer = io.BytesIO()
    # On photographs, level 1 takes 3 % more bytes than the default but only a third of the time.
    Image.fromarray(np.ascontiguousarray(array)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode_png(content: bytes | memoryview, patch: int) -> Pixels:
    """The inverse of `encode_png`: (P, P), or (3, P, P) for colors.

    Raises:
        ValueError: a different size; detected before decoding.
    """
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        if image.size != (patch, patch):
            raise ValueError(f"{image.height} x {image.width} pixels instead of {patch} x {patch}")
        array = np.asarray(image)
    if array.dtype == np.int32:  # older Pillow opens 16-bit gray as 32-bit integers
        array = array.astype(np.uint16)
    return array if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def _header_template(suffix: str) -> bytes:
    block = bytearray(BLOCK)
    name = b"0" * _KEY_DIGITS + suffix.encode()
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"  # owner and group
    block[136:148] = b"00000000000\0"  # modification time
    block[_CHECKSUM] = b" " * 8
    block[156] = ord("0")  # a plain file
    block[257:265] = b"ustar\x0000"
    return bytes(block)


def index_dtype(num_classes: int, encoding: str) -> np.dtype[np.void]:
    """The index's fields; `counts` are pixels per class; the rest of the P x P pixels are ignored."""
    fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = [
        ("source", "<i4"),
        ("y", "<i4"),
        ("x", "<i4"),
        ("crc", "<u4"),
        ("counts", "<i4", (num_classes,)),
    ]
    if encoding == "png":
        fields += [(name, "<i8") for name in ("image_at", "image_bytes", "mask_at", "mask_bytes")]
    return np.dtype(fields)


def record_crc(image: Pixels, mask: NDArray[np.uint8]) -> int:
    """CRC-32 of a record's pixels (C, P, P) and labels (P, P)."""
    return zlib.crc32(np.ascontiguousarray(mask).data, zlib.crc32(np.ascontiguousarray(image).data))
