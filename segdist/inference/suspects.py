"""Regions where predictions confidently contradict the true masks, ranked over all images of a result.

A region is a connected component (8 neighbors) of pixels that are labeled with one class and predicted as another. A
model repeats the wrong labels that it was trained on, so the predictions should be for images that their model wasn't
trained on.

Most contradictions are a pixel or two wide, along borders that are never drawn to the pixel. So the region's mean
difference between the probabilities of the predicted and the given class is weighted by t / (t + 1), where t = area /
perimeter is its thickness: 0.5 for a line one pixel wide, 0.74 for a square of 10 x 10.

Memory holds a band of rows and the table of regions (`segdist.inference.objects`).
"""

import dataclasses
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segdist.core.files import write_json
from segdist.core.json_values import JsonObject
from segdist.core.owner import owned
from segdist.core.paths import SUSPECT_PICTURES, SUSPECTS, SUSPECTS_TABLE
from segdist.inference.finished_result import FinishedImage, FinishedResult, OpenedResult
from segdist.inference.measurements import write_table
from segdist.inference.objects import measure
from segdist.inference.outline import outlines
from segdist.inference.suspect_pictures import draw_suspect
from shards.manifest import IGNORE

NONE = 255
"""Label of pixels without a contradiction; the others are numbered by their pair of classes."""
PAIRS_AT_ONCE = 254
MOST_PICTURES = 20
FULL = 65535
"""A probability of 1 as an integer; sums of integers are exact."""


@dataclass(frozen=True)
class Suspect:
    """A region whose label may be wrong; rows and columns are those of the image, bottom and right excluded."""

    rank: int
    """From 1, the most suspect first."""
    image: str
    """Name of the image in the result."""
    file: str
    mask: str
    top: int
    left: int
    bottom: int
    right: int
    given: str
    predicted: str
    confidence: float
    """Mean probability of the predicted class."""
    given_probability: float
    """Mean probability of the given class."""
    area: int
    """In pixels."""
    score: float
    """0 to 1; regions are ranked by it."""
    first_column: int
    """Column of the leftmost pixel in the top row; not in the table."""


COLUMNS = [field.name for field in dataclasses.fields(Suspect)][:-1]


def find_suspects(found: FinishedResult) -> list[Suspect]:
    """All regions of all images, ranked; ties by image and position."""
    suspects = [suspect for image in found.images for suspect in _of_image(found, image)]
    suspects.sort(key=lambda suspect: -suspect.score)
    return [dataclasses.replace(suspect, rank=rank) for rank, suspect in enumerate(suspects, start=1)]


def write_suspects(result: Path, most: int) -> tuple[list[Suspect], int]:
    """Find suspects; write `suspects.csv`, `suspects/NAME.geojson` for each image that has any, and pictures of the top
    ones.

    Args:
        most: how many to write, from the top of the ranking; 0: all.

    Returns:
        The suspects written, and how many were found.

    Raises:
        UserError: the folder has no probabilities or true masks.
    """
    with owned(result, "segdist suspects"):
        found = FinishedResult(result)
        ranked = find_suspects(found)
        listed = ranked[:most] if most else ranked
        rows = [tuple(getattr(suspect, name) for name in COLUMNS) for suspect in listed]
        write_table(result / SUSPECTS_TABLE, COLUMNS, rows)
        of_image: dict[str, list[Suspect]] = defaultdict(list)
        for suspect in listed:
            of_image[suspect.image].append(suspect)
        for image in found.images:
            file = result / SUSPECTS / f"{image.name}.geojson"
            if theirs := of_image.get(image.name):
                write_json(file, _collection(found, image, theirs))
            else:
                file.unlink(missing_ok=True)
        shutil.rmtree(result / SUSPECT_PICTURES, ignore_errors=True)
        by_name = {image.name: image for image in found.images}
        for one in listed[:MOST_PICTURES]:
            box = one.top, one.left, one.bottom, one.right
            draw_suspect(result / SUSPECT_PICTURES / f"{one.rank:04}.png", found, by_name[one.image], box)
    return listed, len(ranked)


def suspects_text(listed: list[Suspect], total: int, result: Path, shown: int = 10) -> str:
    """The top of the ranking, for the terminal."""
    lines = [f"{total} regions contradict the masks; {len(listed)} are in {result / SUSPECTS_TABLE}"]
    lines += [
        f"{one.rank:>4}  {one.score:.3f}  {one.image}  rows {one.top}-{one.bottom}, columns {one.left}-{one.right}: "
        f"{one.given}, predicted {one.predicted} ({one.confidence:.0%}), {one.area} px"
        for one in listed[:shown]
    ]
    return "\n".join(lines)


