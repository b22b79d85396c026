"""Which masks belong to the images of an inference job: the same rule as in make-shards."""

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdist.core.errors import UserError
from segdist.inference.config import InferConfig
from segdist.inference.inputs import find_inputs
from shards.images.config import MasksConfig
from shards.manifest import ClassInfo

CLASSES = (ClassInfo("background", (0, 0, 0)), ClassInfo("cell", (255, 0, 0)))


def save(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(path)


def masks_of(*images: Path, masks: Path, name: str = "{stem}") -> list[str | None]:
    config = InferConfig(
        model="m", images=tuple(map(str, images)), masks=MasksConfig(folder=masks, name=name, classes=("a", "b"))
    )
    return [image.mask for image in find_inputs(config, CLASSES).images]


def test_masks_stand_at_the_same_place_below_their_folder(tmp_path: Path) -> None:
    save(tmp_path / "images/a 1.v2.png", tmp_path / "images/sub/a 1.v2.png")
    save(tmp_path / "masks/a 1.v2.tif", tmp_path / "masks/sub/a 1.v2.png", tmp_path / "masks/a 1.png")
    found = masks_of(tmp_path / "images", masks=tmp_path / "masks")
    assert found == [str(tmp_path / "masks/a 1.v2.tif"), str(tmp_path / "masks/sub/a 1.v2.png")]


def test_a_file_s_mask_has_its_name(tmp_path: Path) -> None:
    save(tmp_path / "images/sub/a.png", tmp_path / "masks/a_gt.png")
    found = masks_of(tmp_path / "images/sub/a.png", masks=tmp_path / "masks", name="{stem}_gt")
    assert found == [str(tmp_path / "masks/a_gt.png")]


def test_two_masks_for_an_image_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", tmp_path / "masks/a.png", tmp_path / "masks/a.tif")
    with pytest.raises(UserError, match=r"images/a\.png: a\.png, a\.tif"):
        masks_of(tmp_path / "images", masks=tmp_path / "masks")


def test_missing_masks_are_refused_together_with_a_guess(tmp_path: Path) -> None:
    save(tmp_path / "images/a.png", tmp_path / "images/b.png", tmp_path / "masks/a_gt.png")
    with pytest.raises(UserError, match=r"2 images without a mask by --masks\.name") as error:
        masks_of(tmp_path / "images", masks=tmp_path / "masks")
    assert "--masks.name '{stem}_gt'" in str(error.value)
    with pytest.raises(UserError, match="no such folder"):
        masks_of(tmp_path / "images", masks=tmp_path / "labels")


def test_a_page_of_an_image_has_the_same_page_of_the_mask(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        tifffile.imwrite(tmp_path / folder / "s.tif", np.zeros((3, 8, 8), np.uint8), photometric="minisblack")
    found = masks_of(tmp_path / "images/s.tif#page=2", tmp_path / "images/s.tif", masks=tmp_path / "masks")
    assert found == [str(tmp_path / f"masks/s.tif{page}") for page in ("#page=2", "", "#page=1")]
