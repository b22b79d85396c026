"""Track which rows are safe with W&B: our state file, plus W&B's own files read back with its own tool.

`<run>/wandb/state.json` holds
    {"format_version": 1, "run_id": "k3v9q2ab", "last_logged_step": 400, "rows": 201,
     "piece": "offline-run-20260102_030405-k3v9q2ab", "closed": true}

A piece is the folder `<run>/wandb/[offline-]run-<date>-<id>` of one process; the `.wandb` file in it is W&B's
transaction log, flushed every second. If the latest process wasn't closed cleanly, that file, not our state, says which
rows are safe. The server may have more of them, because W&B doesn't wait for the flush before it sends a row.
"""

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import write_json
from segdist.core.formats import stamped, unstamped
from segdist.core.terminal import warn

STATE_VERSION = 1
STEP = "trainer/step"
"""Our own step, because W&B renumbers `_step` when offline pieces are merged."""


@dataclass(frozen=True)
class Row:
    """A row of a piece."""

    number: int
    """W&B's own `_step`, which for an online run counts through all its processes."""
    step: int
    values: dict[str, float]
    """The scalars; pictures are separate files."""


@dataclass(frozen=True)
class Before:
    """The state left by earlier processes of the run."""

    run_id: str
    last_step: int = -1
    """The last step whose row is safe."""
    rows: int | None = None
    """Number of rows up to `last_step`, as the server counts them; None if unknown."""
    piece: Path | None = None
    """The latest process's piece."""
    recorded: Sequence[Row] = ()
    """The rows in that piece."""

    @property
    def was_online(self) -> bool:
        """True if the latest process sent its rows to the server itself."""
        return self.piece is not None and not self.piece.name.startswith("offline-")


class StateFile:
    """`state.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, run_id: str | None, *, takes_sweeps_id: bool) -> Before:
        """Read the state. The run's id is the file's, else the checkpoint's (`run_id`), else a sweep's ($WANDB_RUN_ID),
        else new.

        Args:
            takes_sweeps_id: whether the sweep's id is meant for this job: a training, and only one.

        Raises:
            UserError: the file is damaged.
        """
        if not self.path.exists():
            sweeps = os.environ.get("WANDB_RUN_ID", "") if takes_sweeps_id else ""
            if sweeps and (other := self._run_with(sweeps)):
                warn(f"W&B: $WANDB_RUN_ID {sweeps} is already the id of {other}; this run gets its own")
                sweeps = ""
            if known := run_id or sweeps:
                return Before(known)
            return Before(secrets.token_hex(4), rows=0)
        try:
            state = unstamped(json.loads(self.path.read_text()), STATE_VERSION, str(self.path))
            run_id, last, closed = str(state["run_id"]), int(state["last_logged_step"]), bool(state["closed"])
            piece, number = self.path.parent / state["piece"], state.get("rows")
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{self.path}: damaged; delete it to continue as a new W&B run") from None
        before = Before(run_id, last, number, piece)
        if closed and not before.was_online:
            return before
        try:
            recorded = rows_in(piece)
        except OSError as error:
            warn(f"W&B: {one_line(error)}; some of its rows may be missing or appear twice")
            return before
        if not recorded:
            return before
        # Not W&B's own summary of the file, which can be a row ahead of the rows after a SIGKILL.
        last = max(last, recorded[-1].step)
        number = recorded[-1].number + 1 if before.was_online else None
        return Before(run_id, last, number, piece, recorded)

    def _run_with(self, run_id: str) -> Path | None:
        """A neighboring run that has this id."""
        run_dir = self.path.parent.parent
        for path in run_dir.parent.glob(f"*/{self.path.parent.name}/{self.path.name}"):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if path != self.path and json.loads(path.read_text()).get("run_id") == run_id:
                    return path.parent.parent
        return None

    def write(self, run_id: str, last_step: int, rows: int | None, piece: Path, *, closed: bool) -> None:
        """Record the state of the latest process."""
        state = {
            "run_id": run_id,
            "last_logged_step": last_step,
            "rows": rows,
            "piece": piece.name,
            "closed": closed,
        }
        write_json(self.path, stamped(state, STATE_VERSION))


def rows_in(piece: Path) -> list[Row]:
    """The rows with a step, in order.

    Raises:
        OSError: the piece can't be read.
    """
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(piece)]
    rows = []
    try:
        told = subprocess.run(command, capture_output=True, timeout=120, check=True, text=True).stdout
        for record in map(json.loads, told.splitlines()):
            item = record["history"]["item"] if record["type"] == "history" else {}
            if STEP in item:
                media = {key.split(".")[0] for key in item if key.endswith("._type")}
                values = {key: value for key, value in item.items() if _is_scalar(key, value, media)}
                rows.append(Row(int(item["_step"]), int(item[STEP]), values))
    except (subprocess.SubprocessError, ValueError, KeyError) as error:
        raise OSError(f"{piece} can't be read back ({one_line(error)})") from error
    return rows


def compare(recorded: Sequence[Row], rows: int, on_server: int) -> tuple[list[Row], int]:
    """The rows of a piece that the server lacks, and the number of rows that it has beyond those of the piece.

    Args:
        recorded: the rows in the piece's file, which may be behind the server or ahead of it.
        rows: number of rows up to the last one recorded, as the server counts them.
        on_server: number of rows on the server.
    """
    return [row for row in recorded if row.number >= on_server], max(on_server - rows, 0)


def _is_scalar(key: str, value: object, media: set[str]) -> bool:
    return isinstance(value, int | float) and key[0] != "_" and key != STEP and key.split(".")[0] not in media


def one_line(error: BaseException) -> str:
    """An error's full message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
