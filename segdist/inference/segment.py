"""Runs one stretch of an image's tile rows through the model, into memory or part files."""

from collections.abc import Callable, Iterator

import numpy as np

from segdist.core.errors import UserError
from segdist.inference.assignment import Stretch
from segdist.inference.enlarge import Means, image_rows
from segdist.inference.gpu_transfer import Arriving, ReadAhead, arrived
from segdist.inference.grid import blending_window
from segdist.inference.layers import MASK
from segdist.inference.parts import MemoryRows, PartWriter, Rows
from segdist.inference.result_folder import ResultFolder
from segdist.inference.task import Task
from segdist.inference.tiler import NOT_A_NUMBER, FinishedRows, ReadWindow, TileFunction
from shards.images.opening import match_channels, open_image

MEMORY_LIMIT = 8 * 2**20
"""An image that one rank has to itself is kept in memory, not in part files, up to this size in bytes of all layers.

If the job dies, such an image is lost: with only a mask, 2900 x 2900 pixels, half a minute on two cores."""

EncodedRows = Iterator[tuple[FinishedRows, dict[str, np.ndarray]]]
"""Finished rows of a stretch, and their layers."""
Advance = Callable[[float], None]
"""Called with the number of megapixels done."""


def segment(
    model: TileFunction, task: Task, folder: ResultFolder, stretch: Stretch, advance: Advance, *, alone: bool
) -> dict[str, Rows] | None:
    """Compute a stretch.

    Args:
        alone: no other rank has a stretch of this image.

    Returns:
        The image's layers if they are kept in memory; None if they are in part files.
    """
    image = stretch.image
    small = image.shape[0] * image.shape[1] * image.layers.bytes_per_pixel() <= MEMORY_LIMIT
    if small and alone and stretch.rows == image.tile_rows:
        return _into_memory(_encoded_rows(model, task, stretch), stretch, advance)
    _into_parts(_encoded_rows(model, task, stretch), stretch, folder, advance)
    return None


def megapixels(stretch: Stretch) -> float:
    """Number of pixels that a stretch finishes, in millions."""
    scale, rows, region = stretch.image.scale, stretch.image.grid.rows, stretch.image.region
    top = max(scale.rows(rows, stretch.rows.start)[0], region.top)
    bottom = min(scale.rows(rows, stretch.rows.stop - 1)[1], region.bottom)
    return (bottom - top) * (region.right - region.left) / 1e6


def _into_memory(encoded: EncodedRows, stretch: Stretch, advance: Advance) -> dict[str, Rows]:
    image = stretch.image
    arrays = {name: np.empty(image.shape, dtype) for name, dtype in image.layers.dtypes().items()}
    for rows, found in encoded:
        for name, array in arrays.items():
            array[rows.top - image.region.top : rows.bottom - image.region.top] = found[name]
        advance((rows.bottom - rows.top) * image.shape[1] / 1e6)
    return {name: MemoryRows(array) for name, array in arrays.items()}


def _into_parts(encoded: EncodedRows, stretch: Stretch, folder: ResultFolder, advance: Advance) -> None:
    image = stretch.image
    writer = PartWriter(folder.begin_parts(image), stretch.rows.start, image.layers.dtypes())
    complete = False
    try:
        for rows, found in encoded:
            writer.append(rows.tile_row, rows.top, rows.bottom, found)
            advance((rows.bottom - rows.top) * image.shape[1] / 1e6)
        complete = True
    finally:
        writer.close(complete=complete)


def _encoded_rows(model: TileFunction, task: Task, stretch: Stretch) -> EncodedRows:
    """Yield the finished rows of a stretch, and their layers."""
    image = stretch.image
    window = blending_window(task.config.blending, task.tile)
    means = Means(image.grid, window, model.device, image.scale)
    with open_image(image.path, upright=image.header.upright, channels=model.channels) as opened:

        def read(top: int, bottom: int, left: int, right: int) -> np.ndarray:
            return match_channels(opened.read(top, bottom, left, right), model.channels, image.path)

        def encoded(read: ReadWindow) -> Iterator[Arriving[FinishedRows]]:
            reduced = image.scale.reading(read)
            for rows in image_rows(model, reduced, image.grid, window, image.scale, stretch.rows, image.region):
                yield Arriving(rows, image.layers.encode(rows, means))

        if model.device.type == "cuda":
            with ReadAhead(read, image.header.height) as ahead:
                yield from _without_nan(arrived(encoded(ahead), model.device), task, image.path)
        else:
            yield from _without_nan(arrived(encoded(read), model.device), task, image.path)


def _without_nan(results: EncodedRows, task: Task, path: str) -> EncodedRows:
    for rows, found in results:
        if found[MASK].max() == NOT_A_NUMBER:
            raise UserError(
                f"{path}: the model returned NaN in rows {rows.top} to {rows.bottom}; "
                f"{'try --precision fp32' if task.precision.name != 'fp32' else 'check how the model was trained'}"
            )
        yield rows, found
