"""The last step of a cross-validation: scores over all labeled images, each segmented by the model not trained on it.

Letters: K classes, N images, F folds, R bootstrap draws. Confusion matrices are int64 (K, K), with the truth in rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from segdist.core.errors import UserError
from segdist.core.files import write_json
from segdist.core.formats import stamped, unstamped
from segdist.core.json_values import JsonObject, JsonValue
from segdist.core.keyed import Purpose, generator
from segdist.core.owner import owned
from segdist.core.parsing import read_file
from segdist.core.paths import FAILURES, OUT_OF_FOLD, SCORES
from segdist.inference.calibrate import Calibration, calibrate, interval_lines
from segdist.inference.evaluation import shown, summarize
from segdist.inference.job import SCORES_VERSION
from segdist.inference.out_of_fold import divide_as_trained
from segdist.inference.suspects import suspects_text, write_suspects
from segdist.model.card import read_card, resolve_ensemble
from segdist.model.metrics import dice_per_class, iou_per_class
from segdist.runs.fold_table import fold_rows
from shards.read.folds import Partition
from shards.read.reader import ShardSet

FOLD_SCORES_VERSION = 1
LEVEL, DRAWS = 0.95, 2000
"""Level of the bootstrap intervals, and number of draws."""
DRAWS_AT_ONCE = 50
MOST_SUSPECTS = 200
SCORES_OF_ALL = ("mean_iou_pixels", "mean_iou_over_images", "pixel_accuracy")
SCORES_PER_CLASS = ("iou", "dice")


@dataclass(frozen=True)
class FoldScores:
    """The results of a cross-validation."""

    file: Path
    scores: JsonObject
    """The content of scores.json: see `score`."""
    calibration: Calibration
    suspects: str
    """The most suspect labels, for the terminal."""


def score(folder: Path, shard_set: ShardSet) -> FoldScores:
    """Score the out-of-fold predictions, calibrate the models with them, list suspect labels, and write scores.json.

    The file holds the usual scores over all images (`segdist.inference.evaluation.summarize`). `per_fold` has the
    scores and the number of the images that each fold held out, `spread` the mean and standard deviation over the
    folds, `interval` bootstrap bounds over the images (or groups of them), and `folds` and `suspects` their numbers.

    Args:
        folder: holds the runs fold-1, fold-2 … and the predictions.

    Raises:
        UserError: an image could not be segmented; see also `calibrate`.
    """
    result = folder / OUT_OF_FOLD
    with owned(folder, "segdist cross-validate"):
        if (result / FAILURES).exists():
            raise UserError(
                f"{result / FAILURES}: lists images that could not be segmented, but the scores need all images; "
                "repair them, or build a set without them, and run the same command again"
            )
        files = resolve_ensemble([folder])
        partition = divide_as_trained(shard_set, [read_card(file).held_out for file in files])
        images = _images(result)
        if len(images) != len(partition.pairs):
            raise UserError(
                f"{result / SCORES}: covers {len(images)} of {len(partition.pairs)} labeled images; run segdist "
                "cross-validate without --finish"
            )
        calibration = calibrate(result, [folder])
        listed, found = write_suspects(result, MOST_SUSPECTS)
        names = [info.name for info in shard_set.manifest.classes]
        of_all = summarize(names, images)
        per_fold = []
        for fold in range(1, len(files) + 1):
            held_out = [image for image in images if image["fold"] == fold]
            per_fold.append({"fold": fold, "held_out": len(held_out), **summarize(names, held_out)})
        scores = {
            **of_all,
            "folds": len(per_fold),
            "per_fold": [{key: one[key] for key in one if key not in ("images", "classes")} for one in per_fold],
            "spread": spread(per_fold),
            "interval": interval([image["confusion_matrix"] for image in images], partition.groups.tolist()),
            "suspects": found,
        }
        write_json(folder / SCORES, stamped(scores, FOLD_SCORES_VERSION))
    return FoldScores(folder / SCORES, scores, calibration, suspects_text(listed, found, result))


def spread(per_fold: Sequence[JsonObject]) -> JsonObject:
    """Mean and standard deviation of each score over the folds; a class is averaged over the folds that have it."""
    return {
        **{key: _mean_and_deviation([one[key] for one in per_fold]) for key in SCORES_OF_ALL},
        **{
            key: [_mean_and_deviation(values) for values in zip(*(one[key] for one in per_fold), strict=True)]
            for key in SCORES_PER_CLASS
        },
    }


def interval(matrices: Sequence[Sequence[Sequence[int]]], groups: Sequence[int]) -> JsonObject:
    """Percentile bootstrap intervals of the scores, from images drawn with replacement (Efron and Tibshirani, "An
    introduction to the bootstrap", 1993, chapter 13). The images of a group are drawn together.

    Args:
        matrices: the confusion matrix of each image, (N, K, K).
        groups: the group number of each image, (N,).

    Returns:
        `level`, `draws`, `drawn`, and each score's lower and upper bound; None if it is never defined.
    """
    counts = np.array(matrices, np.int64)
    images, classes, _ = counts.shape
    single = _scores(counts)["mean_iou_pixels"]
    numbers = np.unique(np.asarray(groups), return_inverse=True)[1]
    total = int(numbers.max()) + 1
    random = generator(0, Purpose.BOOTSTRAP)
    drawn: dict[str, list[NDArray[np.float64]]] = {key: [] for key in (*SCORES_OF_ALL, *SCORES_PER_CLASS)}
    for _ in range(0, DRAWS, DRAWS_AT_ONCE):
        of_group = random.multinomial(total, np.full(total, 1 / total), size=DRAWS_AT_ONCE)
        weights = of_group[:, numbers]  # (draws, N)
        sums = (weights @ counts.reshape(images, -1)).reshape(-1, classes, classes)
        for key, values in _scores(sums).items():
            drawn[key].append(values)
        known = weights * np.isfinite(single)
        with np.errstate(invalid="ignore", divide="ignore"):
            drawn["mean_iou_over_images"].append(known @ np.nan_to_num(single) / known.sum(axis=1))
    bounds = {key: _bounds(np.concatenate(values)) for key, values in drawn.items()}
    return {"level": LEVEL, "draws": DRAWS, "drawn": "groups" if total < images else "images", **bounds}


def scores_text(found: FoldScores) -> str:
    """The scores per class with spread and interval, the calibration, and the most suspect labels."""
    scores = found.scores
    rows = fold_rows(scores)
    width = max(len(row.name) for row in rows)
    level = f"{scores['interval']['level']:.0%} interval"
    lines = [
        "",
        f"out of fold: {len(scores['images'])} images, each segmented by the model (of {scores['folds']}) that was "
        "not trained on it",
        f"{'IoU':<{width}}     all   {level:<16}  folds: mean ± deviation",
    ]
    for row in rows:
        between = "–" if row.low is None else f"{shown(row.low)} – {shown(row.high)}"
        lines.append(
            f"{row.name:<{width}}  {shown(row.iou)}   {between:<16}  {shown(row.mean)} ± {shown(row.deviation)}"
        )
    before, after = found.calibration.before, found.calibration.after
    lines += [
        "",
        f"temperature {found.calibration.temperature:.3f}, saved in the models: expected calibration error "
        f"{before.calibration_error:.4f} → {after.calibration_error:.4f}, Brier score {before.brier:.4f} → "
        f"{after.brier:.4f}",
        *interval_lines(found.calibration),
        "",
        found.suspects,
        "",
        f"scores: {found.file}",
    ]
    return "\n".join(lines)


def folds_text(shard_set: ShardSet, partition: Partition) -> str:
    """How many images each fold holds out, and which classes are missing from which folds."""
    sizes = np.bincount(partition.folds)[1:].tolist()
    groups = len(set(partition.groups.tolist()))
    of = f"{sum(sizes)} labeled images" + (f" in {groups} groups" if groups < sum(sizes) else "")
    lines = [f"{len(sizes)} folds of {of}: {', '.join(map(str, sizes))} held out"]
    what = "groups" if groups < sum(sizes) else "images"
    for info, count, missing in zip(
        shard_set.manifest.classes, partition.class_groups.tolist(), partition.missing, strict=True
    ):
        if not count:
            lines.append(f"  {info.name}: not in the patches of any image")
        elif missing:
            lines.append(
                f"  {info.name}: only in {count} {what}, so it is missing from the held-out images of "
                f"fold{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
                + (", and no training image shows it when it is held out" if count == 1 else "")
            )
    return "\n".join(lines)


def _images(result: Path) -> list[JsonObject]:
    """The scores of each image, from the scores.json of the predictions."""
    file = result / SCORES
    if not file.exists():
        raise UserError(f"{file}: missing; run segdist cross-validate without --finish")
    found: list[JsonObject] | None = unstamped(read_file(file), SCORES_VERSION, str(file)).get("images")
    if found is None:
        raise UserError(f"{file}: damaged (no images); run segdist cross-validate again")
    return found


def _scores(matrices: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
    """The scores of each of R matrices, (R, K, K); NaN where undefined."""
    counts = torch.from_numpy(matrices)
    iou = iou_per_class(counts)
    scores = {
        "mean_iou_pixels": iou.nanmean(dim=-1),
        "pixel_accuracy": counts.diagonal(dim1=-2, dim2=-1).sum(-1) / counts.sum((-2, -1)).double(),
        "iou": iou,
        "dice": dice_per_class(counts),
    }
    return {key: values.numpy() for key, values in scores.items()}


def _bounds(drawn: NDArray[np.float64]) -> JsonValue:
    """Lower and upper bound of draws (R,), or of each column of (R, K); None if no draw is finite."""
    if drawn.ndim == 2:
        return [_bounds(column) for column in drawn.T]
    finite = drawn[np.isfinite(drawn)]
    if not len(finite):
        return None
    return [float(value) for value in np.quantile(finite, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def _mean_and_deviation(values: Sequence[float | None]) -> dict[str, float | None]:
    known = [value for value in values if value is not None]
    mean = math.fsum(known) / len(known) if known else None
    deviation = None
    if mean is not None and len(known) > 1:
        deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in known) / (len(known) - 1))
    return {"mean": mean, "deviation": deviation}
