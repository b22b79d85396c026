"""Weights & Biases: one run id per run folder, rows exactly once, never delaying a step."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from segdist.core.json_values import JsonObject
from segdist.core.states import State
from segdist.core.terminal import say, warn
from segdist.tracking.config import TrackingConfig
from segdist.tracking.confusion_picture import confusion_picture
from segdist.tracking.wandb_mode import choose_mode, has_package, require_package
from segdist.tracking.wandb_pieces import STEP, Before, Row, StateFile, compare, one_line
from segdist.tracking.wandb_run import WandbRun, environment_or, prepare_wandb, wandb_settings
from shards.manifest import IGNORE, ClassInfo


class WandbTracker:
    """A `Tracker` around a started W&B run.

    Values of one step are collected and sent as one row when the next step begins, so a row is either complete or
    absent, and "sent up to step N" is all the state needed.

    Args:
        last_logged_step: the last step that needn't be sent.
        unsent: rows to send before the first later one.
        received: number of rows after `last_logged_step` that the server has too, although W&B's file lacks them.
    """

    def __init__(
        self, run: WandbRun, last_logged_step: int, unsent: list[Row], classes: Sequence[ClassInfo], received: int = 0
    ) -> None:
        self._run, self._unsent = run, unsent
        self._received = received
        self._sent_before = self.last_logged_step = last_logged_step
        self._labels = {index: info.name for index, info in enumerate(classes)} | {IGNORE: "ignored"}
        self._row: dict[str, object] = {}
        self._row_step = -1

    @property
    def run_id(self) -> str:
        """W&B's id of the run, the same for the life of the run folder."""
        return self._run.id

    def log(self, values: Mapping[str, object], step: int) -> None:
        """Add values to the row of `step`; rows that W&B already had when this process started are skipped."""
        if step <= self._sent_before:
            return
        if step != self._row_step:
            self.flush()
            self._send_what_the_server_missed(step)
            if self._received:
                self._received -= 1
                self._sent_before = self.last_logged_step = step
                return
            self._row_step = step
        self._row |= values

    def catch_up(self, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Send rows lost with the previous process, since W&B's file lags by a second."""
        for step, values in rows:
            self.log(values, step)
        self.flush()

    def log_prediction(
        self, name: str, image: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray, step: int
    ) -> None:
        """Log an image with its masks as overlays that can be toggled in the browser."""
        import wandb

        masks = {"prediction": prediction} if truth is None else {"truth": truth, "prediction": prediction}
        overlays = {key: {"mask_data": mask, "class_labels": self._labels} for key, mask in masks.items()}
        # Not below `val/`, where a summary rule for the scores would mangle the images.
        self.log({f"predictions/{name}": wandb.Image(image, masks=overlays, caption=name)}, step)

    def log_figure(self, name: str, picture: np.ndarray, step: int) -> None:
        """Log a finished picture."""
        import wandb

        self.log({f"figures/{name}": wandb.Image(picture)}, step)

    def log_confusion(self, matrix: np.ndarray, class_names: Sequence[str], step: int) -> None:
        """Log the confusion matrix as a picture (see `confusion_picture` for why)."""
        import wandb

        self.log({"confusion_matrix": wandb.Image(confusion_picture(matrix, class_names))}, step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], step: int) -> None:
        """Log a table. For the end of a job: it contacts the server, for a limited time."""
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self.flush()
        self._run.ask(lambda run: run.log({f"tables/{name}": table, STEP: step}))

    def log_artifact(self, path: Path, name: str) -> None:
        """Store a file as an artifact of type "model". For the end of a job, like `log_table`."""
        import wandb

        artifact = wandb.Artifact(re.sub(r"[^\w.-]", "-", name, flags=re.ASCII), type="model")
        artifact.add_file(str(path))
        self._run.ask(lambda run: run.log_artifact(artifact))

    def flush(self) -> None:
        """Send the row being collected."""
        if self._row:
            self._run.send(self._row, self._row_step)
            self.last_logged_step = self._row_step
            self._row = {}

    def finish(self, state: State) -> None:
        """Close the run; takes at most `--tracking.finish-timeout` if the server has died."""
        self.flush()
        self._run.finish(state, self.last_logged_step)

    def abandon(self) -> None:
        """End W&B's unresponsive process, which would otherwise block the exit of this one forever."""
        self._run.abandon()

    def _send_what_the_server_missed(self, step: int) -> None:
        """Send the previous process's rows before `step`, where this process resumed."""
        for row in self._unsent:
            if row.step < step and row.values:
                self._run.send(row.values, row.step)
        self._unsent = []


