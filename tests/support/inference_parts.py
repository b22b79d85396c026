"""A small model and images for the tests of inference jobs."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from segdist.core.files import write_json
from segdist.core.formats import VERSION_KEY
from segdist.core.paths import STATE
from segdist.inference.enlarge import Scale
from segdist.inference.finished_log import FORMER, LOGS, FinishedLog
from segdist.inference.grid import make_grid
from segdist.inference.inputs import Header
from segdist.inference.layers import Layers
from segdist.inference.result_folder import SETTINGS
from segdist.inference.task import ImageTask
from segdist.inference.tiler import Region
from segdist.model.card import ModelCard
from segdist.model.config import ModelConfig
from segdist.model.factory import build_model
from segdist.model.model_file import save_model
from segdist.runs.record import TIMES
from shards.manifest import ClassInfo

CLASSES = (ClassInfo("ground", (0, 0, 0)), ClassInfo("line", (230, 159, 0)), ClassInfo("spot", (86, 180, 233)))
SHAPES = {"small": (13, 9), "odd": (61, 83), "tall": (331, 47), "large": (257, 301)}
"""Odd sizes; the last is large enough to be split between ranks at a tile side of 16."""


def write_model(
    folder: Path,
    channels: int = 1,
    dtype: str = "uint8",
    width: int = 4,
    depth: int = 2,
    patch: int = 16,
    classes: tuple[ClassInfo, ...] = CLASSES,
    seed: int = 3,
    mean: float = 120.0,
) -> Path:
    torch.manual_seed(seed)
    config = ModelConfig(width=width, depth=depth)
    model = build_model(config, channels, len(classes))
    # Scale up the logits so that all classes occur and rounding matters.
    with torch.no_grad():
        model.head.weight.mul_(20)  # type: ignore[union-attr, operator]
    card = ModelCard(config, classes, channels, dtype, patch, (mean,) * channels, (60.0,) * channels, 2**depth)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder / "best.safetensors", model.state_dict(), card)
    return folder


def write_images(folder: Path, shapes: dict[str, tuple[int, int]] | None = None) -> Path:
    rng = np.random.default_rng(5)
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in (shapes or SHAPES).items():
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def write_truth(folder: Path, shapes: dict[str, tuple[int, int]] | None = None) -> Path:
    rng = np.random.default_rng(6)
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in (shapes or SHAPES).items():
        Image.fromarray(rng.integers(0, 3, shape, dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def image_task(number: int, rows: int, across: int) -> ImageTask:
    """An image of `rows` x `across` tiles of one pixel each."""
    grid = make_grid(rows, across, tile=1, overlap=0, batch=1)
    header, region = Header(rows, across, 1, "uint8"), Region(0, rows, 0, across)
    return ImageTask(
        number,
        str(number),
        f"{number}.png",
        None,
        header,
        region,
        Scale(1, rows, across),
        grid,
        Layers(2),
        has_figure=False,
    )


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every result file, except for state and timings, which differ between starts."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not {"state", TIMES} & set(path.relative_to(folder).parts)
    }


def to_former_layout(folder: Path, version: int) -> None:
    """Turn the state of predictions into that of version 0 or 1: a file per finished image."""
    state = folder / STATE
    number = {VERSION_KEY: version} if version else {}
    for name, record in FinishedLog(state).read().items():
        del record["bytes"]
        write_json(state / FORMER / f"{name}.json", number | record)
    shutil.rmtree(state / LOGS)
    settings = json.loads((state / SETTINGS).read_text())
    for key in (VERSION_KEY, "root", "threads", "classes_in_set") if version == 0 else (VERSION_KEY,):
        del settings[key]
    write_json(state / SETTINGS, number | settings)


def labels(path: Path) -> np.ndarray:
    """The class numbers of a palette PNG."""
    return np.asarray(Image.open(path))


def start(arguments: list[str], ranks: int = 1, prelude: str = "") -> list[subprocess.Popen[bytes]]:
    """Start a job as real processes with torchrun's variables; `prelude` runs first."""
    code = f"import sys; {prelude}; from jobs.entry import run_job; from jobs.infer import main; "
    code += "sys.exit(run_job(main, sys.argv[1:]))"
    port = str(20000 + os.getpid() * 7 % 30000 + ranks)
    processes = []
    for rank in range(ranks):
        environ = {**os.environ, "OMP_NUM_THREADS": "1"}
        if ranks > 1:
            environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            environ |= {"LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(subprocess.Popen([sys.executable, "-c", code, *arguments], env=environ))
    return processes


def run(arguments: list[str], ranks: int = 1, prelude: str = "pass") -> int:
    """Run a job to its end; return rank 0's exit code."""
    codes = [process.wait(timeout=300) for process in start(arguments, ranks, prelude)]
    return codes[0]
