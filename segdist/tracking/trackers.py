"""One interface to any number of trackers; one that fails or hangs causes a warning, but never delays the run.

Shapes: H W pixels, K classes.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from segdist.core.json_values import JsonObject
from segdist.core.paths import METRICS
from segdist.core.states import State
from segdist.core.terminal import warn
from segdist.tracking.config import TrackingConfig
from segdist.tracking.courier import Courier
from segdist.tracking.tracker import Tracker
from shards.manifest import ClassInfo

PATIENCE = 30.0
"""Seconds for a call to a tracker; the final ones have twice `--tracking.finish-timeout` if that is more."""


class Trackers:
    """Feeds all trackers, and ensures that none of them can harm the run.

    Every method except `finish` returns immediately. Ranks other than 0 have no trackers.

    Args:
        images, artifacts: whether to pass on pictures and files.
        patience: seconds for a call, after which the tracker is abandoned.
    """

    def __init__(
        self, trackers: dict[str, Tracker], *, images: bool = True, artifacts: bool = False, patience: float = PATIENCE
    ) -> None:
        self._trackers, self._patience = trackers, patience
        self._images, self._artifacts = images, artifacts
        self._failed: set[tuple[str, str]] = set()
        self._couriers = {name: Courier(name, partial(self._tell_failure, name)) for name in trackers}

    @property
    def run_id(self) -> str | None:
        """The W&B run that this run folder belongs to; None without W&B. It is stored in the checkpoint."""
        return getattr(self._trackers.get("wandb"), "run_id", None)

    @property
    def last_logged_step(self) -> int:
        """W&B already has the rows up to this step, which are not sent again; -1 at the start of a run."""
        return getattr(self._trackers.get("wandb"), "last_logged_step", -1)

    @property
    def want_pictures(self) -> bool:
        """True if any tracker takes pictures of the data."""
        return self._images and bool(self._trackers)

    def state(self) -> JsonObject:
        """The state for a checkpoint, without waiting for trackers; also makes them flush the step's rows."""
        self._each("flush", lambda tracker: tracker.flush())
        return {"run_id": self.run_id, "last_logged_step": self.last_logged_step}

    def log(self, values: dict[str, float], step: int) -> None:
        """Log scalars of one optimizer step; several calls with the same step make one row."""
        self._each("log", lambda tracker: tracker.log(values, step))

    def catch_up(self, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Send the trackers missing rows of earlier starts; call before the first `log`."""
        self._each("catch_up", lambda tracker: tracker.catch_up(rows))

    def log_prediction(
        self, name: str, image: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray, step: int
    ) -> None:
        """Log an image, uint8 (H, W) or (H, W, 3), with its masks of class indices, uint8 (H, W); truth may be
        missing."""
        if self._images:
            self._each("log_prediction", lambda tracker: tracker.log_prediction(name, image, truth, prediction, step))

    def log_figure(self, name: str, picture: np.ndarray, step: int) -> None:
        """Log a finished picture, uint8 (H, W, 3), such as the contact sheet of a shard set."""
        if self._images:
            self._each("log_figure", lambda tracker: tracker.log_figure(name, picture, step))

    def log_confusion(self, matrix: np.ndarray, class_names: Sequence[str], step: int) -> None:
        """Log a confusion matrix, integers (K, K), rows the truth."""
        self._each("log_confusion", lambda tracker: tracker.log_confusion(np.asarray(matrix), class_names, step))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        """Log a table of numbers and text, such as the scores of the worst images."""
        self._each("log_table", lambda tracker: tracker.log_table(name, columns, rows, step))

    def log_artifact(self, path: Path, name: str) -> None:
        """Store a file with the run, if `--tracking.artifacts` is set."""
        if self._artifacts:
            self._each("log_artifact", lambda tracker: tracker.log_artifact(path, name))

    def finish(self, state: State) -> None:
        """Close all trackers: "finished", "stopped" (to be resumed) or "failed". Waits for them, up to the patience."""
        self._each("finish", lambda tracker: tracker.finish(state))
        for name, courier in list(self._couriers.items()):
            if not courier.wait(self._patience):
                self._leave_behind(name)
            courier.dismiss()
        self._trackers, self._couriers = {}, {}

    def _each(self, what: str, call: Callable[[Tracker], None]) -> None:
        for name, courier in list(self._couriers.items()):
            if courier.seconds_at_it() > self._patience:
                self._leave_behind(name)
            else:
                courier.hand_over(what, partial(call, self._trackers[name]))

    def _leave_behind(self, name: str) -> None:
        self._couriers.pop(name).dismiss()
        abandon = getattr(self._trackers[name], "abandon", None)
        if abandon is not None:
            abandon()
        warn(
            f"{name}: no answer for {self._patience:g} s, abandoned; the run continues, {METRICS} has all metrics, "
            "and the next start sends the missing ones"
        )

    def _tell_failure(self, name: str, what: str, error: Exception) -> None:
        if name in self._couriers and (name, what) not in self._failed:
            self._failed.add((name, what))
            reason = (str(error).strip() or "no reason given").splitlines()[0]
            warn(f"{name}: {what} failed ({type(error).__name__}: {reason}); the run continues")


def check_trackers(config: TrackingConfig) -> None:
    """Refuse on every rank, before anything is read or written, what `open_trackers` would refuse on rank 0.

    Raises:
        UserError: see `open_trackers`.
    """
    config.validate()
    # Here and below, import only the selected trackers: W&B and TensorBoard take seconds to import.
    if "tensorboard" in config.names:
        from segdist.tracking.tensorboard_tracker import event_writer

        event_writer()
    if "wandb" in config.names:
        from segdist.tracking.wandb_mode import require_key, require_package
        from segdist.tracking.wandb_run import server_address

        require_package(config)
        if config.wandb == "online":
            require_key(server_address())


def open_trackers(
    config: TrackingConfig,
    run_dir: Path,
    run_config: JsonObject,
    *,
    run_id: str | None = None,
    is_main: bool = True,
    job_type: str = "train",
    group: str = "",
    classes: Sequence[ClassInfo] = (),
) -> Trackers:
    """Start the trackers that `config` names; call it before the first collective, since W&B can take seconds.

    Args:
        run_dir: trackers keep their files in `wandb/` and `tensorboard/` below it.
        run_config: the resolved config and anything else that describes the run (code version, shard set), JSON types.
        run_id: the W&B run of the resumed checkpoint; the run folder's own id, if it has one, takes precedence.
        is_main: False on ranks other than 0: nothing is started and the result does nothing.
        job_type: "train", "infer", … in W&B.
        group: W&B group if `config` names none; default: the run folder's name.
        classes: class names for the masks and colors for TensorBoard.

    Raises:
        UserError: a requested tracker isn't available: no key for `--wandb online`, a missing package.
    """
    config.validate()
    trackers: dict[str, Tracker] = {}
    if not is_main:
        return Trackers(trackers)
    if "wandb" in config.names:
        from segdist.tracking.wandb_tracker import open_wandb

        wandb_tracker = open_wandb(
            config, run_dir, run_config, run_id=run_id, job_type=job_type, group=group, classes=classes
        )
        if wandb_tracker is not None:
            trackers["wandb"] = wandb_tracker
    if "tensorboard" in config.names:
        from segdist.tracking.tensorboard_tracker import TensorBoardTracker

        trackers["tensorboard"] = TensorBoardTracker(run_dir / "tensorboard", classes)
    return Trackers(
        trackers,
        images=config.images != "none",
        artifacts=config.artifacts,
        patience=max(PATIENCE, 2 * config.finish_timeout),
    )
