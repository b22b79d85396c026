"""`segdist calibrate` fits a temperature to predictions with known masks and stores it in the model card."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from jobs import calibrate, infer
from jobs.entry import run_job
from segdist import predict
from segdist.core.exit_codes import FINISHED, USAGE
from segdist.inference import finished_result
from segdist.model.calibration import Reliability, fit_temperature, tempered
from segdist.model.card import read_card
from segdist.model.model_file import load_weights
from shards.manifest import ClassInfo
from tests.support.inference_parts import CLASSES, write_images, write_model

TRUE_TEMPERATURE = 2.5
SHAPES = {"odd": (61, 83), "tall": (131, 47)}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images", SHAPES)


@pytest.fixture
def overconfident(tmp_path: Path, images: Path) -> Path:
    """A run whose model predicts p while pixel classes follow softmax(log p / TRUE_TEMPERATURE), with masks."""
    run = write_model(tmp_path / "run")
    rng = np.random.default_rng(1)
    (tmp_path / "masks").mkdir()
    for name in SHAPES:
        logs = np.log(predict(run, images / f"{name}.png", overlap=0.0, device="cpu").astype(np.float64) + 1e-12)
        chance = tempered(logs.reshape(len(CLASSES), -1), TRUE_TEMPERATURE).reshape(logs.shape)
        mask = (rng.random(logs.shape[1:]) > chance.cumsum(axis=0)).sum(axis=0).clip(max=2)
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    return run


def segment(run: Path, images: Path, out: Path, *more: str) -> None:
    masks = ["--masks.folder", str(images.parent / "masks"), "--overlap", "0"]
    quiet = ["--quiet", "--output.figures", "0", "--wandb", "off", "--threads", "1"]
    kind = [] if "--output.probabilities" in more else ["--output.probabilities", "float16"]
    assert (
        run_job(infer.main, ["-m", str(run), "-i", str(images), "-o", str(out), *masks, *quiet, *kind, *more])
        == FINISHED
    )


def job(result: Path, *models: Path) -> int:
    return run_job(calibrate.main, [str(result), "-m", *map(str, models)])


def test_the_card_gets_the_temperature_and_the_weights_are_unchanged(
    overconfident: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, card = load_weights(overconfident / "best.safetensors")
    segment(overconfident, images, tmp_path / "out")
    assert job(tmp_path / "out", overconfident) == FINISHED
    found, calibrated = load_weights(overconfident / "best.safetensors")
    assert calibrated.temperature == pytest.approx(TRUE_TEMPERATURE, rel=0.1)
    assert calibrated.classes == card.classes
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    figures = json.loads((tmp_path / "out/calibration.json").read_text())
    assert figures["temperature"] == calibrated.temperature
    before, after = (figures[when] for when in ("before", "after"))
    assert after["expected_calibration_error"] < before["expected_calibration_error"] / 2
    assert after["brier"] < before["brier"]
    assert f"{after['brier']:.4f}" in capsys.readouterr().out


def test_new_predictions_have_the_reported_error(overconfident: Path, images: Path, tmp_path: Path) -> None:
    segment(overconfident, images, tmp_path / "out")
    assert job(tmp_path / "out", overconfident) == FINISHED
    after = json.loads((tmp_path / "out/calibration.json").read_text())["after"]
    sums = Reliability()
    for name in SHAPES:
        probabilities = predict(overconfident, images / f"{name}.png", overlap=0.0, device="cpu").astype(np.float64)
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{name}.png"))
        sums.add(probabilities.reshape(len(CLASSES), -1), mask.ravel())
    assert sums.brier == pytest.approx(after["brier"], abs=1e-3)
    assert sums.calibration_error == pytest.approx(after["expected_calibration_error"], abs=1e-2)


def test_calibrating_again_changes_little_even_from_calibrated_predictions(
    overconfident: Path, images: Path, tmp_path: Path
) -> None:
    segment(overconfident, images, tmp_path / "out")
    assert job(tmp_path / "out", overconfident) == FINISHED
    content = (overconfident / "best.safetensors").read_bytes()
    assert job(tmp_path / "out", overconfident) == FINISHED
    assert (overconfident / "best.safetensors").read_bytes() == content
    once = read_card(overconfident / "best.safetensors").temperature
    segment(overconfident, images, tmp_path / "again")
    assert job(tmp_path / "again", overconfident) == FINISHED
    assert read_card(overconfident / "best.safetensors").temperature == pytest.approx(once, rel=0.01)


def test_ignored_pixels_do_not_count_and_blocks_do_not_matter(
    overconfident: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mask = np.asarray(Image.open(tmp_path / "masks/odd.png")).copy()
    mask[:20] = 9
    Image.fromarray(mask).save(tmp_path / "masks/odd.png")
    classes = ["--masks.classes", *(info.name for info in CLASSES), "--masks.ignore", "9"]
    segment(overconfident, images, tmp_path / "out", "--output.probabilities", "float32", *classes)
    monkeypatch.setattr(finished_result, "BLOCK_VALUES", 1000)
    assert job(tmp_path / "out", overconfident) == FINISHED
    figures = json.loads((tmp_path / "out/calibration.json").read_text())
    assert figures["pixels"] == sum(height * width for height, width in SHAPES.values()) - 20 * SHAPES["odd"][1]
    logs, labels = [], []
    for name in SHAPES:
        truth = np.asarray(Image.open(tmp_path / "masks" / f"{name}.png"))
        stored = np.load(tmp_path / "out/probabilities" / f"{name}.npy").astype(np.float64)
        logs.append(np.log(np.maximum(stored[:, truth != 9], 1e-40)))
        labels.append(truth[truth != 9])
    whole = [(np.concatenate(logs, axis=1), np.concatenate(labels))]
    assert figures["temperature"] == pytest.approx(fit_temperature(lambda: whole), rel=1e-5)


@pytest.mark.parametrize("lacking", ["masks", "probabilities", "result"])
def test_missing_inputs_are_named(
    overconfident: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lacking: str
) -> None:
    out, told = tmp_path / "out", ""
    if lacking == "masks":
        quiet = ["--quiet", "--wandb", "off", "--output.probabilities", "float16"]
        run_job(infer.main, ["-m", str(overconfident), "-i", str(images), "-o", str(out), *quiet])
        told = "--masks.folder"
    elif lacking == "probabilities":
        segment(overconfident, images, out, "--output.probabilities", "none")
        told = "--output.probabilities float16"
    else:
        told = "not a folder of predictions"
    assert job(out, overconfident) == USAGE
    assert told in capsys.readouterr().err
    assert read_card(overconfident / "best.safetensors").temperature == 1


def test_a_model_with_other_classes_is_left_alone(
    overconfident: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_model(tmp_path / "other", classes=(*CLASSES[:2], ClassInfo("dot", (1, 2, 3))))
    segment(overconfident, images, tmp_path / "out")
    assert job(tmp_path / "out", other) == USAGE
    assert "give predictions of the same classes" in capsys.readouterr().err
    assert read_card(other / "best.safetensors").temperature == 1
