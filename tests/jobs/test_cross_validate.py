"""`segdist cross-validate` as real processes: equal to separate runs, resumable, refusing settings that bias scores."""

import csv
import json
import random
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import segdist
from segdist.core.exit_codes import USAGE
from segdist.core.paths import LAST_MODEL
from segdist.model.card import read_card
from shards.read.folds import divide
from shards.read.reader import ShardSet
from tests.support.programs import FOLD_TRAINING, FOLDS, TINY_NET, cross_validation, job, kill_all, run, start
from tests.support.sets import tiny_set
from tests.support.states import fold_results

pytestmark = pytest.mark.slow

OFF = {"wandb": "off"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a set and a finished cross-validation of it, runs/whole."""
    folder = tmp_path_factory.mktemp("folds")
    tiny_set(folder / "data")
    told = run(cross_validation("whole"), folder).stdout
    (folder / "told.txt").write_text(told)
    return folder


def test_the_scores_match_separate_runs_exactly(place: Path) -> None:
    shard_set = ShardSet(place / "data" / "tiny")
    partition = divide(shard_set, FOLDS, seed=0)
    total = np.zeros((3, 3), np.int64)
    for number in range(1, FOLDS + 1):
        name = f"byhand{number}"
        settings = FOLD_TRAINING | {
            "data": place / "data" / "tiny",
            "fold": f"{number}/{FOLDS}",
            "name": str(place / name),
        }
        trained = segdist.train(**settings, threads=1, tracking=OFF)
        with (place / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "mask"])
            for pair, fold in zip(partition.pairs, partition.folds.tolist(), strict=True):
                if fold == number:
                    writer.writerow([shard_set.folder / pair.image, pair.mask and shard_set.folder / pair.mask])
        model, out = trained.folder / LAST_MODEL, place / f"{name}-out"
        result = segdist.infer(model=model, images=place / f"{name}.csv", out=out, threads=1, tracking=OFF)
        assert result.scores is not None
        total += np.array(result.scores["confusion_matrix"])
    scores = json.loads((place / "runs" / "whole" / "scores.json").read_text())
    assert scores["confusion_matrix"] == total.tolist()
    assert len(scores["images"]) == len(partition.pairs) == 10
    assert [one["held_out"] for one in scores["per_fold"]] == np.bincount(partition.folds)[1:].tolist()
    assert np.sum([one["confusion_matrix"] for one in scores["per_fold"]], axis=0).tolist() == total.tolist()


def test_the_results_are_printed_and_reported(place: Path) -> None:
    told = (place / "told.txt").read_text()
    for expected in (
        "2 folds of 10 labeled images: 5, 5 held out",
        "out of fold: 10 images, each segmented by the model (of 2) that was not trained on it",
        "95% interval",
        "expected calibration error",
        "regions contradict the masks",
        "report: runs/whole/report.html",
    ):
        assert expected in told
    temperatures = {read_card(path).temperature for path in (place / "runs" / "whole").glob(f"fold-*/{LAST_MODEL}")}
    assert len(temperatures) == 1
    assert temperatures != {1.0}
    report = (place / "runs" / "whole" / "report.html").read_text()
    scores = json.loads((place / "runs" / "whole" / "scores.json").read_text())
    low, high = scores["interval"]["mean_iou_pixels"]
    for expected in (
        '<h2 id="folds">Cross-validation</h2>',
        f"<td>{scores['mean_iou_pixels']:.4f}</td><td>{low:.4f} – {high:.4f}</td>",
        "accuracy of pixels of that confidence",
        "<h3>Suspect labels</h3>",
    ):
        assert expected in report
    pictures = sorted((place / "runs" / "whole" / "out-of-fold" / "suspect_pictures").glob("*.png"))
    assert report.count('<figure class="suspect">') == len(pictures) == 20


def test_the_status_shows_the_folds_and_then_the_scores(place: Path) -> None:
    everything = run(job("status", []), place).stdout
    own = run(job("status", ["whole"]), place).stdout
    for number in range(1, FOLDS + 1):
        assert f"whole/fold-{number}  finished  12/12" in everything
        assert f"whole/fold-{number}  finished  12/12" in own
    assert "runs/whole/out-of-fold: mean IoU over images" in own


def test_the_same_command_again_changes_nothing(place: Path) -> None:
    before = fold_results(place / "runs" / "whole")
    told = run(cross_validation("whole"), place).stdout
    assert told.count("finished already") == FOLDS
    assert "(10 of them were finished before)" in told
    assert fold_results(place / "runs" / "whole") == before


def test_it_ends_with_the_same_bytes_after_random_kills(place: Path) -> None:
    draw = random.Random(5)
    log = place / "killed.log"
    for _ in range(2):
        process = start(cross_validation("killed"), place, log)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=draw.uniform(3, 14))
        kill_all(process, "killed", place)
        for folder in (place / "runs" / "killed").glob("*"):
            kill_all(process, f"runs/killed/{folder.name}", place)
    run(cross_validation("killed"), place)
    assert fold_results(place / "runs" / "killed") == fold_results(place / "runs" / "whole")
    shutil.rmtree(place / "runs" / "killed")


def test_another_seed_in_the_same_folder_is_refused(place: Path) -> None:
    refused = run(cross_validation("whole", seed=1), place, check=False)
    assert refused.returncode == USAGE
    assert "seed: was 0, now 1" in refused.stdout + refused.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-m", "runs/whole/fold-1"), "the models are of folds 1 of 2; give each fold once"),
        (("-m", "runs/whole/fold-1", "runs/whole/fold-1", "-o", "x"), "the models are of folds 1, 1 of 2; give each"),
        (("-m", "runs/plain"), "not all models come from a cross-validation"),
        (("-m", "runs/whole", "--split", "val"), "needs --data SET and no --split"),
        (("-m", "runs/whole", "--output.disagreement"), "each image is segmented by one model only"),
    ],
)
def test_predictions_that_would_not_be_out_of_fold_are_refused(
    place: Path, arguments: Sequence[str], expected: str
) -> None:
    if not (place / "runs" / "plain").exists():
        run(job("train", ["-f", "tiny", "--name", "plain", *TINY_NET, "--steps", "2", "--wandb", "off"]), place)
    refused = run(job("infer", ["-f", "tiny", "--out-of-fold", *arguments]), place, check=False)
    assert refused.returncode == USAGE
    assert expected in refused.stderr


def test_a_set_not_used_in_training_is_refused(place: Path) -> None:
    tiny_set(place / "data", "other", seed=9)
    refused = run(job("infer", ["-m", "runs/whole", "-f", "other", "--out-of-fold"]), place, check=False)
    assert refused.returncode == USAGE
    assert "not the set that the models were trained on" in refused.stderr


def test_an_unreadable_image_is_not_silently_left_out_of_the_scores(place: Path) -> None:
    folder = place / "data" / "tiny" / "source" / "train" / "images"
    image, before = folder / "0003.png", (folder / "0003.png").read_bytes()
    try:
        image.write_bytes(before[:100])
        refused = run(cross_validation("whole"), place, check=False)
        assert refused.returncode != 0
        assert "0003.png" in refused.stdout + refused.stderr
    finally:
        image.write_bytes(before)
