"""Names on disk: the files of shard sets, runs and predictions, and the meaning of a bare name.

`cells` is the shard set data/cells or the run runs/cells; anything with a slash is a path.
"""

import os
from pathlib import Path

from segdist.core.errors import UserError

LONGEST_NAME = 255
"""Maximum bytes of a file name, on all common file systems."""

DATA, RUNS = Path("data"), Path("runs")

MANIFEST, CONTACT_SHEET, INDEX_SUFFIX = "manifest.json", "contact_sheet.png", ".index.npy"
SOURCE, BUILDING, RECIPE = "source", ".building", "recipe.json"
"""In a shard set: synthetic images; during the build, notes of finished shards along with the recipe."""

CONFIG, METRICS, EVENTS, SUMMARY = "config.json", "metrics.jsonl", "events.jsonl", "summary.json"
BEST_MODEL, LAST_MODEL = "best.safetensors", "last.safetensors"
CHECKPOINTS, PREDICTIONS, PIPELINE = "checkpoints", "predictions", "pipeline"
"""Folders in a run."""
SLURM_LOGS, SUBMITTED = "slurm", "submitted.jsonl"
"""Folder in a run with the logs of its submitted jobs, and the file in it that lists them."""
REPORT, COMPARISON = "report.html", "comparison.html"

SCORES, FAILURES, TIMES = "scores.json", "failures.json", "times.jsonl"
CALIBRATION = "calibration.json"
OUT_OF_FOLD = "out-of-fold"
"""In a folder of folds: the predictions of all labeled images."""
SUSPECTS_TABLE, SUSPECTS, SUSPECT_PICTURES = "suspects.csv", "suspects", "suspect_pictures"
MASKS, PROBABILITIES = "masks", "probabilities"
CONFIDENCE, ENTROPY, DISAGREEMENT = "confidence", "entropy", "disagreement"
OBJECTS, CLASS_AREAS = "objects", "classes"
PREVIEWS, FIGURES, STATE = "previews", "figures", "state"
"""Folders in a folder of predictions."""

HEARTBEATS = ".heartbeats"
"""Folder in a run during training: a file per node, with the positions of its ranks."""
MEETING = ".meeting"
"""Folder in a job's folder through which ranks started by Slurm find each other."""
OWNERS = ".owners"
"""Folder in any folder that a job writes to: its current owners (`segdist.core.owner`)."""

RUN_FILES = (CONFIG, BEST_MODEL, LAST_MODEL, SLURM_LOGS)
"""A folder with any of these is a run; without them, it may be a folder of images with a run's name."""


def config_folder() -> Path:
    """The user's config folder: $XDG_CONFIG_HOME/segdist, or ~/.config/segdist."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "segdist"


def possible_path(name: str) -> Path:
    """`name` as a valid path.

    Raises:
        UserError: it contains a NUL or another control character, or a component of more than 255 bytes.
    """
    path = Path(name)
    if not all(character.isprintable() for character in name):
        raise UserError(f"{name!r}: a name can't hold control characters; choose another")
    if any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise UserError(
            f"{name[:40]}… ({len(name)} characters): names have at most {LONGEST_NAME} bytes; choose another"
        )
    return path


def plain_name(name: str, setting: str = "--name") -> str:
    """`name`, if it is a plain name that stays inside its folder.

    Args:
        setting: where it comes from, for the message.

    Raises:
        UserError: it is empty, "." or "..", a path, or not a valid name.
    """
    possible_path(name)
    if name in ("", ".", "..") or "/" in name or os.sep in name:
        raise UserError(f"{setting} {name!r}: not a name; give one without slashes, such as cells")
    return name


def set_dir(name: str) -> str | Path:
    """The shard set that NAME means: data/NAME, unless NAME itself is a set, a path, or a URL."""
    if "://" in name:
        return name
    path = possible_path(name)
    return path if len(path.parts) > 1 or (path / MANIFEST).is_file() else DATA / plain_name(name)


def run_dir(name: str) -> Path:
    """The run that NAME means: runs/NAME, unless NAME itself is a run, a file, or a path."""
    path = possible_path(name)
    itself = len(path.parts) > 1 or path.is_file() or any((path / item).exists() for item in RUN_FILES)
    return path if itself else RUNS / plain_name(name)
