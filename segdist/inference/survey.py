"""Finds what is done in the result folder: finished images, and finished rows of the others."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from segdist.inference.assignment import Stretch, remaining
from segdist.inference.finished_log import Record
from segdist.inference.outputs import FIGURE
from segdist.inference.parts import Part
from segdist.inference.result_folder import ResultFolder
from segdist.inference.task import Task
from segdist.ranks.process_group import Ranks


@dataclass
class Survey:
    """What earlier jobs have done, by image number."""

    records: dict[int, Record] = field(default_factory=dict)
    """Records of this rank's share of the finished images."""
    parts: dict[int, list[Part]] = field(default_factory=dict)
    """Parts of all unfinished images; the same on all ranks."""

    def stretches(self, task: Task) -> list[Stretch]:
        """The tile rows that remain to be computed, image by image."""
        return [
            Stretch(image, rows)
            for image in task.images
            if image.number in self.parts
            for rows in remaining(image.tile_rows, [part.tile_rows for part in self.parts[image.number]])
        ]


def survey(task: Task, folder: ResultFolder, ranks: Ranks) -> Survey:
    """Read the records and parts of all images, divided among the ranks. Collective."""
    found, parts = Survey(), {}
    mine = task.images[ranks.rank :: ranks.world_size]
    with collection_paused():
        records = folder.finished_records(mine)
        for image in mine:
            record = records.get(image.number)
            if record is None or (image.has_figure and FIGURE not in record["files"]):
                parts[image.number] = folder.parts(image)
            else:
                found.records[image.number] = record
    for share in ranks.gather(parts):
        found.parts |= share
    return found


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause garbage collection, which would scan all records repeatedly and take half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
