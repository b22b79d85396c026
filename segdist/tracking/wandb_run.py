"""A robust W&B run: it falls back to offline mode, and outlives W&B's own process.

W&B runs in a separate process (`wandb-core`). Slurm's SIGTERM reaches it too and ends it immediately, while the job
still has a checkpoint to write and rows to log; so it is then restarted, as another piece of the same run.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from segdist.core.json_values import Keywords
from segdist.tracking.wandb_pieces import STEP, Before, Row, StateFile, compare, one_line, rows_in

if TYPE_CHECKING:
    import wandb

Run = Any
"""A `wandb.Run`, some of whose methods have no types."""

RECENT = 10.0
"""Seconds for which sent rows are remembered: several times the interval at which W&B writes them to its file."""
MOST_RESTARTS = 3


class WandbRun:
    """A started run.

    Args:
        mode: "online" becomes "offline", and `problem` says why, if W&B can't reach its server.
        arguments: arguments for `wandb.init`.
        before: what earlier processes saved.
        patience: seconds that a call can wait for the server.

    Raises:
        Exception: W&B can't even be started offline.
    """

    def __init__(
        self,
        mode: Literal["online", "offline"],
        arguments: Keywords,
        state_file: StateFile,
        before: Before,
        patience: float,
    ) -> None:
        self.mode, self.problem = mode, ""
        self._arguments, self._patience = arguments, patience
        self._state_file, self._safe_step, self._safe_rows = state_file, before.last_step, before.rows
        self._recent: deque[tuple[float, int, dict[str, float]]] = deque()
        self._restarts = 0
        self._run = self._start()

    @property
    def id(self) -> str:
        """W&B's id of the run."""
        return cast(str, self._run.id)

    @property
    def url(self) -> str:
        """Where to view it; online only."""
        return cast(str, self._run.url)

    @property
    def piece(self) -> Path:
        """W&B's folder of this process."""
        return Path(self._run.settings.sync_dir)

    @property
    def rows_on_server(self) -> int:
        """Number of rows on the server when this process started."""
        return int(self._run.starting_step)

    @property
    def step_on_server(self) -> int:
        """The last step reported by the server at that time; its summary can be a row ahead of its rows."""
        return int(self._run.summary.get(STEP, -1))

    def send(self, row: Mapping[str, object], step: int) -> None:
        """Pass a row to W&B, which writes it to its file within about a second."""
        self._with_retry(lambda: self._run.log({**row, STEP: step}))
        now = time.monotonic()
        self._recent.append((now, step, {name: value for name, value in row.items() if isinstance(value, int | float)}))
        while self._recent[0][0] < now - RECENT:
            self._recent.popleft()

    def ask(self, call: Callable[[Run], object]) -> None:
        """Run `call(run)`, which contacts the server (tables, artifacts), with a time limit.

        Raises:
            TimeoutError: no answer within the patience; W&B itself has no time limit here.
        """
        errors: list[Exception] = []

        def work() -> None:
            try:
                call(self._run)
            except Exception as error:  # handed over, not hidden
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(self._patience)
        if thread.is_alive():
            raise TimeoutError(f"no answer within {self._patience:g} s")
        if errors:
            raise errors[0]

    def finish(self, state: str, last_step: int) -> None:
        """Close the run; takes at most W&B's `finish_timeout` if the server has died."""

        def close() -> None:
            self._run.summary["state"] = state
            if state == "stopped":
                # With a nonzero exit code, W&B shows the run as preempted, and a sweep restarts it.
                self._run.mark_preempting()
            self._run.finish(exit_code=0 if state == "finished" else 1)

        self._with_retry(close)
        self._state_file.write(self.id, last_step, None, self.piece, closed=True)

    def abandon(self) -> None:
        """Kill W&B's process and don't restart it. Waiting calls then fail with an error."""
        self._restarts = MOST_RESTARTS
        with suppress(Exception):  # W&B offers no other access to its process
            import wandb

            connection: Any = wandb.setup()._connection  # Any: private
            connection._proc._process.kill()
            connection.teardown = lambda exit_code: (
                exit_code
            )  # called when this process exits, with nothing left to end

    def _with_retry(self, call: Callable[[], object]) -> None:
        """Make the call, retrying in a new process if W&B's has died."""
        try:
            call()
        except Exception:
            if self._restarts == MOST_RESTARTS:
                raise
            self._restarts += 1
            self._restart()
            call()

    def _restart(self) -> None:
        import wandb

        was_online, died, count = self.mode == "online", self.piece, self.rows_on_server
        with suppress(Exception):  # it complains that the process is dead
            wandb.teardown()
        recorded: list[Row] = []
        with suppress(OSError):
            recorded = rows_in(died)
        if recorded:
            count = recorded[-1].number + 1
            self._safe_step = max(self._safe_step, recorded[-1].step)
            self._safe_rows = count if was_online else None
        self._run = self._start()
        rows = [(step, row) for _, step, row in self._recent if step > self._safe_step]
        if self.mode == "online":
            # The server may lack rows that are in the file, or have got rows that aren't.
            unsent, received = compare(recorded, count, self.rows_on_server)
            rows = [*((row.step, row.values) for row in unsent), *rows[received:]]
        for step, row in rows:
            self._run.log({**row, STEP: step})

    def _start(self) -> Run:
        import wandb

        run = None
        if self.mode == "online":
            try:
                run = wandb.init(mode="online", **self._arguments)
            except Exception as error:  # wandb raises a dozen types here, and none should prevent training
                self.mode, self.problem = "offline", one_line(error)
                # The remains of the failed start would block the run id.
                wandb.teardown()
        if run is None:
            run = wandb.init(mode="offline", **self._arguments)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP)
        self._state_file.write(run.id, self._safe_step, self._safe_rows, Path(run.settings.sync_dir), closed=False)
        return run


def prepare_wandb() -> str:
    """Silence W&B before it is started; returns the address of the server that it would use."""
    import wandb

    logging.getLogger("wandb").setLevel(logging.ERROR)
    # A W&B service inherited from the parent process (a notebook, a test) would only end, and complete its files, with
    # that process.
    os.environ.pop("WANDB_SERVICE", None)
    with suppress(ImportError):
        # Usage reports of W&B's client, which waits up to 10 s at exit if the server doesn't accept them.
        from wandb.analytics.opentelemetry.opentelemetry_proxy import disable

        disable()
    return wandb.setup(wandb.Settings(silent=True)).settings.base_url


def server_address() -> str:
    """The server that W&B would use, determined without starting W&B, so that every rank can ask."""
    import wandb

    settings = wandb.Settings(silent=True)
    settings.update_from_system_settings()
    settings.update_from_env_vars(dict(os.environ))
    return settings.base_url


def wandb_settings(start_timeout: float, finish_timeout: float) -> "wandb.Settings":
    """W&B's settings for a non-interactive run; times in seconds."""
    import wandb

    return wandb.Settings(
        silent=True,
        console="off",
        init_timeout=2 * start_timeout,
        finish_timeout=finish_timeout,
        # W&B's default of 15 s would lose all that on a SIGKILL, and sync fails on a file without its header.
        x_transaction_log_flush_interval=1,
        x_file_stream_transmit_interval=2,
    )


def environment_or(value: str, name: str, default: str) -> str:
    """A setting: given, else from the environment, else the default."""
    return value or os.environ.get(name) or default
