"""The files of one image, from its layers: mask, probabilities, maps, preview, figure."""

import numpy as np

from segdist.core import paths
from segdist.core.json_values import JsonObject
from segdist.inference.layers import CONFIDENCE, DISAGREEMENT, ENTROPY, MASK, dequantized
from segdist.inference.measurements import write_measurements
from segdist.inference.parts import Rows
from segdist.inference.pictures import draw_figure, reduced, reduced_image, write_preview
from segdist.inference.task import ImageTask, Task
from segdist.inference.writers import write_gray_png, write_mask_png, write_npy, write_tiff, write_zarr
from shards.images.image_file import ImageFile
from shards.images.masks import MaskFile

PROBABILITIES, PREVIEW, FIGURE = "probabilities", "preview", "figure"
OBJECTS, CLASS_AREAS = "objects", "classes"
FOLDERS = {
    MASK: paths.MASKS,
    PROBABILITIES: paths.PROBABILITIES,
    CONFIDENCE: paths.CONFIDENCE,
    ENTROPY: paths.ENTROPY,
    DISAGREEMENT: paths.DISAGREEMENT,
    OBJECTS: paths.OBJECTS,
    CLASS_AREAS: paths.CLASS_AREAS,
    PREVIEW: paths.PREVIEWS,
    FIGURE: paths.FIGURES,
}
"""The subfolder of a folder of predictions that holds each kind of file."""
PNG_LIMIT = 16 * 2**20
"""Largest mask, in pixels, that `auto` writes as PNG."""
FIGURE_SIDE = 1024
"""Longest side of a panel of a figure; larger images are reduced."""
SUFFIX = {"png": ".png", "tiff": ".tif", "zarr": ".zarr", "npy": ".npy"}


def write_layers(task: Task, image: ImageTask, rows: dict[str, Rows]) -> dict[str, str]:
    """Write the class mask and the other requested layers; returns files by kind, relative to the output folder."""
    output, classes, folder, name = task.config.output, task.card.classes, task.folder, image.name
    mask = rows[MASK]
    small = mask.shape[0] * mask.shape[1] <= PNG_LIMIT
    kind = output.mask_format if output.mask_format != "auto" else "png" if small else "tiff"
    files = {MASK: f"{FOLDERS[MASK]}/{name}{SUFFIX[kind]}"}
    if kind == "png":
        write_mask_png(folder / files[MASK], mask, classes)
    elif kind == "tiff":
        write_tiff(folder / files[MASK], [mask], classes)
    else:
        write_zarr(folder / files[MASK], [mask], {"classes": task.class_names}, stacked=False)
    if output.probabilities != "none":
        planes = [rows[layer] for layer in image.layers.probability_names()]
        files[PROBABILITIES] = f"{FOLDERS[PROBABILITIES]}/{name}{SUFFIX[output.probability_format]}"
        path = folder / files[PROBABILITIES]
        if output.probability_format == "npy":
            write_npy(path, planes)
        elif output.probability_format == "tiff":
            write_tiff(path, planes)
        else:
            write_zarr(path, planes, {"classes": task.class_names}, stacked=True)
    for layer in image.layers.maps():
        files[layer] = f"{FOLDERS[layer]}/{name}{'.png' if small else '.tif'}"
        if small:
            write_gray_png(folder / files[layer], rows[layer])
        else:
            write_tiff(folder / files[layer], [rows[layer]])
    return files


def write_tables(task: Task, image: ImageTask, mask: Rows, opened: ImageFile) -> dict[str, str]:
    """Write measurements, if requested; returns files by kind, relative to the output folder."""
    if not task.config.output.measurements:
        return {}
    files = {kind: f"{FOLDERS[kind]}/{image.name}.csv" for kind in (OBJECTS, CLASS_AREAS)}
    objects, areas = (task.folder / file for file in files.values())
    write_measurements(objects, areas, image, mask, opened, task.card.classes, task.share_intervals)
    return files


def write_pictures(
    task: Task,
    image: ImageTask,
    rows: dict[str, Rows],
    opened: ImageFile,
    truth: MaskFile | None,
    scores: JsonObject | None,
) -> dict[str, str]:
    """Write preview and figure; returns files by kind, relative to the output folder."""
    region, name, classes = image.region, image.name, task.card.classes
    mask, corner = rows[MASK], (region.top, region.left)
    files = {}
    if task.config.output.previews:
        files[PREVIEW] = f"{FOLDERS[PREVIEW]}/{name}.png"
        path = task.folder / files[PREVIEW]
        write_preview(path, opened, mask, corner, task.config.output.preview_side, classes)
    if image.has_figure:
        files[FIGURE] = f"{FOLDERS[FIGURE]}/{name}.png"
        step = max(1, -(-max(mask.shape) // FIGURE_SIDE))
        planes = [dequantized(reduced(rows[layer], step)) for layer in image.layers.probability_names()]
        title = name
        if scores is not None and scores["mean_iou"] is not None:
            title += f"   mean IoU {scores['mean_iou']:.4f}"
        draw_figure(
            task.folder / files[FIGURE],
            title,
            reduced_image(opened, mask.shape, corner, step),
            truth.read(region.top, region.bottom, region.left, region.right)[::step, ::step] if truth else None,
            reduced(mask, step),
            np.stack(planes),
            classes,
        )
    return files
