"""The interface of trackers, which store curves and pictures.

Shapes: H W pixels, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from segdist.core.states import State


class Tracker(Protocol):
    """A store for curves and pictures. Steps never decrease."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Log scalars of one optimizer step; names are `group/name`, such as `train/loss`."""

    def catch_up(self, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Log rows of earlier starts, by step; those that the tracker already has are skipped."""

    def log_prediction(
        self, name: str, image: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray, step: int
    ) -> None:
        """Log an image, uint8 (H, W) or (H, W, 3), with masks of class indices, uint8 (H, W)."""

    def log_figure(self, name: str, picture: np.ndarray, step: int) -> None:
        """Log a finished picture, uint8 (H, W, 3), such as a contact sheet."""

    def log_confusion(self, matrix: np.ndarray, class_names: Sequence[str], step: int) -> None:
        """Log a confusion matrix, integers (K, K), rows the truth."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        """Log a table of numbers and text."""

    def log_artifact(self, path: Path, name: str) -> None:
        """Store a file with the run, such as a model."""

    def flush(self) -> None:
        """Pass on everything collected so far."""

    def finish(self, state: State) -> None:
        """The last call."""

    # A tracker with its own process also has `abandon()`, called from another thread if a call doesn't return: it ends
    # whatever would block the exit of this process.
