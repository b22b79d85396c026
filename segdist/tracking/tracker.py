"""What a place for curves and pictures has to offer.

Shapes: H W pixels, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from segdist.core.states import State


class Tracker(Protocol):
    """What a place for curves and pictures has to offer. Steps never decrease."""

    def log(self, values: dict[str, float], step: int) -> None:
        """Scalars of one optimizer step; names are `group/name`, as `train/loss`."""

    def catch_up(self, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Rows of earlier starts, by step, of which the tracker may miss some: those that it has are left out."""

    def log_prediction(
        self, name: str, image: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray, step: int
    ) -> None:
        """An image, uint8 (H, W) or (H, W, 3), with masks of class indices, uint8 (H, W)."""

    def log_figure(self, name: str, picture: np.ndarray, step: int) -> None:
        """A finished picture, uint8 (H, W, 3), such as a contact sheet."""

    def log_confusion(self, matrix: np.ndarray, class_names: Sequence[str], step: int) -> None:
        """A confusion matrix, integers (K, K), rows the truth."""

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """A table of numbers and texts."""

    def log_artifact(self, path: Path, name: str) -> None:
        """A file to keep with the run, such as a model."""

    def flush(self) -> None:
        """Hand on what has been gathered so far."""

    def finish(self, state: State) -> None:
        """The last call."""

    # A tracker with a process of its own also has `abandon()`, called from another thread when a call doesn't return:
    # end whatever would hold up the end of this process.
