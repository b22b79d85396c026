"""Read a run folder for status and report. Needs neither torch nor the job that writes the run."""

import json
import shlex
import time
from collections.abc import Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.fold import is_fold
from segdist.core.formats import RUN_VERSION, stamped, unstamped
from segdist.core.json_values import JsonObject, JsonValue
from segdist.core.model_header import CARD_KEY, read_metadata
from segdist.core.paths import (
    BEST_MODEL,
    CONFIG,
    EVENTS,
    HEARTBEATS,
    LAST_MODEL,
    METRICS,
    OUT_OF_FOLD,
    RUNS,
    SCORES,
    SLURM_LOGS,
    SUMMARY,
    TIMES,
    run_dir,
)
from segdist.core.states import ENDED, State
from segdist.core.terminal import warn

SILENT_AFTER = 120.0
"""Seconds without a sign of life after which an unfinished run counts as silent (or 10 usual intervals, if longer)."""

TIMES_VERSION = 1
METRIC_KEYS, EVENT_KEYS = {"kind", "step", "time"}, {"what", "step", "time"}

Row = JsonObject


@dataclass(frozen=True)
class RunRecord:
    """The files of a run so far."""

    folder: Path
    description: JsonObject = field(default_factory=dict)
    """`config.json`."""
    train: list[Row] = field(default_factory=list)
    """Rows of training metrics, ordered by step."""
    val: list[Row] = field(default_factory=list)
    """Rows of validation scores, ordered by step."""
    events: list[Row] = field(default_factory=list)
    summary: JsonObject = field(default_factory=dict)
    predictions: list["Predictions"] = field(default_factory=list)
    cross_validation: JsonObject | None = None
    """`scores.json` of a folder of folds (`segdist.inference.cross_validation.score`)."""
    nodes: list[Row] = field(default_factory=list)
    """The latest heartbeat of each node that is training it."""
    problem: str = ""
    """Why the folder can't be read; everything else is then empty."""

    @property
    def name(self) -> str:
        """Display name; for a fold, including that of its cross-validation."""
        folder = self.folder.resolve()
        return f"{folder.parent.name}/{folder.name}" if is_fold(folder) else folder.name

    @property
    def config(self) -> JsonObject:
        """The resolved training config."""
        config: JsonObject = self.description.get("config", {})
        return config

    @property
    def step(self) -> int:
        """The last known step."""
        steps = [int(row["step"]) for row in [*self.train[-1:], *self.val[-1:]]]
        return max(steps, default=int(self.summary.get("step", 0)))

    @property
    def epoch(self) -> int:
        """The epoch of `step`, counted from 1."""
        rows = [*self.train[-1:], *self.val[-1:]]
        return max((int(row["epoch"]) for row in rows if "epoch" in row), default=-1) + 1

    @property
    def steps(self) -> int | None:
        """Steps of the whole run, if already known."""
        for known in (self.config.get("steps"), self.summary.get("steps")):
            if known:
                return int(known)
        for event in reversed(self.events):
            if event.get("steps"):
                return int(event["steps"])
        return None

    @property
    def best(self) -> Row | None:
        """The validation row with the highest mean IoU; the first one on a tie."""
        return max((row for row in self.val if row.get("mean_iou") is not None), key=_mean_iou, default=None)

    @property
    def resumes(self) -> int:
        """How often the run was resumed."""
        return sum(event["what"] == "resumed" for event in self.events)

    @property
    def skipped_steps(self) -> int:
        """Number of steps skipped because of NaN or infinite gradients."""
        return max((int(event.get("skipped", 0)) for event in self.events), default=0)

    @cached_property
    def classes(self) -> list[str]:
        """Class names: from the model card, else from the predictions, else numbers."""
        for model in (LAST_MODEL, BEST_MODEL):
            if names := _class_names(self.folder / model):
                return names
        for item in self.predictions:
            return list(item.scores["classes"])
        return [f"class {index}" for index in range(len(self.val[-1]["iou"]))] if self.val else []

    @property
    def last_sign(self) -> float | None:
        """Time (seconds since the epoch) of the last row or event."""
        return max((row["time"] for row in [*self.train[-1:], *self.val[-1:], *self.events[-1:]]), default=None)

    def state(self, now: float | None = None) -> State:
        """The run's state; "silent" is a guess: killed, or very slow."""
        if self.events and self.events[-1]["what"] in ENDED:
            ended: State = self.events[-1]["what"]
            return ended
        if self.last_sign is None:
            return "waiting"
        times = [row["time"] for row in self.train[-10:]]
        usual = (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0
        age = (time.time() if now is None else now) - self.last_sign
        return "silent" if age > max(SILENT_AFTER, 10 * usual) else "running"


@dataclass(frozen=True)
class Predictions:
    """Scored predictions: a folder with `scores.json`."""

    folder: Path
    scores: JsonObject
    starts: list[Row] = field(default_factory=list)
    """Starts of the job that segmented at least one image: `time`, `seconds`, `images`, `reused`, `ranks`, `device`."""


def note_inference(folder: Path, **values: JsonValue) -> None:
    """Add a start of an inference job to its predictions' `times.jsonl`; see `Predictions.starts`."""
    with (folder / TIMES).open("a") as file:
        file.write(json.dumps(stamped({"time": round(time.time(), 3), **values}, TIMES_VERSION)) + "\n")


def find_run(name: str) -> Path:
    """The folder of the run NAME (`segdist.core.paths.run_folder`).

    Raises:
        UserError: there is no such folder.
    """
    folder = run_dir(name)
    if folder.is_dir():
        return folder
    known = sorted(path.name for path in RUNS.iterdir() if path.is_dir()) if RUNS.is_dir() else []
    hint = f"runs here: {', '.join(known)}" if known else f"there is no folder {RUNS} here; is this the right folder?"
    raise UserError(f"no such run: {name} ({folder} is not a folder); {hint}")


def run_of(predictions: Path) -> Path:
    """The run folder that contains a folder of predictions; the folder itself if it is elsewhere."""
    return next((folder for folder in predictions.parents if (folder / CONFIG).is_file()), predictions)


def read_run(folder: Path) -> RunRecord:
    """Read a run folder, or a folder of predictions; missing parts are left empty.

    Raises:
        UserError: the folder holds neither, or a file in it is damaged.
    """
    predictions = [
        Predictions(path.parent, _read_json(path), _starts(path.parent / TIMES))
        for path in sorted(folder.glob(f"**/{SCORES}"))
        if not (path.parent / OUT_OF_FOLD).is_dir()  # the scores of a folder of folds are those of its predictions
    ]
    folds = _read_json(folder / SCORES) if (folder / OUT_OF_FOLD).is_dir() else None
    if not (folder / CONFIG).is_file() and not predictions:
        command = f"segdist queue {shlex.quote(folder.name)}"
        queued = f"; `{command}` shows the state of its jobs" if (folder / SLURM_LOGS).is_dir() else ""
        raise UserError(f"{folder}: holds neither a run (no {CONFIG}) nor scored predictions (no {SCORES}){queued}")
    rows = read_rows(folder / METRICS, METRIC_KEYS)
    return RunRecord(
        folder=folder,
        description=_read_run_file(folder / CONFIG),
        train=[row for row in rows if row["kind"] == "train"],
        val=[row for row in rows if row["kind"] == "val" and {"iou", "dice", "mean_iou"} <= row.keys()],
        events=read_rows(folder / EVENTS, EVENT_KEYS),
        summary=_read_run_file(folder / SUMMARY),
        predictions=predictions,
        cross_validation=folds or None,
        nodes=_heartbeats(folder / HEARTBEATS),
    )


def read_run_or_problem(folder: Path) -> RunRecord:
    """As `read_run`, but an unreadable folder gives a record with the reason, so that it hides no other run."""
    try:
        return read_run(folder)
    except UserError as error:
        return RunRecord(folder, problem=str(error))


def read_rows(path: Path, keys: Set[str] = frozenset({"step", "time"})) -> list[Row]:
    """The rows of a file with one JSON object per line; damaged lines are left out, with a warning.

    Args:
        keys: required keys. A line that lacks one is damaged.
    """
    if not path.is_file():
        return []
    rows: list[Row] = []
    damaged: list[int] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            row = {}
        if row is None:
            continue
        if isinstance(row, dict) and keys <= row.keys():
            rows.append(row)
        elif number < len(lines):  # an incomplete last line is still being written, or was cut off by a crash
            damaged.append(number)
    if damaged:
        numbers = ", ".join(map(str, damaged[:5])) + (" …" if len(damaged) > 5 else "")
        warn(f"{path}: line{'s' * (len(damaged) > 1)} {numbers} of {len(lines) - 1} damaged and left out")
    return rows


def _heartbeats(folder: Path) -> list[Row]:
    """The nodes' latest heartbeats; damaged or vanished files are left out."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(values, dict) and {"node", "ranks", "step", "doing", "time"} <= values.keys():
            found.append(values)
    return found


def _starts(path: Path) -> list[Row]:
    return [unstamped(row, TIMES_VERSION, str(path)) for row in read_rows(path, {"time", "seconds"})]


def _read_run_file(path: Path) -> JsonObject:
    return unstamped(_read_json(path), RUN_VERSION, str(path))


def _read_json(path: Path) -> JsonObject:
    if not path.is_file():
        return {}
    try:
        content: JsonObject = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); delete it and rerun the job that wrote it") from None
    return content


def _class_names(model: Path) -> list[str]:
    """Class names from a model card; none if the file is missing or damaged."""
    try:
        return [item["name"] for item in json.loads(read_metadata(model)[CARD_KEY])["classes"]]
    except (UserError, ValueError, KeyError):
        return []


def _mean_iou(row: Row) -> float:
    return float(row["mean_iou"])
