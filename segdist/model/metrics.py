"""Segmentation scores from one confusion matrix of integers.

Integers add up exactly in any order, so the same pixels give the same scores on any number of ranks.
Shapes: K classes; a confusion matrix is int64 (K, K), rows are the truth, columns the prediction.
"""

import torch

from shards.manifest import IGNORE


def confusion_matrix(
    truth: torch.Tensor, prediction: torch.Tensor, num_classes: int, ignore: int = IGNORE
) -> torch.Tensor:
    """Count the pixels of each (truth, prediction) pair.

    Args:
        truth: integer labels of any shape; pixels with `ignore` count nowhere.
        prediction: integer labels of the same shape, all below `num_classes`.
        num_classes: K.

    Returns:
        int64 (K, K) on the device of `truth`.

    Raises:
        ValueError: the shapes differ, or `truth` has a label that is neither a class nor `ignore`.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth has shape {tuple(truth.shape)}, prediction {tuple(prediction.shape)}")
    truth, prediction = truth.reshape(-1).long(), prediction.reshape(-1).long()
    # One bin beyond the classes takes the ignored pixels, and one more whatever should not be there: no mask that
    # copies, and on a GPU one synchronization only.
    known = (truth < num_classes) & (prediction < num_classes)
    bins = torch.where(known, truth * num_classes + prediction, num_classes * num_classes + 1)
    bins = torch.where(truth == ignore, num_classes * num_classes, bins)
    counts = torch.bincount(bins, minlength=num_classes * num_classes + 2)
    if counts[num_classes * num_classes + 1]:
        raise ValueError(f"labels outside the {num_classes} classes (and {ignore}, ignore) in truth or prediction")
    return counts[: num_classes * num_classes].reshape(num_classes, num_classes)


def iou_per_class(matrix: torch.Tensor) -> torch.Tensor:
    """Intersection over union (Jaccard index); NaN for a class in neither truth nor prediction.

    Args:
        matrix: int64 (K, K), or several, (…, K, K).

    Returns:
        float64 (K,), or (…, K).
    """
    matrix = matrix.double()
    intersection = matrix.diagonal(dim1=-2, dim2=-1)
    return intersection / (matrix.sum(-2) + matrix.sum(-1) - intersection)


def dice_per_class(matrix: torch.Tensor) -> torch.Tensor:
    """Dice coefficient (F1), shapes and NaN as for `iou_per_class`."""
    matrix = matrix.double()
    return 2 * matrix.diagonal(dim1=-2, dim2=-1) / (matrix.sum(-2) + matrix.sum(-1))


def mean_iou(matrix: torch.Tensor) -> float:
    """Mean of the IoU over the classes that occur in truth or prediction, as `keras.metrics.MeanIoU` has it.

    NaN when no pixel was counted.
    """
    return float(iou_per_class(matrix).nanmean())


def pixel_accuracy(matrix: torch.Tensor) -> float:
    """Share of the counted pixels that have the right class; NaN when no pixel was counted."""
    return float(matrix.diagonal().sum().double() / matrix.sum().double())
