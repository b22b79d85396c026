"""Opening images of any supported format for reading by window: PNG, JPEG and what else Pillow reads, TIFF, Zarr.

Every reader gives the same picture of a file: height, width, channels, dtype (uint8 or uint16) and windows as
`(h, w, C)` arrays. Transparency is dropped and palettes are looked up, so that what is read is what a person sees.
Shape letters: H W pixels, C channels, h w a window.
"""

import contextlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image, ImageOps

from shards.errors import UserError

# Pillow refuses pictures of more than 179 megapixels as possible bombs; here they are what the program is for, and
# the plan of a job says what they need.
Image.MAX_IMAGE_PIXELS = None

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".svs", ".ndpi")
ZARR_SUFFIX = ".zarr"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".pgm", ".ppm", *TIFF_SUFFIXES, ZARR_SUFFIX)
"""Suffixes (lower case) by which folders are searched for images; a file that is named itself may have any."""

EXIF_ORIENTATION = 0x0112


class ImageFile:
    """An open image; a context manager. `height`, `width`, `channels`, `dtype` are known without decoding pixels
    (a palette image is the exception: whether it is grey depends on the colours used)."""

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


def page_address(path: Path, page: int) -> Path:
    """Path and page in one: the path itself for the first page, `stack.tif#page=3` for the fourth."""
    return path.with_name(f"{path.name}#page={page}") if page else path


def split_address(address: str | Path) -> tuple[Path, int]:
    """What `page_address` was made of."""
    path, found, page = str(address).rpartition("#page=")
    return (Path(path), int(page)) if found and page.isdecimal() else (Path(address), 0)


def open_image(address: str | Path) -> ImageFile:
    """Open an image: a path, or the address of a page of a multi-page TIFF (`page_address`).

    Raises:
        UserError: missing, damaged or unknown file, or values that are neither 1, 8 nor 16 bit integers.
    """
    path, page = split_address(address)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_dir():
        if not any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup")):
            raise UserError(f"{path}: a folder, but no Zarr image; give a file")
        from shards.zarr_images import ZarrImage

        with damage_reported(path):
            return ZarrImage(path)
    if is_tiff(path):
        # tifffile costs a tenth of a second to import, which jobs on PNG files needn't pay.
        from shards.tiff_images import open_tiff

        with damage_reported(path):
            return open_tiff(path, page)
    if page:
        raise UserError(f"{path}: page {page} asked for, but only TIFF files have pages")
    with damage_reported(path):
        return PillowImage(path)


def match_channels(array: np.ndarray, channels: int, path: str | Path) -> np.ndarray:
    """Bring pixels (…, C) to the number of channels that a model or a shard set wants.

    Grey is repeated to RGB; RGB becomes grey where all three channels are equal.

    Raises:
        UserError: anything else; names the file and the ways out.
    """
    have = array.shape[-1]
    if have == channels:
        return array
    if have == 1 and channels == 3:
        return np.broadcast_to(array, (*array.shape[:-1], 3))
    if have == 3 and channels == 1:
        if np.array_equal(array[..., 0], array[..., 1]) and np.array_equal(array[..., 0], array[..., 2]):
            return array[..., :1]
        raise UserError(
            f"{path}: a colour image where a grey one is needed; convert it to grey, or make a shard set of RGB "
            "images and train on it"
        )
    raise UserError(
        f"{path}: {have} channels where {channels} are needed; convert the file, or make a shard set of images with "
        f"{have} channels and train on it"
    )


class PillowImage(ImageFile):
    """PNG, JPEG and whatever else Pillow reads; decoded whole at the first `read`."""

    windowed = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pixels: np.ndarray | None = None
        with Image.open(path) as image:
            self.width, self.height = image.size
            # Cameras store a rotated picture with a note; every viewer (and labelling tool) shows it upright.
            if image.getexif().get(EXIF_ORIENTATION, 1) >= 5:
                self.width, self.height = self.height, self.width
            mode = image.mode
        self._deep_png = _deep_png_kind(path)
        self.dtype = np.dtype(np.uint16 if mode.startswith("I;16") or self._deep_png else np.uint8)
        if self._deep_png:
            self.channels = 1 if self._deep_png == _GREY_ALPHA else 3
        elif mode in ("1", "L", "LA", "La") or mode.startswith("I;16"):
            self.channels = 1
        elif mode in ("P", "PA"):
            self.channels = self._decoded().shape[2]
        elif mode in ("RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"):
            self.channels = 3
        else:
            raise UserError(unsupported_values(path, f"Pillow mode {mode}"))

    def close(self) -> None:
        self._pixels = None

    def _window(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        return self._decoded()[top:bottom, left:right]

    def _decoded(self) -> np.ndarray:
        if self._pixels is None and self._deep_png:
            self._pixels = _read_deep_png(self.path)[..., : self.channels]
        if self._pixels is None:
            with Image.open(self.path) as image:
                upright = ImageOps.exif_transpose(image)
                if upright.mode in ("LA", "La"):
                    upright = upright.getchannel(0)
                elif upright.mode == "1":
                    upright = upright.convert("L")
                elif upright.mode in ("P", "PA"):
                    upright = upright.convert("RGB")
                    colours = np.asarray(upright)
                    if (colours == colours[..., :1]).all():
                        upright = upright.getchannel(0)
                elif upright.mode != "L" and not upright.mode.startswith("I;16"):
                    upright = upright.convert("RGB")
                pixels = np.asarray(upright)
            pixels = pixels.astype(self.dtype, copy=False)  # "I;16B" comes in the other byte order
            self._pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        return self._pixels


def is_tiff(path: Path) -> bool:
    """True for classic TIFF and BigTIFF of either byte order, judged by the first bytes, not by the name."""
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


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
    # What Pillow, tifffile and zarr were seen to raise on truncated and overwritten files.
    except (OSError, SyntaxError, ValueError, KeyError, IndexError, EOFError, struct.error, zlib.error) as error:
        raise UserError(f"{path}: damaged, or no image that can be read ({error})") from error


_RGB, _GREY_ALPHA, _RGBA = 2, 4, 6  # PNG colour types


def _deep_png_kind(path: Path) -> int:
    """The colour type of a 16-bit PNG with several channels, which Pillow would halve without a word; else 0."""
    with path.open("rb") as file:
        head = file.read(26)
    is_deep = head.startswith(b"\x89PNG") and len(head) == 26 and head[24] == 16
    return head[25] if is_deep and head[25] in (_RGB, _GREY_ALPHA, _RGBA) else 0


def _read_deep_png(path: Path) -> np.ndarray:
    """All pixels of a 16-bit PNG with several channels, upright: (H, W, C) uint16, alpha last.

    Pillow unpacks either half of each value; which one is the name of the raw mode.
    """
    kind = _deep_png_kind(path)
    if kind == _GREY_ALPHA:  # opened as RGBA, whose four bytes are the two halves of two values
        halves = _unpacked(path, "RGBA")
        return halves[..., ::2] * np.uint16(256) + halves[..., 1::2]
    mode = "RGB" if kind == _RGB else "RGBA"
    return _unpacked(path, f"{mode};16B") * np.uint16(256) + _unpacked(path, f"{mode};16L")


def _unpacked(path: Path, raw_mode: str) -> np.ndarray:
    with Image.open(path) as image:
        image.tile = [image.tile[0]._replace(args=raw_mode)]
        return np.asarray(ImageOps.exif_transpose(image), np.uint16)
