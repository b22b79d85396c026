"""What an inference job knows before its first tile: the model, the images that fit it, and their grids."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.memory import available_memory
from segdist.core.paths import PREDICTIONS
from segdist.core.terminal import warn
from segdist.inference.config import InferConfig
from segdist.inference.enlarge import Scale
from segdist.inference.grid import TileGrid, make_grid
from segdist.inference.inputs import Header, InputImage, find_inputs, read_headers
from segdist.inference.layers import Layers
from segdist.inference.tiler import Region
from segdist.model.card import ModelCard, read_agreeing_cards, resolve_ensemble
from segdist.model.precision import Precision, choose_precision
from segdist.model.share_intervals import ShareIntervals
from segdist.model.trust import require_trust
from segdist.ranks.process_group import Ranks
from shards.images.masks import MaskReader
from shards.images.orientation import decide_orientation

FIGURE_LIMIT = 16 * 2**20
"""Largest image, in pixels, that gets a figure; larger ones only get a preview."""


@dataclass(frozen=True, eq=False)
class ImageTask:
    """One image to segment, with all that is known about it before its first tile."""

    number: int
    """Its place in the job's list; all ranks have the same list."""
    name: str
    """Unique in the job; names the output files. May contain folders."""
    path: str
    mask: str | None
    header: Header
    region: Region
    """The part to segment."""
    scale: Scale
    grid: TileGrid
    """Of the image as reduced by `scale`."""
    layers: Layers
    has_figure: bool
    fold: int = 0
    """The fold that holds the image out, and whose model segments it; 0: all models do."""

    @property
    def tile_rows(self) -> range:
        """The tile rows that finish rows of the region."""
        return self.scale.finishing(self.grid.rows, self.region.top, self.region.bottom)

    @property
    def tiles_across(self) -> int:
        """Number of tiles per tile row that the region needs."""
        return len(self.grid.columns.touching(*self.scale.columns(self.region.left, self.region.right)))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the result."""
        return self.region.bottom - self.region.top, self.region.right - self.region.left


@dataclass(frozen=True)
class Failure:
    """An image that could not be processed, and why."""

    image: str
    """Its path."""
    error: str


@dataclass(frozen=True)
class Task:
    """Everything known before the first tile. Created without writing anything."""

    config: InferConfig
    cards: tuple[ModelCard, ...]
    """The card of each model; classes, channels, dtype and scale are the same in all."""
    model_files: tuple[Path, ...]
    folder: Path
    """Where everything is written."""
    tile: int
    precision: Precision
    root: str
    """The folder that contains the images, resolved."""
    mask_reader: MaskReader | None
    """Reads the true masks, if there are any."""
    images: tuple[ImageTask, ...] = ()
    """The usable images."""
    unusable: dict[int, Failure] = field(default_factory=dict)
    """The others, by number: they can't be opened, or don't fit the model."""

    @property
    def card(self) -> ModelCard:
        """The first card; its classes, channels, dtype and scale hold for all models."""
        return self.cards[0]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in label order."""
        return [info.name for info in self.card.classes]

    @property
    def share_intervals(self) -> ShareIntervals | None:
        """The intervals that all models share; None if they differ, or calibration is off."""
        of_first = self.card.share_intervals
        same = all(card.share_intervals == of_first for card in self.cards)
        return of_first if same and self.config.calibrated else None

    def models_of(self, fold: int) -> list[Path]:
        """The model files for the images of a fold; see `ImageTask.fold`."""
        models = zip(self.model_files, self.cards, strict=True)
        return [file for file, card in models if not fold or (card.held_out and card.held_out.fold == fold)]


