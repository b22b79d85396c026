"""Which pages of a TIFF file are images, and which samples are channels."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from segdist.core.errors import UserError
from shards.images.opening import open_image, page_address, page_addresses

RNG = np.random.default_rng(11)
PICTURE = RNG.integers(0, 256, (64, 48), dtype=np.uint8)
STACK = RNG.integers(0, 256, (5, 64, 48), dtype=np.uint8)
REDUCED, PAGE, MASK, MACRO = 1, 2, 4, 9  # values of NewSubfileType


def pixels(address: Path) -> np.ndarray:
    with open_image(address) as image:
        return image.read(0, image.height)


def write(path: Path, pages: list[tuple[np.ndarray, int]], **options: object) -> Path:
    with tifffile.TiffWriter(path) as file:
        for array, kind in pages:
            color = "mask" if kind & MASK else "minisblack"
            file.write(array, subfiletype=kind, photometric=color, metadata=None, **options)
    return path


def test_overviews_and_masks_of_a_cog_are_not_images(tmp_path: Path) -> None:
    half = PICTURE[::2, ::2]
    pages = [(PICTURE, 0), (PICTURE > 9, MASK), (half, REDUCED), (half > 9, REDUCED | MASK)]
    path = write(tmp_path / "cog.tif", pages, tile=(16, 16), compression="zlib")
    assert page_addresses(path) == [path]
    assert np.array_equal(pixels(path)[..., 0], PICTURE)


def test_a_file_without_pages_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"II*\0\x08\0\0\0")
    for read in (page_addresses, open_image):
        with pytest.raises(UserError, match=r"a\.tif: damaged"):
            read(tmp_path / "a.tif")


def test_if_all_pages_are_reduced_copies_they_are_images(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", [(page, REDUCED) for page in STACK[:3]])
    assert len(page_addresses(path)) == 3


def test_a_mask_is_also_recognized_by_its_color_space(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(PICTURE, photometric="minisblack", metadata=None)
        file.write(PICTURE > 9, photometric="minisblack", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        file.pages[1].tags[262].overwrite(MASK)
    assert page_addresses(tmp_path / "a.tif") == [tmp_path / "a.tif"]


def test_several_images_with_overviews_keep_their_page_numbers(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif", [(STACK[0], PAGE), (STACK[0][::2, ::2], REDUCED), (STACK[1], PAGE), (STACK[2], PAGE)]
    )
    assert page_addresses(path) == [path, page_address(path, 2), page_address(path, 3)]
    assert np.array_equal(pixels(page_address(path, 2))[..., 0], STACK[1])


def test_a_leading_thumbnail_is_not_the_image(tmp_path: Path) -> None:
    path = write(tmp_path / "camera.tif", [(PICTURE[::4, ::4], REDUCED), (PICTURE, 0)])
    assert page_addresses(path) == [page_address(path, 1)]
    assert np.array_equal(pixels(path)[..., 0], PICTURE)


def test_thumbnail_label_and_macro_of_a_slide_are_not_images(tmp_path: Path) -> None:
    slide = RNG.integers(0, 256, (64, 96, 3), dtype=np.uint8)
    small = slide[::2, ::2].copy()
    head = "Aperio Image Library v11\r\n64x96|AppMag = 20"
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        common = {"photometric": "rgb", "metadata": None}
        file.write(slide, tile=(16, 16), description=head, **common)
        file.write(small, description=head + " thumbnail", rowsperstrip=16, **common)
        file.write(small, tile=(16, 16), description=head, **common)  # a level not tagged as reduced
        file.write(small, subfiletype=REDUCED, description="Aperio\r\nlabel 48x32", **common)
        file.write(small, subfiletype=MACRO, description="Aperio\r\nmacro 48x32", **common)
    assert page_addresses(tmp_path / "a.svs") == [tmp_path / "a.svs"]
    assert np.array_equal(pixels(tmp_path / "a.svs"), slide)


@pytest.mark.parametrize("kind", ["imagej", "shaped"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_stack_with_one_directory_has_all_its_planes(tmp_path: Path, kind: str, dtype: str) -> None:
    stack = STACK.astype(dtype) * (257 if dtype == "uint16" else 1)
    options = {"imagej": True, "metadata": {"axes": "ZYX"}} if kind == "imagej" else {"photometric": "minisblack"}
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, stack, truncate=True, **options)
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 1
    assert page_addresses(path) == [page_address(path, number) for number in range(5)]
    for number in range(5):
        assert np.array_equal(pixels(page_address(path, number))[..., 0], stack[number])
    with pytest.raises(UserError, match="pages 0 to 4"):
        open_image(page_address(path, 5))
    path.write_bytes(path.read_bytes()[: -64 * 48 * stack.itemsize])
    with pytest.raises(UserError, match="damaged"):
        open_image(page_address(path, 4))


@pytest.mark.parametrize("kind", ["imagej", "ome", "plain"])
def test_a_stack_with_a_directory_per_plane(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("stack.ome.tif" if kind == "ome" else "stack.tif")
    options = {} if kind == "plain" else {"metadata": {"axes": "ZYX"}}
    tifffile.imwrite(path, STACK, imagej=kind == "imagej", photometric="minisblack", **options)
    assert len(page_addresses(path)) == 5
    assert np.array_equal(pixels(page_address(path, 3))[..., 0], STACK[3])


def test_label_and_overview_of_an_ome_slide_are_not_images(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for name, array in (("scan", PICTURE), ("label image", PICTURE[:20]), ("macro image", PICTURE[:30])):
            file.write(array, metadata={"Name": name, "axes": "YX"})
    assert page_addresses(tmp_path / "a.ome.tif") == [tmp_path / "a.ome.tif"]


BANDS = RNG.integers(0, 256, (20, 30, 5), dtype=np.uint8)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize(
    ("tags", "kept"),
    [
        (["unassalpha", "unspecified"], [0, 1, 2, 4]),
        (["unspecified", "assocalpha"], [0, 1, 2, 3]),
        (["unspecified", "unspecified"], [0, 1, 2, 3, 4]),
        (["unassalpha", "unassalpha"], [0, 1, 2]),
    ],
)
def test_samples_tagged_alpha_are_left_out(tmp_path: Path, planar: str, tags: list[str], kept: list[int]) -> None:
    array = BANDS if planar == "contig" else BANDS.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", planarconfig=planar, extrasamples=tags)
    with open_image(tmp_path / "a.tif") as image:
        assert (image.channels, image.alpha) == (len(kept), 5 - len(kept))
        assert np.array_equal(image.read(0, 20), BANDS[..., kept])
        assert np.array_equal(image.read(3, 9, 4, 8), BANDS[3:9, 4:8, kept])
    with open_image(tmp_path / "a.tif", channels=5) as image:  # all samples, on request
        assert (image.channels, image.alpha) == (5, 0)
        assert np.array_equal(image.read(0, 20), BANDS)
