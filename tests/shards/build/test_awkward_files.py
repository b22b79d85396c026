"""Shard sets from camera, scanner and microscope files: every patch is the right window, with its mask."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdist.core.errors import UserError
from shards.build.build import make_shards
from shards.build.config import ImagesConfig
from shards.build.work import find_work
from shards.images.config import MasksConfig
from shards.manifest import Manifest
from shards.read.reader import ShardSet
from tests.support.sets import build_own, noise, own_config

SIZE = 16  # patch side in `own_config`


def patches_with_masks(folder: Path) -> list[tuple[np.ndarray, np.ndarray, str, int, int]]:
    """Image (h, w, C), labels (h, w), source image, y, x of each training patch."""
    shard_set = ShardSet(folder / "data" / "own")
    found = []
    for shard in range(len(shard_set.sizes("train"))):
        for record, entry in enumerate(shard_set.index("train", shard)):
            images, masks = shard_set.read("train", np.array([shard]), np.array([record]))
            source = shard_set.manifest.sources["train"][entry["source"]].image
            found.append((np.moveaxis(images[0], 0, -1), masks[0], source, int(entry["y"]), int(entry["x"])))
    assert found
    return found


def photo(seed: int) -> np.ndarray:
    return noise(seed, 48, 64)


def save_photo(path: Path, pixels: np.ndarray, tag: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = tag
    if path.suffix == ".tif":
        tifffile.imwrite(path, pixels, extratags=[(274, "H", 1, tag, True)], photometric="minisblack")
    else:
        Image.fromarray(pixels).save(path, exif=exif)


def save_mask(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels > 128).astype(np.uint8)).save(path)


UPRIGHT = {3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a, -1)}
CLASSES = MasksConfig(classes=("background", "cell"))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("drawn_on", ["upright", "stored"])
def test_sizes_of_quarter_turned_pairs_decide_how_half_turned_ones_are_read(
    tmp_path: Path, suffix: str, drawn_on: str
) -> None:
    for number in range(6):
        tag, pixels = (3, 6)[number % 2], photo(number)
        save_photo(tmp_path / "images" / f"{number}{suffix}", pixels, tag)
        save_mask(tmp_path / "masks" / f"{number}.png", UPRIGHT[tag](pixels) if drawn_on == "upright" else pixels)
    masks = replace(CLASSES, folder=tmp_path / "masks")
    manifest = build_own(tmp_path, masks=masks)
    for image, labels, source, y, x in patches_with_masks(tmp_path):
        assert np.array_equal(labels, image[..., 0] > 128)
        tag = (3, 6)[int(Path(source).stem) % 2]
        whole = photo(int(Path(source).stem))
        whole = UPRIGHT[tag](whole) if drawn_on == "upright" else whole
        assert np.array_equal(image[..., 0], whole[y : y + SIZE, x : x + SIZE])
    assert manifest.recipe["images"]["orientation"] == ("apply" if drawn_on == "upright" else "ignore")
    # The decision doesn't change the recipe, and each task of an array decides the same.
    again = own_config(tmp_path, masks=masks)
    assert make_shards(again, quiet=True) is not None
    assert {find_work(replace(again, task=f"{task}/3")).config.images.orientation for task in range(3)} == {
        manifest.recipe["images"]["orientation"]
    }


def test_half_turns_alone_require_the_users_choice(tmp_path: Path) -> None:
    for number in range(3):
        save_photo(tmp_path / "images" / f"{number}.png", photo(number), 3)
        save_mask(tmp_path / "masks" / f"{number}.png", photo(number))
    masks = replace(CLASSES, folder=tmp_path / "masks")
    with pytest.raises(
        UserError, match=r"0\.png \(tag 3\).*--images\.orientation apply .*--images\.orientation ignore"
    ):
        build_own(tmp_path, masks=masks)
    images = ImagesConfig(folder=tmp_path / "images", orientation="ignore")
    assert build_own(tmp_path, masks=masks, images=images).samples("train")
    for image, labels, *_ in patches_with_masks(tmp_path):
        assert np.array_equal(labels, image[..., 0] > 128)


def five_bands(folder: Path) -> None:
    for number in range(3):
        bands = noise(number, channels=5)
        for kind in ("images", "masks"):
            (folder / kind).mkdir(exist_ok=True)
        path = folder / "images" / f"{number}.tif"
        tifffile.imwrite(path, bands, photometric="rgb", extrasamples=["unassalpha", "unspecified"])
        save_mask(folder / "masks" / f"{number}.png", bands[..., 4])


@pytest.mark.parametrize(("channels", "bands"), [(None, [0, 1, 2, 4]), (5, [0, 1, 2, 3, 4])])
def test_only_the_band_tagged_alpha_is_left_out_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], channels: int | None, bands: list[int]
) -> None:
    five_bands(tmp_path)
    settings = own_config(tmp_path)
    manifest = build_own(
        tmp_path,
        masks=replace(CLASSES, folder=tmp_path / "masks"),
        patches=replace(settings.patches, channels=channels),
    )
    assert manifest.channels == len(bands)
    warnings = capsys.readouterr().err
    assert warnings.count("tagged as transparency") == (channels is None)
    assert ("--patches.channels 5" in warnings) == (channels is None)
    for image, labels, source, y, x in patches_with_masks(tmp_path):
        expected = noise(int(Path(source).stem), channels=5)[y : y + SIZE, x : x + SIZE]
        assert np.array_equal(image, expected[..., bands])
        assert np.array_equal(labels, expected[..., 4] > 128)


def test_planes_of_an_imagej_stack_match_their_mask_planes(tmp_path: Path) -> None:
    for number in range(2):
        stack = np.stack([noise(10 * number + plane) for plane in range(4)])
        for kind, pixels in (("images", stack), ("masks", (stack > 128).astype(np.uint8) * 255)):
            (tmp_path / kind).mkdir(exist_ok=True)
            tifffile.imwrite(tmp_path / kind / f"{number}.tif", pixels, imagej=True, truncate=True)
    manifest: Manifest = build_own(tmp_path)
    assert len(manifest.sources["train"]) == 4
    for image, labels, source, y, x in patches_with_masks(tmp_path):
        name, _, page = Path(source).name.partition("#page=")
        plane = noise(10 * int(name[0]) + int(page or 0))
        assert np.array_equal(image[..., 0], plane[y : y + SIZE, x : x + SIZE])
        assert np.array_equal(labels, image[..., 0] > 128)
