"""Share intervals: `segdist calibrate` stores them in the card, `--output.measurements` writes them to the tables."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import calibrate, infer
from jobs.entry import run_job
from segdist.core.exit_codes import FINISHED, USAGE
from segdist.model.card import read_card
from segdist.model.model_file import load_weights, save_model
from segdist.model.share_intervals import FEWEST_IMAGES, ShareIntervals, fit_share_intervals
from tests.support.inference_parts import CLASSES, labels, write_images, write_model

SIDE, IGNORED = 20, 9
INTERVALS = ShareIntervals(0.9, 30, (0.1, 0.2, 0.3))


def with_intervals(run: Path, intervals: ShareIntervals | None) -> Path:
    weights, card = load_weights(run / "best.safetensors")
    save_model(run / "best.safetensors", weights, dataclasses.replace(card, share_intervals=intervals))
    return run


def segment(out: Path, images: Path, *models: Path, more: tuple[str, ...] = ()) -> int:
    quiet = ["--quiet", "--output.figures", "0", "--wandb", "off", "--threads", "1", "--device", "cpu"]
    return run_job(infer.main, ["-i", str(images), "-o", str(out), *quiet, *more, "-m", *map(str, models)])


def table(out: Path) -> list[dict[str, str]]:
    with (out / "classes/odd.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with partly unlabeled masks, and a model."""
    folder = tmp_path_factory.mktemp("intervals")
    write_images(folder / "images", {f"image-{number:02}": (SIDE, SIDE) for number in range(FEWEST_IMAGES + 1)})
    write_images(folder / "one", {"odd": (61, 83)})
    (folder / "masks").mkdir()
    rng = np.random.default_rng(1)
    for number in range(FEWEST_IMAGES + 1):
        mask = rng.choice(3, (SIDE, SIDE), p=rng.dirichlet([2, 2, 2])).astype(np.uint8)
        mask[: number % 5] = IGNORED
        if number == 0:
            mask[:] = IGNORED
        Image.fromarray(mask).save(folder / "masks" / f"image-{number:02}.png")
    return folder


def calibrated(folder: Path, tmp_path: Path, images: int) -> tuple[Path, Path]:
    """A run calibrated on the first images, and the folder of predictions."""
    run, out = write_model(tmp_path / "run"), tmp_path / "out"
    chosen = tmp_path / "chosen.csv"
    names = [f"image-{number:02}.png" for number in range(images)]
    chosen.write_text("image,mask\n" + "".join(f"{folder}/images/{name},{folder}/masks/{name}\n" for name in names))
    truth = ["--masks.ignore", str(IGNORED), "--output.probabilities", "float16"]
    classes = ["--masks.classes", *(info.name for info in CLASSES)]
    assert segment(out, chosen, run, more=(*truth, *classes)) == FINISHED
    assert run_job(calibrate.main, [str(out), "-m", str(run)]) == FINISHED
    return run, out