class _Contradictions:
    """(given, predicted) pairs of an image as a layer of labels: the index in `pairs`, else `NONE`."""

    dtype = np.dtype(np.uint8)

    def __init__(self, opened: OpenedResult, pairs: np.ndarray) -> None:
        self.opened, self.shape = opened, opened.shape
        classes = opened.num_classes
        self._labels = np.full(classes * classes + 1, NONE, np.uint8)
        self._labels[pairs] = np.arange(len(pairs))

    def read(self, top: int, bottom: int) -> np.ndarray:
        labels: np.ndarray = self._labels[_pairs(self.opened, top, bottom)]
        return labels

    def probabilities(self, top: int, bottom: int) -> np.ndarray:
        """Probabilities of the predicted and the given class, as integers (h, W, 2)."""
        block = self.opened.read(top, bottom)
        given = np.where(block.truth == IGNORE, 0, block.truth).astype(np.int64)
        both = block.probabilities.max(axis=0), np.take_along_axis(block.probabilities, given[None], axis=0)[0]
        scaled: np.ndarray = np.rint(np.stack(both, axis=-1) * FULL).astype(np.uint16)
        return scaled


def _pairs(opened: OpenedResult, top: int, bottom: int) -> np.ndarray:
    """given x K + predicted where these differ, K² elsewhere, (h, W)."""
    block, classes = opened.read(top, bottom), opened.num_classes
    predicted = block.probabilities.argmax(axis=0)
    same = (block.truth == predicted) | (block.truth == IGNORE)
    return np.where(same, classes * classes, block.truth.astype(np.int64) * classes + predicted)


def _of_image(found: FinishedResult, image: FinishedImage) -> list[Suspect]:
    names = found.class_names
    suspects: list[Suspect] = []
    with found.opened(image) as opened:
        counts = np.zeros(len(names) ** 2 + 1, np.int64)
        for top, bottom in opened.bands():
            counts += np.bincount(_pairs(opened, top, bottom).ravel(), minlength=len(counts))
        present = np.flatnonzero(counts[:-1])
        for start in range(0, len(present), PAIRS_AT_ONCE):
            pairs = present[start : start + PAIRS_AT_ONCE]
            layer = _Contradictions(opened, pairs)
            split = np.arange(256) < len(pairs)
            regions = measure(layer, layer.probabilities, split, opened.band_pixels)
            means = regions.intensity_sum / regions.area[:, None] / FULL
            # A single pixel has no perimeter in this measure.
            thickness = regions.area / np.maximum(regions.perimeter, 2)
            score = (means[:, 0] - means[:, 1]) * thickness / (thickness + 1)
            corner = np.array([image.top, image.left])
            low, high = regions.low + corner, regions.high + corner
            given, predicted = np.divmod(pairs[regions.label], len(names))
            columns = regions.first % opened.shape[1] + image.left
            suspects += [
                Suspect(
                    rank=0,
                    image=image.name,
                    file=image.path,
                    mask=image.mask,
                    top=int(low[place, 0]),
                    left=int(low[place, 1]),
                    bottom=int(high[place, 0]),
                    right=int(high[place, 1]),
                    given=names[given[place]],
                    predicted=names[predicted[place]],
                    confidence=round(float(means[place, 0]), 5),
                    given_probability=round(float(means[place, 1]), 5),
                    area=int(regions.area[place]),
                    score=round(float(score[place]), 6),
                    first_column=int(columns[place]),
                )
                for place in range(len(regions))
            ]
    return suspects


def _collection(found: FinishedResult, image: FinishedImage, suspects: list[Suspect]) -> JsonObject:
    """A GeoJSON FeatureCollection for QuPath: x and y in image pixels, y pointing down."""
    names = found.class_names
    with found.opened(image) as opened:
        features = []
        for suspect in suspects:
            rows = suspect.top - image.top, suspect.bottom - image.top
            pair = names.index(suspect.given) * len(names) + names.index(suspect.predicted)
            left, right = suspect.left - image.left, suspect.right - image.left
            region = _pairs(opened, *rows)[:, left:right] == pair
            corner = suspect.left, suspect.top
            rings = outlines(region, suspect.first_column - suspect.left)
            polygons = [[np.add(ring, corner).tolist()] for ring in rings]
            features.append(
                {
                    "type": "Feature",
                    "geometry": {"type": "Polygon", "coordinates": polygons[0]}
                    if len(polygons) == 1
                    else {"type": "MultiPolygon", "coordinates": polygons},
                    "properties": {
                        "objectType": "annotation",
                        "name": f"{suspect.rank}: {suspect.given}, predicted {suspect.predicted}",
                        "classification": {"name": suspect.predicted},
                        "measurements": {
                            "rank": suspect.rank,
                            "confidence": suspect.confidence,
                            "area": suspect.area,
                            "score": suspect.score,
                        },
                    },
                }
            )
    return {"type": "FeatureCollection", "features": features}
