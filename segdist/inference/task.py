"""What an inference job knows before its first tile: model, images, grids, and whether they suit each other."""

import os
from dataclasses import dataclass
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.paths import run_dir
from segdist.inference.config import InferConfig
from segdist.inference.grid import TileGrid, make_grid
from segdist.inference.inputs import Header, Inputs, find_inputs, read_headers
from segdist.inference.layers import Layers
from segdist.inference.tiler import Region
from segdist.model.card import ModelCard, read_card, resolve_model_path
from segdist.model.precision import Precision, choose_precision
from segdist.ranks.process_group import Ranks

FIGURE_LIMIT = 16 * 2**20
"""Pixels up to which an image gets a figure; larger ones have the preview."""


@dataclass(frozen=True)
class Setup:
    """What is known before the first tile: model, images, grids. Made without writing anything."""

    config: InferConfig
    card: ModelCard
    model_file: Path
    inputs: Inputs
    headers: list[Header]
    tile: int
    precision: Precision
    folder: Path
    """Where everything is written."""
    first: int = 0
    """Number of the first image among those of all tasks."""

    def region(self, index: int) -> Region:
        """The part of an image that is segmented."""
        header = self.headers[index]
        if self.config.roi is None:
            return Region(0, header.height, 0, header.width)
        top, left, height, width = self.config.roi
        return Region(top, top + height, left, left + width)

    def grid(self, index: int) -> TileGrid:
        """The tiles of an image."""
        header = self.headers[index]
        config = self.config
        return make_grid(header.height, header.width, self.tile, config.overlap, config.batch_size, config.borders)

    def layers(self, index: int) -> Layers:
        """The layers that an image gets."""
        return Layers.wanted(self.config.output, len(self.card.classes), figure=self.has_figure(index))

    def has_figure(self, index: int) -> bool:
        """Figures are drawn for the first images, if they aren't too large."""
        return self.first + index < self.config.output.figures and self.headers[index].pixels <= FIGURE_LIMIT

    def tile_rows(self, index: int) -> range:
        """The tile rows that finish rows of the region."""
        region = self.region(index)
        return self.grid(index).rows.finishing(region.top, region.bottom)

    def tiles_across(self, index: int) -> int:
        """Tiles of a row that the region needs."""
        region = self.region(index)
        return len(self.grid(index).columns.touching(region.left, region.right))


def prepare(config: InferConfig, ranks: Ranks) -> Setup:
    """Find model and images, read all headers (each rank a share). Collective; writes nothing.

    Raises:
        UserError: the model or the input can't be used; with `strict` any image that can't.
    """
    model_file = resolve_model_path(run_dir(config.model))
    card = read_card(model_file)
    inputs = find_inputs(config, card.classes)
    folder = Path(config.out) if config.out else model_file.parent / "predictions" / inputs.label
    _refuse_output_among_inputs(folder, config)
    part, parts = config.task_part()
    first, end = (len(inputs.images) * edge // parts for edge in (part, part + 1))
    inputs = Inputs(inputs.label, inputs.images[first:end], inputs.masks)
    shares = ranks.gather(read_headers(inputs.images[ranks.rank :: ranks.world_size]))
    headers = [shares[index % ranks.world_size][index // ranks.world_size] for index in range(len(inputs.images))]
    headers = [_checked(header, image.path, card, config) for header, image in zip(headers, inputs.images, strict=True)]
    if config.strict:
        for header in headers:
            if header.error:
                raise UserError(header.error)
    return Setup(
        config,
        card,
        model_file,
        inputs,
        headers,
        config.tile or card.patch,
        choose_precision(config.precision, ranks.device),
        folder,
        first,
    )


def _refuse_output_among_inputs(folder: Path, config: InferConfig) -> None:
    """Masks written into a folder of images would be segmented by the next run."""
    for name in config.images:
        if os.path.isdir(name) and folder.resolve().is_relative_to(Path(name).resolve()):
            raise UserError(f"--out {folder} lies in --images {name}; choose a folder outside it")


def _checked(header: Header, path: str, card: ModelCard, config: InferConfig) -> Header:
    """The header, or one with an error if the image doesn't suit the model or the region of interest."""
    if header.error:
        return header
    if header.dtype != card.dtype:
        return Header(
            error=f"{path}: {header.dtype} values, but the model was trained on {card.dtype} images; "
            "convert the image, or train on images of this kind"
        )
    if header.channels != card.channels and (header.channels, card.channels) not in ((1, 3), (3, 1)):
        return Header(error=f"{path}: {header.channels} channels, but the model needs {card.channels}")
    if config.roi:
        top, left, height, width = config.roi
        if top + height > header.height or left + width > header.width:
            return Header(
                error=f"{path}: --roi {top} {left} {height} {width} reaches outside the {header.height} x "
                f"{header.width} pixels"
            )
    return header
