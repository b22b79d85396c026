"""Weights & Biases: one run id per run folder, rows exactly once, never in the way of a step.

Files: W&B's own below `<run>/wandb/`; `wandb/state.json` beside them holds the run id and how far the rows have got:
    {"run_id": "k3v9q2ab", "last_logged_step": 400, "piece": "offline-run-20260102_030405-k3v9q2ab", "closed": true}
`piece` is W&B's folder of the latest process. Where that one wasn't closed in good order, the `.wandb` file in it, not
our memory, says which rows are safe.
"""

import json
import logging
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from segdist.tracking.config import TrackingConfig
from segdist.tracking.trackers import State
from segdist.tracking.wandb_mode import choose_mode
from shards.errors import UserError
from shards.files import write_json
from shards.manifest import IGNORE, ClassInfo
from shards.terminal import say, warn

STEP = "trainer/step"
"""Our own step: W&B's `_step` is numbered anew where offline pieces are merged."""


class WandbTracker:
    """A `Tracker` around a started W&B run.

    Values of one step are gathered and go out as one row when the next step begins, so that a row is there whole or
    not at all, and "sent up to step N" says everything.
    """

    def __init__(self, run: Any, state_file: Path, last_logged_step: int, classes: Sequence[ClassInfo]) -> None:
        self._run = run
        self._state_file = state_file
        self._sent_before = self.last_logged_step = last_logged_step
        self._labels = {index: info.name for index, info in enumerate(classes)} | {IGNORE: "ignored"}
        self._row: dict[str, Any] = {}
        self._row_step = -1
        self._write_state()

    @property
    def run_id(self) -> str:
        """W&B's id of the run, the same for the life of the run folder."""
        return cast(str, self._run.id)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Add values to the row of `step`; rows that W&B had before this process started are left out."""
        if step <= self._sent_before:
            return
        if step != self._row_step:
            self.flush()
            self._row_step = step
        self._row |= values

    def log_prediction(
        self, name: str, image: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray, step: int
    ) -> None:
        """An image with its masks as overlays that can be switched on and off in the browser."""
        import wandb

        masks = {"prediction": prediction} if truth is None else {"truth": truth, "prediction": prediction}
        overlays = {key: {"mask_data": mask, "class_labels": self._labels} for key, mask in masks.items()}
        # Not below `val/`: a summary rule for the scores there would mangle the images.
        self.log({f"predictions/{name}": wandb.Image(image, masks=overlays, caption=name)}, step)

    def log_figure(self, name: str, picture: np.ndarray, step: int) -> None:
        """A finished picture."""
        import wandb

        self.log({f"figures/{name}": wandb.Image(picture)}, step)

    def log_confusion(self, matrix: np.ndarray, class_names: Sequence[str], step: int) -> None:
        """As W&B's own confusion-matrix panel, which otherwise would want every pixel."""
        import wandb

        rows = [
            [truth, predicted, int(matrix[i, j])]
            for i, truth in enumerate(class_names)
            for j, predicted in enumerate(class_names)
        ]
        columns: list[str | int] = ["Actual", "Predicted", "nPredictions"]
        plot = wandb.plot_table(
            data_table=wandb.Table(columns=columns, data=rows),
            vega_spec_name="wandb/confusion_matrix/v1",
            fields={str(column): str(column) for column in columns},
            string_fields={"title": "pixels: truth and prediction"},
        )
        self.log({"confusion_matrix": plot}, step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """A table."""
        import wandb

        self.log({f"tables/{name}": wandb.Table(columns=list(columns), data=[list(row) for row in rows])}, step)

    def log_artifact(self, path: Path, name: str) -> None:
        """A file as an artifact of type "model"; W&B stores the same content once."""
        import wandb

        artifact = wandb.Artifact(name, type="model")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def flush(self) -> None:
        """Send the row that is being gathered; W&B has it on the disk within about a second."""
        if self._row:
            self._run.log({**self._row, STEP: self._row_step})
            self.last_logged_step = self._row_step
            self._row = {}

    def finish(self, state: State) -> None:
        """Close the run; takes at most `--tracking.finish-timeout` where the server has died."""
        self.flush()
        self._run.summary["state"] = state
        if state == "stopped":
            # With a non-zero exit W&B shows the run as preempted, and a sweep starts it again.
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if state == "finished" else 1)
        self._write_state(closed=True)

    def _write_state(self, *, closed: bool = False) -> None:
        state = {
            "run_id": self.run_id,
            "last_logged_step": self.last_logged_step,
            "piece": Path(self._run.settings.sync_dir).name,
            "closed": closed,
        }
        write_json(self._state_file, state)


