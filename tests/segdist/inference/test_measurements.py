"""Tables written by `segdist infer --output.measurements`."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import infer
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED
from segdist.inference.objects import measure
from segdist.inference.parts import MemoryRows
from shards.manifest import ClassInfo
from tests.support.inference_parts import CLASSES, labels, write_images, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measurements")
    write_model(folder / "run")
    write_images(folder / "images")
    return folder


def job(folder: Path, out: Path, *more: str) -> int:
    where = ["-m", str(folder / "run"), "-i", str(folder / "images/odd.png"), "-o", str(out)]
    return run_job(infer.main, [*where, "--output.measurements", "--wandb", "off", "--quiet", "--device", "cpu", *more])


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_class_areas_and_shares_match_the_mask(folder: Path, tmp_path: Path) -> None:
    assert job(folder, tmp_path) == FINISHED
    mask = labels(tmp_path / "masks/odd.png")
    rows = table(tmp_path / "classes/odd.csv")
    assert [row["class"] for row in rows] == [info.name for info in CLASSES]
    for label, row in enumerate(rows):
        assert int(row["area"]) == (mask == label).sum()
        assert float(row["share"]) == (mask == label).mean()


def test_objects_match_the_mask_and_image(folder: Path, tmp_path: Path) -> None:
    job(folder, tmp_path)
    mask, image = labels(tmp_path / "masks/odd.png"), np.asarray(Image.open(folder / "images/odd.png"))
    image = image.reshape(*mask.shape, -1)
    expected = measure(MemoryRows(mask), lambda top, bottom: image[top:bottom], np.ones(256, bool))
    rows = table(tmp_path / "objects/odd.csv")
    assert [int(row["area"]) for row in rows] == expected.area.tolist()
    assert sum(int(row["area"]) for row in rows) == mask.size
    mean = "intensity_mean_0" if image.shape[2] > 1 else "intensity_mean"
    assert [float(row[mean]) for row in rows] == (expected.intensity_sum[:, 0] / expected.area).tolist()
    counts = [int(row["objects"]) for row in table(tmp_path / "classes/odd.csv")]
    assert counts == [(expected.label == label).sum() for label in range(len(CLASSES))]


def test_boxes_of_a_region_are_in_image_coordinates(folder: Path, tmp_path: Path) -> None:
    job(folder, tmp_path, "--roi", "17", "29", "31", "40")
    rows = table(tmp_path / "objects/odd.csv")
    assert min(int(row["top"]) for row in rows) == 17
    assert max(int(row["right"]) for row in rows) == 69
    assert all(17 <= float(row["centroid_row"]) < 48 for row in rows)


def test_a_class_named_background_has_an_area_but_no_objects(tmp_path: Path) -> None:
    names = (*CLASSES[:2], ClassInfo("Background", (86, 180, 233)))
    write_model(tmp_path / "run", classes=names)
    write_images(tmp_path / "images")
    job(tmp_path, tmp_path / "out")
    classes = table(tmp_path / "out/classes/odd.csv")
    assert int(classes[2]["area"]) > 0
    assert classes[2]["objects"] == ""
    assert "Background" not in {row["class"] for row in table(tmp_path / "out/objects/odd.csv")}
