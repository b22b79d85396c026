"""A run is a folder: its config, its rows of figures, its state. Started again in it, a job goes on."""

import json
import math
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from shards.errors import UserError
from shards.files import write_json

CONFIG, METRICS, SUMMARY = "config.json", "metrics.jsonl", "summary.json"

MAY_CHANGE = frozenset(
    "run data epochs steps accumulate log_every validate_every max_bad_steps init_from device threads check profile "
    "quiet checkpoint tracking".split()
)
"""Settings that may differ when a run is continued: they don't change what is learned (but for `epochs` and `steps`,
which extend it). The data is compared by its fingerprint, the precision by what was chosen."""


class MetricsLog:
    """`metrics.jsonl`: one JSON object a line. Only rank 0 has one that writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab")

    def append(self, kind: str, step: int, **values: Any) -> None:
        """Add a row; NaN and infinity become null, for they are no JSON."""
        row = {"kind": kind, "step": step, **values, "time": round(time.time(), 3)}
        self._file.write((json.dumps(_without_nan(row)) + "\n").encode())
        self._file.flush()

    def position(self) -> int:
        """Length in bytes of what is safely on disk; what a checkpoint remembers."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def cut_back(self, position: int) -> None:
        """Forget the rows after `position`: they belong to steps that are done again."""
        self._file.truncate(min(position, self.path.stat().st_size))
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics file; a last line that was cut off by a crash is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def write_config(folder: Path, config: dict[str, Any], data: list[dict[str, str]], resolved: dict[str, Any]) -> None:
    """Write `config.json`: the config, what the data was, what "auto" became, code and library versions.

    Raises:
        UserError: the folder holds a run with another config or other data; says what differs.
    """
    path = folder / CONFIG
    if path.exists():
        old = json.loads(path.read_text())
        differences = _differences(_identity(old), _identity({"config": config, "data": data, "resolved": resolved}))
        if differences:
            raise UserError(
                f"{folder} holds a run with other settings:\n"
                + "\n".join(f"  {key}: there {before!r}, now {after!r}" for key, before, after in differences)
                + "\nUse the same settings to go on with it, or another --run for a new one."
            )
    write_json(
        path,
        {
            "config": config,
            "data": data,
            "resolved": resolved,
            "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
            "code": code_version(),
            "versions": {name: version(name) for name in ("torch", "numpy", "webdataset")},
        },
    )


def write_summary(folder: Path, **values: Any) -> None:
    """Write `summary.json`, which says how the run stands."""
    write_json(folder / SUMMARY, _without_nan(values))


def code_version() -> str:
    """The git commit of the checkout, with "+changes" if it differs from it; "unknown" outside a checkout."""
    checkout = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", checkout, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_capability() -> str:
    """The instruction set that torch uses: results are bit-identical within one."""
    return torch.backends.cpu.get_cpu_capability()


def _identity(document: dict[str, Any]) -> dict[str, Any]:
    config = {key: value for key, value in document["config"].items() if key not in MAY_CHANGE}
    config["precision"] = document["resolved"]["precision"]
    config["data"] = [item["fingerprint"] for item in document["data"]]
    return config


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found = []
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            found.append((prefix + key, before, after))
    return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
