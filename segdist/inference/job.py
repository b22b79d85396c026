"""An inference job from config to scores: what `segdist infer` does on every rank.

All ranks agree on the list of images and on who computes which tile rows; from then on each works alone until its part
is done. No rank waits for another in the middle of the work, so one that fails can't leave the others hanging there.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segdist.core.errors import UserError
from segdist.core.files import write_json
from segdist.core.terminal import Progress, warn
from segdist.inference.assignment import Stretch, assign, remaining
from segdist.inference.config import InferConfig
from segdist.inference.evaluation import confusion_of_image, image_scores, summarize
from segdist.inference.gpu_transfer import Arriving, ReadAhead, arrived
from segdist.inference.grid import blending_window
from segdist.inference.layers import MASK, Layers
from segdist.inference.outputs import write_layers, write_pictures
from segdist.inference.parts import MemoryRows, Part, PartRows, PartWriter, Rows
from segdist.inference.result_folder import OutputFolder, result_settings, source_of
from segdist.inference.task import Setup, prepare
from segdist.inference.tiler import NOT_A_NUMBER, FinishedRows, NetworkError, TileNetwork, Weights, finished_rows
from segdist.model.model_file import load_model
from segdist.ranks.process_group import Ranks
from shards.images.opening import match_channels, open_image

MEMORY_LIMIT = 8 * 2**20
"""Bytes of all layers up to which an image that is whole on one rank is kept in memory instead of part files.

