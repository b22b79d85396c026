"""TensorBoard event files in `<run>/tensorboard/`; view them with `tensorboard --logdir runs`.

Shapes: H W pixels, K classes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segdist.core.errors import UserError
from segdist.core.states import State
from segdist.tracking.confusion_picture import confusion_picture
from shards.manifest import ClassInfo

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardTracker:
    """A `Tracker` that writes event files.

    The writer is opened at the first logged step and tells TensorBoard to discard what an earlier process of the same
    run wrote from that step on, so nothing appears twice after a resume.
    """

    def __init__(self, folder: Path, classes: Sequence[ClassInfo]) -> None:
        self._writer_class = event_writer()
        self._folder = folder
        self._colors = np.zeros((256, 3), np.uint8)
        for index, info in enumerate(classes):
            self._colors[index] = info.color
        self._open: SummaryWriter | None = None

    def log(self, values: dict[str, float], step: int) -> None:
        """Scalars."""
        for name, value in values.items():
            self._writer(step).add_scalar(name, value, step)

    def catch_up(self, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Does nothing: `flush` wrote the rows before the checkpoint, and rewriting them would hide the pictures."""

    def log_prediction(
        self, name: str, image: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray, step: int
    ) -> None:
        """Image, truth and prediction side by side, in the classes' colors."""
        rgb = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        panels = [rgb] + [self._colors[mask] for mask in (truth, prediction) if mask is not None]
        self._writer(step).add_image(f"predictions/{name}", np.concatenate(panels, axis=1), step, dataformats="HWC")

    def log_figure(self, name: str, picture: np.ndarray, step: int) -> None:
        """Log a finished picture."""
        self._writer(step).add_image(f"figures/{name}", picture, step, dataformats="HWC")

    def log_confusion(self, matrix: np.ndarray, class_names: Sequence[str], step: int) -> None:
        """Log the confusion matrix as a picture."""
        self._writer(step).add_image(
            "confusion_matrix", confusion_picture(matrix, class_names), step, dataformats="HWC"
        )

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        """Log a Markdown table, which TensorBoard renders."""
        lines = [columns, ["---"] * len(columns), *rows]
        text = "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
        self._writer(step).add_text(name, text, step)

    def log_artifact(self, path: Path, name: str) -> None:
        """Does nothing: TensorBoard stores no files; the run folder does."""

    def flush(self) -> None:
        """Write everything queued."""
        if self._open is not None:
            self._open.flush()

    def finish(self, state: State) -> None:
        """Close the event file."""
        if self._open is not None:
            self._open.close()

    def _writer(self, step: int) -> "SummaryWriter":
        if self._open is None:
            self._open = self._writer_class(str(self._folder), purge_step=step, flush_secs=2)
        return self._open


def event_writer() -> "type[SummaryWriter]":
    """The class that writes event files.

    Raises:
        UserError: TensorBoard isn't installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            "--trackers tensorboard: the package is missing; pip install -e '.[tensorboard]', or omit the option"
        ) from None
    return SummaryWriter
