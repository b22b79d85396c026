"""Pictures of results: a figure with all maps of an image, and overlay previews.

Letters: K classes, C channels. Images are (h, w, C), masks (h, w), probabilities (K, h, w).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from segdist.core.files import whole_file
from segdist.inference.parts import Rows
from shards.images.image_file import ImageFile
from shards.manifest import IGNORE, ClassInfo

MOST_COLUMNS = 8
OVERLAY = 0.45
"""Opacity of the class colors in an overlay."""
IGNORED_COLOR = (128, 128, 128)
ERROR_COLOR = (213, 0, 50)


def draw_figure(
    path: Path,
    title: str,
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[ClassInfo],
) -> None:
    """Write a PNG with the original, the predicted mask and a probability map per class.

    With a true mask, that mask and the errors are shown next to the predicted one.

    Args:
        image: as stored, uint8 or uint16.
        truth, prediction: labels, uint8.
        probabilities: 0 to 1.
    """
    # Imported here because it takes half a second. Not pyplot, which keeps global state and may need a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    panels: list[tuple[str, np.ndarray, bool]] = [("original", displayable(image), False)]
    if truth is not None:
        panels.append(("ground truth", colored(truth, classes), False))
    panels.append(("prediction", colored(prediction, classes), False))
    if truth is not None:
        wrong = (truth != prediction) & (truth != IGNORE)
        panels.append((f"errors ({wrong.mean():.1%})", error_picture(image, wrong), False))
    panels += [(f"P({info.name})", plane, True) for info, plane in zip(classes, probabilities, strict=True)]

    columns = min(len(panels), MOST_COLUMNS)
    rows = -(-len(panels) // columns)
    height, width = prediction.shape
    panel_width = 2.4
    panel_height = min(max(panel_width * height / width, 1.0), 6.0)
    width_in = panel_width * columns + 0.9
    # As many names per row as fit; more rows need more room.
    longest = max(len(info.name) for info in classes)
    legend_columns = max(1, min(len(classes), int(width_in / (0.7 + 0.085 * longest))))
    legend_height = 0.15 + 0.2 * -(-len(classes) // legend_columns)
    figure = Figure(figsize=(width_in, (panel_height + 0.4) * rows + 0.45 + legend_height), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    shown = None
    for index, axis in enumerate(axes.flat):
        axis.set_axis_off()
        if index >= len(panels):
            continue
        name, picture, is_map = panels[index]
        axis.set_title(name, fontsize=10, y=1.0, pad=4)  # given y, matplotlib needn't search for a free one
        if is_map:
            shown = axis.imshow(picture, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
        else:
            axis.imshow(picture, interpolation="nearest")
    figure.suptitle(title, fontsize=11)
    handles = [Patch(facecolor=_unit(info.color), edgecolor="gray", label=info.name) for info in classes]
    figure.legend(handles=handles, loc="lower center", ncols=legend_columns, fontsize=9, frameon=False)
    # Margins in inches, because matplotlib's own layouts draw everything twice to find them.
    across, down = figure.get_size_inches()
    figure.subplots_adjust(
        0.1 / across, (legend_height + 0.15) / down, 1 - 0.8 / across, 1 - 0.65 / down, wspace=0.06, hspace=0.15
    )
    if shown is not None:
        figure.colorbar(shown, cax=figure.add_axes((1 - 0.65 / across, 0.2, 0.15 / across, 0.6)))
    with whole_file(path) as file:
        figure.savefig(file, format="png")


def colored(labels: np.ndarray, classes: Sequence[ClassInfo]) -> np.ndarray:
    """Labels (h, w) in the classes' colors, uint8 (h, w, 3); ignored pixels are gray."""
    table = np.full((256, 3), IGNORED_COLOR, np.uint8)
    table[: len(classes)] = [info.color for info in classes]
    table[IGNORE] = IGNORED_COLOR
    colors: np.ndarray = table[labels]
    return colors


def error_picture(image: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """The image in pale gray, with wrong pixels in a color that the color-blind can tell from it; uint8 (h, w, 3)."""
    pale = 150 + displayable(image).mean(axis=-1, keepdims=True) * 0.4
    picture: np.ndarray = np.where(wrong[..., None], ERROR_COLOR, pale).round().astype(np.uint8)
    return picture


def displayable(image: np.ndarray) -> np.ndarray:
    """An image of any number of channels as uint8 RGB (h, w, 3); 16-bit values are contrast-stretched."""
    picture = image[..., :3] if image.shape[-1] >= 3 else image[..., :1]
    if picture.dtype != np.uint8:
        picture = stretched(picture)
    return np.broadcast_to(picture, (*picture.shape[:2], 3))


def stretched(image: np.ndarray) -> np.ndarray:
    """Contrast stretching: percentiles 0.5 to 99.5 are mapped to 0 to 255; uint8 of the same shape."""
    low, high = np.percentile(image, (0.5, 99.5))
    scaled = (image.astype(np.float32) - low) / max(high - low, 1)
    result: np.ndarray = (scaled.clip(0, 1) * 255).round().astype(np.uint8)
    return result


def overlay(image: np.ndarray, labels: np.ndarray, classes: Sequence[ClassInfo]) -> np.ndarray:
    """The image overlaid with the class colors, uint8 (h, w, 3). Black classes (background) are transparent."""
    picture = displayable(image).astype(np.float32)
    colors = colored(labels, classes).astype(np.float32)
    share = np.where(colors.any(axis=-1, keepdims=True), OVERLAY, 0.0)
    mixed: np.ndarray = (picture * (1 - share) + colors * share).round().astype(np.uint8)
    return mixed


def write_preview(
    path: Path, image: ImageFile, mask: Rows, origin: tuple[int, int], side: int, classes: Sequence[ClassInfo]
) -> None:
    """Write the overlay, reduced so that its longest side has at most `side` pixels, reading band by band.

    Args:
        mask: labels of the part of the image that starts at `origin` (row, column).
    """
    step = max(1, -(-max(mask.shape) // side))
    picture = overlay(reduced_image(image, mask.shape, origin, step), reduced(mask, step), classes)
    with whole_file(path) as file:
        Image.fromarray(picture).save(file, "PNG")


def reduced(rows: Rows, step: int, block: int = 512) -> np.ndarray:
    """Every `step`-th pixel of every `step`-th row."""
    size = -(-block // step) * step
    tops = range(0, rows.shape[0], size)
    return np.concatenate([rows.read(top, min(top + size, rows.shape[0]))[::step, ::step] for top in tops])


def reduced_image(
    image: ImageFile, shape: tuple[int, int], origin: tuple[int, int], step: int, block: int = 512
) -> np.ndarray:
    """Like `reduced`, for the part of an image that starts at `origin`; (h, w, C)."""
    size = -(-block // step) * step
    top, left = origin
    bands = [
        image.read(top + start, top + min(start + size, shape[0]), left, left + shape[1])[::step, ::step].copy()
        for start in range(0, shape[0], size)
    ]
    return np.concatenate(bands)


def _unit(color: tuple[int, int, int]) -> tuple[float, float, float]:
    return color[0] / 255, color[1] / 255, color[2] / 255
