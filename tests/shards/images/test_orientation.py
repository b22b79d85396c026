"""Orientation tags are applied in every format and by window; pairs of which only one has a tag are resolved."""

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdist.core.errors import UserError
from shards.images.config import MasksConfig
from shards.images.masks import MaskReader
from shards.images.opening import open_image
from shards.images.orientation import OrientedPair, decide_orientation

STORED = np.random.default_rng(5).integers(0, 250, (37, 53)).astype(np.uint8)
UPRIGHT = {
    1: STORED,
    2: STORED[:, ::-1],
    3: STORED[::-1, ::-1],
    4: STORED[::-1],
    5: STORED.T,
    6: np.rot90(STORED, -1),
    7: STORED.T[::-1, ::-1],
    8: np.rot90(STORED, 1),
}


def tiff_tag(tag: int) -> list[tuple[int, str, int, int, bool]]:
    return [(274, "H", 1, tag, True)]


def save(path: Path, tag: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = tag
    picture = Image.fromarray(STORED)
    if path.suffix == ".tif":
        tile = (16, 16) if "tiles" in path.name else None
        tifffile.imwrite(path, STORED, tile=tile, compression="zlib", rowsperstrip=8, extratags=tiff_tag(tag))
    elif path.suffix == ".webp":
        picture.convert("RGB").save(path, exif=exif, lossless=True)
    else:
        if "palette" in path.name:
            picture.putpalette([value // 3 for value in range(768)])
        picture.save(path, exif=exif)
    return path


@pytest.mark.parametrize("tag", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "palette.png", "a.webp", "strips.tif", "tiles.tif"])
def test_a_file_is_rotated_by_its_tag(tmp_path: Path, name: str, tag: int) -> None:
    path = save(tmp_path / name, tag)
    for upright, expected in ((True, UPRIGHT[tag]), (False, STORED)):
        with open_image(path, "stored", upright=upright) as image:
            assert (image.height, image.width) == expected.shape
            assert image.orientation == tag
            assert (image.stored_size, image.upright_size) == (STORED.shape, UPRIGHT[tag].shape)
            assert np.array_equal(image.read(0, image.height)[..., 0], expected)
            assert np.array_equal(image.read(5, 31, 8, 30)[..., 0], expected[5:31, 8:30])
    classes = tuple(f"c{value}" for value in range(250))
    assert np.array_equal(MaskReader(MasksConfig(classes=classes)).read(path), UPRIGHT[tag])


@pytest.mark.parametrize("tag", range(1, 9))
def test_pillow_rotates_jpegs_the_same_way(tmp_path: Path, tag: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(STORED).save(tmp_path / "a.jpg", exif=exif)
    with open_image(tmp_path / "a.jpg") as image, Image.open(tmp_path / "a.jpg") as picture:
        assert np.array_equal(image.read(0, image.height)[..., 0], np.asarray(ImageOps.exif_transpose(picture)))


ASCII, SHORT, RATIONAL, FLOAT = 2, 3, 5, 11  # TIFF types of tag values


@pytest.mark.parametrize("kind", [ASCII, SHORT, RATIONAL, FLOAT])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_an_invalid_tag_is_ignored(tmp_path: Path, kind: int, suffix: str) -> None:
    exif = b"Exif\0\0" + struct.pack("<2sHIHHHI4sI", b"II", 42, 8, 1, 0x0112, kind, 1, b"\x63\0\0\0", 0)
    Image.fromarray(STORED).convert("RGB").save(tmp_path / f"a.{suffix}", exif=exif)
    with open_image(tmp_path / f"a.{suffix}") as image:
        assert image.read(0, image.height).shape == (*STORED.shape, 3)


def pair(image_tag: int, mask_tag: int, image: tuple[int, int], mask: tuple[int, int]) -> OrientedPair:
    """A pair with the given stored sizes."""

    def upright(tag: int, size: tuple[int, int]) -> tuple[int, int]:
        return size[::-1] if tag >= 5 else size

    return OrientedPair(Path("a"), image_tag, mask_tag, upright(image_tag, image), upright(mask_tag, mask), image, mask)


def test_the_sizes_of_one_pair_decide_for_all() -> None:
    on_raw, on_upright = pair(6, 1, (48, 64), (48, 64)), pair(6, 1, (48, 64), (64, 48))
    half_turn = pair(3, 1, (48, 64), (48, 64))
    assert decide_orientation([half_turn, on_raw], "auto", "--flag") == "ignore"
    assert decide_orientation([half_turn, on_upright], "auto", "--flag") == "apply"
    assert decide_orientation([pair(1, 8, (48, 64), (48, 64))], "auto", "--flag") == "ignore"


def test_the_user_must_decide_if_sizes_do_not() -> None:
    half_turn = pair(3, 1, (48, 64), (48, 64))
    with pytest.raises(UserError, match=r"a \(tag 3\).*--flag apply.*--flag ignore"):
        decide_orientation([half_turn, pair(1, 1, (9, 9), (9, 9))], "auto", "--flag")
    assert decide_orientation([half_turn], "ignore", "--flag") == "ignore"
    assert decide_orientation([half_turn], "apply", "--flag") == "apply"


def test_pairs_with_equal_tags_leave_nothing_to_decide() -> None:
    both = pair(3, 3, (48, 64), (48, 64))
    assert decide_orientation([both, pair(1, 1, (9, 9), (9, 9))], "auto", "--flag") == "apply"
    assert both.upright("ignore")
    assert not pair(3, 1, (48, 64), (48, 64)).upright("ignore")
