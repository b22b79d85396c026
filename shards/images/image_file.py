"""The interface of all image readers: height, width, channels, dtype, and windows of pixels as (h, w, C) arrays.

Shape letters: H W pixels, C channels, h w a window.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np

from segdist.core.errors import UserError
from segdist.core.memory import available_memory

Values = Literal["seen", "stored", "colors"]
"""How to read pixels. seen: as a viewer shows them, for images; palettes are applied, inverted gray is inverted back,
and one to seven bits are scaled to eight. stored: the numbers in the file, of any type, for masks of values. colors: as
stored, but with palettes applied and one to seven bits scaled, for masks of colors."""


@dataclass(frozen=True)
class Reading:
    """How the samples in a file become pixels."""

    values: Values = "seen"
    upright: bool = True
    """Rotate by the file's own orientation tag, as viewers and labeling tools do."""
    channels: int | None = None
    """The requested number of channels: channels tagged as alpha (often really a band) are kept if they are needed to
    reach it."""


class ImageFile:
    """An open image; a context manager. `height`, `width`, `channels`, `dtype` are known without decoding pixels
    (a palette image is the exception: whether it is gray depends on the colors used)."""

    path: Path
    height: int
    width: int
    channels: int
    dtype: np.dtype
    """uint8 or uint16 if values are "seen"; otherwise also other integers, and floats."""
    windowed: bool
    """False if the format must be decoded whole; the pixels are then kept until `close`."""
    orientation: int = 1
    """The EXIF or TIFF tag, 1 to 8; 1 is upright."""
    alpha: int = 0
    """Number of channels dropped because they are tagged as alpha."""
    one_bit: bool = False
    """The file holds one bit per sample."""
    _upright: bool = True

    def read(self, top: int, bottom: int, left: int = 0, right: int | None = None) -> np.ndarray:
        """Pixels of rows `top` to `bottom` and columns `left` to `right` (ends excluded; None: the right border).

        Returns:
            (h, w, C) array of `dtype`, which the caller can keep but not modify.

        Raises:
            UserError: the file is damaged.
            ValueError: the window reaches outside the image.
        """
        right = self.width if right is None else right
        if not (0 <= top <= bottom <= self.height and 0 <= left <= right <= self.width):
            raise ValueError(
                f"{self.path}: window {top}:{bottom}, {left}:{right} outside {self.height} x {self.width} pixels"
            )
        swapped, mirrored, upside_down = self._turns()
        if upside_down:
            top, bottom = self.height - bottom, self.height - top
        if mirrored:
            left, right = self.width - right, self.width - left
        if swapped:
            top, bottom, left, right = left, right, top, bottom
        with damage_reported(self.path):
            pixels = self._window(top, bottom, left, right)
        if swapped:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1]

    @property
    def stored_size(self) -> tuple[int, int]:
        """(height, width) in the file, before rotation."""
        return (self.width, self.height) if self._turns()[0] else (self.height, self.width)

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) by the orientation tag, whether or not it is applied."""
        height, width = self.stored_size
        return (width, height) if self.orientation >= 5 else (height, width)

    def close(self) -> None:
        """Release the file and the decoded pixels."""

    def _turn(self, orientation: int, upright: bool) -> None:
        """Record the tag, once the stored height and width are known."""
        self.orientation, self._upright = orientation, upright
        if self._turns()[0]:
            self.height, self.width = self.width, self.height

    def _turns(self) -> tuple[bool, bool, bool]:
        """Whether to swap rows and columns, then mirror left and right, then flip upside down.

        Exif 2.32, tag Orientation: where row 0 and column 0 of the stored pixels are in the picture.
        """
        tag = self.orientation if self._upright else 1
        return tag >= 5, tag in (2, 3, 6, 7), tag in (3, 4, 7, 8)

    def _window(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """The window of the pixels as stored, without rotation."""
        raise TypeError(f"{type(self).__name__} doesn't implement reading")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def bands(height: int, width: int, pixels: int = 1 << 22) -> Iterator[tuple[int, int]]:
    """Row ranges (top, bottom) of bands of about `pixels` pixels."""
    rows = max(1, pixels // max(width, 1))
    return ((top, min(top + rows, height)) for top in range(0, height, rows))


def unsupported_values(path: Path, found: str, values: Values) -> str:
    """The message for unsupported types: images take integers of 1 to 16 bits, masks any real number."""
    if values != "seen":
        return f"{path}: {found}; masks hold whole numbers"
    return (
        f"{path}: {found}; images hold unsigned integers of 8 or 16 bits. Scale the values and save the image as 8 or "
        "16 bit PNG or TIFF"
    )


def check_memory(path: Path, needed: int, what: str) -> None:
    """Refuse to decode what doesn't fit into free memory: a large file, or a header with a false size."""
    free = available_memory()
    if free is not None and needed > free:
        raise UserError(
            f"{path}: {what} of {needed / 1e9:.1f} GB decoded, but only {free / 1e9:.1f} GB of memory are free; if the "
            "size is right, save the image as a tiled TIFF, which is read by window; otherwise the file is damaged"
        )


@contextlib.contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Turn decoders' exceptions on damaged files into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read it") from None
    except MemoryError:
        raise UserError(f"{path}: more pixels than fit in memory, or a damaged header") from None
    # Decoders don't document what they raise on damaged files: each has its own errors, plus many of Python's.
    except Exception as error:
        raise UserError(f"{path}: damaged, or not a readable image ({error})") from error
