"""The files in a run folder: config, metrics, events, state. A job started in an existing run folder resumes."""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch

from segdist.core.choice import Choice
from segdist.core.code_version import commit
from segdist.core.errors import UserError
from segdist.core.files import write_json
from segdist.core.formats import RUN_VERSION, stamped, unstamped
from segdist.core.json_values import JsonObject, JsonValue
from segdist.core.parsing import from_dict, read_file, to_dict
from segdist.core.paths import CONFIG, EVENTS, SUMMARY
from segdist.core.terminal import warn
from segdist.training.config import TrainConfig

MAY_CHANGE = {
    *("name", "data", "epochs", "steps", "minutes", "init_from", "inference"),
    *("accumulate", "device", "threads", "data_check", "checksum_every"),
    *("log_every", "validate_every", "max_bad_steps", "check", "profile", "quiet", "checkpoint", "tracking"),
}
"""Settings that may change when a run is resumed: they don't affect what is learned (except `epochs`, `steps` and
`minutes`, which extend the run). Data is compared by fingerprint, and precision by what was chosen."""


class MetricsLog:
    """`metrics.jsonl`: one JSON object per line. Only rank 0 writes it.

    If the disk is full, rows wait in memory and are written with the next ones.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)
        self._waiting = b""

    def append(self, kind: str, step: int, **values: JsonValue) -> None:
        """Add a row; NaN and infinity become null, because JSON has neither."""
        row = {"kind": kind, "step": step, **values, "time": round(time.time(), 3)}
        self._waiting += (json.dumps(_without_nan(row)) + "\n").encode()
        self._write()

    def position(self) -> int | None:
        """Bytes safely on disk, for the checkpoint. None while rows wait for disk space."""
        self._write()
        if self._waiting:
            return None
        os.fsync(self._file.fileno())
        return self._file.tell()

    def cut_back(self, position: int) -> None:
        """Drop the rows after `position`: their steps will be repeated."""
        self._file.truncate(min(position, self.path.stat().st_size))
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        self._write()
        self._file.close()

    def _write(self) -> None:
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            warn(f"{self.path}: {error.strerror}; its rows and all checkpoints wait until there is disk space")


def append_event(folder: Path, what: str, step: int, **values: JsonValue) -> None:
    """Record in `events.jsonl` what happened to the job: started, resumed, stopped, finished, failed, skipped_steps.

    Metrics are cut back on resume; events never are.
    """
    try:
        with (folder / EVENTS).open("a") as file:
            file.write(json.dumps({"what": what, "step": step, **values, "time": round(time.time(), 3)}) + "\n")
    except OSError as error:
        warn(f"{folder / EVENTS}: {error.strerror}; the event {what!r} was not recorded")


def describe_run(
    config: TrainConfig,
    data: list[dict[str, str]],
    precision: str,
    command: Sequence[str] = (),
    machine: dict[str, str] | None = None,
    choices: Sequence[Choice] = (),
) -> JsonObject:
    """The contents of `config.json`: config, data, the values chosen for "auto", code and library versions.

    Args:
        command: the command line that would repeat the run; empty if no command started it.
        machine: the properties of the machine that the bits of an exact run depend on.
        choices: those of the preset `auto`.
    """
    values = {
        "config": to_dict(config),
        "choices": [asdict(choice) for choice in choices],
        "data": data,
        "precision": precision,
        "command": list(command),
        "code": commit(),
        "versions": {name: version(name) for name in ("torch", "numpy", "webdataset")},
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    if machine is not None:
        values["machine"] = machine
    return stamped(values, RUN_VERSION)


def read_config(folder: Path) -> TrainConfig:
    """The config of the run in `folder`. Settings newer than the run get their default, which is how it was trained.

    Raises:
        UserError: the config is missing, damaged, or written by a newer segdist.
    """
    path = folder / CONFIG
    description = unstamped(read_file(path), RUN_VERSION, str(path))
    return from_dict(TrainConfig, description.get("config", {}), str(path))


def check_same_run(folder: Path, description: JsonObject) -> None:
    """Refuse to resume the folder's run with different settings.

    Raises:
        UserError: names each setting that differs, with both values; or a newer segdist wrote the folder.
    """
    path = folder / CONFIG
    if not path.exists():
        return
    there = unstamped(read_file(path), RUN_VERSION, str(path)) | {"config": to_dict(read_config(folder))}
    differences = _differences(_identity(there), _identity(description))
    if differences:
        if any(key.startswith("machine") for key, _, _ in differences):
            way_out = "--exact requires the same chip and build throughout; here, start a new run with --init-from."
        else:
            way_out = "Use the same settings to resume it, or another --name to start a new run."
        raise UserError(
            f"{folder} holds a run with other settings:\n"
            + "\n".join(f"  {key}: was {before!r}, now {after!r}" for key, before, after in differences)
            + f"\n{way_out}"
        )


def length_of_run(config: TrainConfig) -> TrainConfig:
    """If the length is in minutes, the config with the number of steps fixed at the run's start; otherwise unchanged.

    More minutes than at the start lengthen the run proportionally.
    """
    path = config.run_dir / CONFIG
    if config.steps or not config.minutes or not path.exists():
        return config
    there = from_dict(TrainConfig, unstamped(read_file(path), RUN_VERSION, str(path))["config"], str(path))
    if not there.steps:
        return config
    ratio = config.minutes / there.minutes if there.minutes else 1.0
    validate_every = config.validate_every or there.validate_every
    return replace(config, steps=max(round(there.steps * ratio), 1), validate_every=validate_every)


def write_description(folder: Path, description: JsonObject) -> None:
    """Write `config.json`."""
    write_json(folder / CONFIG, description)


def write_summary(folder: Path, **values: JsonValue) -> None:
    """Write `summary.json`, the state of the run."""
    try:
        write_json(folder / SUMMARY, stamped(_without_nan(values), RUN_VERSION))
    except OSError as error:
        warn(f"{folder / SUMMARY}: {error.strerror}; it is out of date")


def _identity(description: JsonObject) -> JsonObject:
    exact = description["config"]["exact"]
    free = (MAY_CHANGE - {"threads"}) if exact else MAY_CHANGE
    config = {key: value for key, value in description["config"].items() if key not in free}
    if exact:
        config["machine"] = description.get("machine")
    config["precision"] = description["precision"]
    config["data"] = [item["fingerprint"] for item in description["data"]]
    return config


def _differences(old: JsonObject, new: JsonObject, prefix: str = "") -> list[tuple[str, object, object]]:
    found = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append((prefix + key, before, after))
    return found


def _without_nan(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
