"""What is damaged: small valid files of every kind that the program reads, and the expected results."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from segdist.core.errors import UserError
from segdist.core.parsing import read_file
from shards.build.build import make_shards
from shards.build.config import MakeShardsConfig, PatchesConfig, SyntheticConfig
from shards.build.pairs import csv_rows
from shards.images.config import MasksConfig
from shards.images.masks import MaskReader
from shards.images.opening import open_image, page_addresses
from shards.read.reader import ShardSet

RNG = np.random.default_rng(17)
GRAY = RNG.integers(0, 256, (61, 83), dtype=np.uint8)
RGB = RNG.integers(0, 256, (61, 83, 3), dtype=np.uint8)
SMOOTH = (np.add.outer(np.arange(61), np.arange(83)) % 256).astype(np.uint8)
BY_VALUE = MaskReader(MasksConfig(classes=("all=0-",), unknown="ignore"))
BY_COLOR = MaskReader(MasksConfig(classes=("black=#000000",), unknown="nearest"))

MOST_PIXELS = 1 << 20
"""For files that claim more pixels, only windows are read."""


class WrongContent(Exception):
    """The content read matches neither the damaged file nor the original."""


@dataclass(frozen=True)
class Subject:
    """A kind of file: how to make a valid one, how to read it, and which bytes may be damaged."""

    name: str
    write: Callable[[Path], Path]
    """Makes the valid file in an empty folder; returns what to damage, a file or a folder of files."""
    read: Callable[[Path], object]
    """Reads everything. Raises UserError for detected damage and WrongContent for undetected damage."""
    checksums: bool = False
    """Whether checksums protect the content, so that anything read must equal the original."""


def read_image(path: Path) -> object:
    """Read all pages, as an image and as a mask; return the pixels of the first."""
    first = None
    for address in page_addresses(path)[:8]:
        with open_image(address) as image:
            pixels = _some(image.height, image.width, image.read, (image.channels,), image.dtype)
        first = pixels if first is None else first
        reader = BY_COLOR if image.channels == 3 else BY_VALUE
        with reader.open(address) as mask:
            _some(mask.height, mask.width, mask.read, (), np.dtype(np.uint8))
    return first


def _some(
    height: int, width: int, read: Callable[..., np.ndarray], channels: tuple[int, ...], dtype: np.dtype
) -> list[bytes]:
    """Read the image, or three windows of a large one; each must have the requested shape."""
    windows = [(0, height, 0, width)]
    if height * width > MOST_PIXELS:
        h, w = min(height, 100), min(width, 100)
        windows = [(0, h, 0, w), (height - h, height, width - w, width), (height // 2, height // 2 + 1, 0, w)]
    found = []
    for top, bottom, left, right in windows:
        pixels = read(top, bottom, left, right)
        wanted = (bottom - top, right - left, *channels)
        if pixels.shape != wanted or pixels.dtype != dtype:
            raise WrongContent(f"{pixels.shape} {pixels.dtype} instead of {wanted} {dtype}")
        found.append(pixels.tobytes())
    return [str(channels).encode(), f"{height} {width}".encode(), *found]


def _pillow(name: str, array: np.ndarray, mode: str | None = None, **options: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = Image.fromarray(array)
        (image.convert(mode) if mode else image).save(folder / name, **options)
        return folder / name

    return write


def _tiff(array: np.ndarray, **options: object) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        tifffile.imwrite(folder / "a.tif", array, **options)
        return folder / "a.tif"

    return write


def _bytes(name: str, content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def _zarr(folder: Path) -> Path:
    import zarr

    group = zarr.open_group(str(folder / "a.zarr"), mode="w")
    group.create_array("0", data=np.moveaxis(RGB, 2, 0)[None], chunks=(1, 3, 32, 32))
    return folder / "a.zarr"


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "maker of cameras"
    return exif


def _shard_set(encoding: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        drawn = SyntheticConfig(train=4, test=0, width=40, height=40)
        patches = PatchesConfig(size=16, per_image=3, drop_background=False)
        config = MakeShardsConfig(
            name="set", root=folder, processes=1, synthetic=drawn, patches=patches, encoding=encoding
        )  # type: ignore[arg-type]
        make_shards(config, quiet=True)
        for path in (folder / "set" / "source").rglob("*.png"):
            path.unlink()  # not part of the set
        return folder / "set"

    return write


def read_set(folder: Path) -> object:
    """Read every record of a shard set and its index entry."""
    shard_set = ShardSet(folder, check="records")
    found: list[bytes] = []
    for split in ("train", "val"):
        for shard, size in enumerate(shard_set.sizes(split)):
            numbers = np.full(size, shard), np.arange(size)
            found += [array.tobytes() for array in shard_set.read(split, *numbers)]
            found.append(shard_set.index(split, shard).tobytes())
    return found


def read_csv(path: Path) -> object:
    """Read a table whose values must all be strings."""
    rows = csv_rows(path)
    if not all(isinstance(value, str) for row in rows for value in row.values()):
        raise WrongContent(f"{rows}")
    return rows


TABLE = "image,mask,split\n" + "".join(f"images/Größe {n}.png,masks/{n}.png,train\n" for n in range(9))
SETTINGS = 'seed = 3\n[masks]\nclasses = ["background=0", "Größe=1-"]\n[patches]\nsize = 32\n'

DEEP = RNG.integers(0, 65536, (61, 83), dtype=np.uint16)
IMAGES = {
    "png gray": (_pillow("a.png", GRAY), True),
    "png rgb with exif": (_pillow("a.png", RGB, exif=_exif()), True),
    "png palette": (_pillow("a.png", SMOOTH, "P"), True),
    "png 16 bit": (_pillow("a.png", DEEP), True),
    "png rgba": (_pillow("a.png", np.dstack([RGB, GRAY])), True),
    "png 1 bit": (_pillow("a.png", GRAY > 99), True),
    "jpeg": (_pillow("a.jpg", np.dstack([SMOOTH] * 3), exif=_exif()), False),
    "jpeg progressive": (_pillow("a.jpg", SMOOTH, progressive=True), False),
    "jpeg cmyk": (_pillow("a.jpg", RGB, "CMYK"), False),
    "webp": (_pillow("a.webp", RGB, lossless=True, exif=_exif()), False),
    "bmp": (_pillow("a.bmp", RGB), False),
    "gif": (_pillow("a.gif", SMOOTH), False),
    "ppm": (_bytes("a.ppm", b"P6\n83 61\n255\n" + RGB.tobytes()), False),
    "pgm plain": (_bytes("a.pgm", b"P2\n83 61\n255\n" + " ".join(map(str, GRAY.ravel())).encode()), False),
    "pbm": (_bytes("a.pbm", b"P4\n83 61\n" + np.packbits(GRAY > 99, axis=1).tobytes()), False),
    "tiff plain": (_tiff(RGB, rowsperstrip=16), False),
    "tiff deflate tiles": (_tiff(GRAY, tile=(32, 32), compression="zlib", predictor=True), False),
    "tiff lzw": (_tiff(RGB, compression="lzw", rowsperstrip=16), False),
    "tiff zstd": (_tiff(DEEP, compression="zstd", tile=(32, 32)), False),
    "tiff jpeg": (_tiff(RGB, compression="jpeg", tile=(32, 32)), False),
    "tiff jpeg 2000": (_tiff(GRAY, compression="jpeg2000", tile=(32, 32)), False),
    "tiff webp": (_tiff(RGB, compression="webp", tile=(32, 32)), False),
    "tiff lerc": (_tiff(DEEP, compression="lerc", tile=(32, 32)), False),
    "tiff packbits": (_tiff(SMOOTH, compression="packbits"), False),
    "tiff lzma": (_tiff(SMOOTH, compression="lzma"), False),
    "tiff palette": (
        _tiff(GRAY, photometric="palette", colormap=RNG.integers(0, 65536, (3, 256)).astype(np.uint16)),
        False,
    ),
    "tiff group 4": (_pillow("a.tif", GRAY > 99, compression="group4"), False),
    "tiff 16 bit": (_tiff(DEEP, compression="zlib", predictor=True), False),
    "tiff planar": (_tiff(np.moveaxis(RGB, 2, 0), photometric="rgb", planarconfig="separate", tile=(32, 32)), False),
    "tiff pages": (_tiff(np.stack([GRAY, SMOOTH, GRAY]), photometric="minisblack"), False),
    "tiff imagej stack": (_tiff(np.stack([GRAY, SMOOTH]), imagej=True, truncate=True), False),
    "tiff ome": (_tiff(np.stack([GRAY, SMOOTH]), ome=True, photometric="minisblack"), False),
    "bigtiff": (_tiff(DEEP, bigtiff=True, byteorder=">"), False),
    "zarr": (_zarr, False),
}
SUBJECTS = [Subject(name, write, read_image, checksums) for name, (write, checksums) in IMAGES.items()] + [
    Subject("shard set npy", _shard_set("npy"), read_set, checksums=True),
    Subject("shard set png", _shard_set("png"), read_set, checksums=True),
    Subject("csv", _bytes("pairs.csv", TABLE.encode()), read_csv),
    Subject("csv utf-16", _bytes("pairs.csv", TABLE.encode("utf-16")), read_csv),
    Subject("settings", _bytes("settings.toml", SETTINGS.encode()), read_file),
]

__all__ = ["SUBJECTS", "Subject", "UserError", "WrongContent"]
