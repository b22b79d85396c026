"""All settings of an inference job, as one frozen dataclass."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from segdist.core.errors import UserError
from segdist.core.paths import run_dir
from segdist.core.ranges import Count, CountOrZero, PartialShare, Range, Threads, check_ranges
from segdist.inference.grid import Blending, Borders, stride_of
from segdist.tracking.config import TrackingConfig
from shards.images.config import MasksConfig
from shards.images.mask_names import MaskRule
from shards.images.orientation import Orientation

ProbabilityType = Literal["none", "float32", "float16", "uint16", "uint8"]
FileFormat = Literal["auto", "png", "tiff", "zarr"]


@dataclass(frozen=True)
class OutputConfig:
    """What to write for each image, in addition to the class mask."""

    mask_format: FileFormat = "auto"
    """auto: palette PNG up to 16 megapixels, tiled compressed TIFF above."""
    probabilities: ProbabilityType = "none"
    """Also write a probability map per class. Integers store the probability times the largest value, rounded."""
    probability_format: Literal["npy", "tiff", "zarr"] = "npy"
    """npy and zarr: one array (class, height, width); tiff: one page per class."""
    confidence: bool = False
    """Also write the highest class probability of each pixel, as 8-bit gray (255: certain)."""
    entropy: bool = False
    """Also write the entropy of the class probabilities, divided by the logarithm of the number of classes, as 8-bit
    gray (255: all classes equally likely)."""
    disagreement: bool = False
    """Also write how much the models of an ensemble disagree: the mutual information of class and model, divided by the
    logarithm of the number of classes, as 8-bit gray (0: all agree)."""
    measurements: bool = False
    """Also write CSV tables for each image: area and share of each class; and area, box, centroid, moments, axes,
    perimeter and intensity of each object (connected pixels of a class, except one called background)."""
    previews: bool = True
    """Also write the image overlaid with the classes; large images are downscaled."""
    preview_side: Annotated[int, Range(16, 65535)] = 1024
    """Longest side of a preview in pixels."""
    figures: CountOrZero = 20
    """Number of figures with original, ground truth, prediction and probability maps, for the first images; 0: none."""


@dataclass(frozen=True)
class InferConfig:
    """Segment images of any size with a trained model."""

    model: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-m"])] = ()
    """Run folder (its best model) or model file (.safetensors); a bare name is also searched for under runs/. Several
    form an ensemble, as do the runs fold-1, fold-2 … in a folder: their probabilities are averaged, tile by tile."""
    data: Annotated[str, tyro.conf.arg(aliases=["-f"])] = ""
    """Shard set (name under data/, or folder) whose held-out source images to segment and score."""
    trust_factory: tuple[str, ...] = ()
    """Modules `package.module` whose model factories the model file may name; docs/security.md says why this
    requires trust. Not needed for segdist's own models and for factories you have trained with."""
    split: Literal["test", "val", "train"] = "test"
    """Which of the shard set's images."""
    out_of_fold: bool = False
    """With the models of a cross-validation and their shard set as --data: segment the training and validation images,
    each with the model that was not trained on it."""
    images: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-i"])] = ()
    """Image files, folders, globs, or CSV files with a column `image` and optionally `mask`."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"])] = ""
    """Output folder; default: predictions/<name of the input> in the run folder."""
    tile: CountOrZero = 0
    """Tile side in pixels (of the reduced image, if the model uses one); 0: from the model card, else the side of the
    training patches. On large images, larger tiles with less overlap (256 and 0.25) are as accurate and faster,
    but need more memory."""
    overlap: PartialShare = 0.5
    """Fraction of a tile shared with its neighbor; default: from the model card. 0.5 is the safe choice; 0.25 is nearly
    as good at half the work; more than 0.5 brings no gain. docs/inference.md has the figures."""
    blending: Blending = "mean"
    """How to average overlapping tiles: all pixels equally, or with more weight in the middle of each tile."""
    borders: Borders = "corner"
    """corner: tiles start at the image's corner; full: they start outside (reflected), so that border pixels are
    covered by as many tiles as the others."""
    flips: bool = False
    """Average over the flips of each tile, at four times the work (twice, if the images have a fixed up direction);
    default: from the model card."""
    calibrated: bool = True
    """Use the results of segdist calibrate, if the model card has any: logits are divided by its temperature before the
    softmax, and measured shares get its intervals. Part of the result's identity."""
    batch_size: Annotated[Count, tyro.conf.arg(aliases=["-b"])] = 16
    """Tiles per forward pass. Part of the result's identity: a different number can change the last bits."""
    roi: tuple[CountOrZero, CountOrZero, Count, Count] | None = None
    """Segment only this part of each image: top, left, height, width. The pixels are those of the full result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs; auto: a GPU if available."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast type of the model; probabilities are always summed in fp32."""
    threads: Threads = 0
    """CPU threads per rank; 0: as when the output folder was first started, else the node's cores divided among its
    ranks. Part of the result's identity: a different number can change the last bits."""
    channels_last: bool = True
    """Run the model in NHWC order: a third faster on CPUs, faster with reduced precision on GPUs."""
    compile: bool = False
    """torch.compile the model."""
    task: str = ""
    """i/n: process only the i-th of n parts of the images (i from 0), for job arrays. Afterwards, the same command
    without it merges the scores."""
    orientation: Orientation = "auto"
    """If only one of an image and its true mask has an orientation tag (EXIF, TIFF): apply or ignore it, as in
    make-shards --images.orientation. auto: decide by the sizes, or as the shard set did."""
    strict: bool = False
    """Stop at the first image that can't be processed, instead of reporting it and continuing."""
    overwrite: bool = False
    """Discard results in the output folder that were made with different settings."""
    quiet: bool = False
    """No progress, only warnings and the result."""
    masks: MasksConfig = field(default_factory=MasksConfig)
    """True masks of `images`, for scores: set `folder`. Without `classes`, their values are the model's class numbers.
    A shard set has its own masks."""
    output: OutputConfig = field(default_factory=OutputConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    @property
    def meeting_place(self) -> Path:
        """A folder that all ranks see and can write to: the output folder, or the model's."""
        model = self.models[0]
        return Path(self.out) if self.out else model if model.is_dir() else model.parent

    @property
    def models(self) -> list[Path]:
        """`model` as paths."""
        return [run_dir(name) for name in self.model]

    def validate(self) -> None:
        """Refuse invalid values and combinations before anything is read or written.

        Raises:
            UserError: names the settings.
        """
        check_ranges(self)
        self.tracking.validate()
        if not self.model:
            raise UserError("--model: name a run folder or a model file")
        if len(self.model) > 1 and not self.out:
            raise UserError("several --model: name a folder for their combined results with --out")
        if bool(self.data) == bool(self.images):
            raise UserError("give either --data SET (its held-out images) or --images FILES, FOLDERS …")
        if self.out_of_fold and (not self.data or self.split != "test"):
            raise UserError("--out-of-fold needs --data SET and no --split: it uses all images except the test split")
        if self.masks.folder and self.data:
            raise UserError("--masks.folder only applies to --images; a shard set has its own masks")
        if self.masks.name:
            MaskRule(self.masks.name)
        stride_of(self.tile or 4096, self.overlap)
        if self.roi and (min(self.roi) < 0 or min(self.roi[2:]) < 1):
            raise UserError(
                f"--roi {' '.join(map(str, self.roi))}: give top, left, height, width of a part of the image"
            )
        if self.task and self.overwrite:
            raise UserError(
                "--overwrite would let the tasks of an array discard each other's results; delete the --out folder "
                "instead"
            )
        self.task_part()

    def task_part(self) -> tuple[int, int]:
        """`task` as (i, n); (0, 1) without one."""
        if not self.task:
            return 0, 1
        index, slash, count = self.task.partition("/")
        if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
            raise UserError(f"--task {self.task}: write i/n with i from 0 to n - 1")
        return int(index), int(count)

    def of_this_part(self, file: str) -> str:
        """The name of a job-wide file: scores.json, or in a task of an array scores-1-of-4.json."""
        part, parts = self.task_part()
        stem, dot, suffix = file.partition(".")
        return f"{stem}-{part}-of-{parts}{dot}{suffix}" if parts > 1 else file
