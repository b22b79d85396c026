"""Finds and measures the objects of a mask, in one pass from top to bottom.

An object is a connected component of one class. Pixels that touch at a corner are connected (8-connectivity, the
default of `skimage.measure.label`). The mask is read in bands of rows, each band is cut into runs (stretches of one
class in one row), and runs that touch are joined. Objects that reach the last row of a band stay open; the others are
finished, and only their table rows are kept. Memory holds a band, a row and the table.

Bands depend only on the width, so the same mask gives the same bits however it was computed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np

from segdist.inference.parts import Rows

BAND_PIXELS = 2**20
"""Pixels per band; a band has at least one row."""

ReadImage = Callable[[int, int], np.ndarray]
"""Rows `top` to `bottom` of the image under the mask, (h, W, C)."""


@dataclass(frozen=True)
class Objects:
    """N objects; rows and columns are those of the mask, moments are in pixels.

    Also holds runs, and objects that are still open.
    """

    label: np.ndarray
    """(N,) class."""
    first: np.ndarray
    """(N,) row-major index of the first pixel; objects are sorted by it."""
    area: np.ndarray
    """(N,) pixels, int64."""
    sums: np.ndarray
    """(N, 2) sums of the rows and of the columns of all pixels, int64."""
    moments: np.ndarray
    """(N, 3) central second moments: of rows, of columns, mixed; float64."""
    low: np.ndarray
    """(N, 2) top row and left column."""
    high: np.ndarray
    """(N, 2) bottom row and right column, excluded."""
    edges: np.ndarray
    """(N, 3) numbers of border pixels that add 1, √2 and (1 + √2) / 2 to the perimeter."""
    intensity_sum: np.ndarray
    """(N, C) int64."""
    intensity_min: np.ndarray
    intensity_max: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    def take(self, which: np.ndarray) -> "Objects":
        """The objects selected by indices or a boolean mask."""
        return Objects(*(getattr(self, field.name)[which] for field in fields(self)))

    @staticmethod
    def join(parts: "list[Objects]") -> "Objects":
        """Concatenate tables."""
        return Objects(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Objects)))

    @property
    def centroid(self) -> np.ndarray:
        """(N, 2) mean row and column."""
        return np.asarray(self.sums / self.area[:, None])

    @property
    def orientation(self) -> np.ndarray:
        """(N,) angle between the row axis and the major axis, -π/2 to π/2, as in `regionprops`."""
        rows, columns, mixed = self.moments.T
        apart = rows - columns
        round_ones = np.abs(apart) <= 1e-12 * (rows + columns)
        angle = 0.5 * np.arctan2(2 * mixed, apart)
        return np.where(round_ones, np.where(mixed > 0, math.pi / 4, -math.pi / 4), angle)

    @property
    def axes(self) -> np.ndarray:
        """(N, 2) major and minor axis of the ellipse with the same second moments, as in `regionprops`."""
        rows, columns, mixed = (self.moments / self.area[:, None]).T
        middle, spread = (rows + columns) / 2, np.hypot((rows - columns) / 2, mixed)
        axes = np.stack([middle + spread, middle - spread], axis=1)
        return np.asarray(4 * np.sqrt(np.maximum(axes, 0)))

    @property
    def perimeter(self) -> np.ndarray:
        """(N,) length of the border (Benkrid and Crookes 2000), as `skimage.measure.perimeter` with 4 neighbors."""
        return np.asarray(self.edges @ np.array([1, math.sqrt(2), (1 + math.sqrt(2)) / 2]))


def measure(mask: Rows, read_image: ReadImage, split: np.ndarray, band_pixels: int = BAND_PIXELS) -> Objects:
    """Measure the objects of a mask.

    Args:
        mask: labels, uint8.
        split: (256,) bool, True for classes that are split into objects.
        band_pixels: see `BAND_PIXELS`.
    """
    height, width = mask.shape
    size = max(1, band_pixels // width)
    still_open: Objects | None = None
    above = _Runs.none()
    finished = []
    for top in range(0, height, size):
        bottom = min(top + size, height)
        runs, found = _runs_of_band(mask, read_image(top, bottom), top, bottom, split)
        offset = len(still_open) if still_open else 0
        nodes = Objects.join([still_open, found]) if still_open else found
        below = _Runs(runs.start, runs.end, runs.label, runs.node + offset)
        group = _components(len(nodes), *_touching(above, below, width))
        merged = _merged(nodes, group)
        last = below.start >= (bottom - 1) * width
        reached = np.unique(group[below.node[last]])
        closed = np.ones(len(merged), bool)
        closed[reached] = bottom == height
        finished.append(merged.take(closed))
        still_open = merged.take(reached)
        node = np.searchsorted(reached, group[below.node[last]])
        above = _Runs(below.start[last], below.end[last], below.label[last], node)
    table = Objects.join(finished)
    return table.take(np.argsort(table.first))


@dataclass(frozen=True)
class _Runs:
    """Stretches of one class in one row, in order; positions are row-major indices into the mask."""

    start: np.ndarray
    end: np.ndarray
    label: np.ndarray
    node: np.ndarray
    """Index of the object that each run belongs to."""

    @staticmethod
    def none() -> "_Runs":
        return _Runs(*(np.zeros(0, np.int64) for _ in range(4)))


def _runs_of_band(mask: Rows, pixels: np.ndarray, top: int, bottom: int, split: np.ndarray) -> tuple[_Runs, Objects]:
    """The runs of rows `top` to `bottom`, and each of them as a separate object."""
    height, width = mask.shape
    # Two more rows on each side, because a border pixel's neighbors need their own neighbors.
    first, end = max(top - 2, 0), min(bottom + 2, height)
    padded = np.full((bottom - top + 4, width + 4), -1, np.int16)
    padded[first - top + 2 : end - top + 2, 2:-2] = mask.read(first, end)
    band = padded[2:-2, 2:-2]
    change = np.ones(band.shape, bool)
    change[:, 1:] = band[:, 1:] != band[:, :-1]
    starts = np.flatnonzero(change)
    lengths = np.diff(starts, append=band.size)
    row, left = np.divmod(starts, width)
    label = band[row, left]
    flat = pixels.reshape(band.size, -1)
    row += top
    runs = Objects(
        label,
        starts + top * width,
        lengths,
        np.stack([row * lengths, left * lengths + lengths * (lengths - 1) // 2], axis=1),
        np.stack([np.zeros(len(row)), lengths * (lengths.astype(float) ** 2 - 1) / 12, np.zeros(len(row))], axis=1),
        np.stack([row, left], axis=1),
        np.stack([row + 1, left + lengths], axis=1),
        _edges(padded, starts, split),
        np.add.reduceat(flat, starts, axis=0, dtype=np.int64),
        np.minimum.reduceat(flat, starts, axis=0),
        np.maximum.reduceat(flat, starts, axis=0),
    ).take(split[label])
    return _Runs(runs.first, runs.first + runs.area, runs.label, np.arange(len(runs))), runs


def _edges(padded: np.ndarray, starts: np.ndarray, split: np.ndarray) -> np.ndarray:
    """(runs, 3) numbers of border pixels of each run, by their weight in the perimeter.

    A border pixel has one of its 4 neighbors outside the object; its weight depends on which of its 8 neighbors are
    border pixels of the same object. With 8-connectivity, neighbors of the same class belong to the same object.
    """
    inner = padded[1:-1, 1:-1]
    border = (inner != padded[:-2, 1:-1]) | (inner != padded[2:, 1:-1])
    border |= (inner != padded[1:-1, :-2]) | (inner != padded[1:-1, 2:])
    width = inner.shape[1]
    rows, columns = np.nonzero(border[1:-1, 1:-1])
    places = (rows + 1) * width + columns + 1
    border, inner = border.ravel(), np.ascontiguousarray(inner).ravel()
    label = inner[places]
    wanted = split[label]
    places, rows, columns, label = places[wanted], rows[wanted], columns[wanted], label[wanted]
    code = np.ones(len(places), np.int64)
    for step, weight in ((1, 2), (width, 2), (width + 1, 10), (width - 1, 10)):
        for place in (places + step, places - step):
            code += weight * (border[place] & (inner[place] == label))
    run = np.searchsorted(starts, rows * (width - 2) + columns, side="right") - 1
    kinds = ((5, 7, 15, 17, 25, 27), (21, 33), (13, 23))
    return np.stack([np.bincount(run[np.isin(code, kind)], minlength=len(starts)) for kind in kinds], axis=1)


def _touching(above: _Runs, below: _Runs, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of nodes whose runs of the same class touch, even at a corner; `above` is the row just above `below`."""
    start = np.concatenate([above.start, below.start])
    end = np.concatenate([above.end, below.end])
    label = np.concatenate([above.label, below.label])
    node = np.concatenate([above.node, below.node])
    row = start // width * width
    # Runs of the previous row that overlap the run, widened by one pixel on each side.
    from_place = np.maximum(start - 1, row) - width
    to_place = np.minimum(end + 1, row + width) - width
    first = np.searchsorted(end, from_place, side="right")
    count = np.maximum(np.searchsorted(start, to_place, side="left") - first, 0)
    lower = np.repeat(np.arange(len(start)), count)
    upper = np.arange(len(lower)) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
    same = label[lower] == label[upper]
    return node[upper[same]], node[lower[same]]


