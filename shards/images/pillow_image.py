"""PNG, JPEG and whatever else Pillow reads."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from segdist.core.errors import UserError
from shards.images.image_file import ImageFile, Reading, check_memory, unsupported_values
from shards.images.png_chunks import GRAY, GRAY_ALPHA, RGB, RGBA, PngHeader, check_png, read_png_header

# Pillow refuses pictures of more than 179 megapixels as possible decompression bombs. Such pictures are normal here,
# and `check_memory` refuses what doesn't fit.
Image.MAX_IMAGE_PIXELS = None
# Its warnings (about damaged EXIF, for example) don't help without the file's name.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

EXIF_ORIENTATION = 0x0112
_JPEG_RATIO = 4096
"""Maximum pixels per byte of a JPEG: an 8 x 8 block takes at least a bit, and a subsampled one covers four blocks."""

_GRAY_MODES = {"1": 0, "L": 0, "LA": 1, "La": 1, "I;16": 0, "I;16L": 0, "I;16B": 0, "I;16N": 0, "I": 0, "F": 0}
_COLOR_MODES = {"RGB": 0, "RGBX": 0, "RGBA": 1, "RGBa": 1, "CMYK": 0, "YCbCr": 0, "HSV": 0}
"""Pillow's modes, with their number of alpha channels."""


class PillowImage(ImageFile):
    """PNG, JPEG and whatever else Pillow reads; decoded whole at the first `read`."""

    windowed = False

    def __init__(self, path: Path, reading: Reading) -> None:
        self.path = path
        self._values = reading.values
        self._pixels: np.ndarray | None = None
        self._png = read_png_header(path)
        with Image.open(path) as image:
            self.width, self.height = image.size
            mode = image.mode
            if image.format in ("GIF", "WEBP", "PNG") and getattr(image, "is_animated", False):
                raise UserError(f"{path}: an animation; save its frames as files, or as pages of a TIFF file")
            orientation = _orientation(image, self._png)
            if image.format == "JPEG" and self.width * self.height > _JPEG_RATIO * path.stat().st_size:
                raise UserError(
                    f"{path}: damaged: the header claims {self.height} x {self.width} pixels, more than "
                    f"{path.stat().st_size} bytes can hold"
                )
        self._choose(mode, reading)
        # Apply the orientation only now, because `_choose` may decode.
        self._turn(orientation, reading.upright)

    def _choose(self, mode: str, reading: Reading) -> None:
        """Choose the format of the pixels by Pillow's mode."""
        deep = self._png is not None and self._png.bits == 16 and self._png.color_type in (RGB, GRAY_ALPHA, RGBA)
        self._deep = deep
        # Once in Pillow, where colors take four bytes, and once as an array.
        self._pixel_bytes = 2 * np.dtype(np.int32).itemsize if mode in ("I", "F") else 8
        if mode in _GRAY_MODES and mode not in ("I", "F"):
            self._pixel_bytes = 4 if mode.startswith("I;16") else 2
        if deep:
            self._pixel_bytes = 16
        self.one_bit = mode == "1" or (self._png is not None and self._png.bits == 1)
        self.dtype = np.dtype(np.uint16 if mode.startswith("I;16") or deep else np.uint8)
        if deep:
            assert self._png is not None
            self.channels, self.alpha = {RGB: (3, 0), GRAY_ALPHA: (1, 1), RGBA: (3, 1)}[self._png.color_type]
        elif mode in ("P", "PA"):
            self.channels = 1 if self._values == "stored" else self._decoded().shape[2]
        elif mode in _GRAY_MODES:
            self.channels, self.alpha = 1, _GRAY_MODES[mode]
        elif mode in _COLOR_MODES:
            self.channels, self.alpha = 3, _COLOR_MODES[mode]
        else:
            raise UserError(f"{self.path}: colors in {mode}; save it as gray or RGB")
        if mode in ("I", "F"):
            if self._values == "seen":
                raise UserError(unsupported_values(self.path, "32-bit values", self._values))
            self.dtype = np.dtype(np.int32 if mode == "I" else np.float32)
        if self.alpha and reading.channels == self.channels + self.alpha:
            self.channels, self.alpha = self.channels + self.alpha, 0

    def close(self) -> None:
        self._pixels = None

    def _window(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        return self._decoded()[top:bottom, left:right, : self.channels]

    def _decoded(self) -> np.ndarray:
        """All pixels, as stored."""
        if self._pixels is None:
            check_memory(self.path, self.width * self.height * self._pixel_bytes, "a picture")
            if self._png is not None:
                check_png(self.path)
            pixels = self._decode_deep() if self._deep else self._decode()
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels
            if pixels.shape[:2] != self._stored_shape():
                raise UserError(f"{self.path}: damaged: {pixels.shape[:2]} pixels, but the header says otherwise")
            self._pixels = pixels
        return self._pixels

    def _stored_shape(self) -> tuple[int, int]:
        return self.stored_size

    def _decode_deep(self) -> np.ndarray:
        """Decode multi-channel 16-bit PNGs, which Pillow silently truncates to 8 bits."""
        # Importing this takes a twentieth of a second, which jobs on other files can avoid.
        import imagecodecs

        return np.asarray(imagecodecs.png_decode(self.path.read_bytes()))

    def _decode(self) -> np.ndarray:
        with Image.open(self.path) as image:
            if image.mode in ("P", "PA"):
                return self._decode_palette(image)
            if image.mode in ("L", "LA", "La", "RGB", "RGBA", "I", "F") or image.mode.startswith("I;16"):
                pixels = np.asarray(image).astype(self.dtype, copy=False)  # "I;16B" has the other byte order
                few_bits = self._png is not None and self._png.color_type == GRAY and self._png.bits < 8
                if few_bits and self._values == "stored":
                    assert self._png is not None
                    pixels = pixels // np.uint8(255 // (2**self._png.bits - 1))  # undo Pillow's scaling
                return pixels
            if image.mode == "1":
                bits = np.asarray(image).astype(np.uint8)
                return bits if self._values == "stored" else bits * np.uint8(255)
            return np.asarray(image.convert("RGBA" if image.mode == "RGBa" else "RGB"))

    def _decode_palette(self, image: Image.Image) -> np.ndarray:
        """Indices, or colors; a single channel if all colors in use are gray."""
        if self._values == "stored":
            return np.asarray(image if image.mode == "P" else image.getchannel("P"))
        colors = np.asarray(image.convert("RGB"))
        return colors[..., :1] if (colors == colors[..., :1]).all() else colors


def _orientation(image: Image.Image, png: PngHeader | None) -> int:
    """The EXIF tag; 1 if it is missing or invalid."""
    try:
        if png is None or png.late_notes:
            tag = image.getexif().get(EXIF_ORIENTATION, 1)
        else:
            # Pillow's own method for PNG decodes the whole picture to reach the data after the pixels.
            tag = Image.Image.getexif(image).get(EXIF_ORIENTATION, 1)
    except Exception:  # damaged EXIF can raise anything; the picture may be fine, and viewers show it unrotated
        return 1
    return tag if isinstance(tag, int) and 1 <= tag <= 8 else 1
