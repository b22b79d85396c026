"""Open images of any supported format for reading by window: TIFF, Zarr, Netpbm, and everything that Pillow reads.

All readers share one interface (`shards.images.image_file`). By default, images are read as a viewer shows them:
upright, with palettes applied, without transparency.
"""

from pathlib import Path

import numpy as np

from segdist.core.errors import UserError
from shards.images.image_file import ImageFile, Reading, Values, damage_reported
from shards.images.netpbm_image import NetpbmImage, is_netpbm
from shards.images.pillow_image import PillowImage

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf8", ".svs", ".ndpi")
ZARR_SUFFIX = ".zarr"
IMAGE_SUFFIXES = (
    ".png",
    ".jpg",
    ".jpeg",
    ".bmp",
    ".webp",
    ".gif",
    ".pbm",
    ".pgm",
    ".ppm",
    ".pnm",
    *TIFF_SUFFIXES,
    ZARR_SUFFIX,
)
"""Suffixes (lower case) to search for in folders; a file that is named explicitly can have any suffix."""


def page_address(path: Path, page: int) -> Path:
    """Path and page in one: the path itself for the first page, `stack.tif#page=3` for the fourth."""
    return path.with_name(f"{path.name}#page={page}") if page else path


def split_address(address: str | Path) -> tuple[Path, int]:
    """The inverse of `page_address`."""
    path, found, page = str(address).rpartition("#page=")
    return (Path(path), int(page)) if found and page.isdecimal() else (Path(address), 0)


def page_addresses(path: Path) -> list[Path]:
    """The addresses of all images in a file: several for a multi-page TIFF, otherwise only the path.

    Raises:
        UserError: a TIFF file that is missing or damaged.
    """
    suffix = path.suffix.lower()
    if suffix in IMAGE_SUFFIXES and suffix not in TIFF_SUFFIXES:
        return [path]  # judged by its name, without opening it
    if not _is_tiff(path):
        return [path]
    from shards.images.tiff_pages import tiff_page_numbers  # see `open_image`

    with damage_reported(path):
        return [page_address(path, number) for number in tiff_page_numbers(path)]


def open_image(
    address: str | Path, values: Values = "seen", *, upright: bool = True, channels: int | None = None
) -> ImageFile:
    """Open an image: a path, or the address of a page of a multi-page TIFF (`page_address`).

    `values`, `upright` and `channels` as in `Reading`.

    Raises:
        UserError: missing, damaged or unknown file, or unsupported values.
    """
    path, page = split_address(address)
    reading = Reading(values, upright, channels)
    with damage_reported(path):
        if path.is_dir():
            if not any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup")):
                raise UserError(f"{path}: a folder, but not a Zarr image; give a file")
            # zarr is an extra.
            from shards.images.zarr_image import ZarrImage

            return ZarrImage(path, reading)
        if _is_tiff(path):
            # Importing tifffile takes a tenth of a second, which jobs on PNG files can avoid.
            from shards.images.tiff_image import TiffImage

            return TiffImage(path, None if path == Path(address) else page, reading)
        if page:
            raise UserError(f"{path}: page {page} was requested, but only TIFF files have pages")
        return NetpbmImage(path, reading) if is_netpbm(path) else PillowImage(path, reading)


def match_channels(array: np.ndarray, channels: int, path: str | Path) -> np.ndarray:
    """Convert pixels (…, C) to the number of channels that a model or a shard set needs.

    Gray is repeated to RGB; RGB becomes gray if all three channels are equal.

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
            f"{path}: a color image, but a gray one is needed; convert it to gray, or make a shard set of RGB "
            "images and train on it"
        )
    raise UserError(
        f"{path}: {have} channels, but {channels} are needed; convert the file, or make a shard set of images with "
        f"{have} channels and train on it"
    )


def _is_tiff(path: Path) -> bool:
    """True for classic TIFF and BigTIFF of either byte order, judged by the first bytes, not the name."""
    with damage_reported(path), path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
