"""The files of one image, from its layers: mask, probabilities, maps, preview, figure."""

from typing import Any

import numpy as np

from segdist.inference.layers import CONFIDENCE, ENTROPY, MASK, dequantized
from segdist.inference.parts import Rows, write_gray_png, write_mask_png, write_npy, write_tiff, write_zarr
from segdist.inference.pictures import draw_figure, reduced, reduced_image, write_preview
from segdist.inference.task import Setup
from shards.images.image_file import ImageFile
from shards.images.masks import MaskFile

PNG_LIMIT = 16 * 2**20
"""Pixels up to which `auto` writes a mask as PNG."""
FIGURE_SIDE = 1024
"""Longest side of a panel of a figure; larger images are reduced."""
SUFFIX = {"png": ".png", "tiff": ".tif", "zarr": ".zarr", "npy": ".npy"}


def write_layers(setup: Setup, index: int, rows: dict[str, Rows]) -> dict[str, str]:
    """Write the class mask and what else was asked for; returns the files by kind, relative to the output folder."""
    output, classes = setup.config.output, setup.card.classes
    name, folder = setup.inputs.images[index].name, setup.folder
    mask, names = rows[MASK], [info.name for info in classes]
    small = mask.shape[0] * mask.shape[1] <= PNG_LIMIT
    kind = output.mask_format if output.mask_format != "auto" else "png" if small else "tiff"
    files = {MASK: f"masks/{name}{SUFFIX[kind]}"}
    if kind == "png":
        write_mask_png(folder / files[MASK], mask, classes)
    elif kind == "tiff":
        write_tiff(folder / files[MASK], [mask], classes)
    else:
        write_zarr(folder / files[MASK], [mask], {"classes": names}, stacked=False)
    if output.probabilities != "none":
        planes = [rows[layer] for layer in setup.layers(index).probability_names()]
        files["probabilities"] = f"probabilities/{name}{SUFFIX[output.probability_format]}"
        path = folder / files["probabilities"]
        if output.probability_format == "npy":
            write_npy(path, planes)
        elif output.probability_format == "tiff":
            write_tiff(path, planes)
        else:
            write_zarr(path, planes, {"classes": names}, stacked=True)
    for layer in (CONFIDENCE, ENTROPY):
        if layer in rows:
            files[layer] = f"{layer}/{name}{'.png' if small else '.tif'}"
            if small:
                write_gray_png(folder / files[layer], rows[layer])
            else:
                write_tiff(folder / files[layer], [rows[layer]])
    return files


def write_pictures(
    setup: Setup,
    index: int,
    rows: dict[str, Rows],
    image: ImageFile,
    truth: MaskFile | None,
    scores: dict[str, Any] | None,
) -> dict[str, str]:
    """Write preview and figure; returns the files by kind, relative to the output folder."""
    region, name, classes = setup.region(index), setup.inputs.images[index].name, setup.card.classes
    mask, corner = rows[MASK], (region.top, region.left)
    files = {}
    if setup.config.output.previews:
        files["preview"] = f"previews/{name}.png"
        path = setup.folder / files["preview"]
        write_preview(path, image, mask, corner, setup.config.output.preview_side, classes)
    if setup.has_figure(index):
        files["figure"] = f"figures/{name}.png"
        step = max(1, -(-max(mask.shape) // FIGURE_SIDE))
        planes = [dequantized(reduced(rows[layer], step)) for layer in setup.layers(index).probability_names()]
        title = name
        if scores is not None and scores["mean_iou"] is not None:
            title += f"   mean IoU {scores['mean_iou']:.4f}"
        draw_figure(
            setup.folder / files["figure"],
            title,
            reduced_image(image, mask.shape, corner, step),
            truth.read(region.top, region.bottom, region.left, region.right)[::step, ::step] if truth else None,
            reduced(mask, step),
            np.stack(planes),
            classes,
        )
    return files
