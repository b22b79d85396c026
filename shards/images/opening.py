"""Opening images of any supported format for reading by window: PNG, JPEG and what else Pillow reads, TIFF, Zarr.

Every reader gives the same picture of a file (`shards.images.image_file`). Transparency is dropped and palettes are
looked up, so that what is read is what a person sees.
"""

from pathlib import Path

import numpy as np

from segdist.core.errors import UserError
from shards.images.image_file import ImageFile, damage_reported
from shards.images.pillow_image import PillowImage

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".svs", ".ndpi")
ZARR_SUFFIX = ".zarr"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".pgm", ".ppm", *TIFF_SUFFIXES, ZARR_SUFFIX)
"""Suffixes (lower case) by which folders are searched for images; a file that is named itself may have any."""


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
        from shards.images.zarr_image import ZarrImage

        with damage_reported(path):
            return ZarrImage(path)
    if is_tiff(path):
        # tifffile costs a tenth of a second to import, which jobs on PNG files needn't pay.
        from shards.images.tiff_image import TiffImage

        with damage_reported(path):
            return TiffImage(path, page)
    if page:
        raise UserError(f"{path}: page {page} asked for, but only TIFF files have pages")
    with damage_reported(path):
        return PillowImage(path)


def match_channels(array: np.ndarray, channels: int, path: str | Path) -> np.ndarray:
    """Bring pixels (…, C) to the number of channels that a model or a shard set wants.

    Gray is repeated to RGB; RGB becomes gray where all three channels are equal.

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
            f"{path}: a color image where a gray one is needed; convert it to gray, or make a shard set of RGB "
            "images and train on it"
        )
    raise UserError(
        f"{path}: {have} channels where {channels} are needed; convert the file, or make a shard set of images with "
        f"{have} channels and train on it"
    )


def is_tiff(path: Path) -> bool:
    """True for classic TIFF and BigTIFF of either byte order, judged by the first bytes, not by the name."""
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
