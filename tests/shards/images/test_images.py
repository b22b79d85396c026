"""Every format and layout returns the pixels written, whole and by window; damage is named."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segdist.core.errors import UserError
from shards.images.opening import match_channels, open_image, page_address
from tests.support.png import png_of_16_bit

RNG = np.random.default_rng(7)
GRAY = RNG.integers(0, 256, (37, 53), dtype=np.uint8)
RGB = RNG.integers(0, 256, (37, 53, 3), dtype=np.uint8)
GRAY16 = RNG.integers(0, 65536, (37, 53), dtype=np.uint16)


def whole(path: Path) -> np.ndarray:
    with open_image(path) as image:
        pixels = image.read(0, image.height)
        assert pixels.shape == (image.height, image.width, image.channels)
        assert pixels.dtype == image.dtype
        return pixels


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path)
    return path


def test_gray_png_has_one_channel(tmp_path: Path) -> None:
    assert (whole(save(tmp_path / "a.png", GRAY))[..., 0] == GRAY).all()


def test_gray_with_alpha_loses_the_alpha(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.dstack([GRAY, 255 - GRAY]))
    assert Image.open(path).mode == "LA"
    assert (whole(path)[..., 0] == GRAY).all()


def test_rgb_and_rgba_png_have_three_channels(tmp_path: Path) -> None:
    assert (whole(save(tmp_path / "a.png", RGB)) == RGB).all()
    rgba = np.dstack([RGB, GRAY])
    assert (whole(save(tmp_path / "b.png", rgba)) == RGB).all()


def test_16_bit_png_keeps_its_bits(tmp_path: Path) -> None:
    assert (whole(save(tmp_path / "a.png", GRAY16))[..., 0] == GRAY16).all()


def test_one_bit_png_becomes_0_and_255(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", GRAY > 128)
    assert (whole(path)[..., 0] == np.where(GRAY > 128, 255, 0)).all()


@pytest.mark.parametrize(("colors", "channels"), [([9, 9, 9, 80, 80, 80], 1), ([9, 9, 9, 80, 0, 80], 3)])
def test_palette_png_is_gray_if_all_used_colors_are(tmp_path: Path, colors: list[int], channels: int) -> None:
    picture = Image.fromarray(GRAY % 2)
    picture.putpalette([*colors, 200, 0, 0])  # the third color is unused
    picture.save(tmp_path / "a.png")
    expected = np.array(colors, np.uint8).reshape(2, 3)[GRAY % 2][..., :channels]
    assert (whole(tmp_path / "a.png") == expected).all()


def test_jpeg_is_rotated_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GRAY).save(tmp_path / "a.jpg", exif=exif)
    assert whole(tmp_path / "a.jpg").shape == (53, 37, 1)


def test_the_format_is_detected_from_the_bytes_not_the_name(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GRAY)
    (tmp_path / "a.tif").rename(tmp_path / "a.png")
    assert (whole(tmp_path / "a.png")[..., 0] == GRAY).all()


TIFF_LAYOUTS = {
    "plain": {},
    "strips": {"rowsperstrip": 5},
    "deflate strips": {"rowsperstrip": 5, "compression": "zlib"},
    "deflate predictor": {"rowsperstrip": 7, "compression": "zlib", "predictor": True},
    "tiles": {"tile": (16, 32)},
    "deflate tiles": {"tile": (16, 16), "compression": "zlib"},
    "big endian": {"byteorder": ">"},
    "big endian tiles": {"byteorder": ">", "tile": (16, 16)},
    "bigtiff": {"bigtiff": True, "tile": (16, 16)},
    "one deflate strip": {"compression": "zlib"},
}


@pytest.mark.parametrize("layout", TIFF_LAYOUTS)
@pytest.mark.parametrize("array", [GRAY, GRAY16, RGB], ids=["gray", "gray16", "rgb"])
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_window_of_any_tiff_layout_is_read(
    tmp_path_factory: pytest.TempPathFactory, layout: str, array: np.ndarray, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("tiff") / "a.tif"
    tifffile.imwrite(path, array, **TIFF_LAYOUTS[layout])
    full = array.reshape(37, 53, -1)
    with open_image(path) as image:
        assert (image.height, image.width, image.channels) == full.shape
        for _ in range(4):  # what a window leaves behind must not spoil the next
            top = data.draw(st.integers(0, 37))
            bottom = data.draw(st.integers(top, 37))
            left = data.draw(st.integers(0, 53))
            right = data.draw(st.integers(left, 53))
            assert (image.read(top, bottom, left, right) == full[top:bottom, left:right]).all()


def test_planar_tiff_can_have_five_channels(tmp_path: Path) -> None:
    array = RNG.integers(0, 256, (5, 37, 53), dtype=np.uint8)
    options = {"photometric": "minisblack", "planarconfig": "separate"}
    for name, extra in {"strips": {"rowsperstrip": 5}, "tiles": {"tile": (16, 16)}}.items():
        tifffile.imwrite(tmp_path / name, array, compression="zlib", **options, **extra)
        assert (whole(tmp_path / name) == array.transpose(1, 2, 0)).all()


def test_tiff_alpha_palette_inverted_and_one_bit(tmp_path: Path) -> None:
    rgba = np.dstack([RGB, GRAY])
    tifffile.imwrite(tmp_path / "rgba.tif", rgba, photometric="rgb", extrasamples=["unassalpha"])
    assert (whole(tmp_path / "rgba.tif") == RGB).all()
    tifffile.imwrite(tmp_path / "inverted.tif", GRAY, photometric="miniswhite")
    assert (whole(tmp_path / "inverted.tif")[..., 0] == 255 - GRAY).all()
    colors = RNG.integers(0, 256, (3, 256)).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "palette.tif", GRAY, photometric="palette", colormap=colors)
    assert (whole(tmp_path / "palette.tif") == (colors >> 8).T.astype(np.uint8)[GRAY]).all()
    Image.fromarray(GRAY > 128).save(tmp_path / "bits.tif")
    assert (whole(tmp_path / "bits.tif")[..., 0] == np.where(GRAY > 128, 255, 0)).all()


def test_pages_of_a_tiff_are_read(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.stack([GRAY, 255 - GRAY]), photometric="minisblack")
    with open_image(page_address(tmp_path / "a.tif", 1)) as image:
        assert (image.read(0, 37)[..., 0] == 255 - GRAY).all()
    with pytest.raises(UserError, match="pages 0 to 1"):
        open_image(page_address(tmp_path / "a.tif", 2))


@pytest.mark.parametrize("shape", ["hw", "hwc", "chw", "ome"])
def test_zarr_arrays_are_read(tmp_path: Path, shape: str) -> None:
    zarr = pytest.importorskip("zarr")
    arrays = {"hw": GRAY, "hwc": RGB, "chw": RGB.transpose(2, 0, 1), "ome": GRAY[None, None, None]}
    path = tmp_path / "a.zarr"
    if shape == "ome":
        group = zarr.open_group(str(path), mode="w")
        group.create_array("0", shape=arrays[shape].shape, dtype=arrays[shape].dtype, chunks=(1, 1, 1, 16, 16))
        group["0"][:] = arrays[shape]
    else:
        zarr.create_array(str(path), data=np.ascontiguousarray(arrays[shape]))
    expected = RGB if shape in ("hwc", "chw") else GRAY[..., None]
    assert (whole(path) == expected).all()
    with open_image(path) as image:
        assert (image.read(3, 30, 5, 50) == expected[3:30, 5:50]).all()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_truncated_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save(path, GRAY)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(UserError, match=name):
        whole(path)


def test_a_flipped_byte_in_a_png_is_detected(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", GRAY)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        whole(path)


def test_a_file_that_is_not_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(UserError, match=r"a\.png"):
        open_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="no such file"):
        open_image(tmp_path / "b.png")
    with pytest.raises(UserError, match="folder"):
        open_image(tmp_path)


def test_float_values_are_refused_with_the_fix(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GRAY.astype(np.float32))
    with pytest.raises(UserError, match="8 or 16 bit PNG or TIFF"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_16_bit_png_with_color_or_alpha_keeps_its_bits(tmp_path: Path, channels: int) -> None:
    array = RNG.integers(0, 65536, (37, 53, channels), dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png_of_16_bit(array))
    assert (whole(tmp_path / "a.png") == array[..., : 1 if channels == 2 else 3]).all()


def test_channels_are_matched_to_the_target() -> None:
    gray = GRAY[..., None]
    assert (match_channels(gray, 3, "a") == gray).all()
    assert match_channels(gray, 3, "a").shape == (37, 53, 3)
    assert (match_channels(np.repeat(gray, 3, axis=2), 1, "a") == gray).all()
    with pytest.raises(UserError, match="color image"):
        match_channels(RGB, 1, "a")
    with pytest.raises(UserError, match="5 channels"):
        match_channels(np.zeros((2, 2, 5), np.uint8), 3, "a")


def test_windows_outside_the_image_are_refused(tmp_path: Path) -> None:
    with open_image(save(tmp_path / "a.png", GRAY)) as image, pytest.raises(ValueError, match="outside"):
        image.read(0, 38)


def test_an_image_address_can_name_a_page(tmp_path: Path) -> None:
    pages = RNG.integers(0, 256, (3, 20, 30), dtype=np.uint8)
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, pages, photometric="minisblack")
    for page in range(3):
        with open_image(page_address(path, page)) as image:
            assert np.array_equal(image.read(0, 20, 0, 30)[..., 0], pages[page])
