"""Inference divides logits by the temperature in the model card and records it in the settings of the result."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from jobs import infer
from jobs.entry import run_job
from segdist import predict
from segdist.core.exit_codes import FINISHED, USAGE
from segdist.model.export import Raw
from segdist.model.model_file import load_model, load_weights, save_model
from tests.support.inference_parts import labels, write_images, write_model

NO_OVERLAP = ["--overlap", "0"]
"""Every pixel lies in one tile, so its probabilities come from one softmax."""


def with_temperature(run: Path, temperature: float) -> Path:
    weights, card = load_weights(run / "best.safetensors")
    save_model(run / "best.safetensors", weights, dataclasses.replace(card, temperature=temperature))
    return run


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("runs") / "plain")


@pytest.fixture(scope="module")
def softened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_temperature(write_model(tmp_path_factory.mktemp("runs") / "softened"), 2.0)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"), {"odd": (61, 83)}) / "odd.png"


def job(model: Path, image: Path, out: Path, *more: str) -> int:
    quiet = ["--quiet", "--output.figures", "0", "--wandb", "off", "--threads", "1"]
    return run_job(infer.main, ["-m", str(model), "-i", str(image), "-o", str(out), *quiet, *more])


def test_probabilities_are_the_softmax_of_logits_over_the_temperature(plain: Path, softened: Path, image: Path) -> None:
    before = predict(plain, image, overlap=0.0, device="cpu").astype(np.float64)
    expected = np.sqrt(before) / np.sqrt(before).sum(axis=0)
    np.testing.assert_allclose(predict(softened, image, overlap=0.0, device="cpu"), expected, atol=1e-5)
    assert np.abs(expected - before).max() > 0.05


def test_the_option_gives_the_bits_of_a_model_without_a_temperature(plain: Path, softened: Path, image: Path) -> None:
    as_trained = predict(softened, image, calibrated=False, device="cpu")
    assert (as_trained == predict(plain, image, device="cpu")).all()


def test_masks_do_not_change_where_tiles_do_not_overlap(
    plain: Path, softened: Path, image: Path, tmp_path: Path
) -> None:
    assert job(plain, image, tmp_path / "plain", *NO_OVERLAP) == FINISHED
    assert job(softened, image, tmp_path / "softened", *NO_OVERLAP) == FINISHED
    assert (labels(tmp_path / "plain/masks/odd.png") == labels(tmp_path / "softened/masks/odd.png")).all()


def test_infer_writes_what_predict_returns(softened: Path, image: Path, tmp_path: Path) -> None:
    for option, calibrated in (("--calibrated", True), ("--no-calibrated", False)):
        assert job(softened, image, tmp_path / option, option, "--output.probabilities", "float32") == FINISHED
        stored = np.load(tmp_path / option / "probabilities/odd.npy")
        np.testing.assert_array_equal(stored, predict(softened, image, calibrated=calibrated, device="cpu"))


def test_an_ensemble_applies_each_models_own_temperature(plain: Path, softened: Path, image: Path) -> None:
    singles = [predict(model, image, device="cpu") for model in (plain, softened)]
    np.testing.assert_allclose(predict([plain, softened], image, device="cpu"), np.mean(singles, axis=0), atol=1e-6)


def test_results_with_and_without_a_temperature_are_never_mixed(
    softened: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job(softened, image, tmp_path / "out") == FINISHED
    assert json.loads((tmp_path / "out/state/settings.json").read_text())["temperatures"] == [2.0]
    assert job(softened, image, tmp_path / "out", "--no-calibrated") == USAGE
    assert "temperatures: was [2.0], now [1.0]" in capsys.readouterr().err


def test_an_export_applies_the_temperature(softened: Path) -> None:
    model, card = load_model(softened)
    tiles = torch.rand(1, 1, 16, 16) * 255
    with torch.inference_mode():
        logits = model((tiles - 120) / 60)
        torch.testing.assert_close(Raw(model, card)(tiles), torch.softmax(logits / 2, dim=1))
