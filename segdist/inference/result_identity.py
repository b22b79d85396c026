"""What the results in a folder depend on: settings that determine their bits, and the root of the images.

Only starts with the same identity may add to a folder; others are refused, and the differences listed.
"""

import hashlib
import json
from dataclasses import fields
from pathlib import Path

import torch

from segdist.core.json_values import JsonObject
from segdist.core.parsing import to_dict
from segdist.inference.config import OutputConfig
from segdist.inference.task import Task
from segdist.model.card import CALIBRATED, ModelCard
from shards.images.config import MasksConfig

Settings = JsonObject

ROOT, THREADS, TEMPERATURES, TRUTH = "root", "threads", "temperatures", "truth"
INTERVALS, PREPARED = "share_intervals", "prepared"
MODEL, WEIGHTS, BY_FOLD = "model", "weights", "out_of_fold"


def result_settings(task: Task, device: torch.device) -> Settings:
    """Everything that the results depend on, except the list of images."""
    config = task.config
    models = zip(task.model_files, task.cards, strict=True)
    files, weights = zip(*(model_checksums(file, card) for file, card in models), strict=True)
    masks = to_dict(task.mask_reader.config) if task.mask_reader is not None and config.data else None
    return {
        MODEL: files[0] if len(files) == 1 else list(files),
        WEIGHTS: list(weights),
        BY_FOLD: config.out_of_fold,
        "tile": task.tile,
        "overlap": config.overlap,
        "blending": config.blending,
        "borders": config.borders,
        "flips": config.flips,
        TEMPERATURES: [card.temperature if config.calibrated else 1.0 for card in task.cards],
        INTERVALS: to_dict(intervals) if config.output.measurements and (intervals := task.share_intervals) else None,
        "batch_size": config.batch_size,
        "roi": list(config.roi) if config.roi else None,
        "precision": task.precision.name,
        "channels_last": config.channels_last,
        "compile": config.compile,
        PREPARED: True,
        "device": device.type,
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        # On a CPU, kernels split sums by the number of threads; results of a GPU don't depend on it.
        THREADS: (config.threads or None) if device.type == "cpu" else None,
        "masks": _without(to_dict(config.masks), "folder"),
        "classes_in_set": [masks["classes"], masks["ignore"]] if masks else None,
        "output": _without(to_dict(config.output), "figures"),
        TRUTH: _truth(task),
        ROOT: task.root,
    }


def completed(old: Settings) -> Settings:
    """Settings as read from a folder, with defaults for those that its version didn't have."""
    return {
        INTERVALS: None,
        PREPARED: False,
        **old,
        "masks": _without(to_dict(MasksConfig()), "folder") | old["masks"],
        "output": _without(to_dict(OutputConfig()), "figures") | old["output"],
    }


def differences(old: Settings, new: Settings) -> list[str]:
    """The differences between the settings in a folder and those of this start, one per line.

    Settings that the folder's version didn't have are not compared, nor are threads that this start leaves open, nor
    whether models are prepared: the folder keeps what it was started with.
    """
    found = []
    for key, there in old.items():
        now = new.get(key)
        if key == MODEL and WEIGHTS in old:  # calibration changes the file, but not its weights
            continue
        if there == now or key == PREPARED or (key == THREADS and None in (there, now)):
            continue
        if key == ROOT:
            found.append(f"  images: was {there}, now {now}")
        else:
            found.append(f"  {MODEL if key == WEIGHTS else key}: was {there!r}, now {now!r}")
    return found


def model_checksums(path: Path, card: ModelCard) -> tuple[str, str]:
    """SHA-256 of a model file, and of what it computes: its tensors, and its card without calibration and defaults, so
    that neither a calibration nor a newer version of the card changes it."""
    usual = {item.name: item.default for item in fields(ModelCard)}
    told = {key: value for key, value in to_dict(card).items() if key not in CALIBRATED and value != usual[key]}
    whole, weights = hashlib.sha256(), hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    with path.open("rb") as file:
        size = file.read(8)
        header = file.read(int.from_bytes(size, "little"))
        whole.update(size + header)
        tensors = {key: value for key, value in json.loads(header).items() if key != "__metadata__"}
        weights.update(json.dumps(tensors, sort_keys=True).encode())
        while block := file.read(2**20):
            whole.update(block)
            weights.update(block)
    return whole.hexdigest(), weights.hexdigest()


def _truth(task: Task) -> Settings | None:
    """How to read the true masks, to compare them with the results later."""
    if task.mask_reader is None:
        return None
    return {"masks": _without(to_dict(task.mask_reader.config), "folder"), "classes": task.class_names}


def _without(section: Settings, key: str) -> Settings:
    return {name: value for name, value in section.items() if name != key}
