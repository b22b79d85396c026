"""Verify a whole set: every checksum and every record."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from segdist.core.errors import UserError
from segdist.core.paths import MANIFEST
from segdist.core.terminal import Progress
from shards.manifest import IGNORE
from shards.read.reader import ShardSet, size_problem
from shards.records import END, keys, record_crc


def verify(folder: Path, *, quiet: bool = False) -> list[str]:
    """Read a whole set and compare it with the manifest: sizes, checksums, each record's pixels, labels and counts.

    Returns:
        The problems, one per line; empty for an intact set.

    Raises:
        UserError: there is no finished set to verify.
    """
    shard_set = ShardSet(folder, check="none")
    manifest = shard_set.manifest
    problems = []
    total = sum(shard.bytes for shard in manifest.shards) / 1e6
    with Progress(f"verifying {folder}", total=total, unit="MB", quiet=quiet) as progress:
        for split in ("train", "val"):
            for number, shard in enumerate(manifest.of_split(split)):
                path = folder / shard.file
                if problem := size_problem(folder, shard) or _unreadable(path):
                    problems.append(problem)
                else:
                    with path.open("rb") as file:
                        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                            problems.append(f"{path}: wrong checksum")
                    problems += _record_problems(shard_set, split, number)
                    problems += _frame_problems(shard_set, split, number)
                progress.advance(shard.bytes / 1e6)
    if total_problem := _sum_problem(shard_set) if not problems else None:
        problems.append(total_problem)
    return problems


def _unreadable(path: Path) -> str | None:
    try:
        path.open("rb").close()
    except OSError as error:
        return f"{path}: can't be read ({error.strerror})"
    return None


def _record_problems(shard_set: ShardSet, split: str, number: int) -> Iterator[str]:
    """Records whose pixels or labels don't match the index."""
    manifest = shard_set.manifest
    patch, classes = manifest.patch, len(manifest.classes)
    try:
        index = shard_set.index(split, number)
    except UserError as error:
        yield str(error)
        return
    for record in range(len(index)):
        try:
            image, mask = shard_set.read(split, np.array([number]), np.array([record]))
        except UserError as error:
            yield str(error)
            continue
        counts = np.bincount(mask.ravel(), minlength=256)
        name = shard_set.name(split, number, record)
        if record_crc(image[0], mask[0]) != index["crc"][record]:
            yield f"{name}: wrong checksum"
        elif counts[:classes].sum() + counts[IGNORE] != patch**2 or (counts[:classes] != index["counts"][record]).any():
            yield f"{name}: labels that don't match the index"


def _frame_problems(shard_set: ShardSet, split: str, number: int) -> Iterator[str]:
    """Records of an npy shard with unexpected headers; the reader relies on their position alone."""
    manifest, layout = shard_set.manifest, shard_set.layout
    if manifest.encoding != "npy":
        return  # the headers of PNG members are checked on every read
    info = manifest.of_split(split)[number]
    row = np.empty((1, layout.stride), np.uint8)
    for record in range(info.samples):
        shard_set.gather(split, np.array([number]), np.array([record]), row)
        layout.images(row)[:] = 0
        layout.masks(row)[:] = 0
        if not np.array_equal(row, layout.frame(keys(info.number, record, 1))):
            yield f"{shard_set.folder / info.file} record {record}: damaged header"
    with (shard_set.folder / info.file).open("rb") as file:
        file.seek(info.samples * layout.stride)
        if file.read() != END:
            yield f"{shard_set.folder / info.file}: damaged end"


def _sum_problem(shard_set: ShardSet) -> str | None:
    """The mismatch between the manifest's class counts and those of the indices, if any."""
    manifest = shard_set.manifest
    counts = np.zeros(len(manifest.classes), np.int64)
    for number in range(len(manifest.of_split("train"))):
        counts += shard_set.index("train", number)["counts"].sum(axis=0, dtype=np.int64)
    if tuple(counts.tolist()) != manifest.pixels:
        return f"{shard_set.folder / MANIFEST}: pixels per class {manifest.pixels}, but the shards hold {tuple(counts)}"
    return None
