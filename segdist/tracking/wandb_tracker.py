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
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from segdist.tracking.config import TrackingConfig
from segdist.tracking.confusion_picture import confusion_picture
from segdist.tracking.trackers import State
from segdist.tracking.wandb_mode import choose_mode
from segdist.tracking.wandb_pieces import STEP, last_step_in, rows_in
from shards.errors import UserError
from shards.files import write_json
from shards.manifest import IGNORE, ClassInfo
from shards.terminal import say, warn


class WandbTracker:
    """A `Tracker` around a started W&B run.

    Values of one step are gathered and go out as one row when the next step begins, so that a row is there whole or
    not at all, and "sent up to step N" says everything.
    """

    def __init__(
        self,
        run: Any,
        state_file: Path,
        last_logged_step: int,
        classes: Sequence[ClassInfo],
        *,
        unsent: list[tuple[int, dict[str, float]]],
        patience: float,
    ) -> None:
        self._run, self._patience = run, patience
        self._state_file, self._unsent = state_file, unsent
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
            self._send_what_the_server_missed(step)
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
        """As a picture (see `confusion_picture` for why)."""
        import wandb

        self.log({"confusion_matrix": wandb.Image(confusion_picture(matrix, class_names))}, step)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], step: int) -> None:
        """A table. For the end of a job: the server is asked, for at most `patience` seconds."""
        import wandb

        table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
        self.flush()
        self._patiently(lambda: self._run.log({f"tables/{name}": table, STEP: step}))

    def log_artifact(self, path: Path, name: str) -> None:
        """A file as an artifact of type "model". For the end of a job, as `log_table`."""
        import wandb

        artifact = wandb.Artifact(name, type="model")
        artifact.add_file(str(path))
        self._patiently(lambda: self._run.log_artifact(artifact))

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

    def _send_what_the_server_missed(self, step: int) -> None:
        """Rows of the process before that lie before `step`, where this one took up the work again."""
        for earlier, values in self._unsent:
            if earlier < step and values:
                self._run.log({**values, STEP: earlier})
        self._unsent = []

    def _patiently(self, call: Callable[[], Any]) -> None:
        """Let `call` talk to the server, but not for ever; in a thread, since W&B has no time limit for it."""
        errors: list[Exception] = []

        def run() -> None:
            try:
                call()
            except Exception as error:  # handed over, not hidden
                errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(self._patience)
        if thread.is_alive():
            raise TimeoutError(f"no answer within {self._patience:g} s")
        if errors:
            raise errors[0]

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
    _silence_telemetry()
    base_url = wandb.setup(wandb.Settings(silent=True)).settings.base_url
    mode, reason = choose_mode(config, base_url)
    if mode == "off":
        return None
    state_file = run_folder / "wandb" / "state.json"
    state_file.parent.mkdir(parents=True, exist_ok=True)
    before = _read_state(state_file, run_id)
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
        "id": before.run_id,
        "resume": "allow",
        "settings": settings,
    }
    run = None
    if mode == "online":
        run, problem = _start(mode, arguments)
        if run is None:
            mode, reason = "offline", f"{base_url}: {problem}"
            # What is left of the failed start would hold the run id.
            wandb.teardown()
    if run is None:
        run, problem = _start("offline", arguments)
        if run is None:
            warn(f"W&B can't be started ({problem}); going on without it")
            return None
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    last_step, unsent = before.last_step, []
    if mode == "online":
        # Where the latest process was online, what the server has counts, not what was handed to W&B.
        last_step = int(run.summary.get(STEP, -1))
        if before.was_online and before.piece is not None and last_step < before.last_step:
            unsent = _unsent_rows(before.piece, last_step)
        elif not before.was_online:
            last_step = max(last_step, before.last_step)
        say(f"W&B: online, {run.url}")
    else:
        why = f" ({reason})" if reason else ""
        say(f"W&B: offline{why}, upload later with: wandb sync {run_folder}/wandb/offline-run-*-{before.run_id}")
    return WandbTracker(run, state_file, last_step, classes, unsent=unsent, patience=config.finish_timeout)


def _start(mode: str, arguments: dict[str, Any]) -> tuple[Any, str]:
    """A started run, or None and the reason."""
    import wandb

    try:
        return wandb.init(mode=mode, **arguments), ""  # type: ignore[arg-type]
    except Exception as error:  # wandb raises a dozen kinds here, and none of them is a reason not to train
        return None, _first_line(error)


def _silence_telemetry() -> None:
    """W&B's client reports on its own use, and at exit waits up to 10 s for a server that doesn't take the report."""
    with suppress(ImportError):
        from wandb.analytics.opentelemetry.opentelemetry_proxy import disable

        disable()


@dataclass(frozen=True)
class _Before:
    """What the run folder says of earlier processes."""

    run_id: str
    last_step: int = -1
    piece: Path | None = None

    @property
    def was_online(self) -> bool:
        """Whether the latest process sent its rows to the server itself."""
        return self.piece is not None and not self.piece.name.startswith("offline-")


def _read_state(state_file: Path, run_id: str | None) -> _Before:
    """The run's id is the run folder's, else the checkpoint's (`run_id`), else a sweep's ($WANDB_RUN_ID), else new."""
    if not state_file.exists():
        return _Before(run_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4))
    try:
        state = json.loads(state_file.read_text())
        before = _Before(state["run_id"], int(state["last_logged_step"]), state_file.parent / state["piece"])
        closed = bool(state["closed"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{state_file}: damaged; delete it to continue as a new W&B run") from None
    if closed or before.piece is None:
        return before
    try:
        return replace(before, last_step=max(before.last_step, last_step_in(before.piece)))
    except (OSError, ValueError, KeyError) as error:
        warn(f"W&B: {_first_line(error)}; some of its rows may appear twice")
        return before


def _unsent_rows(piece: Path, after: int) -> list[tuple[int, dict[str, float]]]:
    """Rows that a process wrote to its file and the server never got, because one of the two died."""
    try:
        return list(rows_in(piece, after))
    except (OSError, ValueError, KeyError) as error:
        warn(f"W&B: {_first_line(error)}; its rows after step {after} are missing online")
        return []


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
