"""Scores from a confusion matrix, checked against hand-computed values and two independent libraries."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix as sklearn_confusion
from torchmetrics.classification import MulticlassJaccardIndex

from segdist.model.metrics import confusion_matrix, dice_per_class, iou_per_class, mean_iou, pixel_accuracy
from shards.manifest import IGNORE


def labels(seed: int, classes: int, size: int, ignored: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, classes, (size,), generator=generator, dtype=torch.uint8)
    prediction = torch.randint(0, classes, (size,), generator=generator)
    if ignored:
        truth[torch.rand(size, generator=generator) < 0.2] = IGNORE
    return truth, prediction


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 999), classes=st.integers(1, 12), size=st.integers(1, 500), ignored=st.booleans())
def test_the_confusion_matrix_matches_scikit_learn(seed: int, classes: int, size: int, ignored: bool) -> None:
    truth, prediction = labels(seed, classes, size, ignored)
    counted = truth != IGNORE
    expected = np.zeros((classes, classes), int)
    if counted.any():
        expected = sklearn_confusion(truth[counted], prediction[counted], labels=range(classes))
    assert confusion_matrix(truth, prediction, classes).tolist() == expected.tolist()


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 999), classes=st.integers(2, 8))
def test_iou_matches_torchmetrics_jaccard_index(seed: int, classes: int) -> None:
    truth, prediction = labels(seed, classes, 2000, ignored=True)
    jaccard = MulticlassJaccardIndex(classes, average=None, ignore_index=IGNORE)
    expected = jaccard(prediction, truth.long())
    matrix = confusion_matrix(truth, prediction, classes)
    torch.testing.assert_close(iou_per_class(matrix).float(), expected)


def test_mean_iou_is_over_classes_in_truth_or_prediction() -> None:
    # Keras' documented example: truth [0, 0, 1, 1], prediction [0, 1, 0, 1] has mean IoU 1/3.
    matrix = confusion_matrix(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), num_classes=2)
    assert mean_iou(matrix) == pytest.approx(1 / 3)
    # A third class that is absent and never predicted changes nothing; one that is only predicted counts as 0.
    assert mean_iou(confusion_matrix(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), 3)) == pytest.approx(1 / 3)
    matrix = confusion_matrix(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 2]), num_classes=3)
    assert mean_iou(matrix) == pytest.approx((1 + 0.5 + 0) / 3)


def test_dice_and_accuracy_match_hand_computed_values() -> None:
    matrix = torch.tensor([[6, 2], [1, 1]])
    assert dice_per_class(matrix).tolist() == pytest.approx([12 / 15, 2 / 5])
    assert pixel_accuracy(matrix) == 0.7


def test_ignored_pixels_do_not_count() -> None:
    truth = torch.tensor([IGNORE, IGNORE, 1], dtype=torch.uint8)
    matrix = confusion_matrix(truth, torch.tensor([0, 1, 1]), num_classes=2)
    assert matrix.tolist() == [[0, 0], [0, 1]]


def test_an_empty_matrix_has_no_score() -> None:
    assert math.isnan(mean_iou(torch.zeros(3, 3, dtype=torch.int64)))


def test_a_label_outside_the_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="outside the 2 classes"):
        confusion_matrix(torch.tensor([0, 2]), torch.tensor([0, 1]), num_classes=2)
    with pytest.raises(ValueError, match="outside the 2 classes"):
        confusion_matrix(torch.tensor([1, 1]), torch.tensor([0, 2]), num_classes=2)


def test_parts_of_any_split_add_up_to_the_whole() -> None:
    truth, prediction = labels(3, 5, 1001, ignored=True)
    whole = confusion_matrix(truth, prediction, 5)
    for parts in (2, 3, 4, 7):
        pieces = zip(truth.tensor_split(parts), prediction.tensor_split(parts), strict=True)
        assert torch.equal(sum(confusion_matrix(t, p, 5) for t, p in pieces), whole)
