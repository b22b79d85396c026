"""Divides the tile rows of all images into one contiguous piece of about equal work per rank."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from segdist.inference.task import ImageTask

SMALLEST_CUT = 512
"""Images with fewer tiles are not split between ranks: tile rows at a seam are computed twice, and an image that one
rank has to itself is finished without waiting for others."""


@dataclass(frozen=True)
class Stretch:
    """Tile rows of one image that remain to be done."""

    image: ImageTask
    rows: range

    @property
    def tiles(self) -> int:
        """Number of tiles."""
        return len(self.rows) * self.image.tiles_across


def assign(stretches: Sequence[Stretch], world_size: int) -> list[list[Stretch]]:
    """Split the list of stretches into `world_size` pieces with about equal numbers of tiles.

    A pure function of the image sizes and what is done, so every rank gets the same result. Large images are split
    between tile rows; small ones go whole to the rank that has the larger part of them.
    """
    total = sum(stretch.tiles for stretch in stretches)
    pieces: list[list[Stretch]] = [[] for _ in range(world_size)]
    before = 0
    for stretch in stretches:
        end = before + stretch.tiles
        if stretch.tiles < SMALLEST_CUT:
            middle = (before + end) / 2
            pieces[min(int(middle * world_size / total), world_size - 1)].append(stretch)
        else:
            across = stretch.image.tiles_across
            edges = [(total * rank / world_size - before) / across for rank in range(world_size + 1)]
            # Half a row goes to the rank above, since the one below computes the rows at the seam again.
            cuts = [min(max(math.floor(edge + 0.5), 0), len(stretch.rows)) for edge in edges]
            for rank, (first, last) in enumerate(pairwise(cuts)):
                if first < last:
                    pieces[rank].append(Stretch(stretch.image, stretch.rows[first:last]))
        before = end
    return pieces


def remaining(rows: range, done: Sequence[range]) -> list[range]:
    """The parts of `rows` that aren't in the ranges `done`, from top to bottom."""
    left, start = [], rows.start
    for part in sorted(done, key=lambda part: part.start):
        if part.start > start:
            left.append(range(start, min(part.start, rows.stop)))
        start = max(start, part.stop)
    if start < rows.stop:
        left.append(range(start, rows.stop))
    return left
