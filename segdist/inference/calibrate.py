"""Fit a temperature to predictions whose truth is known, and keep it in the cards of models."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from segdist.core.errors import UserError
from segdist.core.files import write_json
from segdist.core.formats import stamped
from segdist.core.owner import owned
from segdist.core.paths import CALIBRATION
from segdist.inference.finished_result import FinishedResult
from segdist.model.calibration import Block, Reliability, fit_temperature, tempered
from segdist.model.card import read_agreeing_cards, resolve_ensemble
from segdist.model.model_file import load_weights, save_model
from shards.manifest import IGNORE

CALIBRATION_VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """What a calibration did."""

    models: list[Path]
    temperature: float
    """Now in the models' cards."""
    before: Reliability
    after: Reliability
    file: Path


def calibrate(result: Path, models: Sequence[Path]) -> Calibration:
    """Fit one temperature to the probabilities in `result`, keep it in the card of each model, and write figures.

    Where the likeliest temperature makes the Brier score worse, the one of the predictions is kept.

    Args:
        result: folder of predictions on images that the model which made them wasn't trained on.
        models: model files, run folders or a folder of folds.

    Raises:
        UserError: the folder has no probabilities or masks, or other classes than the models.
    """
    with owned(result, "segdist calibrate"):
        found = FinishedResult(result)
        used = found.temperature
        files = resolve_ensemble(models)
        names = [info.name for info in read_agreeing_cards(files)[0].classes]
        if names != found.class_names:
            raise UserError(
                f"{result} has the classes {', '.join(found.class_names)}, the model {files[0]} {', '.join(names)}; "
                "give predictions of the same classes"
            )
        fitted = fit_temperature(lambda: log_blocks(found))
        before, after = reliability(found, 1.0), reliability(found, fitted)
        if not before.pixels:
            raise UserError(f"{result}: the true masks label no pixel")
        if after.brier > before.brier:
            fitted, after = 1.0, before
        done = Calibration(files, used * fitted, before, after, result / CALIBRATION)
        for file in files:
            _keep(file, done.temperature)
        write_json(done.file, stamped(_figures(done), CALIBRATION_VERSION))
    return done


def log_blocks(found: FinishedResult) -> Iterator[Block]:
    """Logarithms of the stored probabilities of labeled pixels, and their true labels; ignored pixels are left out."""
    smallest = found.smallest()
    for image in found.images:
        for block in found.blocks(image):
            labeled = block.truth != IGNORE
            yield np.log(np.maximum(block.probabilities[:, labeled].astype(np.float64), smallest)), block.truth[labeled]


def reliability(found: FinishedResult, temperature: float) -> Reliability:
    """The figures of the stored probabilities at a temperature."""
    sums = Reliability()
    for logs, labels in log_blocks(found):
        sums.add(tempered(logs, temperature), labels)
    return sums


def calibration_text(done: Calibration) -> str:
    """The figures, for the terminal."""
    lines = [f"temperature {done.temperature:.3f}, from {done.before.pixels:,} labeled pixels", ""]
    lines.append(f"{'':<28}  before   after")
    for what, key in (("expected calibration error", "calibration_error"), ("Brier score", "brier"), ("NLL", "nll")):
        lines.append(f"{what:<28}  {getattr(done.before, key):.4f}  {getattr(done.after, key):.4f}")
    return "\n".join([*lines, "", *(f"kept in {file}" for file in done.models), f"figures: {done.file}"])


def _keep(file: Path, temperature: float) -> None:
    with owned(file.parent, "segdist calibrate"):
        weights, card = load_weights(file)
        if card.temperature != temperature:
            save_model(file, weights, dataclasses.replace(card, temperature=temperature))


def _figures(done: Calibration) -> dict[str, Any]:
    return {
        "temperature": done.temperature,
        "models": [str(file) for file in done.models],
        "pixels": done.before.pixels,
        "before": _of(done.before),
        "after": _of(done.after),
    }


def _of(sums: Reliability) -> dict[str, Any]:
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
