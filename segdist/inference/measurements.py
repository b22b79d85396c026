"""Tables of an image: area and share of each class, and measurements of each object."""

import codecs
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from segdist.core.files import whole_file
from segdist.inference.objects import Objects, measure
from segdist.inference.parts import Rows, blocks
from segdist.inference.task import ImageTask
from segdist.model.share_intervals import ShareIntervals
from shards.images.image_file import ImageFile
from shards.manifest import ClassInfo

BACKGROUND = "background"
"""A class of this name, in upper or lower case, has an area but no objects."""

OBJECT_COLUMNS = (
    "object",
    "class",
    "area",
    "top",
    "left",
    "bottom",
    "right",
    "centroid_row",
    "centroid_column",
    "moment_rows",
    "moment_columns",
    "moment_mixed",
    "orientation",
    "major_axis",
    "minor_axis",
    "perimeter",
)


def write_measurements(
    objects_file: Path,
    classes_file: Path,
    image: ImageTask,
    mask: Rows,
    opened: ImageFile,
    classes: Sequence[ClassInfo],
    intervals: ShareIntervals | None = None,
) -> None:
    """Write both tables of an image; positions are in image coordinates, even for a region.

    Args:
        intervals: of class shares; they add the columns `share_low` and `share_high` to the table of classes.
    """
    region = image.region
    split = np.zeros(256, bool)
    split[: len(classes)] = [info.name.casefold() != BACKGROUND for info in classes]

    def read(top: int, bottom: int) -> np.ndarray:
        return opened.read(region.top + top, region.top + bottom, region.left, region.right)

    found = measure(mask, read, split)
    write_table(objects_file, *_object_table(found, classes, region.top, region.left, opened.channels))
    areas = np.zeros(len(classes), np.int64)
    for block in blocks(mask):
        areas += np.bincount(block.ravel(), minlength=len(classes))
    counts = np.bincount(found.label, minlength=len(classes))
    pixels = mask.shape[0] * mask.shape[1]
    rows = []
    for label, (info, area) in enumerate(zip(classes, areas.tolist(), strict=True)):
        share = area / pixels
        between = intervals.bounds(label, share) if intervals else ()
        rows.append((info.name, area, share, *between, int(counts[label]) if split[label] else ""))
    names = ("share_low", "share_high") if intervals else ()
    write_table(classes_file, ("class", "area", "share", *names, "objects"), rows)


def _object_table(
    found: Objects, classes: Sequence[ClassInfo], top: int, left: int, channels: int
) -> tuple[tuple[str, ...], Iterable[tuple[object, ...]]]:
    corner = np.array([top, left])
    low, high, centroid = found.low + corner, found.high + corner, found.centroid + corner
    mean = found.intensity_sum / found.area[:, None]
    columns: list[list[object]] = [
        list(range(1, len(found) + 1)),
        [classes[label].name for label in found.label],
        found.area.tolist(),
        *low.T.tolist(),
        *high.T.tolist(),
        *centroid.T.tolist(),
        *found.moments.T.tolist(),
        found.orientation.tolist(),
        *found.axes.T.tolist(),
        found.perimeter.tolist(),
    ]
    names = list(OBJECT_COLUMNS)
    for channel in range(channels):
        end = f"_{channel}" if channels > 1 else ""
        names += [f"intensity_mean{end}", f"intensity_min{end}", f"intensity_max{end}"]
        columns += [values[:, channel].tolist() for values in (mean, found.intensity_min, found.intensity_max)]
    return tuple(names), zip(*columns, strict=True)


def write_table(path: Path, names: Sequence[str], rows: Iterable[tuple[object, ...]]) -> None:
    """Write a CSV file atomically: UTF-8, a header line, lines that end in a newline."""
    with whole_file(path) as file:
        writer = csv.writer(codecs.getwriter("utf-8")(file), lineterminator="\n")
        writer.writerow(names)
        writer.writerows(rows)
