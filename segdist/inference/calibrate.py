"""Fit a temperature and intervals of class shares to predictions with known truth; store them in model cards."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segdist.core.errors import UserError
from segdist.core.files import write_json
from segdist.core.formats import stamped
from segdist.core.json_values import JsonObject
from segdist.core.owner import owned
from segdist.core.parsing import to_dict
from segdist.core.paths import CALIBRATION
from segdist.inference.finished_result import FinishedResult
from segdist.model.calibration import Block, Reliability, fit_temperature, tempered
from segdist.model.card import read_agreeing_cards, resolve_ensemble
from segdist.model.model_file import load_weights, save_model
from segdist.model.share_intervals import FEWEST_IMAGES, ShareIntervals, fit_share_intervals
from shards.manifest import IGNORE

CALIBRATION_VERSION = 2
"""1 lacks `images`, `mean_shares` and `share_intervals`."""


@dataclass(frozen=True)
class Calibration:
    """The result of a calibration."""

    models: list[Path]
    temperature: float
    """As stored in the models' cards."""
    before: Reliability
    after: Reliability
    intervals: ShareIntervals | None
    """Also stored there; None with fewer than `FEWEST_IMAGES` images."""
    images: int
    """Number of images with labeled pixels."""
    mean_shares: dict[str, float]
    """Share of each class in the predicted masks, averaged over the images."""
    file: Path


def calibrate(result: Path, models: Sequence[Path]) -> Calibration:
    """Fit one temperature to the probabilities in `result` and intervals of class shares to its masks, store both in
    the card of each model, and write calibration.json.

    Args:
        result: folder of predictions for images that the predicting model wasn't trained on.
        models: model files, run folders or a folder of folds.

    Raises:
        UserError: the folder lacks probabilities or masks, or its classes aren't the models'.
    """
    with owned(result, "segdist calibrate"):
        found = FinishedResult(result)
        used = found.temperature
        files = resolve_ensemble(models)
        names = [info.name for info in read_agreeing_cards(files)[0].classes]
        if names != found.class_names:
            raise UserError(
                f"{result} has the classes {', '.join(found.class_names)}, but the model {files[0]} has "
                f"{', '.join(names)}; give predictions of the same classes"
            )
        fitted = fit_temperature(lambda: log_blocks(found))
        before, after = reliability(found, 1.0), reliability(found, fitted)
        if not before.pixels:
            raise UserError(f"{result}: the true masks have no labeled pixels")
        if after.brier > before.brier:  # Newton's method found another zero
            fitted, after = 1.0, before
        predicted, true = class_shares(found)
        intervals = fit_share_intervals(predicted, true)
        means = dict(zip(names, predicted.mean(axis=0).tolist(), strict=True))
        written = result / CALIBRATION
        done = Calibration(files, used * fitted, before, after, intervals, len(predicted), means, written)
        for file in files:
            _keep(file, done)
        write_json(done.file, stamped(_figures(done), CALIBRATION_VERSION))
    return done


def log_blocks(found: FinishedResult) -> Iterator[Block]:
    """Logarithms of the stored probabilities and true labels, without ignored pixels."""
    smallest = found.smallest()
    for image in found.images:
        for block in found.blocks(image):
            labeled = block.truth != IGNORE
            yield np.log(np.maximum(block.probabilities[:, labeled].astype(np.float64), smallest)), block.truth[labeled]


def reliability(found: FinishedResult, temperature: float) -> Reliability:
    """The calibration measures of the stored probabilities at a temperature."""
    sums = Reliability()
    for logs, labels in log_blocks(found):
        sums.add(tempered(logs, temperature), labels)
    return sums


def class_shares(found: FinishedResult) -> tuple[np.ndarray, np.ndarray]:
    """The predicted and the true share of each class in an image's labeled pixels.

    Returns:
        Two arrays, float64 (N, K), for the images with labeled pixels.
    """
    confusion = np.array([image.confusion for image in found.images], np.int64)
    pixels = confusion.sum(axis=(1, 2))
    confusion, pixels = confusion[pixels > 0], pixels[pixels > 0, None]
    return confusion.sum(axis=1) / pixels, confusion.sum(axis=2) / pixels


def calibration_text(done: Calibration) -> str:
    """The results, for the terminal."""
    lines = [f"temperature {done.temperature:.3f}, from {done.before.pixels:,} labeled pixels", ""]
    lines.append(f"{'':<28}  before   after")
    for what, key in (("expected calibration error", "calibration_error"), ("Brier score", "brier"), ("NLL", "nll")):
        lines.append(f"{what:<28}  {getattr(done.before, key):.4f}  {getattr(done.after, key):.4f}")
    lines += ["", *interval_lines(done), ""]
    return "\n".join([*lines, *(f"saved in {file}" for file in done.models), f"details: {done.file}"])


def interval_lines(done: Calibration) -> list[str]:
    """The interval of each class at its mean share, or why there are none."""
    if done.intervals is None:
        return [
            f"no intervals of class shares: {done.images} images with labeled pixels, but {FEWEST_IMAGES} are needed"
        ]
    width = max(map(len, done.mean_shares))
    level = f"{done.intervals.level:.0%} intervals of class shares"
    lines = [f"{level}, from {done.images} images, at the mean share of each class:"]
    for label, (name, share) in enumerate(done.mean_shares.items()):
        low, high = done.intervals.bounds(label, share)
        lines.append(f"{name:<{width}}  {share:.4f}: {low:.4f} to {high:.4f}")
    return lines


def _keep(file: Path, done: Calibration) -> None:
    with owned(file.parent, "segdist calibrate"):
        weights, card = load_weights(file)
        calibrated = dataclasses.replace(card, temperature=done.temperature, share_intervals=done.intervals)
        if card != calibrated:
            save_model(file, weights, calibrated)


def _figures(done: Calibration) -> JsonObject:
    return {
        "temperature": done.temperature,
        "models": [str(file) for file in done.models],
        "pixels": done.before.pixels,
        "images": done.images,
        "mean_shares": done.mean_shares,
        "share_intervals": to_dict(done.intervals) if done.intervals else None,
        "before": _of(done.before),
        "after": _of(done.after),
    }


def _of(sums: Reliability) -> JsonObject:
    counts = np.maximum(sums.counts, 1)
    return {
        "expected_calibration_error": sums.calibration_error,
        "brier": sums.brier,
        "nll": sums.nll,
        "bins": {
            "pixels": sums.counts.tolist(),
            "confidence": (sums.confidence / counts).tolist(),
            "accuracy": (sums.correct / counts).tolist(),
        },
    }
