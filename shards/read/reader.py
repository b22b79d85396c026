"""An open shard set: copies samples straight out of mapped tars, and detects damage before they are used.

In an npy set every record is a row of one array (`shards.read.mapping`), and any number of records is copied out of the
page cache by one call: pixels, labels and tar headers alike. Images and masks are views of the copied rows.

B samples, C channels, P patch side.
"""

import hashlib
import io
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segdist.core.errors import UserError
from shards.manifest import Manifest, ShardInfo, read_manifest
from shards.pixels import Pixels
from shards.read.mapping import MappedShards
from shards.read.order import Int64
from shards.read.remote import RemoteSet, is_url
from shards.records import BLOCK, END, NpyLayout, decode_png, headers, index_dtype, keys, record_crc

Check = Literal["none", "sizes", "shards", "records"]

NPY_HEADER = 2**16
"""More bytes than the header of any index."""

INDICES = 2048
"""Indices of shards that are kept in memory, a few dozen bytes per record."""


class ShardSet:
    """A finished shard set, open for reading.

    `check` selects the integrity checks before samples are used: "sizes" checks the size of every file when the set is
    opened, and both ends of a shard when it is first used; "shards" also verifies the checksum of each shard when it is
    first used; "records" also that of every record on each read; "none" skips all checks, for callers that do their
    own.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        check: Check = "sizes",
        cache: Path | None = None,
        share: slice = slice(None),
    ) -> None:
        """Open a set and check the sizes of its files.

        Args:
            folder: can be a URL.
            cache: folder for fetched files, for a URL (`shards.read.remote.default_cache`).
            share: the shards whose files to check now; the other ranks check the rest.

        Raises:
            UserError: an unfinished set, missing or truncated files (named), a URL that can't be reached.
        """
        self.check = check
        self._remote = RemoteSet(str(folder), cache) if is_url(folder) else None
        self.folder = self._remote.folder if self._remote else Path(folder)
        self.manifest: Manifest = self._remote.manifest if self._remote else read_manifest(self.folder)
        self.layout = NpyLayout(self.manifest.patch, self.manifest.channels, self.manifest.dtype)
        self._shards = {split: self.manifest.of_split(split) for split in ("train", "val")}
        # Fetched files are checked when they are fetched.
        shards = () if check == "none" or self._remote else self.manifest.shards[share]
        problems = [problem for shard in shards if (problem := size_problem(self.folder, shard))]
        if problems:
            shown = "\n  ".join(problems[:10]) + ("\n  …" if len(problems) > 10 else "")
            raise UserError(
                f"{self.folder}: the shard set is damaged:\n  {shown}\n"
                "copy these files again, or rebuild the set with `segdist make-shards --overwrite`"
            )
        self._mapped = {
            split: MappedShards([shard.bytes for shard in shards], self.layout.stride, partial(self._open, split))
            for split, shards in self._shards.items()
        }
        self._index = lru_cache(maxsize=INDICES)(self._read_index)

    @property
    def is_remote(self) -> bool:
        """True for a set behind a URL, whose files are checked when they are fetched."""
        return self._remote is not None

    def sizes(self, split: str) -> list[int]:
        """Records per shard of a split, as `SampleOrder` takes them."""
        return [shard.samples for shard in self._shards[split]]

    def read(self, split: str, shard: Int64, record: Int64) -> tuple[Pixels, NDArray[np.uint8]]:
        """Samples as new arrays: images (B, C, P, P) of the stored dtype and masks (B, P, P)."""
        rows = np.empty((len(shard), self.layout.stride), np.uint8)
        self.gather(split, shard, record, rows)
        return self.layout.images(rows), self.layout.masks(rows)

    def gather(self, split: str, shard: Int64, record: Int64, rows: NDArray[np.uint8]) -> None:
        """Copy samples into `rows` (B, stride); `layout` locates their images and masks in it.

        Raises:
            UserError: a damaged shard or record, which the message names.
        """
        mapped = self._mapped[split]
        try:
            mapped.require(shard)
        except OSError as error:
            raise UserError(f"{error}; {self._way_out()}") from None
        if self.manifest.encoding == "npy":
            # Use "clip" only because it is the one mode in which numpy writes straight into `out`.
            np.take(mapped.rows, mapped.first_row[shard] + record, axis=0, out=rows, mode="clip")
        else:
            images, masks = self.layout.images(rows), self.layout.masks(rows)
            for place, (number, row) in enumerate(zip(shard.tolist(), record.tolist(), strict=True)):
                self._decode(split, number, row, images[place], masks[place])
        if self.check == "records":
            self._check_records(split, shard, record, rows)

    def index(self, split: str, shard: int) -> NDArray[np.void]:
        """The index of one shard, one entry per record."""
        return self._index(split, shard)

    def name(self, split: str, shard: int, record: int) -> str:
        """Where a sample is stored and where it comes from, for messages."""
        info = self._shards[split][shard]
        try:
            entry = self.index(split, shard)[record]
        except UserError:
            return f"{self.folder / info.file} record {record}"
        source = self.manifest.sources[split][int(entry["source"])]
        return f"{self.folder / info.file} record {record} (from {source.image} at y={entry['y']}, x={entry['x']})"

    def _open(self, split: str, number: int) -> Path:
        """The file of a shard about to be used for the first time, after the configured checks."""
        info = self._shards[split][number]
        path = self.folder / info.file
        if self._remote:
            return self._remote.fetch(info.file, info.sha256, info.bytes)
        if self.check == "shards":
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != info.sha256:
                    raise UserError(f"{path}: damaged (wrong checksum); {self._way_out()}")
        if self.check != "none" and self.manifest.encoding == "npy":
            self._check_ends(path, info)
        return path

    def _check_records(self, split: str, shard: Int64, record: Int64, rows: NDArray[np.uint8]) -> None:
        images, masks = self.layout.images(rows), self.layout.masks(rows)
        for place, (number, row) in enumerate(zip(shard.tolist(), record.tolist(), strict=True)):
            if record_crc(images[place], masks[place]) != self.index(split, number)["crc"][row]:
                raise UserError(f"{self.name(split, number, row)}: damaged (wrong checksum); {self._way_out()}")

    def _check_ends(self, path: Path, info: ShardInfo) -> None:
        """A cheap check: a file with the right size but wrong contents seldom matches at both ends."""
        stride, header = self.layout.stride, self.layout.image_offset
        with path.open("rb") as file:
            for record in {0, info.samples - 1} - {-1}:
                file.seek(record * stride)
                expected = self.layout.frame(keys(info.number, record, 1))[0, :header]
                if file.read(header) != expected.tobytes():
                    raise UserError(f"{path} record {record}: damaged header; {self._way_out()}")
            file.seek(info.samples * stride)
            if file.read() != END:
                raise UserError(f"{path}: damaged end; {self._way_out()}")

    def _decode(self, split: str, number: int, record: int, image: Pixels, mask: NDArray[np.uint8]) -> None:
        content = self._mapped[split].content(number)
        entry = self.index(split, number)[record]
        digits = keys(self._shards[split][number].number, record, 1)
        for name, out in (("image", image), ("mask", mask)):
            at, size = int(entry[f"{name}_at"]), int(entry[f"{name}_bytes"])
            header = headers(digits, f".{name}.png", np.array([size]))[0]
            try:
                if not np.array_equal(content[at - BLOCK : at], header):
                    raise ValueError("damaged header")
                out[...] = decode_png(content[at : at + size].data, self.manifest.patch)
            except (OSError, ValueError, SyntaxError) as error:
                where = self.name(split, number, record)
                raise UserError(f"{where}: damaged ({error}); {self._way_out()}") from None

    def _read_index(self, split: str, number: int) -> NDArray[np.void]:
        info = self._shards[split][number]
        path = self.folder / info.index_file
        if self._remote:
            self._remote.fetch(info.index_file, info.index_sha256, most=self._index_bytes(info))
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path}: can't be read ({error.strerror}); {self._way_out()}") from None
        if hashlib.sha256(content).hexdigest() != info.index_sha256:
            raise UserError(f"{path}: damaged (wrong checksum); {self._way_out()}")
        dtype = index_dtype(len(self.manifest.classes), self.manifest.encoding)
        try:
            entries: NDArray[np.void] = np.load(io.BytesIO(content), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path}: not an index ({error}); {self._way_out()}") from None
        if entries.dtype != dtype or entries.shape != (info.samples,):
            raise UserError(f"{path}: not the index of {info.samples} records; {self._way_out()}")
        sources = len(self.manifest.sources.get(split, ()))
        if info.samples and not 0 <= entries["source"].min() <= entries["source"].max() < sources:
            raise UserError(f"{path}: records from outside the {sources} sources of the split; {self._way_out()}")
        return entries

    def _index_bytes(self, info: ShardInfo) -> int:
        """The maximum size of a shard's index in bytes."""
        dtype = index_dtype(len(self.manifest.classes), self.manifest.encoding)
        return info.samples * dtype.itemsize + NPY_HEADER

    def _way_out(self) -> str:
        return f"copy the file again, or rebuild {self.folder} with `segdist make-shards --overwrite`"


def size_problem(folder: Path, shard: ShardInfo) -> str | None:
    """What is wrong with a shard's files, judging by names and sizes."""
    path = folder / shard.file
    try:
        size = path.stat().st_size
    except OSError as error:
        return f"{path}: can't be read ({error.strerror})"
    if size != shard.bytes:
        return f"{path}: {size} bytes instead of {shard.bytes}"
    return None if (folder / shard.index_file).exists() else f"{folder / shard.index_file}: missing"
