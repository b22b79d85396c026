"""Ensembles: mean probabilities, disagreement, and models that can't be averaged."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import infer
from jobs.entry import run_job
from segdist import Predictor, predict
from segdist.core.errors import UserError
from segdist.core.exit_codes import FINISHED, USAGE
from tests.support.inference_parts import CLASSES, checksums, labels, run, write_images, write_model

NO_OVERLAP = ["--overlap", "0"]
"""Every pixel lies in one tile, so its probabilities are exactly what the models gave."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models that differ in width, patch side and normalization."""
    runs = tmp_path_factory.mktemp("runs")
    return [
        write_model(runs / "one", seed=1),
        write_model(runs / "two", seed=2, width=6, mean=100.0),
        write_model(runs / "three", seed=3, patch=24),
    ]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def arguments(models: list[Path], images: Path, out: Path, *more: str) -> list[str]:
    quiet = ["--quiet", "--output.figures", "0", "--wandb", "off", "--threads", "1"]
    return ["-m", *map(str, models), "-i", str(images), "-o", str(out), *quiet, *more]


def job(models: list[Path], images: Path, out: Path, *more: str) -> int:
    return run_job(infer.main, arguments(models, images, out, *more))


def entropy(probabilities: np.ndarray) -> np.ndarray:
    exact = probabilities.astype(np.float64)
    found: np.ndarray = -(exact * np.log(np.maximum(exact, 1e-300))).sum(axis=0)
    return found


def test_probabilities_are_the_mean_of_the_models(models: list[Path], images: Path) -> None:
    image = images / "odd.png"
    singles = [predict(model, image, tile=24, device="cpu") for model in models]
    found = predict(models, image, device="cpu")  # tiles of 24: the largest of the three
    np.testing.assert_allclose(found, np.mean(singles, axis=0), atol=1e-6)
    assert np.abs(found - singles[0]).max() > 0.01


def test_a_model_listed_twice_gives_the_bits_of_one(models: list[Path], images: Path) -> None:
    once, twice = (Predictor(names, device="cpu") for names in (models[1], [models[1], models[1]]))
    assert (once.probabilities(images / "odd.png") == twice.probabilities(images / "odd.png")).all()


def test_infer_writes_what_predict_returns(models: list[Path], images: Path, tmp_path: Path) -> None:
    assert job(models, images, tmp_path / "out") == FINISHED
    expected = predict(models, images / "odd.png", device="cpu").argmax(axis=0)
    assert (labels(tmp_path / "out/masks/odd.png") == expected).all()


def test_disagreement_is_the_mutual_information_of_class_and_model(
    models: list[Path], images: Path, tmp_path: Path
) -> None:
    assert job(models, images / "odd.png", tmp_path / "out", "--output.disagreement", *NO_OVERLAP) == FINISHED
    singles = [predict(model, images / "odd.png", tile=24, overlap=0.0, device="cpu") for model in models]
    expected = entropy(np.mean(singles, axis=0)) - np.mean([entropy(single) for single in singles], axis=0)
    stored = np.asarray(Image.open(tmp_path / "out/disagreement/odd.png"))
    assert np.abs(stored - 255 * expected / np.log(len(CLASSES))).max() <= 0.51
    assert stored.max() > 10


def test_models_that_agree_do_not_disagree(models: list[Path], images: Path, tmp_path: Path) -> None:
    twice = [models[0], models[0]]
    assert job(twice, images / "odd.png", tmp_path / "out", "--output.disagreement", *NO_OVERLAP) == FINISHED
    assert np.asarray(Image.open(tmp_path / "out/disagreement/odd.png")).max() == 0


@pytest.mark.slow
def test_the_same_bytes_on_any_number_of_ranks(models: list[Path], images: Path, tmp_path: Path) -> None:
    options = ["--output.probabilities", "float32", "--output.disagreement"]
    for ranks in (1, 2, 3):
        assert run(arguments(models, images, tmp_path / str(ranks), *options), ranks) == 0
    assert checksums(tmp_path / "1") == checksums(tmp_path / "2") == checksums(tmp_path / "3")


def test_a_cross_validation_folder_means_the_final_models_of_its_folds(images: Path, tmp_path: Path) -> None:
    folds = [write_model(tmp_path / "cv" / f"fold-{number}", seed=number) for number in (10, 2, 1)]
    best = write_model(tmp_path / "best", seed=11) / "best.safetensors"
    for number, fold in enumerate(folds):
        (fold / "best.safetensors").rename(fold / "last.safetensors")
        shutil.copy(best, fold / "best.safetensors")
        folds[number] = fold / "last.safetensors"
    assert job([tmp_path / "cv"], images / "odd.png", tmp_path / "out", "--dry-run") == FINISHED
    found, expected = (predict(names, images / "odd.png", device="cpu") for names in (tmp_path / "cv", folds[::-1]))
    assert (found == expected).all()


def test_models_with_different_classes_are_refused_by_name(
    models: list[Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_model(tmp_path / "other", classes=CLASSES[:2])
    assert job([models[0], other], images, tmp_path / "out") == USAGE
    said = capsys.readouterr().err
    assert "their classes differ" in said
    assert str(models[0] / "best.safetensors") in said
    assert str(other / "best.safetensors") in said
    with pytest.raises(UserError, match="their channels differ"):
        Predictor([models[0], write_model(tmp_path / "color", channels=3)])


def test_results_of_another_ensemble_are_not_extended(
    models: list[Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job(models[:2], images / "odd.png", tmp_path / "out") == FINISHED
    assert job(models[1:], images / "odd.png", tmp_path / "out", "--tile", "16") == USAGE
    assert "model: was" in capsys.readouterr().err
    assert job(models[:2], images / "odd.png", tmp_path / "out") == FINISHED


def test_options_for_one_or_several_models_only_are_refused_otherwise(
    models: list[Path], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job(models[:1], images, tmp_path / "out", "--output.disagreement") == USAGE
    assert "name several with --model" in capsys.readouterr().err
    assert run_job(infer.main, ["-m", *map(str, models), "-i", str(images), "--quiet"]) == USAGE
    assert "--out" in capsys.readouterr().err