def test_the_card_stores_the_intervals_of_labeled_pixels(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = calibrated(folder, tmp_path, FEWEST_IMAGES + 1)
    predicted, true = [], []
    for number in range(1, FEWEST_IMAGES + 1):  # the first has no labeled pixel
        truth = labels(folder / "masks" / f"image-{number:02}.png")
        mask = labels(out / "masks" / f"image-{number:02}.png")
        predicted.append([(mask[truth != IGNORED] == label).mean() for label in range(3)])
        true.append([(truth[truth != IGNORED] == label).mean() for label in range(3)])
    expected = fit_share_intervals(np.array(predicted), np.array(true))
    card = read_card(run / "best.safetensors")
    assert expected is not None
    assert card.share_intervals == dataclasses.replace(expected, widths=pytest.approx(expected.widths))
    figures = json.loads((out / "calibration.json").read_text())
    assert figures["share_intervals"] == dataclasses.asdict(card.share_intervals) | {"widths": list(expected.widths)}
    assert f"90% intervals of class shares, from {FEWEST_IMAGES} images" in capsys.readouterr().out


def test_too_few_images_give_no_intervals_and_a_message(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = calibrated(folder, tmp_path, FEWEST_IMAGES)
    assert read_card(run / "best.safetensors").share_intervals is None
    assert json.loads((out / "calibration.json").read_text())["share_intervals"] is None
    told = (
        f"no intervals of class shares: {FEWEST_IMAGES - 1} images with labeled pixels, but {FEWEST_IMAGES} are needed"
    )
    assert told in capsys.readouterr().out


def test_measured_shares_use_the_intervals_of_the_card(folder: Path, tmp_path: Path) -> None:
    run = with_intervals(write_model(tmp_path / "run"), INTERVALS)
    assert segment(tmp_path / "out", folder / "one", run, more=("--output.measurements",)) == FINISHED
    rows = table(tmp_path / "out")
    assert list(rows[0]) == ["class", "area", "share", "share_low", "share_high", "objects"]
    mask = labels(tmp_path / "out/masks/odd.png")
    for label, row in enumerate(rows):
        expected = INTERVALS.bounds(label, (mask == label).mean())
        assert (float(row["share_low"]), float(row["share_high"])) == pytest.approx(expected)
        assert float(row["share_low"]) <= float(row["share"]) < float(row["share_high"])


@pytest.mark.parametrize(("second", "given"), [(INTERVALS, True), (None, False), ("other", False)])
def test_an_ensemble_uses_intervals_common_to_all_its_models(
    folder: Path, tmp_path: Path, second: ShareIntervals | str | None, given: bool
) -> None:
    other = dataclasses.replace(INTERVALS, images=31) if second == "other" else second
    runs = [write_model(tmp_path / name) for name in ("a", "b")]
    for run, intervals in zip(runs, (INTERVALS, other), strict=True):
        assert not isinstance(intervals, str)
        with_intervals(run, intervals)
    assert segment(tmp_path / "out", folder / "one", *runs, more=("--output.measurements",)) == FINISHED
    assert ("share_low" in table(tmp_path / "out")[0]) is given


def test_no_intervals_without_the_option_or_a_calibrated_model(folder: Path, tmp_path: Path) -> None:
    run = write_model(tmp_path / "run")
    assert segment(tmp_path / "without", folder / "one", run, more=("--output.measurements",)) == FINISHED
    with_intervals(run, INTERVALS)
    off = ("--output.measurements", "--no-calibrated")
    assert segment(tmp_path / "off", folder / "one", run, more=off) == FINISHED
    for out in (tmp_path / "without", tmp_path / "off"):
        assert list(table(out)[0]) == ["class", "area", "share", "objects"]


def test_tables_with_different_intervals_never_mix_and_other_results_can_be_resumed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_model(tmp_path / "run")
    assert segment(tmp_path / "tables", folder / "one", run, more=("--output.measurements",)) == FINISHED
    assert segment(tmp_path / "masks", folder / "one", run) == FINISHED
    with_intervals(run, INTERVALS)
    assert segment(tmp_path / "masks", folder / "one", run) == FINISHED
    assert segment(tmp_path / "tables", folder / "one", run, more=("--output.measurements",)) == USAGE
    assert "share_intervals: was None" in capsys.readouterr().err


def test_a_folder_from_an_earlier_version_has_no_intervals(folder: Path, tmp_path: Path) -> None:
    run, out = write_model(tmp_path / "run"), tmp_path / "out"
    assert segment(out, folder / "one", run, more=("--output.measurements",)) == FINISHED
    settings = out / "state/settings.json"
    old = json.loads(settings.read_text())
    del old["share_intervals"]
    settings.write_text(json.dumps(old))
    with_intervals(run, INTERVALS)
    assert segment(out, folder / "one", run, more=("--output.measurements",)) == USAGE
    with_intervals(run, None)
    assert segment(out, folder / "one", run, more=("--output.measurements",)) == FINISHED
