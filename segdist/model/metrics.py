"""Segmentation scores, computed from an integer confusion matrix.

Integer sums are exact in any order, so scores don't depend on the number of ranks.
Shapes: K classes; a confusion matrix is int64 (K, K), with the truth in rows and the prediction in columns.
"""

import torch

from shards.manifest import IGNORE


def confusion_matrix(
    truth: torch.Tensor, prediction: torch.Tensor, num_classes: int, ignore: int = IGNORE
) -> torch.Tensor:
    """Count the pixels of each (truth, prediction) pair.

    Args:
        truth: integer labels of any shape; pixels labeled `ignore` are not counted.
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
    # Two extra bins collect ignored and invalid pixels. Boolean indexing would copy, and synchronize a GPU more than
    # once.
    known = (truth < num_classes) & (prediction < num_classes)
    bins = torch.where(known, truth * num_classes + prediction, num_classes * num_classes + 1)
    bins = torch.where(truth == ignore, num_classes * num_classes, bins)
    counts = torch.bincount(bins, minlength=num_classes * num_classes + 2)
    if counts[num_classes * num_classes + 1]:
        raise ValueError(f"labels outside the {num_classes} classes (and {ignore}, ignore) in truth or prediction")
    return counts[: num_classes * num_classes].reshape(num_classes, num_classes)


def iou_per_class(matrix: torch.Tensor) -> torch.Tensor:
    """Intersection over union (Jaccard index); NaN for a class absent from both truth and prediction.

    Args:
        matrix: int64 (…, K, K).

    Returns:
        float64 (…, K).
    """
    matrix = matrix.double()
    intersection = matrix.diagonal(dim1=-2, dim2=-1)
    return intersection / (matrix.sum(-2) + matrix.sum(-1) - intersection)


def dice_per_class(matrix: torch.Tensor) -> torch.Tensor:
    """Dice coefficient (F1); shapes and NaN as for `iou_per_class`."""
    matrix = matrix.double()
    return 2 * matrix.diagonal(dim1=-2, dim2=-1) / (matrix.sum(-2) + matrix.sum(-1))


def mean_iou(matrix: torch.Tensor) -> float:
    """Mean IoU over the classes that occur in truth or prediction, as in `keras.metrics.MeanIoU`.

    NaN if no pixels were counted.
    """
    return float(iou_per_class(matrix).nanmean())


def pixel_accuracy(matrix: torch.Tensor) -> float:
    """Fraction of the counted pixels that are classified correctly; NaN if there are none."""
    return float(matrix.diagonal().sum().double() / matrix.sum().double())
