"""The settings of `segdist make-shards`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from segdist.core.errors import UserError
from segdist.core.paths import plain_name
from segdist.core.ranges import Count, CountOrZero, PartialShare, Range, Seed, Share, Threads, check_ranges
from shards.build.synthetic import CLASSES
from shards.images.config import MasksConfig, synthetic_masks_config
from shards.images.orientation import Orientation


@dataclass(frozen=True)
class SyntheticConfig:
    """Synthetic images: lines and ellipses on noise. Used if you give no images of your own."""

    train: Count = 100
    """Images for training and validation."""
    test: CountOrZero = 10
    """Held-out images."""
    width: Count = 200
    """Pixels."""
    height: Count = 400
    """Pixels."""


@dataclass(frozen=True)
class ImagesConfig:
    """Your own images."""

    folder: Path | None = None
    """Folder of the images: PNG, JPEG, TIFF, …; 8 or 16 bit, gray or RGB."""
    pattern: str = "*"
    """Which files of the folder (`*.png`; `**/*.tif` also searches subfolders)."""
    orientation: Orientation = "auto"
    """If only one of image and mask has an orientation tag (EXIF, TIFF): apply it (the mask was drawn on the picture as
    viewers show it) or ignore it (on the pixels as stored). auto: decide by the sizes."""
    unlabelled: Literal["refuse", "skip"] = "refuse"
    """Images without a mask: refuse, or skip to leave them out."""
    csv: Path | None = None
    """Instead of a folder: a CSV file with the columns image, mask and, optionally, split (train, val, test)."""
    upright: Literal["auto", "yes", "no"] = "auto"
    """Whether the images have a fixed up direction, like street scenes; if so, training never flips them upside down.
    auto: decide by where the classes are."""


@dataclass(frozen=True)
class SplitConfig:
    """Which source images go where. All patches of an image, and all images of a group, stay in one split."""

    validation: PartialShare | None = None
    """Fraction of the training images (or groups) used for validation; default: 0.1, none of very few, at most 200."""
    test: PartialShare | None = None
    """Fraction of your own images to hold out; default: 0.15, none if a list or names say which, at most 200."""
    group: str = ""
    """Regular expression on the image's name; images with the same match stay together (`sub-rat\\d+`)."""
    test_images: tuple[str, ...] = ()
    """Names or patterns of the images to hold out (`sub-rat1*`)."""
    validation_images: tuple[str, ...] = ()
    """Names or patterns of the validation images, instead of a fraction."""
    train_list: Path | None = None
    """Text file with the names of the training images, one per line; images in no list are then left out."""
    validation_list: Path | None = None
    """Text file with the names of the validation images."""
    test_list: Path | None = None
    """Text file with the names of the held-out images."""


@dataclass(frozen=True)
class PatchesConfig:
    """How patches are cut."""

    size: Annotated[int, Range(0, 65536)] = 0
    """Side of a patch in pixels; 0: chosen by the sizes of images and objects (synthetic images: 96). Smaller images
    are padded by reflection."""
    per_image: CountOrZero = 0
    """Random patches per image; 0: enough to cover it about three times (synthetic images: 20)."""
    drop_background: bool = True
    """Leave out patches that hold only background (label 0)."""
    balance: Share | None = None
    """Fraction of the patches centered on a pixel of a class drawn at random from the image's classes, so that rare
    classes are seen more often; 0 places all patches anywhere. Default: 0.33 if a class is rare, else 0."""
    scale: Literal[0, 1, 2, 4] = 0
    """Downscale images by this factor (area mean) before patches are cut; inference does the same and upscales its
    results. 0: 2 or 4 if objects are larger than patches and classes stay wide enough, else 1."""
    channels: Count | None = None
    """Channels of the stored patches; 3 repeats gray images. Default: those of the images; 1 for color files that are
    gray throughout, 3 if only some are."""


@dataclass(frozen=True)
class SetConfig:
    """The settings that determine a shard set's contents."""

    seed: Seed = 0
    """Seed of everything random: images, positions, the split."""
    encoding: Literal["npy", "png"] = "npy"
    """npy reads fastest; png takes less space, for photographs on slow disks."""
    shard_mb: Count = 64
    """Target size of a shard, in megabytes of uncompressed patches."""
    synthetic: SyntheticConfig = field(default_factory=SyntheticConfig)
    images: ImagesConfig = field(default_factory=ImagesConfig)
    masks: MasksConfig = field(default_factory=MasksConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    patches: PatchesConfig = field(default_factory=PatchesConfig)


@dataclass(frozen=True)
class MakeShardsConfig(SetConfig):
    """Settings of `segdist make-shards`."""

    name: Annotated[str, tyro.conf.arg(aliases=["-f"])] = "synthetic"
    """Name of the shard set: the folder under `root`."""
    root: Path = Path("data")
    """Folder that holds all shard sets."""
    processes: Threads = 0
    """Worker processes; 0: one per core. The bytes don't depend on it."""
    task: str = ""
    """`i/n`: build only this part of the shards (i from 0 to n - 1), as one task of a job array."""
    finish: bool = False
    """Only write the manifest, once all tasks are done."""
    overwrite: bool = False
    """Delete any set of that name and rebuild it."""

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def own_data(self) -> bool:
        return self.images.folder is not None or self.images.csv is not None

    @property
    def mask_settings(self) -> MasksConfig:
        """The settings for masks; for synthetic images, those that fit them."""
        return self.masks if self.own_data else synthetic_masks_config(CLASSES)

    def task_share(self) -> tuple[int, int]:
        """(i, n) of `task`; (0, 1) without."""
        if not self.task:
            return 0, 1
        left, slash, right = self.task.partition("/")
        if not (slash and left.isdigit() and right.isdigit() and int(left) < int(right)):
            raise UserError(f"--task {self.task!r}: write i/n with i from 0 to n - 1, for example 0/8 … 7/8")
        return int(left), int(right)

    def validate(self) -> None:
        """Refuse impossible settings before anything is read or written. Raises UserError naming the flags."""
        plain_name(self.name)
        check_ranges(self)
        _require(
            self.patches.size == 0 or self.patches.size >= 8, f"--patches.size {self.patches.size}: at least 8 pixels"
        )
        self.task_share()
        _require(
            not (self.task and self.finish),
            "--task and --finish can't be combined: run all tasks first, then --finish on its own",
        )
        _require(
            not (self.overwrite and (self.task or self.finish)),
            f"--overwrite with --task or --finish: one task would delete the others' shards; "
            f"remove {self.folder} yourself, then start the tasks",
        )
        if self.own_data:
            self._check_own_data()
        else:
            self._check_synthetic()

    def _check_own_data(self) -> None:
        _require(
            self.images.folder is None or self.images.csv is None,
            "--images.folder and --images.csv can't be combined; choose one",
        )
        if self.masks.classes:  # otherwise the values found in the masks become the classes
            self.masks.validate()
        _require(
            not (self.images.csv and self.masks.folder),
            "--masks.folder and --images.csv can't be combined: the CSV file names the masks",
        )

    def _check_synthetic(self) -> None:
        _require(
            self.masks == MasksConfig() and self.split == SplitConfig(validation=self.split.validation),
            "--masks.* and --split.* (except --split.validation) only apply to your own images; "
            "give them with --images.folder or --images.csv",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
