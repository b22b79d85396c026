"""Coverage and width of share intervals, compared with other ways to measure errors.

    python -m tests.benchmarks.intervals RESULT …

Each RESULT is a folder of predictions with probabilities and true masks, for images that the models were not trained
on, such as the `out-of-fold` folder of a cross-validation. In each of `HALVES` random splits, intervals are fitted to
half of the images and tested on the other half: how many true shares lie inside?

Coverage is the mean over splits for each class, printed with its standard deviation. The Winkler score is the interval
width plus 2 / (1 - level) times the distance of the truth outside the interval; lower is better.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from segdist.inference.calibrate import class_shares
from segdist.inference.finished_result import FinishedResult
from segdist.model.share_intervals import FEWEST_IMAGES, LEVEL, bounding_rank, fit_share_intervals
from tests.benchmarks.bars import Bars
from tests.benchmarks.cases import benchmark

HALVES = 1000
Bounds = tuple[np.ndarray, np.ndarray]
"""Lower and upper ends, (N, K)."""
Method = Callable[[np.ndarray, np.ndarray, np.ndarray], Bounds]
"""Maps predicted and true shares of known images, and predicted shares of new images, (N, K) each, to their bounds."""


def main(words: list[str]) -> int:
    """Print a table per result and the bars; return 1 if a bar is missed."""
    if not words:
        sys.exit("name folders of out-of-fold predictions: python -m tests.benchmarks.intervals RESULT …")
    bars = Bars()
    for word in words:
        found = FinishedResult(Path(word))
        predicted, true = class_shares(found)
        images = len(predicted)
        print(f"\n{word}: {images} images, {images // 2} to calibrate and {images - images // 2} to count")
        few = fit_share_intervals(predicted[: FEWEST_IMAGES - 1], true[: FEWEST_IMAGES - 1])
        bars.at_most(f"intervals from {min(images, FEWEST_IMAGES - 1)} images", int(few is not None), 0)
        if images // 2 < FEWEST_IMAGES:
            print(f"no intervals: half of the images are fewer than {FEWEST_IMAGES}")
            continue
        rows = {what: measured(method, predicted, true) for what, method in METHODS.items()}
        covered, deviations, widths, _ = rows["segdist"]
        print("| class | mean share | coverage ± deviation | mean width |\n|---|---|---|---|")
        for label, name in enumerate(found.class_names):
            share = f"{true[:, label].mean():.4f}"
            print(f"| {name} | {share} | {covered[label]:.3f} ± {deviations[label]:.3f} | {widths[label]:.4f} |")
        print("\n| errors | " + " | ".join(f"{name}: width, Winkler" for name in found.class_names) + " |")
        print("|---|" + "---|" * len(found.class_names))
        for what, (_, _, width, winkler) in rows.items():
            cells = (f"{one:.4f}, {other:.4f}" for one, other in zip(width, winkler, strict=True))
            print(f"| {what} | " + " | ".join(cells) + " |")
        print()
        for name, share in zip(found.class_names, covered, strict=True):
            bars.at_least(f"{word}: coverage of {name}", share, 0.85)
            bars.at_most(f"{word}: coverage of {name}", share, 0.95)
    return bars.finish()


def measured(method: Method, predicted: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, ...]:
    """Mean coverage, its standard deviation over splits, mean width and mean Winkler score, (K,) each."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(HALVES):
        order = rng.permutation(len(predicted))
        known, new = order[: len(order) // 2], order[len(order) // 2 :]
        low, high = method(predicted[known], true[known], predicted[new])
        outside = np.maximum(low - true[new], 0) + np.maximum(true[new] - high, 0)
        winkler = high - low + 2 / (1 - LEVEL) * outside
        rows.append([(outside == 0).mean(axis=0), (high - low).mean(axis=0), winkler.mean(axis=0)])
    coverage, width, score = np.array(rows).transpose(1, 0, 2)
    return coverage.mean(axis=0), coverage.std(axis=0), width.mean(axis=0), score.mean(axis=0)


def ours(predicted: np.ndarray, true: np.ndarray, new: np.ndarray) -> Bounds:
    """Intervals of segdist."""
    fitted = fit_share_intervals(predicted, true)
    if fitted is None:
        raise ValueError(f"{len(predicted)} images are too few")
    bounds = np.array([[fitted.bounds(label, share) for label, share in enumerate(row)] for row in new.tolist()])
    return bounds[..., 0], bounds[..., 1]


def scaled(unit: Callable[[np.ndarray], np.ndarray]) -> Method:
    """Errors of shares, in a unit that depends on the predicted share."""

    def bounds(predicted: np.ndarray, true: np.ndarray, new: np.ndarray) -> Bounds:
        reach = quantile(np.abs(true - predicted) / unit(predicted)) * unit(new)
        return np.clip(new - reach, 0, 1), np.clip(new + reach, 0, 1)

    return bounds


def transformed(there: Callable[[np.ndarray], np.ndarray], back: Callable[[np.ndarray], np.ndarray]) -> Method:
    """Errors of transformed shares."""

    def bounds(predicted: np.ndarray, true: np.ndarray, new: np.ndarray) -> Bounds:
        reach = quantile(np.abs(there(true) - there(predicted)))
        return np.clip(back(there(new) - reach), 0, 1), np.clip(back(there(new) + reach), 0, 1)

    return bounds


def quantile(errors: np.ndarray) -> np.ndarray:
    """Per class, the error of the rank that bounds a new one."""
    return np.asarray(np.sort(errors, axis=0)[bounding_rank(len(errors)) - 1])


METHODS = {
    "segdist": ours,
    "absolute": scaled(np.ones_like),
    "absolute / √(p(1 - p) + 0.001)": scaled(lambda shares: np.sqrt(shares * (1 - shares) + 0.001)),
    "absolute / √(p(1 - p) + 0.05)": scaled(lambda shares: np.sqrt(shares * (1 - shares) + 0.05)),
    "absolute / (√(p(1 - p)) + 0.01)": scaled(lambda shares: np.sqrt(shares * (1 - shares)) + 0.01),
    "absolute, of arcsin √p": transformed(
        lambda s: np.arcsin(np.sqrt(s)), lambda y: np.sin(np.clip(y, 0, math.pi / 2)) ** 2
    ),
    "absolute, of the logit with 0.01 added": transformed(
        lambda s: np.log((s + 0.01) / (1.01 - s)), lambda y: 1.02 / (1 + np.exp(-y)) - 0.01
    ),
}


if __name__ == "__main__":
    benchmark(main)
