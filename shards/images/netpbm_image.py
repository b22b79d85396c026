"""PBM, PGM and PPM, which Pillow truncates or stretches to 8 bits.

Format: https://netpbm.sourceforge.net/doc/ppm.html and its neighbors.
"""

import re
from pathlib import Path

import numpy as np

from segdist.core.errors import UserError
from shards.images.image_file import ImageFile, Reading, check_memory

_HEADER = re.compile(rb"P([1-6])" + rb"(?:\s|#[^\n]*\n)+(\d{1,10})" * 2)
_MAXIMUM = re.compile(rb"(?:\s|#[^\n]*\n)+(\d{1,5})")
_HEADER_BYTES = 4096
"""Maximum size of the header; comments can be long."""


def is_netpbm(path: Path) -> bool:
    """True for PBM, PGM and PPM, plain and raw."""
    with path.open("rb") as file:
        return re.match(rb"P[1-6](\s|#)", file.read(3)) is not None


class NetpbmImage(ImageFile):
    """A picture of 1 to 16 bits. Raw files are read by window, plain ones (numbers in ASCII) whole."""

    def __init__(self, path: Path, reading: Reading) -> None:
        self.path, self._values = path, reading.values
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
        match = _HEADER.match(head)
        if match is None:
            raise UserError(f"{path}: damaged: no size in the header")
        kind, self.width, self.height = (int(number) for number in match.groups())
        self.channels = 3 if kind in (3, 6) else 1
        self.one_bit, self._plain = kind in (1, 4), kind <= 3
        self._maximum, end = 1, match.end()
        if not self.one_bit:
            maximum = _MAXIMUM.match(head, end)
            if maximum is None or not 1 <= int(maximum[1]) < 65536:
                raise UserError(f"{path}: damaged: no maximum value from 1 to 65535 in the header")
            self._maximum, end = int(maximum[1]), maximum.end()
        if not head[end : end + 1].isspace() or not self.width or not self.height:
            raise UserError(f"{path}: damaged header")
        self._start = end + 1  # one whitespace character, then the pixels
        self.dtype = np.dtype(np.uint8 if self._maximum < 256 else np.uint16)
        self._stored = np.dtype("u1" if self._maximum < 256 else ">u2")
        self._row_bytes = -(-self.width // 8) if self.one_bit else self.width * self.channels * self._stored.itemsize
        self.windowed = not self._plain
        self._pixels: np.ndarray | None = None
        self._check_size()

    def close(self) -> None:
        self._pixels = None

    def _check_size(self) -> None:
        content = self.path.stat().st_size - self._start
        values = self.height * self.width * self.channels
        needed = values if self._plain else self.height * self._row_bytes
        if content < needed:
            raise UserError(f"{self.path}: damaged: {content} bytes of pixels instead of {needed}")

    def _window(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        if self._plain:
            pixels = self._numbers()[top:bottom]
        else:
            with self.path.open("rb") as file:
                file.seek(self._start + top * self._row_bytes)
                content = file.read((bottom - top) * self._row_bytes)
            if len(content) < (bottom - top) * self._row_bytes:
                raise UserError(f"{self.path}: damaged: the file ends early")
            rows = np.frombuffer(content, self._stored).reshape(bottom - top, -1)
            if self.one_bit:
                rows = np.unpackbits(rows, axis=1)[:, : self.width]
            pixels = rows.reshape(bottom - top, self.width, self.channels)
        return self._scaled(pixels[:, left:right])

    def _numbers(self) -> np.ndarray:
        """All pixels of a plain file."""
        if self._pixels is None:
            content = self.path.read_bytes()[self._start :]
            check_memory(self.path, 60 * len(content), "a text")  # Python's numbers are large
            content = re.sub(rb"#[^\n]*", b"", content)
            digits = re.findall(rb"[01]" if self.one_bit else rb"\d+", content)
            wanted = self.height * self.width * self.channels
            if len(digits) < wanted:
                raise UserError(f"{self.path}: damaged: {len(digits)} values instead of {wanted}")
            numbers = np.array([int(digit) for digit in digits[:wanted]], np.int64)
            if numbers.max(initial=0) > self._maximum:
                raise UserError(f"{self.path}: damaged: a value above {self._maximum}")
            self._pixels = numbers.reshape(self.height, self.width, self.channels)
        return self._pixels

    def _scaled(self, pixels: np.ndarray) -> np.ndarray:
        """The visible value as defined by Netpbm: a fraction of the maximum value; a bit of 1 is black."""
        if self._values == "stored":
            return pixels.astype(self.dtype)
        white = np.iinfo(self.dtype).max
        if self.one_bit:
            # In a color mask, too, 1 is the drawn part.
            bits = pixels if self._values == "colors" else 1 - pixels
            return (bits * white).astype(self.dtype)
        if self._maximum == white:
            return pixels.astype(self.dtype)
        if pixels.max(initial=0) > self._maximum:
            raise UserError(f"{self.path}: damaged: a value above {self._maximum}")
        return ((pixels.astype(np.int64) * white + self._maximum // 2) // self._maximum).astype(self.dtype)
