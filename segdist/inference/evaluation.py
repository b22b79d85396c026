"""Scores of predicted masks against true ones: exact integer counts per image, summed over images and ranks.

Letters: K classes. A confusion matrix is int64 (K, K), with the truth in rows.
"""

import math
from collections import Counter
from operator import add

import torch

from segdist.core.errors import UserError
from segdist.core.json_values import JsonObject
from segdist.inference.parts import ROWS_AT_ONCE, Rows
from segdist.model.metrics import confusion_matrix, dice_per_class, iou_per_class, mean_iou, pixel_accuracy
from shards.images.masks import MaskFile, unknown_message


def confusion_of_image(truth: MaskFile, prediction: Rows, num_classes: int, top: int, left: int) -> torch.Tensor:
    """Compute the confusion matrix of an image, block by block.

    Args:
        truth: the true mask of the whole image.
        prediction: predicted labels of the part of the image that starts at `top`, `left`.

    Raises:
        UserError: the mask is smaller than the image, or has values without a class.
    """
    height, width = prediction.shape
    if top + height > truth.height or left + width > truth.width:
        raise UserError(
            f"{truth.path}: the mask has {truth.height} x {truth.width} pixels, but the image has at least "
            f"{top + height} x {left + width}; give the mask that belongs to the image"
        )
    total = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    unknown: Counter[str] = Counter()
    for start in range(0, height, ROWS_AT_ONCE):
        end = min(start + ROWS_AT_ONCE, height)
        labels, others = truth.read_counted(top + start, top + end, left, left + width)
        unknown += others
        if not unknown:
            total += confusion_matrix(torch.from_numpy(labels), _tensor(prediction, start, end), num_classes)
    if unknown:
        raise UserError(unknown_message({str(truth.path): unknown}, truth.reader.config))
    return total


def image_scores(confusion: torch.Tensor) -> JsonObject:
    """Scores of one image; None for a class absent from both truth and prediction."""
    return {
        "mean_iou": _number(mean_iou(confusion)),
        "pixel_accuracy": _number(pixel_accuracy(confusion)),
        "iou": _numbers(iou_per_class(confusion)),
        "dice": _numbers(dice_per_class(confusion)),
        "confusion_matrix": confusion.tolist(),
    }


def summarize(class_names: list[str], images: list[JsonObject]) -> JsonObject:
    """The content of `scores.json`.

    Two definitions of the mean IoU are common: `mean_iou_pixels` comes from one confusion matrix over all pixels of all
    images; `mean_iou_over_images` averages the mean IoU of each image.

    Args:
        images: for each image, its `name` and the result of `image_scores`.
    """
    # Adding Python integers is faster than creating small tensors.
    rows = [[0] * len(class_names) for _ in class_names]
    for image in images:
        for row, counts in zip(rows, image["confusion_matrix"], strict=True):
            row[:] = map(add, row, counts)
    total = torch.tensor(rows, dtype=torch.int64)
    counted = [image for image in images if image["mean_iou"] is not None]
    over_images = math.fsum(image["mean_iou"] for image in counted) / len(counted) if counted else math.nan
    overall = image_scores(total)
    return {
        "mean_iou_pixels": overall.pop("mean_iou"),
        "mean_iou_over_images": _number(over_images),
        "classes": class_names,
        **overall,
        "worst": [image["name"] for image in sorted(counted, key=lambda image: image["mean_iou"])[:10]],
        "images": images,
    }


def score_table(scores: JsonObject) -> str:
    """Scores per class and the worst images, for the terminal."""
    width = max(len("all pixels"), *(len(name) for name in scores["classes"]))
    lines = [f"{'class':<{width}}     IoU    Dice      pixels"]
    for label, name in enumerate(scores["classes"]):
        pixels = sum(scores["confusion_matrix"][label])
        lines.append(f"{name:<{width}}  {shown(scores['iou'][label])}  {shown(scores['dice'][label])}  {pixels:>10,}")
    dice = [value for value in scores["dice"] if value is not None]
    mean_dice = sum(dice) / len(dice) if dice else None
    pixels = sum(map(sum, scores["confusion_matrix"]))
    lines.append(f"{'all pixels':<{width}}  {shown(scores['mean_iou_pixels'])}  {shown(mean_dice)}  {pixels:>10,}")
    if len(scores["images"]) > 1:
        by_name = {image["name"]: image["mean_iou"] for image in scores["images"]}
        worst = ", ".join(f"{name} {by_name[name]:.4f}" for name in scores["worst"][:3])
        lines.append(f"worst images: {worst}")
    return "\n".join(lines)


def _tensor(prediction: Rows, start: int, end: int) -> torch.Tensor:
    rows = prediction.read(start, end)
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no NaN


def _numbers(values: torch.Tensor) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def shown(value: float | None) -> str:
    """A score with four digits; a dash of the same width if there is none."""
    return "     –" if value is None else f"{value:.4f}"