def open_wandb(
    config: TrackingConfig,
    run_dir: Path,
    run_config: JsonObject,
    *,
    run_id: str | None,
    job_type: str,
    group: str,
    classes: Sequence[ClassInfo],
) -> WandbTracker | None:
    """Start or continue the W&B run of this folder; None if W&B is off or can't be started at all.

    Raises:
        UserError: `--wandb online` without a key; `online` or `offline` without the package.
    """
    if config.wandb == "off":  # don't even import W&B
        return None
    require_package(config)
    if not has_package():
        warn(
            "W&B is not installed: metrics stay in the run folder (pip install wandb, or silence this with --wandb off)"
        )
        return None
    try:
        server = prepare_wandb()
    except Exception as error:
        warn(f"W&B can't be started ({one_line(error)}); continuing without it")
        return None
    mode, reason = choose_mode(config, server)
    if mode == "off":
        return None
    state_file = StateFile(run_dir / "wandb" / "state.json")
    state_file.path.parent.mkdir(parents=True, exist_ok=True)
    before = state_file.read(run_id, takes_sweeps_id=job_type == "train")
    name = run_dir.resolve().name
    arguments = {
        "project": environment_or(config.project, "WANDB_PROJECT", "segdist"),
        "entity": config.entity or None,
        "name": name,
        "group": environment_or(config.group, "WANDB_RUN_GROUP", group or name),
        "tags": list(config.tags) or None,
        "config": run_config,
        "job_type": job_type,
        "dir": str(run_dir),
        "id": before.run_id,
        "resume": "allow",
        "settings": wandb_settings(config.start_timeout, config.finish_timeout),
    }
    try:
        run = WandbRun(mode, arguments, state_file, before, patience=config.finish_timeout)
    except Exception as error:  # no W&B failure should prevent training
        warn(f"W&B can't be started ({one_line(error)}); continuing without it")
        return None
    if run.mode == "online":
        say(f"W&B: online, {run.url}")
        last_step, unsent, received = _compare_with_server(before, run)
        return WandbTracker(run, last_step, unsent, classes, received)
    reason = f"{server}: {run.problem}" if run.problem else reason
    why = f" ({reason})" if reason else ""
    say(f"W&B: offline{why}, upload later with: wandb sync {shlex.quote(str(run_dir))}/wandb/offline-run-*-{run.id}")
    return WandbTracker(run, before.last_step, [], classes)


def _compare_with_server(before: Before, run: WandbRun) -> tuple[int, list[Row], int]:
    """The last step that needn't be sent, rows that the latest process recorded but the server never got, and how many
    rows the server got that the latest process never recorded.
    """
    if not before.was_online:
        # Earlier rows are in offline pieces, to be uploaded with `wandb sync`.
        return max(run.step_on_server, before.last_step), [], 0
    if before.rows is None:
        return run.step_on_server, [], 0
    unsent, received = compare(before.recorded, before.rows, run.rows_on_server)
    if unsent:
        return unsent[0].step - 1, unsent, 0
    if run.rows_on_server < before.rows:
        return run.step_on_server, [], 0
    # Counted, because the server's summary can be a row ahead of its rows.
    return before.last_step, [], received