When a job dies, such an image is lost: with masks alone 2900 x 2900 pixels, half a minute of two cores."""


@dataclass
class Result:
    """What a job did; the same on all ranks."""

    folder: Path
    images: int
    failures: list[dict[str, str]]
    scores: dict[str, Any] | None
    """The content of scores.json, if any image has a true mask."""
    files: list[str] = field(default_factory=list)
    """Kinds of files that were written, as paths with a pattern."""
    reused: int = 0
    """Images that were finished before."""


def infer(config: InferConfig, ranks: Ranks) -> Result:
    """Segment the images that `config` names and score them. Collective.

    Raises:
        UserError: see `prepare`; the output folder holds other results; with `strict`, a damaged image.
    """
    setup = prepare(config, ranks)
    output = OutputFolder(setup.folder)
    settings = result_settings(config, setup.model_file, setup.tile, setup.precision.name, ranks.device)
    if not config.overwrite:
        output.refuse_other_settings(settings)
    ranks.barrier()  # nobody writes before all have looked
    if ranks.is_main:
        output.begin(settings)
    ranks.barrier()
    return Job(setup, output, ranks).run()


class Job:
    """One rank's work."""

    def __init__(self, setup: Setup, output: OutputFolder, ranks: Ranks) -> None:
        self.setup, self.output, self.ranks = setup, output, ranks
        self.config = setup.config
        self.records: dict[int, dict[str, Any]] = {}
        self.failures: dict[int, str] = {}
        self.window = blending_window(self.config.blending, setup.tile)

    def run(self) -> Result:
        """Everything from the plan to the scores."""
        found = self._look_around()
        self.records = {index: record for index, (record, _) in found.items() if record is not None}
        self.failures = {index: header.error for index, header in enumerate(self.setup.headers) if header.error}
        reused = len(self.records)
        todo = [index for index in found if index not in self.records and index not in self.failures]
        stretches = [
            Stretch(index, rows, self.setup.tiles_across(index))
            for index in todo
            for rows in remaining(self.setup.tile_rows(index), [part.tile_rows for part in found[index][1]])
        ]
        pieces = assign(stretches, self.ranks.world_size)
        begun = {stretch.image for stretch in stretches}
        self._segment_all(pieces, [index for index in todo if index not in begun])
        self._finish_shared(pieces)
        return self._conclude(reused)

    def _look_around(self) -> dict[int, tuple[dict[str, Any] | None, list[Part]]]:
        """For each image that can be opened its record, if it is finished, and its parts, if it was begun."""
        mine = {}
        for index in range(self.ranks.rank, len(self.setup.headers), self.ranks.world_size):
            image, header = self.setup.inputs.images[index], self.setup.headers[index]
            if header.error:
                continue
            record = self.output.finished_record(image, header)
            if record is not None and self.setup.has_figure(index) and "figure" not in record["files"]:
                record = None
            parts = [] if record else self.output.parts(image, header, list(self.setup.layers(index).dtypes()))
            mine[index] = (record, parts)
        merged: dict[int, tuple[dict[str, Any] | None, list[Part]]] = {}
        for share in self.ranks.gather(mine):
            merged |= share
        return dict(sorted(merged.items()))

    def _segment_all(self, pieces: list[list[Stretch]], only_to_finish: list[int]) -> None:
        """This rank's stretches, one after another; images that are whole here are finished at once."""
        mine = pieces[self.ranks.rank]
        whole = {stretch.image for stretch in mine} - {
            stretch.image for rank, piece in enumerate(pieces) if rank != self.ranks.rank for stretch in piece
        }
        network = self._network() if mine else None
        megapixels = sum(self._pixels(stretch) for stretch in mine) / 1e6
        label = "segmenting" if self.ranks.world_size == 1 else f"segmenting (rank 0 of {self.ranks.world_size})"
        quiet = self.config.quiet or not self.ranks.is_main
        with Progress(label, round(megapixels, 3), "Mpx", quiet=quiet) as progress:
            left = Counter(stretch.image for stretch in mine)
            for stretch in mine:
                assert network is not None
                index = stretch.image
                left[index] -= 1
                with self._failures_noted(index):
                    in_memory = self._segment(network, stretch, index in whole, progress)
                    if in_memory is not None:
                        self._finish(index, in_memory)
                    elif index in whole and not left[index]:
                        self._finish(index)
        for index in only_to_finish[self.ranks.rank :: self.ranks.world_size]:
            with self._failures_noted(index):
                self._finish(index)

    def _finish_shared(self, pieces: list[list[Stretch]]) -> None:
        """When all ranks are done: images that lay on several are finished by the rank that had their top."""
        failures = self.ranks.gather(self.failures)
        failed = {index for share in failures for index in share}
        owners: dict[int, int] = {}
        shared = set()
        for rank, piece in enumerate(pieces):
            for stretch in piece:
                if owners.setdefault(stretch.image, rank) != rank:
                    shared.add(stretch.image)
        for index in sorted(shared - failed):
            if owners[index] == self.ranks.rank:
                with self._failures_noted(index):
                    self._finish(index)

    def _conclude(self, reused: int) -> Result:
        """Gather what all ranks did; rank 0 writes scores and failures."""
        records: dict[int, dict[str, Any]] = {}
        failures: dict[int, str] = {}
        for theirs, failed in self.ranks.gather((self.records, self.failures)):
            records |= theirs
            failures |= failed
        images = self.setup.inputs.images
        names = [info.name for info in self.setup.card.classes]
        scored = [
            records[index]["scores"] | {"name": images[index].name}
            for index in sorted(records)
            if records[index]["scores"]
        ]
        scores = summarize(names, scored) if scored else None
        listed = [{"image": images[index].path, "error": failures[index]} for index in sorted(failures)]
        if self.ranks.is_main:
            part, parts = self.config.task_part()
            suffix = f"-{part}-of-{parts}" if parts > 1 else ""
            if scores is not None:
                write_json(self.setup.folder / f"scores{suffix}.json", scores)
            failures_file = self.setup.folder / f"failures{suffix}.json"
            if listed:
                write_json(failures_file, listed)
            else:
                failures_file.unlink(missing_ok=True)
        kinds = sorted({kind for record in records.values() for kind in record["files"]})
        return Result(self.setup.folder, len(images), listed, scores, kinds, reused)

    def _network(self) -> TileNetwork:
        model, card = load_model(self.setup.model_file, str(self.ranks.device))
        if self.config.compile:
            model = torch.compile(model)  # type: ignore[assignment]
        return TileNetwork(
            model,
            len(card.classes),
            card.mean,
            card.std,
            self.ranks.device,
            stride_multiple=card.stride_multiple,
            precision=self.setup.precision,
            flips=self.config.flips,
            channels_last=self.config.channels_last,
        )

    def _pixels(self, stretch: Stretch) -> int:
        rows, region = self.setup.grid(stretch.image).rows, self.setup.region(stretch.image)
        top = max(rows.finished(stretch.rows.start)[0], region.top)
        bottom = min(rows.finished(stretch.rows.stop - 1)[1], region.bottom)
        return (bottom - top) * (region.right - region.left)

    def _segment(
        self, network: TileNetwork, stretch: Stretch, whole: bool, progress: Progress
    ) -> dict[str, Rows] | None:
        """Compute a stretch; returns its layers if they are kept in memory, else they are in parts."""
        index = stretch.image
        layers, region = self.setup.layers(index), self.setup.region(index)
        image, header = self.setup.inputs.images[index], self.setup.headers[index]
        shape = (region.bottom - region.top, region.right - region.left)
        in_memory = (
            whole
            and stretch.rows == self.setup.tile_rows(index)
            and shape[0] * shape[1] * layers.bytes_per_pixel() <= MEMORY_LIMIT
        )
        if in_memory:
            arrays = {name: np.empty(shape, dtype) for name, dtype in layers.dtypes().items()}
            for rows, found in self._rows(network, stretch, layers):
                for name, array in arrays.items():
                    array[rows.top - region.top : rows.bottom - region.top] = found[name]
                progress.advance((rows.bottom - rows.top) * shape[1] / 1e6)
            return {name: MemoryRows(array) for name, array in arrays.items()}
        folder = self.output.begin_parts(image, header, list(layers.dtypes()))
        writer = PartWriter(folder, stretch.rows.start, layers.dtypes())
        complete = False
        try:
            for rows, found in self._rows(network, stretch, layers):
                writer.append(rows.tile_row, rows.top, rows.bottom, found)
                progress.advance((rows.bottom - rows.top) * shape[1] / 1e6)
            complete = True
        finally:
            writer.close(complete=complete)
        return None

    def _rows(
        self, network: TileNetwork, stretch: Stretch, layers: Layers
    ) -> Iterator[tuple[FinishedRows, dict[str, np.ndarray]]]:
        """The layers of the rows that a stretch finishes, as they come."""
        index = stretch.image
        grid, path = self.setup.grid(index), self.setup.inputs.images[index].path
        weights = Weights(grid, self.window, network.device)
        with open_image(path) as image:

            def read(top: int, bottom: int, left: int, right: int) -> np.ndarray:
                return match_channels(image.read(top, bottom, left, right), network.channels, path)

            def encoded(read: Any) -> Iterator[Arriving[FinishedRows]]:
                for rows in finished_rows(network, read, grid, self.window, stretch.rows, self.setup.region(index)):
                    yield Arriving(rows, layers.encode(rows, weights))

            if network.device.type == "cuda":
                with ReadAhead(read, grid.rows.size) as ahead:
                    yield from self._checked_rows(encoded(ahead), network.device, path)
            else:
                yield from self._checked_rows(encoded(read), network.device, path)

    def _checked_rows(
        self, results: Iterator[Arriving[FinishedRows]], device: torch.device, path: str
    ) -> Iterator[tuple[FinishedRows, dict[str, np.ndarray]]]:
        for rows, found in arrived(results, device):
            if found[MASK].max() == NOT_A_NUMBER:
                raise UserError(
                    f"{path}: the network returned NaN in rows {rows.top} to {rows.bottom}; "
                    f"{'try --precision fp32' if self.setup.precision.name != 'fp32' else 'is the model trained well?'}"
                )
            yield rows, found

    def _finish(self, index: int, layers: dict[str, Rows] | None = None) -> None:
        """Write an image's files from its layers, score it, note it as finished."""
        setup, image, header = self.setup, self.setup.inputs.images[index], self.setup.headers[index]
        region = setup.region(index)
        rows = layers or self._from_parts(index)
        truth = None
        scores = None
        try:
            if image.mask is not None and setup.inputs.masks is not None:
                truth = setup.inputs.masks.open(image.mask)
                confusion = confusion_of_image(truth, rows[MASK], len(setup.card.classes), region.top, region.left)
                scores = image_scores(confusion) | {"image": image.path, "mask": image.mask}
            files = write_layers(setup, index, rows)
            with open_image(image.path) as opened:
                files |= write_pictures(setup, index, rows, opened, truth, scores)
        finally:
            if truth is not None:
                truth.close()
        if scores is not None:
            scores["prediction"] = files[MASK]
        record = {"source": source_of(image, header), "files": files, "scores": scores}
        self.output.write_record(image, record)
        self.records[index] = record

    def _from_parts(self, index: int) -> dict[str, Rows]:
        setup, image = self.setup, self.setup.inputs.images[index]
        layers, region = setup.layers(index), setup.region(index)
        parts = self.output.parts(image, setup.headers[index], list(layers.dtypes()))
        folder = self.output.parts_folder(image)
        if remaining(setup.tile_rows(index), [part.tile_rows for part in parts]):
            raise UserError(f"{image.path}: rows are missing in {folder}; run the same command again to compute them")
        width = region.right - region.left
        return {name: PartRows(folder, parts, name, dtype, width) for name, dtype in layers.dtypes().items()}

    @contextmanager
    def _failures_noted(self, index: int) -> Iterator[None]:
        """Turn what is wrong with one image into an entry of the failure list; `strict` raises it."""
        try:
            yield
        except UserError as error:
            if self.config.strict or isinstance(error, NetworkError):
                error.on_this_rank = True
                raise
            path = self.setup.inputs.images[index].path
            self.failures[index] = str(error) if path in str(error) else f"{path}: {error}"
            warn(f"rank {self.ranks.rank}: {self.failures[index]}" if self.ranks.rank else self.failures[index])