def _components(count: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The connected component, numbered from 0, of each of `count` nodes; `one` and `other` are the edges."""
    parent = np.arange(count)
    while True:
        one, other = parent[one], parent[other]
        apart = one != other
        if not apart.any():
            return np.unique(parent, return_inverse=True)[1]
        one, other = one[apart], other[apart]
        np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))
        while not np.array_equal(parent, shorter := parent[parent]):
            parent = shorter


def _merged(nodes: Objects, group: np.ndarray) -> Objects:
    """Merge each group into one object. Moments are shifted to the common centroid, which keeps their precision."""
    if not len(nodes):
        return nodes
    order = np.argsort(group, kind="stable")
    nodes, group = nodes.take(order), group[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    area = np.add.reduceat(nodes.area, starts)
    sums = np.add.reduceat(nodes.sums, starts, axis=0)
    rows, columns = (nodes.centroid - (sums / area[:, None])[group]).T
    moved = np.stack([rows * rows, columns * columns, rows * columns], axis=1) * nodes.area[:, None]
    return Objects(
        nodes.label[starts],
        np.minimum.reduceat(nodes.first, starts),
        area,
        sums,
        np.add.reduceat(nodes.moments + moved, starts, axis=0),
        np.minimum.reduceat(nodes.low, starts, axis=0),
        np.maximum.reduceat(nodes.high, starts, axis=0),
        np.add.reduceat(nodes.edges, starts, axis=0),
        np.add.reduceat(nodes.intensity_sum, starts, axis=0),
        np.minimum.reduceat(nodes.intensity_min, starts, axis=0),
        np.maximum.reduceat(nodes.intensity_max, starts, axis=0),
    )
