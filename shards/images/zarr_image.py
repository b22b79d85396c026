"""Zarr arrays as images, read by window. Needs the extra `zarr`."""

from pathlib import Path
from types import ModuleType

import numpy as np

from segdist.core.errors import UserError
from shards.images.image_file import ImageFile, Reading, unsupported_values

MOST_CHANNELS = 16
"""A first or last axis with at most this many entries holds the channels."""


def import_zarr() -> ModuleType:
    """The zarr package, or a UserError that says how to install it."""
    try:
        import zarr
    except ImportError:
        raise UserError("Zarr images need the package zarr: pip install 'segdist[zarr]'") from None
    return zarr


class ZarrImage(ImageFile):
    """An array (H, W), (H, W, C) or (C, H, W), or the finest level `0` of an OME-Zarr group."""

    windowed = True

    def __init__(self, path: Path, reading: Reading) -> None:
        zarr = import_zarr()
        self.path = path
        node = zarr.open(str(path), mode="r")
        if not hasattr(node, "shape"):
            if "0" not in node:
                raise UserError(f"{path}: a Zarr group without an array `0`; name the array's own folder")
            node = node["0"]
        self._array = node
        self.dtype = np.dtype(node.dtype)
        self._white = np.uint8(1 if reading.values == "stored" else 255)
        if self.dtype == np.dtype(bool):
            self.dtype, self.one_bit = np.dtype(np.uint8), True
        elif self.dtype not in (np.uint8, np.uint16) and (reading.values == "seen" or self.dtype.kind not in "uif"):
            raise UserError(unsupported_values(path, f"Zarr values of type {node.dtype}", reading.values))
        shape = tuple(node.shape)
        # OME-Zarr stores (T, C, Z, Y, X); leading axes with one entry carry no information.
        self._lead = 0
        while len(shape) > 2 and shape[0] == 1:
            shape = shape[1:]
            self._lead += 1
        self._channels_first = len(shape) == 3 and shape[0] <= MOST_CHANNELS < shape[2]
        if len(shape) == 2:
            self.height, self.width, self.channels = *shape, 1
        elif self._channels_first:
            self.channels, self.height, self.width = shape
        elif len(shape) == 3 and shape[2] <= MOST_CHANNELS:
            self.height, self.width, self.channels = shape
        else:
            raise UserError(f"{path}: shape {tuple(node.shape)} is not an (H, W), (H, W, C) or (C, H, W) image")
        self._flat = len(shape) == 2

    def _window(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        window: tuple[slice, ...] = (slice(top, bottom), slice(left, right))
        if self._channels_first:
            window = (slice(None), *window)
        pixels = np.asarray(self._array[(0,) * self._lead + window])
        if pixels.dtype == bool:
            pixels = pixels.astype(np.uint8) * self._white
        if self._flat:
            return pixels[..., None]
        return pixels.transpose(1, 2, 0) if self._channels_first else pixels
