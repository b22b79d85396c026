"""Color spaces other than RGB, and Netpbm: converted correctly or refused by name."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdist.core.errors import UserError
from shards.images.opening import open_image

RGB = np.random.default_rng(13).integers(0, 256, (24, 32, 3), dtype=np.uint8)
DEEP = np.random.default_rng(14).integers(0, 65536, (24, 32, 3), dtype=np.uint16)


def pixels(path: Path, **options: object) -> np.ndarray:
    with open_image(path, **options) as image:  # type: ignore[arg-type]
        found = image.read(0, image.height)
        assert np.array_equal(image.read(7, 19, 3, 30), found[7:19, 3:30])
        return found


def retag(path: Path, array: np.ndarray, tags: dict[int, int], **options: object) -> Path:
    tifffile.imwrite(path, array, photometric="rgb", **options)
    with tifffile.TiffFile(path, mode="r+b") as file:
        for tag, value in tags.items():
            file.pages[0].tags[tag].overwrite(value)
    return path


@pytest.mark.parametrize("compression", [None, "lzw"])
def test_uncompressed_luminance_and_chroma_become_rgb(tmp_path: Path, compression: str | None) -> None:
    luminance = np.asarray(Image.fromarray(RGB).convert("YCbCr"))
    extra = [(530, "H", 2, (1, 1), True)]
    path = retag(tmp_path / "a.tif", luminance, {262: 6}, compression=compression, extratags=extra)
    expected = np.asarray(Image.fromarray(luminance, "YCbCr").convert("RGB")).astype(int)
    assert abs(pixels(path).astype(int) - expected).max() <= 1  # Pillow rounds with tables


@pytest.mark.parametrize(("photometric", "name"), [(8, "CIELAB"), (9, "ICCLAB"), (5, "SEPARATED"), (6, "YCbCr")])
def test_other_color_spaces_are_refused_by_name(tmp_path: Path, photometric: int, name: str) -> None:
    path = retag(tmp_path / "a.tif", RGB, {262: photometric})
    with pytest.raises(UserError, match=f"a.tif: colors in {name}.*save it as"):
        open_image(path)


def test_images_with_inverted_gray_are_read_as_viewers_show_them(tmp_path: Path) -> None:
    for array, white in ((RGB[..., 0], 255), (DEEP[..., 0], 65535)):
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="miniswhite")
        assert np.array_equal(pixels(tmp_path / "a.tif")[..., 0], white - array)
        assert np.array_equal(pixels(tmp_path / "a.tif", values="stored")[..., 0], array)


@pytest.mark.parametrize("maximum", [1, 3, 100, 255, 1000, 4095, 65535])
@pytest.mark.parametrize("kind", ["P5", "P6", "P2", "P3"])
def test_netpbm_keeps_all_its_bits(tmp_path: Path, maximum: int, kind: str) -> None:
    stored = (DEEP.astype(np.int64) % (maximum + 1))[..., : 3 if kind in ("P6", "P3") else 1]
    head = f"{kind}\n# made by hand\n32 24\n{maximum}\n".encode()
    if kind in ("P5", "P6"):
        content = stored.astype("u1" if maximum < 256 else ">u2").tobytes()
    else:
        content = " ".join(str(value) for value in stored.ravel()).encode()
    (tmp_path / "a.ppm").write_bytes(head + content)
    white = 255 if maximum < 256 else 65535
    assert np.array_equal(pixels(tmp_path / "a.ppm", values="stored"), stored)
    seen = pixels(tmp_path / "a.ppm")
    assert seen.dtype == (np.uint8 if maximum < 256 else np.uint16)
    assert np.array_equal(seen, np.floor(stored * white / maximum + 0.5))


def test_a_truncated_netpbm_file_is_named(tmp_path: Path) -> None:
    for kind in (b"P6", b"P3"):
        (tmp_path / "a.ppm").write_bytes(kind + b" 32 24 255\n" + b"7 " * 900)
        with pytest.raises(UserError, match=r"a\.ppm: damaged"):
            pixels(tmp_path / "a.ppm")


def test_a_band_in_the_alpha_channel_of_a_png_can_be_kept(tmp_path: Path) -> None:
    four = np.dstack([RGB, RGB[..., 0] // 2])
    Image.fromarray(four).save(tmp_path / "a.png")
    assert np.array_equal(pixels(tmp_path / "a.png"), RGB)
    assert np.array_equal(pixels(tmp_path / "a.png", channels=4), four)
