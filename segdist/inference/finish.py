"""Finishes an image: writes its files from its layers, scores it, and records it as finished."""

from segdist.core.errors import UserError
from segdist.core.json_values import JsonObject
from segdist.inference.assignment import remaining
from segdist.inference.evaluation import confusion_of_image, image_scores
from segdist.inference.finished_log import Record
from segdist.inference.layers import MASK
from segdist.inference.outputs import write_layers, write_pictures, write_tables
from segdist.inference.parts import PartRows, Rows
from segdist.inference.result_folder import ResultFolder
from segdist.inference.task import ImageTask, Task
from shards.images.opening import open_image


def finish(task: Task, folder: ResultFolder, image: ImageTask, layers: dict[str, Rows] | None = None) -> Record:
    """Write an image's files from its layers (if None, from its parts), score it, and record it as finished.

    Raises:
        UserError: the mask doesn't belong to the image, or rows are missing.
    """
    rows = layers or _from_parts(folder, image)
    scores: JsonObject | None = None
    truth = None
    if image.mask is not None and task.mask_reader is not None:
        truth = task.mask_reader.open(image.mask, upright=image.header.upright)
    try:
        if truth is not None:
            region = image.region
            confusion = confusion_of_image(truth, rows[MASK], len(task.card.classes), region.top, region.left)
            scores = image_scores(confusion) | {"image": image.path, "mask": image.mask}
            if image.fold:
                scores["fold"] = image.fold
        files = write_layers(task, image, rows)
        with open_image(image.path, upright=image.header.upright, channels=task.card.channels) as opened:
            files |= write_tables(task, image, rows[MASK], opened)
            files |= write_pictures(task, image, rows, opened, truth, scores)
    finally:
        if truth is not None:
            truth.close()
    if scores is not None:
        scores["prediction"] = files[MASK]
    return folder.write_record(image, files, scores)


def _from_parts(folder: ResultFolder, image: ImageTask) -> dict[str, Rows]:
    parts = folder.parts(image)
    where = folder.parts_folder(image)
    if remaining(image.tile_rows, [part.tile_rows for part in parts]):
        raise UserError(f"{image.path}: rows are missing in {where}; run the same command again to compute them")
    return {name: PartRows(where, parts, name, dtype, image.shape[1]) for name, dtype in image.layers.dtypes().items()}
