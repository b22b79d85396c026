"""PNG, JPEG and what else Pillow reads, and the 16-bit PNGs that it reads only by halves."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from segdist.core.errors import UserError
from shards.images.image_file import ImageFile, unsupported_values

# Pillow refuses pictures of more than 179 megapixels as possible bombs; here they are what the program is for, and
# the plan of a job says what they need.
Image.MAX_IMAGE_PIXELS = None

EXIF_ORIENTATION = 0x0112
_RGB, _GRAY_ALPHA, _RGBA = 2, 4, 6  # PNG color types


class PillowImage(ImageFile):
    """PNG, JPEG and whatever else Pillow reads; decoded whole at the first `read`."""

    windowed = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pixels: np.ndarray | None = None
        with Image.open(path) as image:
            self.width, self.height = image.size
            # Cameras store a rotated picture with a note; every viewer (and labeling tool) shows it upright.
            if image.getexif().get(EXIF_ORIENTATION, 1) >= 5:
                self.width, self.height = self.height, self.width
            mode = image.mode
        self._deep_png = _deep_png_kind(path)
        self.dtype = np.dtype(np.uint16 if mode.startswith("I;16") or self._deep_png else np.uint8)
        if self._deep_png:
            self.channels = 1 if self._deep_png == _GRAY_ALPHA else 3
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
                    colors = np.asarray(upright)
                    if (colors == colors[..., :1]).all():
                        upright = upright.getchannel(0)
                elif upright.mode != "L" and not upright.mode.startswith("I;16"):
                    upright = upright.convert("RGB")
                pixels = np.asarray(upright)
            pixels = pixels.astype(self.dtype, copy=False)  # "I;16B" comes in the other byte order
            self._pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        return self._pixels


def _deep_png_kind(path: Path) -> int:
    """The color type of a 16-bit PNG with several channels, which Pillow would halve without a word; else 0."""
    with path.open("rb") as file:
        head = file.read(26)
    is_deep = head.startswith(b"\x89PNG") and len(head) == 26 and head[24] == 16
    return head[25] if is_deep and head[25] in (_RGB, _GRAY_ALPHA, _RGBA) else 0


def _read_deep_png(path: Path) -> np.ndarray:
    """All pixels of a 16-bit PNG with several channels, upright: (H, W, C) uint16, alpha last.

    Pillow unpacks either half of each value; which one is the name of the raw mode.
    """
    kind = _deep_png_kind(path)
    if kind == _GRAY_ALPHA:  # opened as RGBA, whose four bytes are the two halves of two values
        halves = _unpacked(path, "RGBA")
        return halves[..., ::2] * np.uint16(256) + halves[..., 1::2]
    mode = "RGB" if kind == _RGB else "RGBA"
    return _unpacked(path, f"{mode};16B") * np.uint16(256) + _unpacked(path, f"{mode};16L")


def _unpacked(path: Path, raw_mode: str) -> np.ndarray:
    with Image.open(path) as image:
        image.tile = [image.tile[0]._replace(args=raw_mode)]
        return np.asarray(ImageOps.exif_transpose(image), np.uint16)
