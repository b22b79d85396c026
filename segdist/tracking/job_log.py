"""Log the data before training, and the scores after inference."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segdist.core.code_version import commit
from segdist.core.json_values import JsonObject
from segdist.core.paths import FIGURES
from segdist.tracking.config import TrackingConfig
from segdist.tracking.trackers import Trackers, open_trackers

if TYPE_CHECKING:
    from shards.read.reader import ShardSet

WORST = 4
"""Maximum number of worst images whose figures are logged."""


def data_facts(sets: Sequence["ShardSet"]) -> list[JsonObject]:
    """Key numbers of each shard set, for the config shown by trackers."""
    return [
        {
            "samples": {split: manifest.samples(split) for split in ("train", "val", "test")},
            "classes": {info.name: count for info, count in zip(manifest.classes, manifest.pixels, strict=True)},
            "patch": manifest.patch,
            "channels": manifest.channels,
            "dtype": manifest.dtype,
        }
        for manifest in (item.manifest for item in sets)
    ]


def log_contact_sheets(trackers: Trackers, sets: Sequence["ShardSet"]) -> None:
    """Log a contact sheet of patches with masks for each shard set, at the start of a run."""
    if not trackers.want_pictures or trackers.last_logged_step >= 0:
        return
    from PIL import Image

    from shards.read.inspect import contact_sheet  # loads torch, which `segdist make-shards` doesn't need

    for item in sets:
        with Image.open(io.BytesIO(contact_sheet(item))) as sheet:
            trackers.log_figure(f"shard set {item.folder.name}", np.asarray(sheet.convert("RGB")), step=0)


def log_shard_set(config: TrackingConfig, folder: Path) -> None:
    """Log a newly made shard set as a separate run: recipe, counts, a contact sheet of patches.

    Args:
        folder: the set's folder, which also gets the trackers' files.
    """
    from shards.read.reader import ShardSet  # as above

    made = ShardSet(folder)
    description = {"recipe": made.manifest.recipe, "shard_sets": data_facts([made]), "code": commit()}
    trackers = open_trackers(config, folder, description, job_type="make-shards", classes=made.manifest.classes)
    samples = {f"shards/{split}_patches": float(made.manifest.samples(split)) for split in ("train", "val")}
    trackers.log(samples, trackers.last_logged_step + 1)
    log_contact_sheets(trackers, [made])
    trackers.finish("finished")


def tracking_of_inference(config: TrackingConfig, trained: JsonObject) -> TrackingConfig:
    """The tracking settings of an inference job: by default those of the training run, in the same project and group.

    If training disabled images or online tracking, inference does too.

    Args:
        trained: the section `tracking` of the training config; empty if the model wasn't trained here.
    """
    if not trained:
        return config
    kept = {name: getattr(config, name) or trained[name] for name in ("project", "entity", "group")}
    if config.wandb == "auto" and trained["wandb"] in ("off", "offline"):
        kept["wandb"] = trained["wandb"]
    if trained["images"] == "none":
        kept["images"] = "none"
    return replace(config, tags=config.tags or tuple(trained["tags"]), **kept)


def log_scores(
    config: TrackingConfig,
    folder: Path,
    run_config: JsonObject,
    scores: JsonObject,
    group: str,
) -> None:
    """Log the scores of an inference job as a separate run: means, classes, confusion matrix, worst images, a table.

    Args:
        folder: the folder of predictions, which also gets W&B's files.
        scores: the contents of scores.json.
        group: name of the training run, with which W&B groups the scores.
    """
    trackers = open_trackers(config, folder, run_config, job_type="infer", group=group)
    # One row per job that computed something new; training steps don't apply here.
    step = trackers.last_logged_step + 1
    means = {name: scores[name] for name in ("mean_iou_over_images", "mean_iou_pixels", "pixel_accuracy")}
    per_class = {
        f"{score}/{name}": value
        for score in ("iou", "dice")
        for name, value in zip(scores["classes"], scores[score], strict=True)
    }
    values = {f"test/{name}": value for name, value in (means | per_class).items() if value is not None}
    trackers.log(values, step)
    trackers.log_confusion(np.array(scores["confusion_matrix"]), scores["classes"], step)
    for name in scores["worst"][:WORST]:
        picture = folder / FIGURES / f"{name}.png"
        if trackers.want_pictures and picture.is_file():
            from PIL import Image

            with Image.open(picture) as image:
                trackers.log_figure(name, np.asarray(image.convert("RGB")), step)
    rows = [[image["name"], image["mean_iou"], image["pixel_accuracy"], *image["iou"]] for image in scores["images"]]
    columns = ["image", "mean IoU", "pixel accuracy", *(f"IoU {name}" for name in scores["classes"])]
    trackers.log_table("images", columns, rows, step)
    trackers.finish("finished")
