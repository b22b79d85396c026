"""`segdist suspects`: ranks regions where confident predictions contradict the masks, as CSV and GeoJSON."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jobs import infer, suspects
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED, USAGE
from segdist.inference import finished_result
from segdist.inference.finished_result import FinishedResult
from segdist.inference.outline import outlines
from segdist.inference.suspect_pictures import AROUND, FRAME, GAP
from tests.support.inference_parts import CLASSES, write_images, write_model

SHAPES = {"one": (60, 80), "two": (50, 40)}
NAMES = [info.name for info in CLASSES]


@pytest.fixture
def result(tmp_path: Path) -> Path:
    """Predictions replaced by 90 % ground everywhere. The masks are ground, too, except for what a test draws."""
    run, images = write_model(tmp_path / "run"), write_images(tmp_path / "images", SHAPES)
    (tmp_path / "masks").mkdir()
    for name, shape in SHAPES.items():
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    quiet = ["--quiet", "--output.figures", "0", "--wandb", "off", "--output.probabilities", "float32"]
    masks = ["--masks.folder", str(tmp_path / "masks"), "--masks.classes", *NAMES, "--masks.ignore", "9"]
    assert (
        run_job(infer.main, ["-m", str(run), "-i", str(images), "-o", str(tmp_path / "out"), *masks, *quiet])
        == FINISHED
    )
    for name, (height, width) in SHAPES.items():
        predict(tmp_path / "out", name, np.zeros((height, width), int), 0.9)
    return tmp_path / "out"


def predict(result: Path, name: str, labels: np.ndarray, confidence: float) -> None:
    rest = (1 - confidence) / (len(NAMES) - 1)
    stored = np.where(np.arange(len(NAMES))[:, None, None] == labels, confidence, rest).astype(np.float32)
    np.save(result / "probabilities" / f"{name}.npy", stored)


def draw(result: Path, name: str, box: tuple[int, int, int, int], label: int) -> None:
    """Label rows and columns (top, left, bottom, right) of a mask."""
    file = result.parent / "masks" / f"{name}.png"
    mask = np.asarray(Image.open(file)).copy()
    mask[box[0] : box[2], box[1] : box[3]] = label
    Image.fromarray(mask).save(file)


def rows(result: Path, *more: str) -> list[dict[str, str]]:
    assert run_job(suspects.main, [str(result), *more]) == FINISHED
    with (result / "suspects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_region_is_listed_with_its_image_box_classes_confidence_and_area(result: Path) -> None:
    draw(result, "two", (10, 20, 18, 32), 1)
    (found,) = rows(result)
    assert found["image"] == "two"
    assert found["file"].endswith("images/two.png")
    assert found["mask"].endswith("masks/two.png")
    assert [found[side] for side in ("top", "left", "bottom", "right")] == ["10", "20", "18", "32"]
    assert (found["given"], found["predicted"], found["area"]) == ("line", "ground", "96")
    assert float(found["confidence"]) == pytest.approx(0.9, abs=1e-4)
    assert float(found["given_probability"]) == pytest.approx(0.05, abs=1e-4)


def test_confident_and_thick_regions_come_first_across_all_images(result: Path) -> None:
    predict(result, "one", np.zeros(SHAPES["one"], int), 0.8)
    draw(result, "one", (5, 5, 15, 15), 2)  # thick, not so confident
    draw(result, "two", (5, 5, 15, 15), 2)  # thick, confident
    draw(result, "two", (30, 2, 31, 38), 2)  # confident, but a thin line
    found = rows(result)
    assert [(row["rank"], row["image"], row["top"]) for row in found] == [
        ("1", "two", "5"),
        ("2", "one", "5"),
        ("3", "two", "30"),
    ]


def test_touching_classes_are_separate_regions_and_ignored_pixels_none(result: Path) -> None:
    draw(result, "one", (5, 5, 15, 15), 1)
    draw(result, "one", (5, 15, 15, 20), 2)
    draw(result, "one", (30, 30, 40, 40), 9)
    assert sorted((row["given"], row["area"]) for row in rows(result)) == [("line", "100"), ("spot", "50")]


def test_bands_of_any_height_give_the_same_table(result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(2).integers(0, 3, SHAPES["one"]).astype(np.uint8)
    Image.fromarray(noise).save(result.parent / "masks/one.png")
    draw(result, "one", (5, 5, 50, 15), 1)
    whole = rows(result, "--most", "0")
    monkeypatch.setattr(finished_result, "BLOCK_VALUES", 3 * 160)
    assert rows(result, "--most", "0") == whole


def test_most_limits_the_output_and_reports_the_total(result: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(result, "one", (5, 5, 15, 15), 1)
    draw(result, "two", (5, 5, 9, 9), 1)
    assert len(rows(result)) == 2
    assert (result / "suspects/two.geojson").exists()
    assert [row["image"] for row in rows(result, "--most", "1")] == ["one"]
    assert not (result / "suspects/two.geojson").exists()
    assert "2 regions contradict the masks; 1 are in" in capsys.readouterr().out


def painted(geometry: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centers are inside a geometry."""
    polygons = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    scale = 8
    canvas = Image.new("1", (shape[1] * scale, shape[0] * scale))
    for (ring,) in polygons:
        assert ring[0] == ring[-1]
        ImageDraw.Draw(canvas).polygon([(x * scale, y * scale) for x, y in ring], fill=1)
    return np.asarray(canvas)[scale // 2 :: scale, scale // 2 :: scale]


def test_geojson_outlines_match_the_regions(result: Path) -> None:
    draw(result, "one", (5, 5, 15, 15), 1)
    draw(result, "one", (15, 15, 20, 18), 1)  # touches at a corner
    draw(result, "one", (40, 50, 41, 51), 2)
    rows(result)
    content = json.loads((result / "suspects/one.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    first, second = content["features"]
    assert first["properties"]["objectType"] == "annotation"
    assert first["properties"]["classification"] == {"name": "ground"}
    mask = np.asarray(Image.open(result.parent / "masks/one.png"))
    assert first["geometry"]["type"] == "MultiPolygon"
    assert (painted(first["geometry"], mask.shape) == (mask == 1)).all()
    assert second["geometry"]["coordinates"] == [[[50, 40], [51, 40], [51, 41], [50, 41], [50, 40]]]


@pytest.mark.parametrize("seed", range(8))
def test_an_outline_is_simple_and_encloses_its_component_with_holes_filled(seed: int) -> None:
    from scipy import ndimage

    picture = np.random.default_rng(seed).random((12, 15)) < 0.55
    labeled, count = ndimage.label(picture, np.ones((3, 3)))
    for label, (rows_of, columns_of) in zip(range(1, count + 1), ndimage.find_objects(labeled), strict=True):
        region = labeled[rows_of, columns_of] == label
        rings = outlines(picture[rows_of, columns_of], int(np.flatnonzero(region[0])[0]))
        for ring in rings:
            assert len({tuple(point) for point in ring[:-1]}) == len(ring) - 1
        geometry = {"type": "MultiPolygon", "coordinates": [[ring.tolist()] for ring in rings]}
        assert (painted(geometry, region.shape) == ndimage.binary_fill_holes(region)).all()


def test_a_result_without_masks_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, images = write_model(tmp_path / "run"), write_images(tmp_path / "images", {"one": (20, 20)})
    quiet = ["--quiet", "--wandb", "off", "--output.probabilities", "float32"]
    assert run_job(infer.main, ["-m", str(run), "-i", str(images), "-o", str(tmp_path / "out"), *quiet]) == FINISHED
    assert run_job(suspects.main, [str(tmp_path / "out")]) == USAGE
    assert "--masks.folder" in capsys.readouterr().err


def test_the_picture_shows_image_mask_and_prediction_around_the_framed_region(result: Path) -> None:
    draw(result, "two", (10, 20, 18, 32), 1)
    rows(result)
    (file,) = (result / "suspect_pictures").iterdir()
    assert file.name == "0001.png"
    with Image.open(file) as picture:
        pixels = np.asarray(picture)
    side = (pixels.shape[1] - 2 * GAP) // 3
    height, width = SHAPES["two"]
    scale = side / (min(32 + AROUND, width) - max(20 - AROUND, 0))
    assert pixels.shape[0] == pytest.approx(scale * (min(18 + AROUND, height) - max(10 - AROUND, 0)), abs=1)
    centers = [(round(14 * scale), round(26 * scale) + number * (side + GAP)) for number in range(3)]
    colors = FinishedResult(result).classes
    assert tuple(pixels[centers[1]]) == colors[1].color
    assert tuple(pixels[centers[2]]) == colors[0].color
    image, mask, prediction = (pixels[:, number * (side + GAP) : number * (side + GAP) + side] for number in range(3))
    assert len(np.unique(image)) > 50  # the image's noise, with stretched contrast
    for panel in (image, mask, prediction):
        top = round(10 * scale)
        assert FRAME in map(tuple, panel[top - 1 : top + 2, round(26 * scale)].tolist())
    draw(result, "two", (10, 20, 18, 32), 0)
    rows(result)
    assert not list((result / "suspect_pictures").glob("*"))
