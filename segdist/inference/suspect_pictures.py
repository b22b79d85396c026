"""Pictures of suspect labels: image, mask and prediction around the region, side by side."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from segdist.core.files import whole_file
from segdist.inference.finished_result import FinishedImage, FinishedResult
from segdist.inference.pictures import colored, displayable, stretched
from shards.images.opening import open_image

AROUND = 24
"""Margin around a region in pixels; large regions get more: half of their longer side."""
LARGEST, SMALLEST = 480, 200
"""Bounds in pixels for the longest side of a panel: larger regions are reduced, smaller ones enlarged."""
GAP = 6
FRAME = (255, 0, 255)

Box = tuple[int, int, int, int]
"""Top, left, bottom, right in pixels of the image; bottom and right excluded."""


def draw_suspect(path: Path, found: FinishedResult, image: FinishedImage, box: Box) -> None:
    """Write a PNG with three panels, each with the box framed.

    Raises:
        UserError: image or mask can't be read.
    """
    with found.opened(image) as opened:
        height, width = opened.shape
        margin = max(AROUND, max(box[2] - box[0], box[3] - box[1]) // 2)
        top, left = max(box[0] - margin, image.top), max(box[1] - margin, image.left)
        bottom = min(box[2] + margin, image.top + height)
        right = min(box[3] + margin, image.left + width)
        block = opened.read(top - image.top, bottom - image.top)
    columns = slice(left - image.left, right - image.left)
    with open_image(image.path, upright=image.upright) as opened_image:
        pixels = np.array(opened_image.read(top, bottom, left, right))
    labels = block.truth[:, columns], block.probabilities[:, :, columns].argmax(axis=0)
    # Stretched, because the region may be a dark corner of a dark image.
    panels = [displayable(stretched(pixels)), *(colored(each, found.classes) for each in labels)]
    scale = min(max(SMALLEST / max(panels[0].shape[:2]), 1.0), LARGEST / max(panels[0].shape[:2]))
    size = max(round((right - left) * scale), 1), max(round((bottom - top) * scale), 1)
    picture = Image.new("RGB", (3 * size[0] + 2 * GAP, size[1]), "white")
    for number, panel in enumerate(panels):
        shown = Image.fromarray(np.ascontiguousarray(panel)).resize(size, Image.Resampling.NEAREST)
        corners = [(box[1] - left) * scale, (box[0] - top) * scale, (box[3] - left) * scale, (box[2] - top) * scale]
        ImageDraw.Draw(shown).rectangle(corners, outline=FRAME, width=2)
        picture.paste(shown, (number * (size[0] + GAP), 0))
    with whole_file(path) as file:
        picture.save(file, "PNG")
