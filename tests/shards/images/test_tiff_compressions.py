"""TIFF files in any compression are read by window, with the pixels written (or decoded by libtiff)."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from segdist.core.errors import UserError
from shards.images.opening import open_image

RNG = np.random.default_rng(3)
HEIGHT, WIDTH, TILE = 75, 100, 32
LZW, JPEG, YCBCR = 5, 7, 6  # tag values
COMPRESSION, PHOTOMETRIC = 259, 262  # tags


def picture(channels: int, dtype: str = "uint8") -> np.ndarray:
    """Gradients with some noise, (H, W) or (H, W, 3)."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    slopes = np.stack([2 * x, 3 * y, x + y], axis=-1)[..., :channels] + RNG.integers(0, 4, (HEIGHT, WIDTH, channels))
    scaled = (slopes * (np.iinfo(dtype).max // 255)).astype(dtype)
    return scaled[..., 0] if channels == 1 else scaled


def lzw(content: bytes) -> bytes:
    """A valid LZW stream without compression: a Clear code (256) before codes exceed 9 bits."""
    codes = []
    for start in range(0, len(content), 250):
        codes += [256, *content[start : start + 250]]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def jpeg(tile: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_tiles(
    path: Path, array: np.ndarray, encode: Callable[[np.ndarray], bytes], tags: dict[int, int], **options: object
) -> Path:
    """Write a TIFF with tiles made by `encode`. tifffile can't, so it writes deflate and the tags are corrected."""

    def tiles() -> Iterator[bytes]:
        for y in range(0, HEIGHT, TILE):
            for x in range(0, WIDTH, TILE):
                tile = array[y : y + TILE, x : x + TILE]
                missing = [(0, TILE - tile.shape[0]), (0, TILE - tile.shape[1]), (0, 0)][: tile.ndim]
                yield encode(np.pad(tile, missing, mode="edge"))

    kind = "rgb" if array.ndim == 3 else "minisblack"
    layout = {"shape": array.shape, "dtype": array.dtype, "tile": (TILE, TILE), "photometric": kind}
    tifffile.imwrite(path, tiles(), compression="zlib", **layout, **options)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for tag, value in tags.items():
            file.pages[0].tags[tag].overwrite(value)
    return path


def assert_windows(path: Path, expected: np.ndarray) -> None:
    """Check that every window equals the same part of `expected`."""
    full = expected.reshape(HEIGHT, WIDTH, -1)
    with open_image(path) as image:
        assert image.windowed
        assert (image.height, image.width, image.channels, image.dtype) == (*full.shape, full.dtype)
        assert (image.read(0, HEIGHT) == full).all()
        for _ in range(12):
            top, bottom = sorted(RNG.integers(0, HEIGHT + 1, 2).tolist())
            left, right = sorted(RNG.integers(0, WIDTH + 1, 2).tolist())
            assert (image.read(top, bottom, left, right) == full[top:bottom, left:right]).all()


@pytest.mark.parametrize(("channels", "dtype"), [(1, "uint8"), (3, "uint8"), (1, "uint16"), (3, "uint16")])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_lzw_tiles_are_read(tmp_path: Path, channels: int, dtype: str, predictor: bool, order: str) -> None:
    def encode(tile: np.ndarray) -> bytes:
        if predictor:
            tile = np.diff(tile, axis=1, prepend=np.zeros_like(tile[:, :1]))
        return lzw(tile.astype(tile.dtype.newbyteorder(order)).tobytes())  # type: ignore[arg-type]

    array = picture(channels, dtype)
    assert_windows(
        write_tiles(
            tmp_path / "a.tif", array, encode, {COMPRESSION: LZW}, byteorder=order, predictor=predictor or None
        ),
        array,
    )


@pytest.mark.parametrize(("channels", "dtype"), [(1, "uint8"), (3, "uint8"), (1, "uint16")])
@pytest.mark.parametrize("predictor", [1, 2])
def test_lzw_strips_written_by_libtiff_are_read(tmp_path: Path, channels: int, dtype: str, predictor: int) -> None:
    array = picture(channels, dtype)
    rows = {278: 8}
    Image.fromarray(array).save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo={317: predictor, **rows})
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert (file.pages[0].compression, file.pages[0].predictor) == (LZW, predictor)
        assert len(file.pages[0].dataoffsets) == 10
    assert_windows(tmp_path / "a.tif", array)


def test_one_bit_lzw_masks_are_read(tmp_path: Path) -> None:
    array = picture(1) > 100
    Image.fromarray(array).save(tmp_path / "a.tif", compression="tiff_lzw", tiffinfo={278: 16})
    assert_windows(tmp_path / "a.tif", np.where(array, 255, 0).astype(np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_tiles_match_libtiff(tmp_path: Path, channels: int) -> None:
    tags = {COMPRESSION: JPEG, PHOTOMETRIC: YCBCR} if channels == 3 else {COMPRESSION: JPEG}
    path = write_tiles(tmp_path / "a.tif", picture(channels), jpeg, tags)
    assert_windows(path, np.asarray(Image.open(path)))
    with open_image(path) as image:
        difference = image.read(0, HEIGHT).astype(int) - picture(channels).reshape(HEIGHT, WIDTH, -1)
    assert abs(difference).mean() < 4


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_strips_with_their_own_tables_are_read(tmp_path: Path, channels: int) -> None:
    Image.fromarray(picture(channels)).save(tmp_path / "a.tif", compression="jpeg", tiffinfo={278: 16})
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.pages[0].jpegtables
        assert len(file.pages[0].dataoffsets) == 5
    assert_windows(tmp_path / "a.tif", np.asarray(Image.open(tmp_path / "a.tif")))


@pytest.mark.parametrize("tag", [LZW, JPEG])
def test_a_damaged_segment_is_named(tmp_path: Path, tag: int) -> None:
    encode = (lambda tile: lzw(tile.tobytes())) if tag == LZW else jpeg
    path = write_tiles(tmp_path / "a.tif", picture(1), encode, {COMPRESSION: tag})
    with tifffile.TiffFile(path) as file:
        start = file.pages[0].dataoffsets[3]
    content = bytearray(path.read_bytes())
    content[start : start + 400] = RNG.bytes(400)
    path.write_bytes(content)
    with open_image(path) as image, pytest.raises(UserError, match=r"a\.tif: damaged"):
        image.read(0, HEIGHT)


ANY_PIXELS = ("zstd", "lzma", "jpeg2000", "lerc", "packbits", "lzw", "jpegxl", "png")


@pytest.mark.parametrize(
    ("compression", "channels", "dtype"),
    [
        *((name, *kind) for name in ANY_PIXELS for kind in ((1, "uint8"), (3, "uint8"), (3, "uint16"))),
        ("webp", 3, "uint8"),
    ],
)
def test_lossless_compressions_are_read(tmp_path: Path, compression: str, channels: int, dtype: str) -> None:
    array = picture(channels, dtype)
    options = {"compressionargs": {"lossless": True}} if compression == "webp" else {}
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(TILE, TILE), compression=compression, **options)
    assert_windows(tmp_path / "a.tif", array)


def test_scanned_pages_are_read(tmp_path: Path) -> None:
    array = picture(1) > 100
    Image.fromarray(array).save(tmp_path / "a.tif", compression="group4", tiffinfo={278: 16})
    if not hasattr(imagecodecs, "CCITTFAX4"):  # before 2026.3.6
        with pytest.raises(UserError, match=r"CCITT.* not supported"):
            open_image(tmp_path / "a.tif")
        return
    assert_windows(tmp_path / "a.tif", np.where(array, 255, 0).astype(np.uint8))
