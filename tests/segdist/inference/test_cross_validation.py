"""Spread and confidence intervals of cross-validation scores."""

import numpy as np
import pytest
import torch

from segdist.inference.cross_validation import SCORES_OF_ALL, _scores, interval, spread
from segdist.inference.evaluation import image_scores


def matrices(count: int, seed: int, classes: int = 3) -> np.ndarray:
    """Confusion matrices of varied images, int64 (count, classes, classes)."""
    random = np.random.default_rng(seed)
    hits = random.beta(8, 2, (count, 1, 1))
    wrong = (1 - hits) / (classes - 1) * np.ones((classes, classes))
    shares = np.where(np.eye(classes, dtype=bool), hits, wrong)
    return np.asarray(np.rint(1000 * shares), np.int64)


def test_scoring_many_matrices_at_once_matches_scoring_each() -> None:
    several = np.concatenate([matrices(4, 0), np.zeros((1, 3, 3), np.int64), np.diag([5, 0, 0])[None]])
    found = _scores(several)
    for number, matrix in enumerate(several):
        one = image_scores(torch.from_numpy(matrix))
        for key, there in (("mean_iou", "mean_iou_pixels"), ("pixel_accuracy", "pixel_accuracy")):
            expected = np.nan if one[key] is None else one[key]
            assert found[there][number] == pytest.approx(expected, nan_ok=True)
        for key in ("iou", "dice"):
            expected = [np.nan if value is None else value for value in one[key]]
            assert found[key][number] == pytest.approx(expected, nan_ok=True)


def test_identical_images_give_an_interval_of_zero_width() -> None:
    one = matrices(1, 3)
    found = interval(np.repeat(one, 10, axis=0).tolist(), range(10))
    expected = image_scores(torch.from_numpy(one[0]))
    assert found["mean_iou_pixels"] == pytest.approx([expected["mean_iou"]] * 2)
    assert found["mean_iou_over_images"] == pytest.approx([expected["mean_iou"]] * 2)
    assert np.array(found["iou"]) == pytest.approx(np.array([[value] * 2 for value in expected["iou"]]))


def test_the_interval_covers_the_truth_about_as_often_as_claimed() -> None:
    everything = _scores(matrices(200_000, 0).sum(axis=0, keepdims=True))
    truth = {key: float(everything[key][0]) for key in ("mean_iou_pixels", "pixel_accuracy")}
    inside = dict.fromkeys(truth, 0)
    for trial in range(100):
        found = interval(matrices(40, trial + 1).tolist(), range(40))
        for key, value in truth.items():
            inside[key] += found[key][0] <= value <= found[key][1]
    assert all(88 <= count <= 99 for count in inside.values()), inside


def test_images_in_one_group_count_as_one_observation() -> None:
    some = matrices(12, 4)
    alone = interval(some.tolist(), range(12))
    together = interval(np.repeat(some, 5, axis=0).tolist(), np.repeat(range(12), 5).tolist())
    as_if_independent = interval(np.repeat(some, 5, axis=0).tolist(), range(60))

    def width(of: dict[str, list[float]]) -> float:
        return of["mean_iou_pixels"][1] - of["mean_iou_pixels"][0]

    assert width(together) == pytest.approx(width(alone), rel=0.1)  # type: ignore[arg-type]
    assert width(as_if_independent) < 0.6 * width(alone)  # type: ignore[arg-type]


def test_a_class_absent_from_all_images_gets_no_interval() -> None:
    some = matrices(5, 0)
    some[:, 2, :] = some[:, :, 2] = 0
    found = interval(some.tolist(), range(5))
    assert found["iou"][2] is None
    assert found["iou"][1] is not None


def test_the_spread_skips_folds_without_the_class() -> None:
    per_fold = [
        {**dict.fromkeys(SCORES_OF_ALL, value), "iou": [value, None], "dice": [value, None]} for value in (0.5, 0.7)
    ]
    per_fold.append({**dict.fromkeys(SCORES_OF_ALL, 0.9), "iou": [None, 0.3], "dice": [0.9, 0.4]})
    found = spread(per_fold)
    assert found["mean_iou_pixels"] == {"mean": pytest.approx(0.7), "deviation": pytest.approx(0.2)}
    assert found["iou"][0] == {"mean": pytest.approx(0.6), "deviation": pytest.approx(2**-0.5 * 0.2)}
    assert found["iou"][1] == {"mean": pytest.approx(0.3), "deviation": None}
