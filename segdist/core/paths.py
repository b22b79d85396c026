"""Bare names: `cells` is the shard set data/cells or the run runs/cells; anything with a slash is a path."""

from pathlib import Path

DATA, RUNS = Path("data"), Path("runs")

RUN_FILES = ("config.json", "best.safetensors", "last.safetensors", "slurm")
"""What makes a folder a run: any of these. A user's folder of images may well be called like the run."""


def set_dir(name: str) -> str | Path:
    """The shard set that NAME means: data/NAME, unless NAME itself is a set, a path, or a URL."""
    if "://" in name:
        return name
    path = Path(name)
    return path if len(path.parts) > 1 or (path / "manifest.json").is_file() else DATA / path


def run_dir(name: str) -> Path:
    """The run that NAME means: runs/NAME, unless NAME itself is a run, a file, or a path."""
    path = Path(name)
    itself = len(path.parts) > 1 or path.is_file() or any((path / item).exists() for item in RUN_FILES)
    return path if itself else RUNS / path
