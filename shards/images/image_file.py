"""What every reader of images is: height, width, channels, dtype (uint8 or uint16), and windows as (h, w, C) arrays.

Shape letters: H W pixels, C channels, h w a window.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from segdist.core.errors import UserError


class ImageFile:
    """An open image; a context manager. `height`, `width`, `channels`, `dtype` are known without decoding pixels
    (a palette image is the exception: whether it is gray depends on the colors used)."""

    path: Path
    height: int
    width: int
    channels: int
    dtype: np.dtype
    windowed: bool
    """False where the format must be decoded whole; the pixels are then kept until `close`."""

    def read(self, top: int, bottom: int, left: int = 0, right: int | None = None) -> np.ndarray:
        """Pixels of rows `top` to `bottom` and columns `left` to `right` (ends excluded; None: the right border).

        Returns:
            (h, w, C) array of `dtype`, the caller's to keep but not to change.

        Raises:
            UserError: the file is damaged.
            ValueError: the window reaches outside the image.
        """
        right = self.width if right is None else right
        if not (0 <= top <= bottom <= self.height and 0 <= left <= right <= self.width):
            raise ValueError(
                f"{self.path}: window {top}:{bottom}, {left}:{right} outside {self.height} x {self.width} pixels"
            )
        with damage_reported(self.path):
            return self._window(top, bottom, left, right)

    def close(self) -> None:
        """Release the file and what was decoded."""

    def _window(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} has no way to read")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def unsupported_values(path: Path, found: str) -> str:
    """The message for values that are no 1, 8 or 16 bit integers."""
    return (
        f"{path}: {found}; only 8 and 16 bit unsigned integers are read. Scale the values and save the image as 8 or "
        "16 bit PNG or TIFF"
    )


@contextlib.contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Turn what decoders raise on damaged files into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read it") from None
    except MemoryError:
        raise UserError(f"{path}: more pixels than there is memory for, or a damaged header that claims so") from None
    # Decoders say nowhere what they raise on damaged files: each has errors of its own, and many Python's.
    except Exception as error:
        raise UserError(f"{path}: damaged, or no image that can be read ({error})") from error
