"""Matching masks to the images of an inference job, by the same rule as make-shards."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segdist.core.errors import UserError
from segdist.inference.config import InferConfig
from segdist.inference.inputs import find_inputs
from segdist.inference.result_names import result_names
from shards.images.config import MasksConfig
from shards.manifest import ClassInfo

CLASSES = (ClassInfo("background", (0, 0, 0)), ClassInfo("cell", (255, 0, 0)))


def save(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)


def masks_of(*images: Path, masks: Path, name: str = "{stem}") -> list[str | None]:
    config = InferConfig(
        model=("m",),
        images=tuple(map(str, images)),
        masks=MasksConfig(folder=masks, name=name, classes=("background", "cell")),
    )
    return [image.mask for image in find_inputs(config, CLASSES).images]


def test_masks_have_the_same_relative_path_below_their_folder(tmp_path: Path) -> None:
    save(tmp_path / "images/a 1.v2.png", tmp_path / "images/sub/a 1.v2.png")
    save(tmp_path / "masks/a 1.v2.tif", tmp_path / "masks/sub/a 1.v2.png", tmp_path / "masks/a 1.png")
    found = masks_of(tmp_path / "images", masks=tmp_path / "masks")
    assert found == [str(tmp_path / "masks/a 1.v2.tif"), str(tmp_path / "masks/sub/a 1.v2.png")]


def test_a_single_files_mask_has_its_name(tmp_path: Path) -> None:
    save(tmp_path / "images/sub/a.png", tmp_path / "masks/a_gt.png")
    found = masks_of(tmp_path / "images/sub/a.png", masks=tmp_path / "masks", name="{stem}_gt")
    assert found == [str(tmp_path / "masks/a_gt.png")]


def test_two_masks_for_an_image_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", tmp_path / "masks/a.png", tmp_path / "masks/a.tif")
    with pytest.raises(UserError, match=r"images/a\.png: a\.png, a\.tif"):
        masks_of(tmp_path / "images", masks=tmp_path / "masks")


def test_missing_masks_are_refused_with_a_suggestion(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", tmp_path / "images/b.png", tmp_path / "masks/a_gt.png")
    with pytest.raises(UserError, match=r"2 images without a mask by --masks\.name") as error:
        masks_of(tmp_path / "images", masks=tmp_path / "masks")
    assert "--masks.name '{stem}_gt'" in str(error.value)
    with pytest.raises(UserError, match="no such folder"):
        masks_of(tmp_path / "images", masks=tmp_path / "labels")


def test_a_page_of_an_image_uses_the_same_page_of_the_mask(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "s.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
    found = masks_of(tmp_path / "images/s.tif#page=2", tmp_path / "images/s.tif", masks=tmp_path / "masks")
    assert found == [str(tmp_path / f"masks/s.tif{page}") for page in ("#page=2", "", "#page=1")]


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["a.tif", "b.5um.png", "sub/a.png"], ["a", "b.5um", "sub/a"]),
        (["a.tif", "a.png", "b.png"], ["a.tif", "a.png", "b"]),
        (["a.tif", "a.png", "a.tif.png"], ["a.tif", "a.png", "a.tif.png"]),
        (["s.tif#page=1", "s-page1.tif", "s.tif"], ["s.tif-page1", "s-page1.tif", "s"]),
        (["s.tif#page=1", "s-page1.tif", "s.tif-page1.png"], ["s.tif-page1", "s-page1.tif", "s.tif-page1.png"]),
    ],
)
def test_images_whose_results_would_share_a_name_keep_their_suffix(places: list[str], names: list[str]) -> None:
    assert result_names(places) == names


stems = st.sampled_from(["a", "a.tif", "a.png", "a.tif.png", "a-page1", "a.tif-page1", "a.tif-page1.png"])
places = st.builds("{}{}".format, stems, st.sampled_from([".tif", ".png", ".zarr", ".tif#page=1", ".tif#page=2"]))


@given(st.sets(places, min_size=1))
def test_result_names_are_unique(places: set[str]) -> None:
    names = result_names(sorted(places))
    assert len(set(names)) == len(places)


def test_a_folder_named_like_a_result_is_refused() -> None:
    with pytest.raises(UserError, match=r"a\.tif: its result would be called a\.png"):
        result_names(["a.tif", "a.png/b.png"])


def test_pages_named_again_are_the_same_images(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
    config = InferConfig(
        model=("m",), images=(f"{tmp_path}/s.tif", f"{tmp_path}/s.tif#page=0", f"{tmp_path}/s.tif#page=1")
    )
    assert [image.name for image in find_inputs(config, CLASSES).images] == ["s", "s-page1", "s-page2"]


def test_names_are_relative_to_the_given_root_so_images_can_be_added(tmp_path: Path) -> None:
    save(tmp_path / "images/sub/a.png")
    for named in ("images", "images/sub", "images/*/*.png", "images/sub/a.png"):
        found = find_inputs(InferConfig(model=("m",), images=(str(tmp_path / named),)), CLASSES)
        root = tmp_path / "images" / ("" if named in ("images", "images/*/*.png") else "sub")
        assert found.root == str(root)
        assert [image.name for image in found.images] == [
            str(Path("images/sub/a").relative_to(root.relative_to(tmp_path)))
        ]


def test_masks_are_read_with_the_models_class_numbers(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.array([[0, 255, 7]], np.uint8)).save(tmp_path / "masks/a.png")

    def labels(*classes: str, **others: str) -> list[int]:
        masks = MasksConfig(folder=tmp_path / "masks", classes=classes, ignore=("7",), **others)  # type: ignore[arg-type]
        reader = find_inputs(InferConfig(model=("m",), images=(f"{tmp_path}/images",), masks=masks), CLASSES).masks
        assert reader is not None
        return reader.read(tmp_path / "masks/a.png")[0].tolist()

    assert labels("background=0", "cell=255") == labels("cell=255", "background=0") == [0, 1, 255]
    assert labels("cell=0-6", "background=250-255", unknown="nearest") == [1, 0, 255]
    for other in (("background=0", "cell=255", "nucleus=9"), ("background=0", "cells=255"), ("cell=0,255",)):
        with pytest.raises(UserError, match=r"the masks have the classes .*, but the model has background, cell"):
            labels(*other)