def prepare(config: InferConfig, ranks: Ranks) -> Task:
    """Find the models and images, and read all headers (each rank a share). Collective; writes nothing.

    Raises:
        UserError: the model or the input can't be used; with `strict`, also if a single image can't.
    """
    files = resolve_ensemble(config.models)
    cards = read_agreeing_cards(files)
    for file, card in zip(files, cards, strict=True):
        require_trust(card.model.factory, file, config.trust_factory)  # here, so that a dry run checks it too
    card = cards[0]
    if config.output.disagreement and (len(files) == 1 or config.out_of_fold):
        if config.out_of_fold:
            raise UserError("--output.disagreement: with --out-of-fold, each image is segmented by one model only")
        raise UserError(f"--output.disagreement: {files[0]} is a single model; name several with --model")
    inputs = find_inputs(config, card.classes, [card.held_out for card in cards])
    folder = Path(config.out) if config.out else _home(config.models[0], files) / PREDICTIONS / inputs.label
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder}: is a file; name a folder for the results")
    _refuse_output_among_inputs(folder, config)
    part, parts = config.task_part()
    first, end = (len(inputs.images) * edge // parts for edge in (part, part + 1))
    mine = inputs.images[first:end]
    shares = ranks.gather(read_headers(mine[ranks.rank :: ranks.world_size], card.channels, inputs.masks))
    pairs = [header.pair for share in shares for header in share if header.pair]
    orientation = decide_orientation(pairs, inputs.orientation, "--orientation")
    if (dropped := sum(bool(header.alpha) for share in shares for header in share)) and ranks.is_main:
        warn(f"{dropped} images have a channel tagged as transparency (alpha), which is ignored")
    tile = config.tile or max(card.patch for card in cards)
    images: list[ImageTask] = []
    unusable: dict[int, Failure] = {}
    for number, image in enumerate(mine):
        header = shares[number % ranks.world_size][number // ranks.world_size].turned(orientation)
        if problem := header.error or _problem(header, image.path, card, config, tile):
            unusable[number] = Failure(image.path, problem)
        else:
            # Figures are counted over all tasks of an array.
            figure = first + number < config.output.figures and header.pixels <= FIGURE_LIMIT
            images.append(_image_task(number, image, header, config, card, tile, figure=figure))
    if config.strict and unusable:
        raise UserError(next(iter(unusable.values())).error)
    precision = choose_precision(config.precision, ranks.device)
    models = tuple(cards), tuple(files)
    return Task(config, *models, folder, tile, precision, inputs.root, inputs.masks, tuple(images), unusable)


def _home(named: Path, files: list[Path]) -> Path:
    """The default folder for results: the model's run, or the folder of folds."""
    return files[0].parent if len(files) == 1 else named


def _image_task(
    number: int, image: InputImage, header: Header, config: InferConfig, card: ModelCard, tile: int, *, figure: bool
) -> ImageTask:
    top, left, height, width = config.roi or (0, 0, header.height, header.width)
    scale = Scale(card.scale, header.height, header.width)
    return ImageTask(
        number,
        image.name,
        image.path,
        image.mask,
        header,
        Region(top, top + height, left, left + width),
        scale,
        make_grid(*scale.reduced_shape, tile, config.overlap, config.batch_size, config.borders),
        Layers.wanted(config.output, len(card.classes), figure=figure),
        figure,
        image.fold,
    )


def _refuse_output_among_inputs(folder: Path, config: InferConfig) -> None:
    """Masks written into a folder of images would be segmented by the next run."""
    for name in config.images:
        if os.path.isdir(name) and folder.resolve().is_relative_to(Path(name).resolve()):
            raise UserError(f"--out {folder} is inside --images {name}; choose a folder outside it")


def _problem(header: Header, path: str, card: ModelCard, config: InferConfig, tile: int) -> str:
    """Why the image doesn't fit the model or the region of interest; empty if it does."""
    if header.dtype != card.dtype:
        return (
            f"{path}: {header.dtype} values, but the model was trained on {card.dtype} images; "
            "convert the image, or train on images of this kind"
        )
    if header.channels != card.channels and (header.channels, card.channels) not in ((1, 3), (3, 1)):
        return f"{path}: {header.channels} channels, but the model needs {card.channels}"
    # A lower bound: pixels and class sums of one row of tiles. The model itself needs several times that.
    needed = 4 * header.width * tile * (len(card.classes) + header.channels)
    free = available_memory()
    if free is not None and needed > free:
        return (
            f"{path}: {header.width} pixels wide; its rows need {needed / 1e9:.1f} GB, but only "
            f"{free / 1e9:.1f} GB are free"
        )
    if config.roi:
        top, left, height, width = config.roi
        if top + height > header.height or left + width > header.width:
            return (
                f"{path}: --roi {top} {left} {height} {width} extends beyond the {header.height} x "
                f"{header.width} pixels"
            )
    return ""
