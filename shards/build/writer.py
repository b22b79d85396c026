"""Write one shard: its tar, its index, and the note that marks it complete.

The index (`<shard>.index.npy`) is a structured array, one entry per record: the source image's number in its split,
the patch's corner, a CRC-32 of the pixels and labels, the pixels per class, and for PNG the positions of the members.
"""

import hashlib
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from segdist.core.errors import UserError
from segdist.core.files import whole_file, write_json
from segdist.core.formats import stamped
from segdist.core.keyed import Purpose, generator
from segdist.core.parsing import to_dict
from segdist.core.paths import INDEX_SUFFIX
from shards.build.config import MakeShardsConfig
from shards.build.patches import Patches, cut_patches
from shards.build.sources import Source, reduced
from shards.manifest import IGNORE, ClassInfo
from shards.pixels import Pixels
from shards.records import END, MAX_RECORDS, NpyLayout, index_dtype, png_records, record_crc

NOTE_FORMAT = 1
"""Version of the notes."""

_SPLIT_KEY = {"train": 0, "val": 1, "test": 2}


@dataclass(frozen=True)
class Unit:
    """The work of one shard: a run of one split's sources. A unit of the test split writes no tar."""

    split: str
    number: int
    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05}"


@dataclass(frozen=True)
class ShardNote:
    """The facts about a complete shard; the manifest is made from these. Sums are exact integers."""

    name: str
    samples: int = 0
    bytes: int = 0
    sha256: str = ""
    index_sha256: str = ""
    sums: tuple[int, ...] = ()
    """Per channel, over all pixels."""
    squares: tuple[int, ...] = ()
    pixels: tuple[int, ...] = ()
    """Per class."""
    ignored: int = 0
    digests: tuple[str, ...] = ()
    """Digest of the pixels of each source image; empty for synthetic ones."""
    contents: tuple[str, ...] = ()
    """Digest of the pixels and labels of each."""


@dataclass(frozen=True)
class Target:
    """The format that all shards of a set share."""

    config: MakeShardsConfig
    classes: tuple[ClassInfo, ...]
    channels: int
    dtype: str

    @property
    def layout(self) -> NpyLayout:
        return NpyLayout(self.config.patches.size, self.channels, self.dtype)


def build_shard(unit: Unit, target: Target, note_path: Path) -> None:
    """Write the unit's files atomically, the note last.

    Raises:
        UserError: a source that can't be used, or a full disk.
        UnknownLabels: a mask with values in no class.
    """
    folder = target.config.folder
    digests, contents = [], []
    if unit.split == "test":
        for source in unit.sources:
            with source.open(target.config, target.channels) as image:  # draws and writes it, or checks it
                digests.append(image.digest)
                contents.append(image.content)
        write_note(note_path, ShardNote(unit.name, digests=tuple(digests), contents=tuple(contents)))
        return
    with whole_file(folder / f"{unit.name}.tar") as file:
        writer = ShardWriter(file, unit.number, target)
        for source in unit.sources:
            random = generator(target.config.seed, Purpose.POSITIONS, _SPLIT_KEY[unit.split], source.number)
            with source.open(target.config, target.channels) as image:
                for patches in cut_patches(reduced(image, target.config.patches.scale), target.config.patches, random):
                    writer.add(patches, source.number)
                digests.append(image.digest)
                contents.append(image.content)
        writer.finish()
    index = writer.index()
    with whole_file(folder / f"{unit.name}{INDEX_SUFFIX}") as file:
        file.write(index)
    note = writer.note(unit.name, index)
    write_note(note_path, replace(note, digests=tuple(digests), contents=tuple(contents)))


class ShardWriter:
    """Appends patches to an open tar and keeps its checksum, sums and index."""

    def __init__(self, file: BinaryIO, number: int, target: Target) -> None:
        self._file, self._number, self._target = file, number, target
        self._layout = target.layout
        self._digest = hashlib.sha256()
        self._entries: list[NDArray[np.void]] = []
        self._bytes = self._samples = 0
        self._sums = [0] * target.channels
        self._squares = [0] * target.channels
        self._labels = np.zeros(256, np.int64)

    def add(self, patches: Patches, source: int) -> None:
        """Append patches of one source image. Raises UserError if the shard gets too many."""
        count = len(patches.images)
        if self._samples + count > MAX_RECORDS:
            raise UserError(f"more than {MAX_RECORDS} patches in one shard; lower --shard-mb")
        entries = np.zeros(count, index_dtype(len(self._target.classes), self._target.config.encoding))
        content: bytes | memoryview
        if self._target.config.encoding == "npy":
            content = self._layout.pack(self._number, self._samples, patches.images, patches.masks).data
        else:
            content, places = png_records(self._number, self._samples, patches.images, patches.masks)
            for column, name in enumerate(("image_at", "image_bytes", "mask_at", "mask_bytes")):
                entries[name] = places[:, column] + (self._bytes if name.endswith("_at") else 0)
        self._write(content)
        labels = patches.masks.reshape(count, -1)
        counts = np.bincount(
            (labels + 256 * np.arange(count, dtype=np.int64)[:, None]).ravel(), minlength=256 * count
        ).reshape(count, 256)
        entries["source"], entries["y"], entries["x"] = source, patches.corners[:, 0], patches.corners[:, 1]
        entries["counts"] = counts[:, : len(self._target.classes)]
        entries["crc"] = [record_crc(*pair) for pair in zip(patches.images, patches.masks, strict=True)]
        self._entries.append(entries)
        self._labels += counts.sum(axis=0)
        self._add_sums(patches.images)
        self._samples += count

    def finish(self) -> None:
        """End the tar."""
        self._write(END)

    def index(self) -> bytes:
        """The contents of the index file."""
        empty = np.zeros(0, index_dtype(len(self._target.classes), self._target.config.encoding))
        buffer = io.BytesIO()
        np.save(buffer, np.concatenate([empty, *self._entries]))
        return buffer.getvalue()

    def note(self, name: str, index: bytes) -> ShardNote:
        """The finished shard's note."""
        return ShardNote(
            name=name,
            samples=self._samples,
            bytes=self._bytes,
            sha256=self._digest.hexdigest(),
            index_sha256=hashlib.sha256(index).hexdigest(),
            sums=tuple(self._sums),
            squares=tuple(self._squares),
            pixels=tuple(self._labels[: len(self._target.classes)].tolist()),
            ignored=int(self._labels[IGNORE]),
        )

    def _write(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self._digest.update(content)
        self._bytes += memoryview(content).nbytes

    def _add_sums(self, images: Pixels) -> None:
        # Histograms are exact, and faster than summing widened pixels.
        values = np.arange(np.iinfo(images.dtype).max + 1, dtype=np.int64)
        for channel in range(images.shape[1]):
            histogram = np.bincount(np.ascontiguousarray(images[:, channel]).ravel(), minlength=len(values))
            self._sums[channel] += int(histogram @ values)
            self._squares[channel] += int(histogram @ (values * values))


def write_note(path: Path, note: ShardNote) -> None:
    """Mark a shard as complete."""
    write_json(path, stamped(to_dict(note), NOTE_FORMAT))
