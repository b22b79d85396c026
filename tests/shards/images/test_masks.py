"""Reading masks of any kind as labels."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdist.core.errors import UserError
from shards.build.synthetic import CLASSES
from shards.images.class_values import default_color
from shards.images.config import MasksConfig, synthetic_masks_config
from shards.images.masks import MaskReader, encode_mask, mask_reader_from_recipe
from shards.manifest import IGNORE
from tests.support.png import png_of_16_bit

LABELS = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


def reader(*classes: str, **settings: object) -> MaskReader:
    return MaskReader(MasksConfig(classes=classes, **settings))  # type: ignore[arg-type]


def save(path: Path, array: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path)
    return path


def test_plain_indices_are_read(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", LABELS)
    assert np.array_equal(reader("a", "b", "c").read(path), LABELS)


def test_classes_can_be_values_and_ranges(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[0, 3, 127], [128, 200, 255]], np.uint8))
    read = reader("background=0-9", "myelin=127,128", "axon=192-255").read(path)
    assert read.tolist() == [[0, 0, 1], [1, 2, 2]]


def test_one_class_can_be_0_and_255_or_inverted(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[0, 255]], np.uint8))
    assert reader("background=0", "cell=255").read(path).tolist() == [[0, 1]]
    assert reader("background=255", "cell=0").read(path).tolist() == [[1, 0]]


def test_one_bit_masks_are_read_as_0_and_255(tmp_path: Path) -> None:
    Image.fromarray(np.array([[False, True]])).save(tmp_path / "m.png")
    assert reader("background=0", "cell=255").read(tmp_path / "m.png").tolist() == [[0, 1]]


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_palette_masks_give_their_indices_regardless_of_colors(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(LABELS, "L")
    image.putpalette([0, 0, 0, 255, 0, 0, 7, 7, 7])
    image.save(tmp_path / f"m{suffix}")
    assert np.array_equal(reader("a", "b", "c").read(tmp_path / f"m{suffix}"), LABELS)


def test_palette_masks_give_their_colors_if_classes_are_colors(tmp_path: Path) -> None:
    image = Image.fromarray(LABELS, "L")
    image.putpalette([0, 0, 0, 255, 0, 0, 7, 7, 7])
    image.save(tmp_path / "m.png")
    assert np.array_equal(reader("a=#070707", "b=#ff0000", "c=#000000").read(tmp_path / "m.png"), 2 - LABELS)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_rgb_masks_are_read_by_color_and_keep_it_for_display(tmp_path: Path, suffix: str) -> None:
    colors = np.array([[0, 0, 0], [128, 64, 128], [0, 0, 142]], np.uint8)
    path = save(tmp_path / f"m{suffix}", colors[LABELS])
    by_color = reader("void=#000000", "road=#804080", "car=#00008e")
    assert np.array_equal(by_color.read(path), LABELS)
    assert by_color.classes[1].color == (128, 64, 128)


@pytest.mark.parametrize("mode", ["LA", "RGB", "RGBA"])
def test_gray_values_are_read_from_files_with_more_channels(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "m.png", LABELS * 100, mode)
    assert np.array_equal(reader("a=0", "b=100", "c=200").read(path), LABELS)


def test_16_bit_and_large_masks_are_read_by_window(tmp_path: Path) -> None:
    values = np.arange(300 * 20, dtype=np.uint16).reshape(300, 20)
    tifffile.imwrite(tmp_path / "m.tif", values, rowsperstrip=16)
    with reader("low=0-2999", "high=3000-6000").open(tmp_path / "m.tif") as mask:
        assert mask.windowed
        assert np.array_equal(mask.read(140, 160, 3, 9), (values >= 3000)[140:160, 3:9])


def test_16_bit_masks_with_alpha_or_colors_keep_their_values(tmp_path: Path) -> None:
    gray_and_alpha = np.dstack([LABELS.astype(np.uint16) * 300, np.full_like(LABELS, 9, np.uint16)])
    (tmp_path / "la.png").write_bytes(png_of_16_bit(gray_and_alpha))
    assert np.array_equal(reader("a=0", "b=300", "c=600").read(tmp_path / "la.png"), LABELS)
    colors = np.array([[0, 0, 0], [255, 0, 0], [0, 16, 255]], np.uint16)[LABELS] * np.uint16(257)
    (tmp_path / "rgb.png").write_bytes(png_of_16_bit(colors))
    tifffile.imwrite(tmp_path / "rgb.tif", colors, photometric="rgb")
    for name in ("rgb.png", "rgb.tif"):
        assert np.array_equal(reader("a=#000000", "b=#ff0000", "c=#0010ff").read(tmp_path / name), LABELS)


def test_values_and_colors_can_be_ignored(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[0, 1, 11]], np.uint8))
    assert reader("a", "b", ignore=("11",)).read(path).tolist() == [[0, 1, IGNORE]]
    path = save(tmp_path / "c.png", np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))
    assert reader("a=#000000", ignore=("#ffffff",)).read(path).tolist() == [[0, IGNORE]]


def test_unknown_values_are_refused_with_counts_and_fixes(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[0, 130, 130], [255, 233, 0]], np.uint8))
    with pytest.raises(UserError) as error:
        reader("a=0", "b=255").read(path)
    assert f"{path}: 130 (2 px), 233 (1 px)" in str(error.value)
    assert "--masks.unknown ignore" in str(error.value)


def test_unknown_values_can_be_ignored_or_mapped_to_the_nearest_class(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[0, 40, 130, 255, 200]], np.uint8))
    classes = ("a=0", "b=127", "c=255")
    assert reader(*classes, unknown="ignore").read(path).tolist() == [[0, IGNORE, IGNORE, 2, IGNORE]]
    assert reader(*classes, unknown="nearest").read(path).tolist() == [[0, 0, 1, 2, 2]]


def test_unknown_colors_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[[0, 0, 0], [250, 5, 0], [0, 0, 9]]], np.uint8))
    classes = ("a=#000000", "b=#ff0000")
    with pytest.raises(UserError, match=r"#000009 \(1 px\)"):
        reader(*classes).read(path)
    assert reader(*classes, unknown="nearest").read(path).tolist() == [[0, 1, 0]]
    assert reader(*classes, unknown="ignore").read(path).tolist() == [[0, IGNORE, IGNORE]]


def test_a_jpeg_mask_is_refused_as_lossy(tmp_path: Path) -> None:
    mask = np.zeros((64, 64), np.uint8)
    mask[20:45, 13:50] = 255
    Image.fromarray(mask).save(tmp_path / "m.jpg", quality=60)
    with pytest.raises(UserError, match="saved as JPEG"):
        reader("a=0", "b=255").read(tmp_path / "m.jpg")
    assert np.array_equal(reader("a=0", "b=255", unknown="nearest").read(tmp_path / "m.jpg"), mask // 255)


def test_a_color_mask_with_classes_by_value_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", np.array([[[255, 0, 0], [0, 0, 0]]], np.uint8))
    with pytest.raises(UserError, match=r"colored \(#000000, #ff0000"):
        reader("a=0", "b=255").read(path)


@pytest.mark.parametrize("name", ["broken.png", "broken.tif"])
def test_a_damaged_mask_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not an image")
    with pytest.raises(UserError, match=name):
        reader("a", "b").read(tmp_path / name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "name the classes"),
        ({"classes": ("a=0", "b=#ffffff")}, "mixes values and colors"),
        ({"classes": ("a=0-10", "b=10")}, "10 means both 'a' and 'b'"),
        ({"classes": ("a=0", "a=1")}, "is listed twice"),
        ({"classes": ("a=zero",)}, "'zero' of 'a' is not a value"),
        ({"classes": ("a=9-3",)}, "not a range"),
        ({"classes": ("=1",)}, "has no name"),
        ({"classes": ("a", "b"), "colors": ("#000000",)}, "1 colors for 2 classes"),
        ({"classes": ("a",), "ignore": ("#ffffff",)}, "mixes values and colors"),
        ({"classes": tuple(f"c{i}" for i in range(254))}, "at most 253"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        MasksConfig(**settings).validate()  # type: ignore[arg-type]


def test_a_palette_mask_survives_a_round_trip(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(encode_mask(LABELS, CLASSES))
    synthetic = MaskReader(synthetic_masks_config(CLASSES))
    assert np.array_equal(synthetic.read(tmp_path / "m.png"), LABELS)
    assert synthetic.classes == CLASSES


def test_the_reader_is_restored_from_the_recipe(small_set: Path) -> None:
    from shards.manifest import read_manifest

    manifest = read_manifest(small_set)
    labels = mask_reader_from_recipe(manifest.recipe).read(small_set / str(manifest.sources["test"][0].mask))
    assert labels.max() <= 2


def test_default_colors_differ() -> None:
    assert len({default_color(label) for label in range(60)}) == 60
