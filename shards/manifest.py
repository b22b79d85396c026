"""`manifest.json`: the contents of a shard set. Written last and atomically, so a set without one is unfinished."""

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from segdist.core.errors import UserError
from segdist.core.files import write_json
from segdist.core.formats import VERSION_KEY, read_version
from segdist.core.json_values import JsonObject
from segdist.core.parsing import from_dict, to_dict
from segdist.core.paths import INDEX_SUFFIX, MANIFEST
from shards.manifest_rules import impossible

FORMAT_VERSION = 3
"""Version 3 added the groups of sources, version 2 `scale` and `upright`."""
SPLITS = ("train", "val", "test")

IGNORE = 255
"""Stored label of ignored pixels; hence at most 255 classes."""


@dataclass(frozen=True)
class ClassInfo:
    """One class; its position in the manifest is its label."""

    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class SourcePair:
    """An image and its mask; paths relative to the set's folder if inside it, else absolute."""

    image: str
    mask: str | None
    content: str = ""
    """Digest of the pixels and labels that were read; empty for synthetic images."""
    group: str = ""
    """Images in a group stay together in splits and folds; empty: the images in a file are a group."""


@dataclass(frozen=True)
class ShardInfo:
    """One tar and its index (`train-00000.tar`, `train-00000.index.npy`)."""

    file: str
    split: str
    samples: int
    bytes: int
    sha256: str
    index_sha256: str

    @property
    def index_file(self) -> str:
        return self.file.removesuffix(".tar") + INDEX_SUFFIX

    @property
    def number(self) -> int:
        return int(self.file.removesuffix(".tar").rpartition("-")[2])


@dataclass(frozen=True)
class Manifest:
    """A finished shard set. Statistics are those of the train split's patches."""

    format_version: int
    recipe: JsonObject
    """Everything that determines the contents: a rebuild from it gives the same bytes."""
    classes: tuple[ClassInfo, ...]
    patch: int
    """Side of the square patches in pixels."""
    channels: int
    dtype: str
    """Dtype of the stored images: uint8 or uint16. Masks are uint8."""
    encoding: str
    """npy or png."""
    shards: tuple[ShardInfo, ...]
    mean: tuple[float, ...]
    """Per channel, in stored units (0 to 255 for uint8)."""
    std: tuple[float, ...]
    pixels: tuple[int, ...]
    """Per class."""
    ignored_pixels: int
    sources: dict[str, tuple[SourcePair, ...]]
    """Per split; the source numbers in a shard's index refer to its split's list. Test images are never cut."""
    scale: int = 1
    """Patches were cut from images downscaled by this factor (area mean)."""
    upright: bool = False
    """The images have a fixed up direction: upside down they would look wrong."""

    @property
    def fingerprint(self) -> str:
        """Identity of the contents: checksums, classes and statistics, independent of the folder."""
        values = to_dict(self)
        del values["recipe"], values["sources"]
        # Fields new in version 2 count only if they are used, so version 1 sets keep their identity when rebuilt.
        values[VERSION_KEY] = min(self.format_version, 1)
        for name, usual in (("scale", 1), ("upright", False)):
            if values[name] == usual:
                del values[name]
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    def of_split(self, split: str) -> tuple[ShardInfo, ...]:
        """The split's shards, in order."""
        return tuple(shard for shard in self.shards if shard.split == split)

    def samples(self, split: str) -> int:
        """Number of patches in the split."""
        return sum(shard.samples for shard in self.of_split(split))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the set in `folder`.

    Raises:
        UserError: no such folder, no manifest in it, or an unreadable one.
    """
    path = Path(folder) / MANIFEST
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        if not Path(folder).is_dir():
            raise UserError(f"{folder}: no such shard set; make it with `segdist make-shards`") from None
        raise UserError(
            f"{folder}: no {MANIFEST}, so this is an unfinished shard set (or none); "
            "run the same `segdist make-shards` again to finish it"
        ) from None
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror})") from None
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, origin: str) -> Manifest:
    """Parse the manifest in `content` (UTF-8); `origin` names it in errors."""
    try:
        values = json.loads(content.decode())
    except ValueError as error:  # not UTF-8, or not JSON
        raise UserError(f"{origin}: damaged ({error}); rebuild the set with `--overwrite`") from None
    version = read_version(values, FORMAT_VERSION, origin)
    manifest = from_dict(Manifest, {**values, VERSION_KEY: version}, origin)
    if what := impossible(manifest):
        raise UserError(f"{origin}: damaged or forged: {what}; get the set again, or rebuild it with `--overwrite`")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into `folder`, atomically."""
    write_json(Path(folder) / MANIFEST, to_dict(manifest))


def median_frequency_weights(pixels: Sequence[int]) -> list[float]:
    """Weight per class: the median class frequency divided by the class's own; 0 for a class that never occurs.

    As in Eigen and Fergus (ICCV 2015), but with frequencies over the whole split instead of the images of each class.
    """
    present = [count for count in pixels if count]
    middle = statistics.median(present) if present else 0.0
    return [middle / count if count else 0.0 for count in pixels]


def combined_statistics(sums: list[int], squares: list[int], count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel from exact integer sums over `count` pixels."""
    mean = tuple(total / count for total in sums)
    # Compute an exact integer before the only division, so nothing cancels, however large the set.
    variance = [(count * square - total * total) / count**2 for total, square in zip(sums, squares, strict=True)]
    return mean, tuple(max(value, 0.0) ** 0.5 for value in variance)
