"""A fake run folder like those of real jobs, for the tests of status and report."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ["background", "cell wall", "nucleus"]
STEPS, PER_EPOCH, LOG_EVERY = 400, 40, 10
BEGAN = 1_780_000_000.0
"""Time of the first start; there is a row every 5 s."""


def confusion(accuracy: float, classes: int, pixels: int = 10_000) -> list[list[int]]:
    """Counts with a share `accuracy` of each class correct and the rest spread over the others."""
    matrix = np.full((classes, classes), round(pixels * (1 - accuracy) / max(classes - 1, 1)))
    np.fill_diagonal(matrix, round(pixels * accuracy))
    found: list[list[int]] = matrix.tolist()
    return found


def write_run(
    folder: Path,
    *,
    steps_done: int = STEPS,
    state: str | None = "finished",
    classes: list[str] | None = None,
    level: float = 0.9,
    config: dict[str, Any] | None = None,
    command: list[str] | None = None,
) -> Path:
    """Write config, rows, events and summary.

    Args:
        state: how the run ended, or None if it is still running.
        level: the mean IoU that the run approaches.
    """
    names = classes or CLASSES
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"data": ["cells"], "steps": STEPS, "batch_size": 16, "optim": {"lr": 0.01}, **(config or {})}
    description = {
        "config": settings,
        "data": [{"path": "data/cells", "fingerprint": "0123456789abcdef" * 4}],
        "precision": "fp32",
        "command": command or ["segdist", "train", "-f", "cells", "--steps", str(STEPS)],
        "code": "8153c92f" * 5,
        "versions": {"torch": "2.13.0", "numpy": "2.4.6"},
        "cpu_capability": "AVX2",
    }
    (folder / "config.json").write_text(json.dumps(description))
    card = {"segdist": json.dumps({"classes": [{"name": name, "color": [0, 0, 0]} for name in names]})}
    header = json.dumps({"__metadata__": card}).encode()
    (folder / "last.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    rows = []
    for step in range(LOG_EVERY, steps_done + 1, LOG_EVERY):
        time, epoch = BEGAN + step / 2, (step - 1) // PER_EPOCH
        row = {"loss": 1.2 / step**0.6, "lr": 0.01 * (1 - step / STEPS), "grad_norm": 2.0 / step**0.5}
        row |= {"samples_per_s": 60.0 + step % 3, "data_wait": 0.01, "memory_mb": 600.0, "skipped": 0}
        rows.append({"kind": "train", "step": step, "epoch": epoch, **row, "time": time})
        if step % PER_EPOCH == 0:
            iou = [level * (1 - 0.6 * 0.5 ** (step / 80)) - 0.05 * index for index in range(len(names))]
            scores = {"loss": 1.4 / step**0.6, "mean_iou": sum(iou) / len(iou), "iou": iou, "pixel_accuracy": 0.97}
            scores |= {"dice": [2 * value / (1 + value) for value in iou]}
            scores |= {"confusion_matrix": confusion(iou[0], len(names))}
            rows.append({"kind": "val", "step": step, "epoch": epoch, **scores, "time": time + 1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    where = {"steps": STEPS, "ranks": 2, "device": "cpu"}
    events: list[dict[str, Any]] = [{"what": "started", "step": 0, **where, "time": BEGAN}]
    if steps_done > 160:
        events.append({"what": "stopped", "step": 150, "time": BEGAN + 75})
        events.append({"what": "resumed", "step": 150, **where, "time": BEGAN + 76})
        events.append({"what": "skipped_steps", "step": 160, "skipped": 2, "time": BEGAN + 80})
    if state is not None:
        events.append({"what": state, "step": steps_done, "time": BEGAN + steps_done / 2 + 2})
        summary = {"state": state, "step": steps_done, "steps": STEPS, "skipped_steps": 2, "seconds": 215.0}
        (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def write_predictions(
    folder: Path, images: list[str], *, classes: list[str] | None = None, level: float = 0.9, figures: bool = True
) -> Path:
    """Write scores.json, and a colored rectangle as each image's figure; later images score worse."""
    names = classes or CLASSES
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    scored = []
    for number, name in enumerate(images):
        iou = [level - 0.04 * number - 0.02 * index for index in range(len(names))]
        matrix = confusion(iou[0], len(names))
        score = {"mean_iou": sum(iou) / len(iou), "pixel_accuracy": 0.98, "iou": iou, "dice": iou}
        scored.append({"name": name, **score, "confusion_matrix": matrix})
        if figures:
            picture = np.zeros((120, 420, 3), np.uint8)
            picture[:, :: 2 + number] = (0, 114, 178)
            Image.fromarray(picture).save(folder / "figures" / f"{name}.png")
    total = np.sum([image["confusion_matrix"] for image in scored], axis=0).tolist()
    means = [image["mean_iou"] for image in scored]
    scores = {
        "mean_iou_pixels": 0.9012,
        "mean_iou_over_images": sum(means) / len(means),
        "classes": names,
        "pixel_accuracy": 0.98,
        "iou": scored[0]["iou"],
        "dice": scored[0]["dice"],
        "confusion_matrix": total,
        "worst": images[::-1],
        "images": scored,
    }
    (folder / "scores.json").write_text(json.dumps(scores))
    start = {"time": BEGAN + 300, "seconds": 12.5, "images": len(images), "reused": 0, "ranks": 2, "device": "cpu"}
    (folder / "times.jsonl").write_text(json.dumps(start) + "\n")
    return folder
