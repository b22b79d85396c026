"""Names on disk: what the files of shard sets, runs and predictions are called, and what a bare name means.

`cells` is the shard set data/cells or the run runs/cells; anything with a slash is a path.
"""

from pathlib import Path

DATA, RUNS = Path("data"), Path("runs")

MANIFEST, CONTACT_SHEET, INDEX_SUFFIX = "manifest.json", "contact_sheet.png", ".index.npy"
SOURCE, BUILDING, RECIPE = "source", ".building", "recipe.json"
"""In a shard set: the drawn images; while it is built, the notes of finished shards, and with them the recipe."""

CONFIG, METRICS, EVENTS, SUMMARY = "config.json", "metrics.jsonl", "events.jsonl", "summary.json"
BEST_MODEL, LAST_MODEL = "best.safetensors", "last.safetensors"
CHECKPOINTS, PREDICTIONS, PIPELINE = "checkpoints", "predictions", "pipeline"
"""Folders in a run."""
SLURM_LOGS, SUBMITTED = "slurm", "submitted.jsonl"
"""Folder in a run with the logs of its submitted jobs, and the file in it that remembers them."""
REPORT, COMPARISON = "report.html", "comparison.html"

SCORES, FAILURES, TIMES = "scores.json", "failures.json", "times.jsonl"
MASKS, PROBABILITIES, CONFIDENCE, ENTROPY = "masks", "probabilities", "confidence", "entropy"
PREVIEWS, FIGURES, STATE = "previews", "figures", "state"
"""Folders in a folder of predictions."""

OWNERS = ".owners"
"""Folder in whatever a job writes into: who is at it (`segdist.core.owner`)."""

RUN_FILES = (CONFIG, BEST_MODEL, LAST_MODEL, SLURM_LOGS)
"""What makes a folder a run: any of these. A user's folder of images may well be called like the run."""


def set_dir(name: str) -> str | Path:
    """The shard set that NAME means: data/NAME, unless NAME itself is a set, a path, or a URL."""
    if "://" in name:
        return name
    path = Path(name)
    return path if len(path.parts) > 1 or (path / MANIFEST).is_file() else DATA / path


def run_dir(name: str) -> Path:
    """The run that NAME means: runs/NAME, unless NAME itself is a run, a file, or a path."""
    path = Path(name)
    itself = len(path.parts) > 1 or path.is_file() or any((path / item).exists() for item in RUN_FILES)
    return path if itself else RUNS / path