def open_wandb(
    config: TrackingConfig,
    run_folder: Path,
    run_config: dict[str, Any],
    *,
    run_id: str | None,
    job_type: str,
    group: str,
    classes: Sequence[ClassInfo],
) -> WandbTracker | None:
    """Start or continue the W&B run of this folder; None where W&B is off or can't be started at all.

    Raises:
        UserError: `--wandb online` without a key.
    """
    import wandb

    logging.getLogger("wandb").setLevel(logging.ERROR)
    base_url = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    mode, reason = choose_mode(config, base_url)
    if mode == "off":
        return None
    state_file = run_folder / "wandb" / "state.json"
    state_file.parent.mkdir(parents=True, exist_ok=True)
    run_id, last_logged_step, latest_online = _continue_from(state_file, run_id)
    settings = wandb.Settings(
        silent=True,
        console="off",
        init_timeout=2 * config.start_timeout,
        finish_timeout=config.finish_timeout,
        # W&B's 15 s would lose all that at a SIGKILL, and sync chokes on a file without its header.
        x_transaction_log_flush_interval=1,
        x_file_stream_transmit_interval=2,
    )
    arguments: dict[str, Any] = {
        "project": config.project or os.environ.get("WANDB_PROJECT") or "segdist",
        "entity": config.entity or None,
        "name": run_folder.resolve().name,
        "group": config.group or os.environ.get("WANDB_RUN_GROUP") or group or run_folder.resolve().name,
        "tags": list(config.tags) or None,
        "config": run_config,
        "job_type": job_type,
        "dir": str(run_folder),
        "id": run_id,
        "resume": "allow",
        "settings": settings,
    }
    try:
        run = wandb.init(mode=mode, **arguments)
    except Exception as error:  # wandb raises a dozen kinds here, and none of them is a reason not to train
        if mode == "offline":
            warn(f"W&B can't be started ({_first_line(error)}); going on without it")
            return None
        mode, reason = "offline", f"{base_url}: {_first_line(error)}"
        run = wandb.init(mode="offline", **arguments)
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    if mode == "online":
        # Where the latest process was online, what the server has counts, not what was handed to W&B.
        on_server = int(run.summary.get(STEP, -1))
        last_logged_step = on_server if latest_online else max(on_server, last_logged_step)
        say(f"W&B: online, {run.url}")
    else:
        why = f" ({reason})" if reason else ""
        say(f"W&B: offline{why}, upload later with: wandb sync {run_folder}/wandb/offline-run-*-{run_id}")
    return WandbTracker(run, state_file, last_logged_step, classes)


def _continue_from(state_file: Path, run_id: str | None) -> tuple[str, int, bool]:
    """Run id, last safe step, and whether the latest process was online.

    The id is the run folder's, else the checkpoint's (`run_id`), else a sweep's ($WANDB_RUN_ID), else new.
    """
    if not state_file.exists():
        return run_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4), -1, False
    try:
        state = json.loads(state_file.read_text())
        last, piece = int(state["last_logged_step"]), str(state["piece"])
        if not state["closed"]:
            last = max(last, last_step_in(state_file.parent / piece))
        return str(state["run_id"]), last, not piece.startswith("offline-")
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{state_file}: damaged; delete it to continue as a new W&B run") from None


def last_step_in(piece: Path) -> int:
    """The last `trainer/step` in a piece's `.wandb` file; -1 where there is none, or the file can't be read."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(piece)]
    try:
        answer = subprocess.run(command, capture_output=True, timeout=60, check=True, text=True)
        return int(json.loads(answer.stdout)["summary"].get(STEP, -1))
    except (subprocess.SubprocessError, OSError, ValueError, KeyError) as error:
        warn(f"W&B: {piece} can't be read back ({_first_line(error)}); some of its rows may appear twice")
        return -1


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
