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
    """Drawn images: lines and ellipses on noise. Used where no images of your own are given."""

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
    """Which files of the folder (`*.png`; `**/*.tif` searches folders inside as well)."""
    orientation: Orientation = "auto"
    """Where only one of image and mask has an orientation tag (EXIF, TIFF): apply it (the mask was drawn on the picture
    as viewers show it) or ignore it (on the pixels as they are stored). auto: as the sizes say."""
    unlabelled: Literal["refuse", "skip"] = "refuse"
    """Images without a mask: refuse, or skip: leave them out."""
    csv: Path | None = None
    """Instead of a folder: a CSV file with the columns image, mask and, if wanted, split (train, val, test)."""
    upright: Literal["auto", "yes", "no"] = "auto"
    """Whether the images have an up, as street scenes have: then training never turns them upside down. auto: where
    the classes lie shows it."""


@dataclass(frozen=True)
class SplitConfig:
    """Which source images go where. All patches of an image, and all images of a group, stay in one split."""

    validation: PartialShare | None = None
    """Share of the training images (or groups) that validate; left out: 0.1, none of very few, at most 200."""
    test: PartialShare | None = None
    """Share of your own images that is held out; left out: 0.15, none where a list or names say it, at most 200."""
    group: str = ""
    """Regular expression on the image's name; images with the same match stay together (`sub-rat\\d+`)."""
    test_images: tuple[str, ...] = ()
    """Names or patterns of the images that are held out (`sub-rat1*`)."""
    validation_images: tuple[str, ...] = ()
    """Names or patterns of the images that validate, instead of a share."""
    train_list: Path | None = None
    """Text file with the names of the training images, one a line; images in no list are left out then."""
    validation_list: Path | None = None
    """Text file with the names of the validation images."""
    test_list: Path | None = None
    """Text file with the names of the held-out images."""


@dataclass(frozen=True)
class PatchesConfig:
    """How patches are cut."""

    size: Annotated[int, Range(0, 65536)] = 0
    """Side of a patch in pixels; 0: from the sizes of images and objects (drawn images: 96). Images that are smaller
    are completed by reflection."""
    per_image: CountOrZero = 0
    """Random patches per image; 0: so many that they cover it about three times (drawn images: 20)."""
    drop_background: bool = True
    """Leave out patches that hold nothing but background (label 0)."""
    balance: Share | None = None
    """Share of the patches that are placed on a pixel of a class drawn at random among those of the image, so that
    rare classes are seen more often; 0 places all of them anywhere. Left out: 0.33 where a class is rare, else 0."""
    scale: Literal[0, 1, 2, 4] = 0
    """Reduce images by this factor, by area mean, before patches are cut; inference does the same and enlarges what it
    finds. 0: 2 or 4 where objects are larger than patches and classes stay wide enough."""
    channels: Count | None = None
    """Channels of the stored patches; 3 repeats gray images. Left out: those of the images; 1 for color files that
    are gray all over, 3 where some are gray and some are not."""


@dataclass(frozen=True)
class SetConfig:
    """What a shard set is made of."""

    seed: Seed = 0
    """Everything random is drawn from it: images, positions, the split."""
    encoding: Literal["npy", "png"] = "npy"
    """npy is read fastest; png takes less space, for photographs on slow disks."""
    shard_mb: Count = 64
    """Size to aim at for one shard, in megabytes of uncompressed patches."""
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
    """Where shard sets live."""
    processes: Threads = 0
    """Worker processes; 0: one per core. The bytes don't depend on it."""
    task: str = ""
    """`i/n`: build only this share of the shards (i from 0 to n - 1), as one task of a job array."""
    finish: bool = False
    """Only write the manifest, when all tasks are done."""
    overwrite: bool = False
    """Throw away a set of that name and build anew."""

    @property
    def folder(self) -> Path:
        return self.root / self.name

    @property
    def own_data(self) -> bool:
        return self.images.folder is not None or self.images.csv is not None

    @property
    def mask_settings(self) -> MasksConfig:
        """The masks' settings; those of the drawn images where there are no own ones."""
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
        """Refuse what can't be built, before anything is read or written. Raises UserError naming the flags."""
        plain_name(self.name)
        check_ranges(self)
        _require(
            self.patches.size == 0 or self.patches.size >= 8, f"--patches.size {self.patches.size}: at least 8 pixels"
        )
        self.task_share()
        _require(not (self.task and self.finish), "--task and --finish: first all tasks, then --finish on its own")
        _require(
            not (self.overwrite and (self.task or self.finish)),
            f"--overwrite with --task or --finish: one task would throw away the others' shards; "
            f"remove {self.folder} yourself, then start the tasks",
        )
        if self.own_data:
            self._check_own_data()
        else:
            self._check_synthetic()

    def _check_own_data(self) -> None:
        _require(
            self.images.folder is None or self.images.csv is None, "--images.folder and --images.csv: give one of them"
        )
        if self.masks.classes:  # else the values found in the masks are the classes
            self.masks.validate()
        _require(
            not (self.images.csv and self.masks.folder),
            "--masks.folder: the CSV file of --images.csv names the masks",
        )

    def _check_synthetic(self) -> None:
        _require(
            self.masks == MasksConfig() and self.split == SplitConfig(validation=self.split.validation),
            "--masks.* and --split.* (but for --split.validation) are for your own images; "
            "say where they are with --images.folder or --images.csv",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)
